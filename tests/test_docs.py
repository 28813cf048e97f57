"""What is said twice must agree: README, tree, help texts, version and changelog."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer.main

import furnclip
from furnclip.cli.commands import COMMANDS as PIPELINE
from furnclip.cli.commands import app
from furnclip.config import load_config
from tests.pages import PAGES, ROOT, blocks

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words one types for it."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", {})
        if words and (not children or getattr(command, "invoke_without_command", False)):
            yield " ".join(words), command
        for name, child in children.items():
            yield from walk(child, (*words, name))

    return walk(typer.main.get_command(app), ())


COMMANDS = dict(commands())


def test_commands_stand_in_pipeline_order() -> None:
    group: Any = typer.main.get_command(app)
    assert group.list_commands(typer.Context(group)) == list(PIPELINE)
    assert set(group.commands) == set(PIPELINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_with_an_example(name: str) -> None:
    command = COMMANDS[name]
    assert command.help, f"`furnclip {name}` has no help"
    assert f"furnclip {name.split()[0]}" in (command.epilog or ""), f"`furnclip {name}` has no example"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    silent = [p.name for p in COMMANDS[name].params if p.name != "help" and not getattr(p, "help", None)]
    assert silent == []


# `init` writes the settings file and `demo` brings its own.
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("init", "demo")])
def test_command_takes_config_and_json(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {"--config", "--json"} <= options


def test_version_is_in_the_changelog() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == furnclip.__version__


def typed_commands(page: Path) -> list[list[str]]:
    """The words of every `furnclip ...` line in a page's shell blocks, as far as its first pipe."""
    lines = [words for block in blocks(page) if block.language != "python" for words in block.lines()]
    return [list(takewhile(lambda word: word != "|", words)) for words in lines if words[0] == "furnclip"]


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_typed_commands_and_their_options_exist(document: Path) -> None:
    for words in typed_commands(document):
        name = next((n for n in (" ".join(words[1:3]), " ".join(words[1:2])) if n in COMMANDS), None)
        if words[1:2] and words[1].startswith("-"):
            continue
        assert name, f"{document.name}: `{' '.join(words)}` is no command"
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        given = {word.split("=")[0] for word in words[2:] if word.startswith("--")} - {"--help"}
        assert given <= known, f"{document.name}: `{' '.join(words)}`"


def test_readme_shows_every_command() -> None:
    shown = {words[1] for words in typed_commands(ROOT / "README.md")}
    assert set(PIPELINE) <= shown


def test_readme_is_short() -> None:
    assert len(README.split()) <= 1200


def test_design_page_tree_matches_the_package() -> None:
    tree = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("<!-- tree -->")[1]
    named = set(re.findall(r"^    (\w+(?:\.py|/)) ", tree, re.MULTILINE))
    package = ROOT / "furnclip"
    actual = {p.name for p in package.glob("*.py")} | {
        f"{p.name}/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"
    }
    assert named == actual


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text) + re.findall(
        r'src="(?!https?:)([^"]+)"', text
    )
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_block_is_run_or_says_why_not(document: Path) -> None:
    for block in blocks(document):
        kind, _, reason = block.mark.partition(": ")
        where = f"{document.name}: `{block.first_line}`"
        if block.mark.startswith("run by "):
            assert (ROOT / block.mark.removeprefix("run by ")).is_file(), where
        else:
            assert kind == "run" or (kind == "not run" and reason), where


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_settings_block_can_be_loaded(document: Path, tmp_path: Path) -> None:
    for text in re.findall(r"^```toml\n(.*?)^```", document.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        (tmp_path / "furnclip.toml").write_text(text, encoding="utf-8")
        load_config(tmp_path / "furnclip.toml")
