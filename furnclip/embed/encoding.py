"""One row group: decoded rows in, an Arrow table of vectors out.

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
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from furnclip.embed.parts import Found, Known
from furnclip.embed.rows import Content, Decoded, Row, decode, read_content
from furnclip.errors import ModelError
from furnclip.model import Clip
from furnclip.vectors import PRODUCT_COLUMNS, Floats, Provenance, vector_array, vector_schema

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_MOST_BATCHES = 16  # encoded at once; each takes some 60 MB beside the weights of a ViT-B/32


@dataclass(frozen=True)
class RowGroup:
    """A finished row group and how many images were encoded for it, by model label."""

    table: pa.Table
    encoded: dict[str, int]


@dataclass(frozen=True)
class Encoders:
    """The threads that run the models, and how many batches they work on at once."""

    pool: ThreadPoolExecutor
    count: int


@contextmanager
def encoders(clips: Collection[Clip]) -> Iterator[Encoders]:
    """On a CPU a thread for every core that torch may use, else one thread in front of the device."""
    cores = torch.get_num_threads()
    on_cpu = all(clip.device.type == "cpu" for clip in clips)
    count = min(cores, _MOST_BATCHES) if on_cpu else 1
    for clip in clips:
        clip.tokenize([""])  # a tokenizer changes its settings in its first call; then threads may share it
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(cores // count,))
    try:
        yield Encoders(pool, count)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # what one thread sets, threads started later inherit


class RowGroupEncoder:
    """Turns rows into row groups; `known` has vectors, by label, that need no encoding."""

    def __init__(
        self,
        clips: Mapping[str, Clip],
        known: Mapping[str, Known],
        provenance: Provenance,
        *,
        encoders: Encoders,
        batch_size: int,
    ) -> None:
        self._clips = clips
        self._encoders = encoders
        self._known = known
        self._provenance = provenance
        self._batch_size = batch_size
        self._sides_px = frozenset(clip.image_px for clip in clips.values())
        self._schema = vector_schema(provenance, kinds=("image", "text"))

    def decode(self, row: Row) -> Decoded:
        """The row, decoded where a model has to see it; safe to call from many threads."""
        content: Content = read_content(row)
        if all(content.content_hash in known for known in self._known.values()):
            return Decoded(row, content.content_hash)
        return decode(row, content, self._sides_px)

    def encode(self, rows: Iterable[Decoded], count: int) -> RowGroup:
        """The row group of these `count` rows; images are let go of batch by batch."""
        kept: list[Decoded] = []
        images: dict[str, list[Floats]] = {label: [] for label in self._clips}
        batches = _batches(rows, self._even_size(count))
        # One batch more than are worked on, so that no thread waits for this one.
        ahead = self._encoders.count + 1
        for batch, vectors in map_ahead(self._encoders.pool, self._encode_batch, batches, ahead=ahead):
            kept += batch
            for label in self._clips:
                images[label].append(vectors[label])
        found = {label: self._vectors(label, kept, np.concatenate(images[label])) for label in self._clips}
        return self._row_group(kept, found)

    def _even_size(self, count: int) -> int:
        """The largest size of batches that leaves no thread with one batch less than the others."""
        rounds = -(-count // (self._batch_size * self._encoders.count))
        return -(-count // (rounds * self._encoders.count))

    def _encode_batch(self, batch: list[Decoded]) -> tuple[list[Decoded], dict[str, Floats]]:
        """The rows without their images, and the vectors of these by label, (B, D)."""
        vectors = {label: self._encode_images(label, batch) for label in self._clips}
        return [Decoded(item.row, item.content_hash, reason=item.reason) for item in batch], vectors

    def _encode_images(self, label: str, batch: list[Decoded]) -> Floats:
        """(B, D), zero where there is no image or its vector is known."""
        clip, known = self._clips[label], self._known[label]
        rows = [row for row, item in enumerate(batch) if item.squares and item.content_hash not in known]
        vectors = np.zeros((len(batch), clip.dimension), dtype=np.float32)
        if rows:
            squares = [batch[row].squares[clip.image_px] for row in rows]
            vectors[rows] = _finite(clip.encode_images(squares), clip, "image", batch[rows[0]])
        return vectors

    def _vectors(self, label: str, rows: list[Decoded], images: Floats) -> Found:
        """Everything of one model: known vectors, the `images` (N, D) encoded just now, and texts."""
        clip = self._clips[label]
        found = self._known[label].look_up([item.content_hash for item in rows], clip.dimension)
        new = np.flatnonzero(~found.known)
        found.vectors["image"][new] = images[new]
        found.present["image"][new] = [not rows[row].reason for row in new]
        for row in new:
            found.reasons[row] = rows[row].reason
        described = [row for row in new if rows[row].row.caption]
        captions = [rows[row].row.caption for row in described]
        if captions:
            vectors = self._encode_captions(clip, captions)
            found.vectors["text"][described] = _finite(vectors, clip, "caption", rows[described[0]])
            found.present["text"][described] = True
        return found

    def _encode_captions(self, clip: Clip, captions: list[str]) -> Floats:
        """(B, D); equal captions are encoded once, those of one length together: no padding."""
        distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
        batches = _batches(distinct, self._even_size(len(distinct)))
        vectors = np.concatenate(list(self._encoders.pool.map(clip.encode_texts, batches)))
        place = {caption: index for index, caption in enumerate(distinct)}
        return vectors[[place[caption] for caption in captions]]

    def _row_group(self, rows: list[Decoded], found: Mapping[str, Found]) -> RowGroup:
        stored = [{**item.row.stored, "content_hash": item.content_hash} for item in rows]
        columns = [pa.array([row[name] for row in stored], pa.string()) for name in PRODUCT_COLUMNS]
        for of_model in found.values():
            for kind, vectors in of_model.vectors.items():
                columns.append(vector_array(vectors, of_model.present[kind], self._provenance.dtype))
        reasons = next(iter(found.values())).reasons
        columns.append(pa.array([reason or None for reason in reasons], pa.string()))
        encoded = {
            label: int((~of_model.known & of_model.present["image"]).sum())
            for label, of_model in found.items()
        }
        return RowGroup(pa.Table.from_arrays(columns, schema=self._schema), encoded)


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


def _batches(items: Iterable[_In], size: int) -> Iterator[list[_In]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _finite(vectors: Floats, clip: Clip, what: str, first: Decoded) -> Floats:
    if not np.isfinite(vectors).all():
        product_id = first.row.stored["product_id"]
        raise ModelError(
            f"`{clip.name}` gives a {what} vector that is not finite, in the batch from `{product_id}`",
            hint='set `model.precision = "fp32"`, or train the model again',
        )
    return vectors
