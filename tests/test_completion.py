"""The shell completes commands and options, as after `furnclip --install-completion`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("furnclip tr", "train"), ("furnclip clean est", "estimate"), ("furnclip demo --pro", "--products")],
)
def test_bash_offers(cli: Cli, tmp_path: Path, typed: str, offered: str) -> None:
    words = typed.split()
    asked = {
        "_FURNCLIP_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    assert offered in cli(cwd=tmp_path, env=asked).stdout.split()
