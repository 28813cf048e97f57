"""The voice of the tool: errors as two lines, right exit codes, no secrets, plain without colour."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from furnclip import errors
from furnclip.console import format_cell, printable, redact
from tests.conftest import Cli

CODES = {
    "FurnclipError": 1,
    "InputError": 1,
    "ModelError": 1,
    "ModelMismatchError": 1,
    "StorageError": 1,
    "JournalError": 1,
    "ServiceError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "MissingStageError": 2,
    "Interrupted": 130,
}


def test_every_error_has_its_exit_code() -> None:
    classes = {
        name: cls.exit_code
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.FurnclipError)
    }
    assert classes == CODES
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in CODES)


@pytest.mark.parametrize(
    "secret",
    ["sk-proj-abcdef123456", "AKIAIOSFODNN7EXAMPLE", "Authorization: Bearer abc.def"],
)
def test_secrets_are_redacted(secret: str) -> None:
    shown = redact(f"before {secret} after")
    assert secret.split()[-1] not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("so\x1b[2Jfa\r\n") == "so [2Jfa  "
    assert (format_cell(None), format_cell(0.12345), format_cell(7)) == ("-", "0.123", "7")


def test_error_is_two_lines_on_stderr(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("init", "--config", cwd=tmp_path)
    assert outcome.code == 2
    (tmp_path / "furnclip.toml").write_text("[train]\nepoch = 3\n")
    outcome = cli("clean", "run", cwd=tmp_path)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert outcome.stderr.splitlines() == [
        "error: unknown setting `train.epoch` (in `furnclip.toml`, a flag or the environment)",
        "hint: did you mean `train.epochs`?",
    ]


def test_init_writes_and_never_overwrites(cli: Cli, tmp_path: Path) -> None:
    written = cli("init", "--json", cwd=tmp_path).ok().json["written"]
    assert [Path(path).name for path in written] == ["furnclip.toml", ".env.example"]
    (tmp_path / "furnclip.toml").write_text("mine")
    refused = cli("init", cwd=tmp_path)
    assert (refused.code, "exists already" in refused.stderr) == (2, True)
    assert (tmp_path / "furnclip.toml").read_text() == "mine"
    assert json.loads(cli("init", "--force", "--json", cwd=tmp_path).ok().stdout)
    assert (tmp_path / "furnclip.toml").read_text() != "mine"


def test_version(cli: Cli, tmp_path: Path) -> None:
    import furnclip

    assert cli("--version", cwd=tmp_path).ok().stdout.strip() == f"furnclip {furnclip.__version__}"


def test_underscores_work_as_dashes(cli: Cli, tmp_path: Path) -> None:
    dashes = cli("train", "--effective-batch-size", "-1", cwd=tmp_path)
    underscores = cli("train", "--effective_batch_size", "-1", cwd=tmp_path)
    assert "train.effective_batch_size" in dashes.stderr
    assert underscores == dashes
