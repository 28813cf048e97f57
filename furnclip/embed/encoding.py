"""Catalogue rows in, one Arrow table of vectors a row group out.

The content hash of a row covers its caption and its image, so a row whose hash is known needs no
decoding and no model. Only the first image that is there is read for it; of further ones, which
replace a broken first one, name and size count.

Images are encoded as soon as a batch of them is decoded, while other threads decode the next;
captions once a row group, equal ones once. A batch never crosses a row group, so a row group that is
encoded again comes out the same.

On a CPU every core encodes a batch of its own. Cores that share one batch wait for each other behind
every layer, and whenever a decoding thread holds one of them up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from furnclip.catalogue import ATTRIBUTES, Rejection, catalogue_path, content_hash, read_products
from furnclip.config import Config
from furnclip.embed.parts import PART_KINDS, Found, Known
from furnclip.errors import MissingStageError, ModelError
from furnclip.images import BrokenImage, load_square
from furnclip.model import Clip
from furnclip.relevance import default_caption
from furnclip.shards import read_assignments
from furnclip.sources import FoundImage, ShopImages
from furnclip.vectors import PRODUCT_COLUMNS, Floats, Provenance, vector_array, vector_schema

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_MOST_BATCHES = 16  # encoded at once; each takes some 60 MB beside the weights of a ViT-B/32


@dataclass(frozen=True)
class Row:
    """One product. `stored` has the product columns of the vector file but the content hash."""

    stored: dict[str, str]
    caption: str
    images: list[FoundImage]
    problem: str  # why there is no image to try; empty where there is one


@dataclass(frozen=True)
class Content:
    """A row, what identifies its content and what the models see of it."""

    row: Row
    content_hash: str
    first: bytes = b""  # of the first image, until it is decoded
    reason: str = ""  # why there is no image
    squares: dict[int, Image.Image] = field(default_factory=dict)  # side in pixels -> decoded image


class CatalogueReader:
    """The catalogue as rows, streamed; read it as often as needed.

    Groups and splits are those of `work/shards`; without shards the split is empty and a product
    without a group is its own.
    """

    def __init__(self, config: Config) -> None:
        self.path = catalogue_path(config.paths)
        self._paths, self._images = config.paths, ShopImages(config)
        try:
            self._assignments = read_assignments(config.paths.shards)
        except MissingStageError:
            self._assignments = {}

    def rows(self) -> Iterator[Row]:
        """Every usable product, in file order."""
        for product in read_products(self.path, self._paths):
            if isinstance(product, Rejection):
                continue
            product_id, fields, problem = product.product_id, product.fields, ""
            group, split = self._assignments.get(product_id, (product.group or product_id, ""))
            stored = {
                "product_id": product_id,
                "title": product.title,
                **{name: fields.get(name, "") for name in ("clean_title", *ATTRIBUTES)},
                "group": group,
                "split": split,
                "image": product.images[0] if product.images else "",
            }
            try:
                images = self._images.find(product.images)
            except BrokenImage as error:
                images, problem = [], f"{error.reason}: {error.message}"
            yield Row(stored, default_caption(fields, title=product.title), images, problem)

    def rejections(self) -> Iterator[Rejection]:
        """Every row that is no usable product."""
        rows = read_products(self.path, self._paths)
        return (row for row in rows if isinstance(row, Rejection))


def read_content(row: Row) -> Content:
    """The row's content hash and the bytes of its first image; never raises for a bad image."""
    if not row.images:
        return Content(row, content_hash(row.caption, row.problem), reason=row.problem)
    first, reason = b"", ""
    try:
        first = row.images[0].read()
    except BrokenImage as error:
        reason = f"{error.reason}: {error.message}"
    others = [f"{image.short_name} {image.status.split()[0]}" for image in row.images[1:]]
    return Content(row, content_hash(row.caption, first, reason, *others), first, reason)


def identity(row: Row) -> str:
    """A hash of everything that is stored and encoded of a row."""
    return content_hash(*row.stored.values(), read_content(row).content_hash)


def decode(content: Content, sides_px: Collection[int]) -> Content:
    """The row's first image that can be read, as squares; a reason where there is none."""
    row, reason = content.row, content.reason
    for place, image in enumerate(row.images):
        if not place and not content.first:
            continue  # it could not be read
        try:
            data = image.read() if place else content.first
            squares = {side_px: load_square(data, side_px, name=image.short_name) for side_px in sides_px}
            return Content(row, content.content_hash, squares=squares)
        except BrokenImage as error:
            reason = reason or f"{error.reason}: {error.message}"
    return Content(row, content.content_hash, reason=reason or "empty: the image is empty")


