"""The floors of the house: who may import whom, who may print, what `--help` may load.

The rules are read from the source with `ast`, so a late import inside a function counts as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
import typer.main

from furnclip.cli.commands import app

PACKAGE = Path(__file__).parent.parent / "furnclip"
LOWER = ("errors", "config", "console", "journal", "parallel", "storage")
UPPER = (
    "catalogue",
    "images",
    "shards",
    "sources",
    "survey",
    "vectors",
    "model",
    "features",
    "metrics",
    "relevance",
    "runs",
    "viewers",
)
ROOMS = ("fetch", "clean", "prepare", "train", "embed", "evaluate", "search", "arena", "demo", "doctor")
HEAVY = (
    "torch",
    "transformers",
    "openai",
    "boto3",
    "pyarrow",
    "lancedb",
    "numpy",
    "webdataset",
    "PIL",
    "peft",
)


def unit(path: Path) -> str:
    """The room or floor module that a file belongs to: `train` for furnclip/train/loop.py."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@cache
def sources() -> dict[Path, ast.Module]:
    """Every file of the package, parsed once for all rules."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imported_units(tree: ast.AST) -> Iterator[str]:
    """The furnclip rooms and modules that a file imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "furnclip":
            names = [f"furnclip.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        units = (name.split(".")[1] for name in names if name.startswith("furnclip."))
        yield from (name for name in units if name != "__version__")


@cache
def edges() -> dict[str, set[str]]:
    """unit -> the other units that it imports."""
    graph: dict[str, set[str]] = {}
    for path, tree in sources().items():
        graph.setdefault(unit(path), set()).update(imported_units(tree))
    return {name: targets - {name} for name, targets in graph.items()}


def test_every_module_has_a_floor() -> None:
    known = {*LOWER, *UPPER, *ROOMS, "cli", "__init__", "__main__"}
    assert {unit(path) for path in sources()} <= known


def test_rooms_import_floors_only() -> None:
    allowed = {*LOWER, *UPPER, "__init__"}
    wrong = {room: edges().get(room, set()) - allowed for room in ROOMS}
    assert {room: names for room, names in wrong.items() if names} == {}


def test_upper_floor_imports_no_room() -> None:
    allowed = {*LOWER, *UPPER}
    wrong = {name: edges().get(name, set()) - allowed for name in UPPER}
    assert {name: names for name, names in wrong.items() if names} == {}


def test_lower_floor_imports_lower_floor_only() -> None:
    wrong = {name: edges().get(name, set()) - set(LOWER) for name in LOWER}
    assert {name: names for name, names in wrong.items() if names} == {}


def test_floors_have_no_cycle() -> None:
    graph = {
        name: {target for target in edges().get(name, set()) if target in (*LOWER, *UPPER)}
        for name in (*LOWER, *UPPER)
    }
    remaining = dict(graph)
    while remaining:
        free = [name for name, targets in remaining.items() if not targets & remaining.keys()]
        assert free, f"import cycle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


@cache
def users_of() -> dict[str, set[str]]:
    """Dotted names of everything that is called or read, `os.environ`, `print()` -> the units that do."""
    found: dict[str, set[str]] = {}
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.setdefault(f"{node.func.id}()", set()).add(unit(path))
            elif isinstance(node, ast.Attribute):
                found.setdefault(ast.unparse(node), set()).add(unit(path))
    return found


RULES = {
    "print()": {"console"},
    "sys.stdout": {"console"},
    "sys.stderr": {"console"},
    "os.environ": {"config", "parallel"},  # which hands it on to worker processes as it is
    "os.getenv": {"config"},
    "torch.load": set(),
    "tarfile.extractall": set(),
}


@pytest.mark.parametrize(("name", "owners"), RULES.items())
def test_only_the_owner_does_it(name: str, owners: set[str]) -> None:
    # A terminal program has to hold the terminal itself; viewers and the arena's screen may.
    terminal = {"viewers", "arena"} if name.startswith("sys.std") else set()
    assert users_of().get(name, set()) <= owners | terminal


# `model` and `vectors` reach the hub and a bucket inside the libraries that load them.
CONNECTING = (
    "socket",
    "ssl",
    "pycurl",
    "http.client",
    "urllib.request",
    "boto3",
    "openai",
    "requests",
)


def test_only_some_open_connections() -> None:
    users: set[str] = set()
    for path, tree in sources().items():
        names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names += [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
        if any(name == each or name.startswith(f"{each}.") for name in names for each in CONNECTING):
            users.add(unit(path))
    assert users <= {"storage", "fetch", "clean", "doctor", "search"}


@pytest.mark.parametrize(
    "word", ["shell=True", "trust_remote_code=True", "weights_only=False", "extractall("]
)
def test_dangerous_words_are_nowhere(word: str) -> None:
    assert [str(path) for path in sources() if word in path.read_text(encoding="utf-8")] == []


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, list[Path]] = {}
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def command_paths() -> list[tuple[str, ...]]:
    """Every command and sub-command, as the words one types."""

    def walk(command: object, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*words, name))

    return list(walk(typer.main.get_command(app), ()))


def test_help_loads_nothing_heavy() -> None:
    # One interpreter asks every command for help and then looks at what was loaded.
    script = f"""
import sys
from furnclip.cli.commands import app
for words in {command_paths()!r}:
    try:
        app([*words, "--help"], prog_name="furnclip")
    except SystemExit as stop:
        assert not stop.code, words
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"--help loaded {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_first_help_loads_little() -> None:
    """Help of the whole takes 0.2 s; each of these would add a tenth or more of that."""
    script = """
import sys
from furnclip.cli.commands import app
try:
    app(["--help"], prog_name="furnclip")
finally:
    loaded = {"pydantic", "filelock", "httpx", "jinja2", "furnclip.journal"}.intersection(sys.modules)
    sys.exit(f"--help loaded {loaded}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_furnclip_does_not_load_torch() -> None:
    script = "import sys, furnclip; furnclip.ArenaConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "name", ["S3Manager", "EmbeddingGenerator", "ArenaApp", "Searcher", "TrainingConfig"]
)
def test_public_names_exist(name: str) -> None:
    import furnclip

    assert isinstance(getattr(furnclip, name), type)
