"""The benchmarks and tools are not part of `pytest`, but what they import from the package must be there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"
SCRIPTS = [
    path.relative_to(BENCH).with_suffix("").as_posix()
    for path in sorted(BENCH.rglob("*.py"))
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_finds_what_it_imports(script: str) -> None:
    assert import_module(f"tests.bench.{script.replace('/', '.')}").__doc__


def test_the_page_lists_every_benchmark() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (BENCH / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [script for script in SCRIPTS if "/" not in script and script != "measure"]