@contextmanager
def encoding_threads(clips: Collection[Clip]) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """The threads that run the models, and how many: one a core on a CPU, else one in front of the device."""
    cores = torch.get_num_threads()
    on_cpu = all(clip.device.type == "cpu" for clip in clips)
    count = min(cores, _MOST_BATCHES) if on_cpu else 1
    for clip in clips:
        clip.tokenize([""])  # a tokenizer changes its settings in its first call; then threads may share it
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(cores // count,))
    try:
        yield pool, count
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # what one thread sets, threads started later inherit


@dataclass(frozen=True)
class RowGroupEncoder:
    """Turns rows into row groups. `known`: vectors, by label, that need no encoding."""

    clips: Mapping[str, Clip]
    known: Mapping[str, Known]
    plan: Provenance
    pool: ThreadPoolExecutor
    threads: int
    batch_size: int

    def decode(self, row: Row) -> Content:
        """The row, decoded where a model has to see it; safe to call from many threads."""
        content = read_content(row)
        if all(content.content_hash in known for known in self.known.values()):
            return Content(row, content.content_hash)
        return decode(content, {clip.image_px for clip in self.clips.values()})

    def encode(self, decoded: Iterable[Content], count: int) -> tuple[pa.Table, dict[str, int]]:
        """The row group of these `count` rows, and how many images were encoded for it, by label.

        Images are freed batch by batch.
        """
        rows: list[Content] = []
        images: dict[str, list[Floats]] = {label: [] for label in self.clips}
        # One batch more than are worked on, so that no thread waits for this one.
        ahead = self.threads + 1
        batches = in_batches(decoded, self._even_size(count))
        for batch, vectors in map_ahead(self.pool, self._encode_batch, batches, ahead=ahead):
            rows += batch
            for label in self.clips:
                images[label].append(vectors[label])
        found = {label: self._vectors(label, rows, np.concatenate(images[label])) for label in self.clips}
        stored = [{**item.row.stored, "content_hash": item.content_hash} for item in rows]
        columns = [pa.array([row[name] for row in stored], pa.string()) for name in PRODUCT_COLUMNS]
        for one in found.values():
            columns += [
                vector_array(one.vectors[kind], one.present[kind], self.plan.dtype) for kind in PART_KINDS
            ]
        reasons = next(iter(found.values())).reasons
        columns.append(pa.array([reason or None for reason in reasons], pa.string()))
        encoded = {label: int((~one.known & one.present["image"]).sum()) for label, one in found.items()}
        return pa.Table.from_arrays(columns, schema=vector_schema(self.plan, kinds=PART_KINDS)), encoded

    def _even_size(self, count: int) -> int:
        """The largest size of batches that leaves no thread with one batch less than the others."""
        rounds = -(-count // (self.batch_size * self.threads))
        return -(-count // (rounds * self.threads))

    def _encode_batch(self, batch: list[Content]) -> tuple[list[Content], dict[str, Floats]]:
        """The rows without their images, and the vectors of these by label: (B, D), zero where not new."""
        vectors = {}
        for label, clip in self.clips.items():
            known = self.known[label]
            rows = [row for row, item in enumerate(batch) if item.squares and item.content_hash not in known]
            vectors[label] = np.zeros((len(batch), clip.dimension), dtype=np.float32)
            if rows:
                squares = [batch[row].squares[clip.image_px] for row in rows]
                vectors[label][rows] = _finite(clip.encode_images(squares), clip, "image", batch[rows[0]])
        return [Content(item.row, item.content_hash, reason=item.reason) for item in batch], vectors

    def _vectors(self, label: str, rows: list[Content], images: Floats) -> Found:
        """Everything of one model: known vectors, the `images` (N, D) encoded just now, and texts."""
        clip = self.clips[label]
        found = self.known[label].look_up([item.content_hash for item in rows], clip.dimension)
        new = np.flatnonzero(~found.known)
        found.vectors["image"][new] = images[new]
        found.present["image"][new] = [not rows[row].reason for row in new]
        for row in new:
            found.reasons[row] = rows[row].reason
        described = [row for row in new if rows[row].row.caption]
        if described:
            captions = [rows[row].row.caption for row in described]
            # Equal captions are encoded once, those of one length together: no padding.
            distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
            batches = in_batches(distinct, self._even_size(len(distinct)))
            vectors = np.concatenate(list(self.pool.map(clip.encode_texts, batches)))
            place = {caption: index for index, caption in enumerate(distinct)}
            vectors = vectors[[place[caption] for caption in captions]]
            found.vectors["text"][described] = _finite(vectors, clip, "caption", rows[described[0]])
            found.present["text"][described] = True
        return found


def map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[_In], _Out], items: Iterable[_In], *, ahead: int
) -> Iterator[_Out]:
    """`work` of each item in order, computed by the pool at most `ahead` items in advance."""
    iterator = iter(items)
    waiting: deque[Future[_Out]] = deque(pool.submit(work, item) for item in islice(iterator, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(iterator, 1))
        yield result


def in_batches(items: Iterable[_In], size: int) -> Iterator[list[_In]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _finite(vectors: Floats, clip: Clip, what: str, first: Content) -> Floats:
    if not np.isfinite(vectors).all():
        product_id = first.row.stored["product_id"]
        raise ModelError(
            f"`{clip.name}` gives a {what} vector that is not finite, in the batch from `{product_id}`",
            hint='set `model.precision = "fp32"`, or train the model again',
        )
    return vectors
