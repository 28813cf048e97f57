"""The table that is served now, and how the next one takes its place.

A request takes `current` once and keeps it, so that all of its answer comes from one table. A new table is
opened and asked before it takes over; one that cannot be opened leaves the old one in its place.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from furnclip import console
from furnclip.config import Config
from furnclip.errors import FurnclipError, StorageError, UsageError
from furnclip.journal import MANIFEST_NAME
from furnclip.search.searcher import Searcher
from furnclip.search.service.guard import Metrics
from furnclip.shards import Manifest, ProductImages, open_shards
from furnclip.vectors.index import KEYWORDS, explained, index_location, open_index

_LOOK_AGAIN_S = 60
_SEARCHES_FIRST = 2  # before shoppers ask: with the second the text tower is opened to stay


@dataclass(frozen=True)
class Served:
    """One version of the table, with the models that are asked for it."""

    searcher: Searcher
    version: str
    base: list[Searcher] = field(default_factory=list)  # the base model's, once somebody compares

    @property
    def has_base(self) -> bool:
        """Whether there is another model to compare with."""
        return self.searcher.label != "base" and "base" in self.searcher.provenance.models


class LiveTable:
    """What is served: `current`, looked for anew by `refresh`."""

    def __init__(self, config: Config, metrics: Metrics, *, run: str | None, model: str | None) -> None:
        self._config, self._run, self._model, self._metrics = config, run, model, metrics
        self._location = index_location(config)
        self._failed = ""
        self._comparing = threading.Lock()
        self.current = self._open()

    def refresh(self) -> None:
        """Take over a new table, if there is one that is complete."""
        found = ""
        try:
            table, provenance = open_index(self._location)
            found = _version(table, provenance.key)
            with explained(self._location.uri):
                if found in (self.current.version, self._failed) or not _is_complete(table):
                    return
                served = self._open()
                if not _is_complete(served.searcher.table):  # another one was begun meanwhile
                    return
            self.current = served
            self._metrics.reloads.labels("done").inc()
            console.note(f"serving the new table, {served.version}")
        except FurnclipError as error:
            if found and found != self._failed:  # a table that is being written cannot be opened either
                self._failed = found
                self._metrics.reloads.labels("failed").inc()
                console.warn(f"the new table is not served: {error.message}; {error.hint}")

    def base(self, served: Served) -> Searcher:
        """The base model's searcher of the same table. Raises `UsageError` where there is none."""
        if not served.has_base:
            hint = "run `furnclip embed` with a finished training run"
            raise UsageError("there is only one model to search with", hint=hint)
        with self._comparing:
            if not served.base:
                name = served.searcher.provenance.models["base"].name
                searcher = Searcher(self._config, model=name)
                if _version(searcher.table, searcher.provenance.key) != served.version:
                    raise StorageError("the table was replaced just now", hint="ask again in a few seconds")
                served.base.append(searcher)
        return served.base[0]

    def _open(self) -> Served:
        searcher = Searcher(self._config, run=self._run, model=self._model)
        for _ in range(_SEARCHES_FIRST):
            searcher.search("furniture", k=1, mode="vector")
        self._metrics.products.set(searcher.table.count_rows())
        return Served(searcher, _version(searcher.table, searcher.provenance.key))


def _is_complete(table: Any) -> bool:
    """Whether `embed` is done with it: the index on the words comes last."""
    return any(KEYWORDS in index.columns for index in table.list_indices())


def _version(table: Any, key: str) -> str:
    return f"{key[:12]}-{table.version}"


class LiveImages:
    """The images of the shards that are there now; of a bucket, it is looked after once a minute."""

    def __init__(self, config: Config) -> None:
        self._config, self._manifest = config, config.paths.shards / MANIFEST_NAME
        self._opened: tuple[float, Manifest, ProductImages] | None = None
        with suppress(FurnclipError):  # which the first image is told
            self._open()

    def jpeg(self, product_id: str) -> bytes:
        """The product's first image. Raises `BrokenImage` where the shards have none."""
        images = self._open()
        try:
            return images.image_bytes(product_id)
        except StorageError:  # a shard has been replaced
            self._opened = None
            raise

    def _open(self) -> ProductImages:
        is_here, before = self._manifest.exists(), self._opened
        changed = self._manifest.stat().st_mtime_ns if is_here else time.monotonic() // _LOOK_AGAIN_S
        if before and before[0] == changed:
            return before[2]
        place = open_shards(self._config)
        is_same = before is not None and before[1] == place.manifest
        images = before[2] if before and is_same else ProductImages(place)
        self._opened = changed, place.manifest, images
        return images
