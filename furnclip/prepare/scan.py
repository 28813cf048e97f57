"""From catalogue rows to entries: every row judged, every new image decoded, by several processes.

The catalogue is streamed and results come back in row order, whatever the number of processes. What
an earlier run decoded is not decoded again: same image file (name, size, time), same settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from furnclip.catalogue import (
    ATTRIBUTES,
    Product,
    Rejection,
    content_hash,
    normalized_title,
)
from furnclip.catalogue.rows import renamed_column
from furnclip.images import BrokenImage, encode_jpeg, letterbox, open_image
from furnclip.parallel import Workers
from furnclip.prepare.fingerprint import fingerprint
from furnclip.prepare.store import (
    VERSION,
    ImageEntry,
    ImageProblem,
    Members,
    SampleEntry,
    SampleStore,
    Scanned,
)
from furnclip.relevance import default_caption
from furnclip.shards.tar import Sample, encode_sample, member_bytes
from furnclip.sources import FoundImage, ShopImages, web_address

if TYPE_CHECKING:
    from furnclip.config import Config, DataPaths, PrepConfig

Decoders = Workers[tuple[FoundImage, ...], "DecodedImages"]
DECODER_MEMORY_MB = 700  # of a process that decodes the largest image allowed


@dataclass(frozen=True)
class DecodedImages:
    """The squares of a product as JPEGs, what identifies each, and images that cannot be used."""

    jpegs: tuple[bytes, ...]
    images: tuple[ImageEntry, ...]
    problems: tuple[ImageProblem, ...]


@dataclass(frozen=True)
class _Undecoded:
    """A product of which an image is new, or has changed. `text`: its JSON and caption in the shard."""

    product: Product
    found: tuple[FoundImage, ...]
    text: tuple[bytes, bytes]
    sample: Scanned


@lru_cache(maxsize=4)  # variants of a product name the same images, one row after the other
def decode_images(
    found: tuple[FoundImage, ...], *, image_px: int, jpeg_quality: int, max_images: int
) -> DecodedImages:
    """The first of a product's images that can be read. Runs in a worker process."""
    jpegs: list[bytes] = []
    images: list[ImageEntry] = []
    problems: list[ImageProblem] = []
    for number, file in enumerate(found):
        if len(images) == max_images:
            detail = f"{len(found) - number} images more than `prepare.max_images`, {max_images}"
            problems.append(ImageProblem(file.name, "too-many-images", detail))
            break
        try:
            data = file.read()
            source = hashlib.blake2b(data, digest_size=16).digest()
            if any(image.source == source for image in images):
                raise BrokenImage("same-image", f"{file.short_name} has the bytes of an earlier image")
            image = open_image(data, longest_px=image_px, name=file.short_name)
        except BrokenImage as error:
            problems.append(ImageProblem(file.name, error.reason, error.message))
            continue
        shown = fingerprint(image)
        jpegs.append(encode_jpeg(letterbox(image, image_px), jpeg_quality))
        look, jpeg_bytes = _number(shown), len(jpegs[-1])
        images.append(ImageEntry(source=source, fingerprint=shown, look=look, jpeg_bytes=jpeg_bytes))
    return DecodedImages(tuple(jpegs), tuple(images), tuple(problems))


def decoders(settings: PrepConfig) -> Decoders:
    """The processes that decode images."""
    decode = partial(
        decode_images,
        image_px=settings.image_px,
        jpeg_quality=settings.jpeg_quality,
        max_images=settings.max_images,
    )
    memory_mb, engine = DECODER_MEMORY_MB, settings.engine
    return Workers(decode, settings.workers, memory_mb=memory_mb, setting="prepare.workers", engine=engine)


def stored_columns(paths: DataPaths) -> set[str]:
    """Those of the catalogue that are columns of the vector file as they are."""
    named = paths.id_column, paths.title_column, paths.image_column
    return {*named, *map(renamed_column, named), "clean_title", *ATTRIBUTES, "clean_source"}


