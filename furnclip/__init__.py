"""Furniture search that works and proves it.

The classes below are loaded when they are first used, so `import furnclip` stays fast.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` takes longer than all of this, and Ctrl-C is not handled yet
if TYPE_CHECKING:
    from typing import Any

    from furnclip.arena import ArenaApp as ArenaApp
    from furnclip.config import ArenaConfig as ArenaConfig
    from furnclip.config import CleaningConfig as CleaningConfig
    from furnclip.config import Config as Config
    from furnclip.config import DataPaths as DataPaths
    from furnclip.config import EmbeddingConfig as EmbeddingConfig
    from furnclip.config import EvaluationConfig as EvaluationConfig
    from furnclip.config import ModelConfig as ModelConfig
    from furnclip.config import PrepConfig as PrepConfig
    from furnclip.config import SearchConfig as SearchConfig
    from furnclip.config import StorageConfig as StorageConfig
    from furnclip.config import TrainingConfig as TrainingConfig
    from furnclip.config import load_config as load_config
    from furnclip.embed import EmbeddingGenerator as EmbeddingGenerator
    from furnclip.search import Searcher as Searcher
    from furnclip.storage import S3Manager as S3Manager

__version__ = "0.1.0"

_HOMES = {
    "ArenaApp": "furnclip.arena",
    "EmbeddingGenerator": "furnclip.embed",
    "S3Manager": "furnclip.storage",
    "Searcher": "furnclip.search",
}
_CONFIG = (
    *("ArenaConfig", "CleaningConfig", "Config", "DataPaths", "EmbeddingConfig", "EvaluationConfig"),
    *("ModelConfig", "PrepConfig", "SearchConfig", "StorageConfig", "TrainingConfig", "load_config"),
)
_HOMES |= dict.fromkeys(_CONFIG, "furnclip.config")
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'furnclip' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
