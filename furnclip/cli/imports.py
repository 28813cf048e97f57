"""What a search needs, imported in half the time, for commands that have to answer at once.

LanceDB builds hundreds of models of a client for catalog services (`lance_namespace`), reads the bytecode of
its own methods (`overrides`), and by way of pyarrow brings pandas where that is installed. While it is
imported, empty classes stand in for the client, `override` does nothing, and there is no pandas.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Literal

_LEFT_OUT = ("lance_namespace", "lance_namespace_urllib3_client", "overrides")


class _StandIn(ModuleType):
    """A module in which every public name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Exception,), {})  # some are caught
        setattr(self, name, made)  # the same one next time
        return made


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in _LEFT_OUT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        if spec.name == "overrides":
            vars(module).update(override=lambda method: method, EnforceOverrides=object)
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def quick_imports(library: Literal["lancedb", "pyarrow"] = "lancedb") -> Iterator[None]:
    """Import a library, then what is inside, without stopping to collect garbage."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    gc.disable()
    try:
        try:
            import_module("pyarrow").array([0])  # the first array is where it looks for pandas
            import_module(library)
        except Exception:  # whatever a class that is not what it says leads to
            _forget("lancedb", keep="lancedb._lancedb")  # an extension module is loaded once
        finally:
            sys.meta_path.remove(finder)
            _forget(*_LEFT_OUT)
        import_module(library)  # as usual, where a version of it wants more than stand-ins
        yield
    finally:
        gc.enable()


def _forget(*packages: str, keep: str = "") -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in packages and name != keep:
            del sys.modules[name]