@dataclass
class Scanner:
    """Reads the catalogue once; iterating gives a `Scanned` or a `Rejection` for every row, in order."""

    config: Config
    store: SampleStore | None
    decoders: Decoders
    rows: Iterable[Product | Rejection]
    decoded: int = 0

    def __post_init__(self) -> None:
        self.images = ShopImages(self.config)
        self._stored = stored_columns(self.config.paths)

    def __iter__(self) -> Iterator[Scanned | Rejection]:
        items = (self._judge(row) for row in self.rows)
        for item, decoded in self.decoders.pairs(
            items, task_of=lambda item: item.found if isinstance(item, _Undecoded) else None, name_of=_name
        ):
            if not isinstance(item, _Undecoded):
                yield item
                continue
            assert decoded is not None
            self.decoded += bool(decoded.images)
            problems = (*item.sample.problems, *decoded.problems)
            sample = dataclasses.replace(item.sample, images=decoded.images, problems=problems)
            if sample.images or sample.described:
                yield self._kept(sample, Members(decoded.jpegs, *item.text))
            else:
                row, product_id, *_ = item.product
                yield Rejection(row, product_id, "no-text", "neither title nor attributes, and no image")
        self.images.tell_near_matches()

    def _judge(self, product: Product | Rejection) -> _Undecoded | Scanned | Rejection:
        if isinstance(product, Rejection):
            return dataclasses.replace(product, fields={})
        caption = default_caption(product.fields, title=product.title)
        found, problems = self._find(product)
        sample = Sample("", b"", caption, product.product_id, "", product.fields, product.title)
        about, caption_bytes = encode_sample(sample).values()
        text = (about, caption_bytes)
        entry = self._entry(product, found, text)
        new = Scanned(
            entry,
            (),
            problems,
            described=bool(caption),
            product_id=product.product_id,
            found=found,
            addresses=tuple(
                content_hash(address) if (address := web_address(name)) else "" for name in product.images
            ),
            is_as_named=not problems and all(image.is_as_named for image in found),
            cells={name: cell for name, cell in product.fields.items() if name not in self._stored},
        )
        known = self.store.find(new.entry) if self.store else None
        if self.store is None or known is None:
            return _Undecoded(product, found, text, new)
        known = dataclasses.replace(new, entry=known.entry, images=known.images, problems=known.problems)
        if known.entry.text == new.entry.text:
            return known
        images = self.store.members(known.entry.key).images
        return self._kept(dataclasses.replace(known, entry=new.entry), Members(images, *text))

    def _find(self, product: Product) -> tuple[tuple[FoundImage, ...], tuple[ImageProblem, ...]]:
        """The images of a product, and those that are not there."""
        found: list[FoundImage] = []
        problems: list[ImageProblem] = []
        for name in product.images or [""]:
            try:
                found += self.images.find([name] if name else [])
            except BrokenImage as error:
                problems.append(ImageProblem(name, error.reason, error.message))
        return tuple(found), tuple(problems)

    def _entry(
        self, product: Product, found: tuple[FoundImage, ...], text: tuple[bytes, bytes]
    ) -> SampleEntry:
        """What is known of a product before its images are opened."""
        settings = self.config.prepare
        stat = [str(value) for value in (VERSION, settings.image_px, settings.jpeg_quality)]
        stat += [str(settings.max_images), *product.images]
        for image in found:
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

    def _kept(self, sample: Scanned, members: Members) -> Scanned:
        """The sample with what its images say, kept in the store."""
        parts = (*members.images, members.json, members.caption)
        entry = dataclasses.replace(
            sample.entry,
            content=members.content,
            look=_number(*(image.source + image.fingerprint for image in sample.images)),
            sample_bytes=sum(member_bytes(len(part)) for part in parts),
        )
        whole = dataclasses.replace(sample, entry=entry)
        if self.store:
            self.store.add(whole, members)
        return whole


def _name(item: _Undecoded | Scanned | Rejection) -> str:
    """What an error calls an item."""
    if isinstance(item, Scanned):
        return f"row {item.entry.row}"
    about = item.product if isinstance(item, _Undecoded) else item
    return f"row {about.row}, product {about.product_id}"


def _number(*parts: bytes | str) -> int:
    return int(content_hash(*parts), 16)
