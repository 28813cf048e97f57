"""LanceDB without what only its catalog services need, for commands that have to answer at once.

Importing LanceDB builds hundreds of models of a client for catalog services (`lance_namespace`), half of the
time. Tables are opened by their path here, so empty classes stand in for them while LanceDB is
imported. Only for a process of furnclip's own, where nobody else uses LanceDB.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_LEFT_OUT = ("lance_namespace", "lance_namespace_urllib3_client")


class _StandIn(ModuleType):
    """A module in which every public name is an empty class."""

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Exception,), {})  # some are caught
        setattr(self, name, made)  # the same one next time
        return made


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in _LEFT_OUT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def import_lancedb() -> None:
    """Import it; as usual where a version of it wants more than stand-ins."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        import_module("lancedb")
    except Exception:  # whatever a class that is not what it says leads to
        _forget("lancedb", keep="lancedb._lancedb")  # an extension module is loaded once
    finally:
        sys.meta_path.remove(finder)
        _forget(*_LEFT_OUT)
    import_module("lancedb")


def _forget(*packages: str, keep: str = "") -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in packages and name != keep:
            del sys.modules[name]
