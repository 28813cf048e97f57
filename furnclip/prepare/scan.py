"""From catalogue rows to entries: every row judged, every new image decoded, by several processes.

The catalogue is streamed and results come back in row order, whatever the number of processes. What
an earlier run decoded is not decoded again: same image file (name, size, time), same settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from furnclip.catalogue import (
    Product,
    Rejection,
    catalogue_path,
    content_hash,
    normalized_title,
    read_products,
)
from furnclip.images import BrokenImage, encode_jpeg, letterbox, open_image
from furnclip.parallel import Workers
from furnclip.prepare.fingerprint import fingerprint
from furnclip.prepare.store import VERSION, SampleEntry, SampleStore
from furnclip.relevance import default_caption
from furnclip.shards.tar import Sample, encode_sample, member_bytes
from furnclip.sources import FoundImage, ShopImages

if TYPE_CHECKING:
    from furnclip.config import Config, PrepConfig

Decoders = Workers[tuple[FoundImage, ...], "DecodedImage | BrokenImage"]
DECODER_MEMORY_MB = 700  # of a process that decodes the largest image allowed


@dataclass(frozen=True)
class DecodedImage:
    """The square as JPEG, and what identifies the image."""

    jpeg: bytes
    source: bytes  # 16 bytes, of the file's bytes
    hash: bytes
    colors: bytes


@dataclass(frozen=True)
class _Undecoded:
    """A product whose image is new, or has changed. `text`: its JSON and caption in the shard."""

    product: Product
    images: tuple[FoundImage, ...]
    text: tuple[bytes, bytes]
    entry: SampleEntry


def decode_image(
    images: tuple[FoundImage, ...], *, image_px: int, jpeg_quality: int
) -> DecodedImage | BrokenImage:
    """The first of a product's images that can be read, or why none can. Runs in a worker process."""
    problem: BrokenImage | None = None
    for found in images:
        try:
            data = found.read()
            image = open_image(data, longest_px=image_px, name=found.short_name)
        except BrokenImage as error:
            problem = problem or error
            continue
        signs, colors = fingerprint(image)
        jpeg = encode_jpeg(letterbox(image, image_px), jpeg_quality)
        return DecodedImage(jpeg, hashlib.blake2b(data, digest_size=16).digest(), signs, colors)
    assert problem is not None
    return problem


def decoders(settings: PrepConfig) -> Decoders:
    """The processes that decode images."""
    decode = partial(decode_image, image_px=settings.image_px, jpeg_quality=settings.jpeg_quality)
    return Workers(decode, settings.workers, memory_mb=DECODER_MEMORY_MB, setting="prepare.workers")


@dataclass
class Scanner:
    """Reads the catalogue once; iterating gives a `SampleEntry` or a `Rejection` for every row, in order."""

    config: Config
    store: SampleStore | None
    decoders: Decoders
    decoded: int = 0

    def __post_init__(self) -> None:
        self.images = ShopImages(self.config)

    def __iter__(self) -> Iterator[SampleEntry | Rejection]:
        rows = read_products(catalogue_path(self.config.paths), self.config.paths)
        items = (self._judge(row) for row in rows)
        for item, image in self.decoders.pairs(
            items, task_of=lambda item: item.images if isinstance(item, _Undecoded) else None, name_of=_name
        ):
            if not isinstance(item, _Undecoded):
                yield item
            elif isinstance(image, DecodedImage):
                self.decoded += 1
                yield self._completed(item.entry, item.text, image)
            else:
                assert image is not None
                yield _rejection(item.product, image.reason, image.message)
        self.images.tell_near_matches()

    def _judge(self, product: Product | Rejection) -> _Undecoded | SampleEntry | Rejection:
        if isinstance(product, Rejection):
            return dataclasses.replace(product, fields={})
        caption = default_caption(product.fields, title=product.title)
        if not caption:
            return _rejection(product, "no-text", "neither title nor attributes")
        try:
            images = tuple(self.images.find(product.images))
        except BrokenImage as error:
            return _rejection(product, error.reason, error.message)
        sample = Sample("", b"", caption, product.product_id, "", product.fields, product.title)
        about, caption_bytes = encode_sample(sample).values()
        text = (about, caption_bytes)
        entry = self._entry(product, images, text)
        if self.store is None or (known := self.store.find(entry)) is None:
            return _Undecoded(product, images, text, entry)
        if known.text == entry.text:
            return known
        image = DecodedImage(self.store.members(known.key)[0], known.source, known.hash, known.colors)
        return self._completed(entry, text, image)

    def _entry(
        self, product: Product, images: tuple[FoundImage, ...], text: tuple[bytes, bytes]
    ) -> SampleEntry:
        """What is known of a product before its image is opened."""
        settings = self.config.prepare
        stat = [str(VERSION), str(settings.image_px), str(settings.jpeg_quality)]
        for image in images:
            stat += [str(image.place), image.name, image.status]
        title = normalized_title(product.title)
        return SampleEntry(
            row=product.row,
            key=_number(product.product_id),
            stat=_number(*stat),
            text=_number(*text),
            group=_number(product.group) if product.group else 0,
            title=_number(title) if title else 0,
            stratum=_number(product.fields.get("object_type", "").strip().lower()),
        )

    def _completed(self, entry: SampleEntry, text: tuple[bytes, bytes], image: DecodedImage) -> SampleEntry:
        """The entry with what its image says, kept in the store."""
        members = (image.jpeg, *text)
        whole = dataclasses.replace(
            entry,
            content=_number(*members),
            source=image.source,
            hash=image.hash,
            colors=image.colors,
            look=_number(image.hash, image.colors),
            sample_bytes=sum(member_bytes(len(member)) for member in members),
        )
        if self.store:
            self.store.add(whole, members)
        return whole


def _name(item: _Undecoded | SampleEntry | Rejection) -> str:
    """What an error calls an item."""
    about = item.product if isinstance(item, _Undecoded) else item
    return f"row {about.row}" + ("" if isinstance(about, SampleEntry) else f", product {about.product_id}")


def _rejection(product: Product, reason: str, detail: str) -> Rejection:
    return Rejection(product.row, product.product_id, reason, detail)


def _number(*parts: bytes | str) -> int:
    return int(content_hash(*parts), 16)
