"""From catalogue rows to records: every row judged, every new picture decoded, by several processes.

The catalogue is streamed and results come back in row order, whatever the number of processes. What
an earlier run decoded is not decoded again: same picture file (name, size, time), same settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from furnclip.catalogue import (
    Product,
    Rejection,
    catalogue_path,
    content_hash,
    find_images,
    normalized_title,
    read_products,
    tell_near_matches,
)
from furnclip.images import BrokenImage, encode_jpeg, letterbox, open_image, read_bytes
from furnclip.parallel import Workers
from furnclip.prepare.fingerprint import COLOUR_BYTES, HASH_BYTES, fingerprint
from furnclip.prepare.store import VERSION, Entry, Store
from furnclip.relevance import default_caption
from furnclip.shards.tar import Sample, encode_sample, member_bytes, sample_content

if TYPE_CHECKING:
    from furnclip.config import Config, PrepConfig

DECODER_MEMORY_MB = 700  # of a process that decodes the largest picture allowed


@dataclass(frozen=True)
class Picture:
    """A decoded picture: the square as JPEG, and what identifies it."""

    jpeg: bytes
    source: bytes  # 16 bytes, of the file's bytes
    hash: bytes
    colours: bytes


@dataclass(frozen=True)
class PictureTask:
    """The candidate files of one product's picture; the first that can be read is it."""

    paths: tuple[Path, ...]
    image_px: int
    jpeg_quality: int


@dataclass(frozen=True)
class _Item:
    """A row on its way: rejected, or known from an earlier run, or waiting for its picture."""

    product: Product | Rejection
    task: PictureTask | None = None
    text: tuple[bytes, bytes] = (b"", b"")  # JSON and caption
    entry: Entry | None = None


def decode_picture(task: PictureTask) -> Picture | BrokenImage:
    """The picture, or why none of the candidates can be read. Runs in a worker process."""
    problem: BrokenImage | None = None
    for path in task.paths:
        try:
            data = read_bytes(path)
            image = open_image(data, longest_px=task.image_px, name=f"`{path.name}`")
        except BrokenImage as error:
            problem = problem or error
            continue
        signs, colours = fingerprint(image)
        jpeg = encode_jpeg(letterbox(image, task.image_px), task.jpeg_quality)
        return Picture(jpeg, hashlib.blake2b(data, digest_size=16).digest(), signs, colours)
    assert problem is not None
    return problem


def decoders(settings: PrepConfig) -> Workers[PictureTask, Picture | BrokenImage]:
    """The processes that decode pictures."""
    return Workers(decode_picture, settings.workers, memory_mb=DECODER_MEMORY_MB, setting="prepare.workers")


class Scanner:
    """Reads the catalogue once; iterating gives an `Entry` or a `Rejection` for every row, in order."""

    def __init__(
        self,
        config: Config,
        store: Store | None,
        *,
        workers: Workers[PictureTask, Picture | BrokenImage],
    ) -> None:
        self._config = config
        self._store = store
        self._workers = workers
        self.decoded = 0

    def __iter__(self) -> Iterator[Entry | Rejection]:
        path = catalogue_path(self._config.paths)
        items = (self._judge(row) for row in read_products(path, self._config.paths))
        for item, outcome in self._workers.pairs(items, task_of=lambda item: item.task, name_of=_named):
            yield self._settle(item, outcome)
        tell_near_matches(self._config.paths.images)

    def _judge(self, product: Product | Rejection) -> _Item:
        if isinstance(product, Rejection):
            return _Item(dataclasses.replace(product, fields={}))
        caption = default_caption(product.fields, title=product.title)
        if not caption:
            return _Item(_rejection(product, "no-text", "neither title nor attributes"))
        try:
            paths = find_images(product, self._config.paths.images)
        except BrokenImage as error:
            return _Item(_rejection(product, error.reason, error.message))
        sample = Sample("", b"", caption, product.product_id, "", product.fields, product.title)
        _, about, caption_bytes = encode_sample(sample)
        entry = self._entry(product, paths, content_hash(about, caption_bytes))
        return self._recalled(_Item(product, None, (about, caption_bytes), entry), tuple(paths))

    def _entry(self, product: Product, paths: list[Path], text: str) -> Entry:
        """What is known of a product before its picture is opened."""
        title = normalized_title(product.title)
        return Entry(
            row=product.row,
            key=_number(content_hash(product.product_id)),
            stat=_number(self._stat(paths)),
            text=_number(text),
            content=0,
            group=_number(content_hash(product.group)) if product.group else 0,
            title=_number(content_hash(title)) if title else 0,
            stratum=_number(content_hash(product.fields.get("object_type", "").strip().lower())),
            source=bytes(16),
            hash=bytes(HASH_BYTES),
            colours=bytes(COLOUR_BYTES),
            look=0,
            sample_bytes=0,
        )

    def _stat(self, paths: list[Path]) -> str:
        settings = self._config.prepare
        parts = [str(VERSION), str(settings.image_px), str(settings.jpeg_quality)]
        for path in paths:
            status = path.stat()
            parts += [str(path), str(status.st_size), str(status.st_mtime_ns)]
        return content_hash(*parts)

    def _recalled(self, item: _Item, paths: tuple[Path, ...]) -> _Item:
        """The item with what an earlier run found out about its picture, or else a task."""
        assert item.entry is not None
        known = self._store.find(item.entry) if self._store else None
        if self._store is None or known is None:
            settings = self._config.prepare
            task = PictureTask(paths, settings.image_px, settings.jpeg_quality)
            return dataclasses.replace(item, task=task)
        if known.text == item.entry.text:
            return dataclasses.replace(item, entry=known)
        jpeg = self._store.members(known.key)[0]
        picture = Picture(jpeg, known.source, known.hash, known.colours)
        assert isinstance(item.product, Product)
        return dataclasses.replace(item, entry=self._kept(item.entry, item.text, picture))

    def _settle(self, item: _Item, picture: Picture | BrokenImage | None) -> Entry | Rejection:
        if isinstance(item.product, Rejection):
            return item.product
        assert item.entry is not None
        if picture is None:
            return item.entry
        if isinstance(picture, BrokenImage):
            return _rejection(item.product, picture.reason, picture.message)
        self.decoded += 1
        return self._kept(item.entry, item.text, picture)

    def _kept(self, entry: Entry, text: tuple[bytes, bytes], picture: Picture) -> Entry:
        contents = (picture.jpeg, *text)
        whole = dataclasses.replace(
            entry,
            content=_number(sample_content(contents)),
            source=picture.source,
            hash=picture.hash,
            colours=picture.colours,
            look=_number(content_hash(picture.hash, picture.colours)),
            sample_bytes=sum(member_bytes(len(content)) for content in contents),
        )
        if self._store:
            self._store.add(whole, contents)
        return whole


def _named(item: _Item) -> str:
    """What an error calls an item."""
    return f"row {item.product.row}, product {item.product.product_id}"


def _rejection(product: Product, reason: str, detail: str) -> Rejection:
    return Rejection(product.row, product.product_id, reason, detail)


def _number(digits: str) -> int:
    return int(digits, 16)
