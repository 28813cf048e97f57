"""What is imported is declared in `pyproject.toml`, and what is declared there is imported."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"furnclip", "tests", "examples", "drawn_shop"}
EXTRAS = {name for name in PROJECT["optional-dependencies"] if name not in ("dev", "bench")}
# Modules of packages that need not be installed where this runs.
HOMES = {
    "faiss": "faiss-cpu",
    "open_clip": "open-clip-torch",
    "qdrant_client": "qdrant-client",
    "sentence_transformers": "sentence-transformers",
    "tomli": "tomli",
}
# Used without an import: the file that runs or configures it, and the words there.
TOOLS = {
    "awscli": ("tests/bench/storage.py", '"aws"'),
    "boto3-stubs": ("furnclip/storage/bucket.py", "boto3.session.Session"),
    "fastapi": ("tests/bench/serve.py", "from fastapi import"),
    "hypercorn": ("tests/test_fetch.py", '"hypercorn"'),
    "img2dataset": ("tests/bench/fetch.py", '"img2dataset"'),
    "moto": ("tests/s3_server.py", "moto"),
    "mypy": (".ci/run", "mypy --strict"),
    "pytest-xdist": ("pyproject.toml", "-n logical"),
    "ruff": (".ci/run", "ruff check"),
    "types-pycurl": ("furnclip/fetch/download.py", "pycurl.Curl"),
}


# Imported by a package of ours when we call it: the file that does.
FOR_OTHERS = {"python-multipart": ("furnclip/search/service/app.py", "request.form(")}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Distributions of the core dependencies, or of these extras."""
    lines = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    names = (re.match(r"[\w.-]+", line) for line in (lines if extras else PROJECT["dependencies"]))
    return {normalized(name[0]) for name in names if name} - {"furnclip"}  # with extras of its own


def modules(path: Path) -> Iterator[str]:
    """Top-level modules that a file imports when it runs, wherever the import stands."""
    tree = ast.parse(_source(path))
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            yield ast.literal_eval(node.args[0])


def _source(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def imported(*folders: str) -> dict[str, str]:
    """Distribution -> a file that imports it."""
    homes = packages_distributions()
    found = {}
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*"))
    for path in (path for path in paths if path.suffix in (".py", ".ipynb")):
        for module in set(modules(path)) - OWN - sys.stdlib_module_names:
            home = HOMES.get(module) or next(iter(homes.get(module, [module])))
            found[normalized(home)] = str(path.relative_to(ROOT))
    return found


def test_the_package_declares_what_it_imports() -> None:
    known = declared() | declared(*EXTRAS)
    assert {name: path for name, path in imported("furnclip").items() if name not in known} == {}


def test_the_package_imports_what_it_declares() -> None:
    unused = (declared() | declared(*EXTRAS)) - imported("furnclip").keys()
    assert unused <= FOR_OTHERS.keys()
    assert [
        name for name in unused if FOR_OTHERS[name][1] not in (ROOT / FOR_OTHERS[name][0]).read_text()
    ] == []


def test_tests_and_examples_declare_what_they_import() -> None:
    known = declared() | declared("dev", "bench", *EXTRAS)
    assert {name: path for name, path in imported("tests", "examples").items() if name not in known} == {}


def test_development_has_every_extra_that_users_have() -> None:
    own = next(line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("furnclip["))
    assert set(own.removeprefix("furnclip[").removesuffix("]").split(",")) == EXTRAS


@pytest.mark.parametrize("extra", ["dev", "bench"])
def test_declared_for_development_is_used(extra: str) -> None:
    used = imported("furnclip", "tests", "examples")
    unused = declared(extra) - used.keys()
    assert unused <= TOOLS.keys()
    assert [name for name in unused if TOOLS[name][1] not in (ROOT / TOOLS[name][0]).read_text()] == []
