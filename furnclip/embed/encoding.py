"""Samples of the shards in, one Arrow table of vectors a row group out.

A row whose content hash is known, from the index beside the shard, needs no reading, no decoding and no
model. Images are encoded as soon as a batch of them is decoded, captions once a row group. A batch never
crosses a row group, so a row group that is encoded again comes out the same.

On a CPU every core encodes a batch of its own: cores that share one wait for each other behind every layer.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice, tee
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from furnclip.catalogue import ATTRIBUTES, content_hash, image_names, renamed_column
from furnclip.config import Config
from furnclip.errors import FurnclipError, InputError, ModelError
from furnclip.features import StoredVectors
from furnclip.images import open_image
from furnclip.model.light import Encoder, LightEncoder
from furnclip.parallel import cores
from furnclip.shards import REST, SPLITS, Sample, ShardDataset, open_shards
from furnclip.vectors import PRODUCT_COLUMNS, Floats, Provenance, unit_mean, vector_array, vector_schema
from furnclip.vectors.parquet import (
    COLUMN_TYPES,
    MODEL_KINDS,
    part_paths,
    read_vector_manifest,
    views_array,
)

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_MOST_BATCHES = 16  # encoded at once; each takes some 60 MB beside the weights of a ViT-B/32
Encoded = tuple[pa.Table, dict[str, int]]  # a row group, and how many products' images were encoded, by label
Encodes = Callable[[Iterable[int]], Iterator[Encoded]]  # numbers of row groups -> each, in order


class RowGroup(NamedTuple):
    """Some of the samples of one shard. `source` names what they hold, `shard` what the shard does."""

    split: str
    rows: range
    source: str
    shard: str


@dataclass(frozen=True)
class Row:
    """One product. `stored` has the product columns of the vector file; `images` are decoded when needed."""

    number: int  # among the samples of its split
    stored: dict[str, str]
    sample: Sample  # without its images
    image_count: int
    images: tuple[Image.Image, ...] = ()


class ShardReader:
    """The products of all splits and of `rest`, in the order of the shards, in row groups.

    A row group lies within one shard. Raises `MissingStageError` where there are no shards.
    """

    def __init__(self, config: Config) -> None:
        shards = open_shards(config)
        self.manifest = shards.manifest
        names = [name for name in (*SPLITS, REST) if name in self.manifest.splits]
        self._datasets = {name: ShardDataset(shards, name) for name in names}
        self._image_column = config.paths.image_column
        # By the shop's own word: groups of the splits hold near-duplicates too, which are other products.
        named = (config.paths.group_column, config.paths.parent_column)
        self._group_columns = [column for name in named if name for column in (name, renamed_column(name))]
        self.row_groups = list(self._row_groups(config))

    def _row_groups(self, config: Config) -> Iterator[RowGroup]:
        """All of them; those of a shard that the vector file was made of are told by that."""
        earlier, most = defaultdict[str, list[tuple[int, str]]](list), config.embed.row_group_rows
        with suppress(FurnclipError):
            manifest = read_vector_manifest(config.paths.vectors)
            for part in manifest.parts if manifest else ():
                earlier[part.shard].append((part.rows, part.source))
        for split, dataset in self._datasets.items():
            start = 0
            for shard in dataset.shards:
                told = f"{split} {shard.sha256} {most}"
                for samples, source in earlier.get(told) or dataset.pieces_of(shard, most):
                    yield RowGroup(split, range(start, start + samples), source, told)
                    start += samples

    def __len__(self) -> int:
        return sum(map(len, self._datasets.values()))

    @property
    def content(self) -> str:
        """Changes when anything in the shards does."""
        return content_hash(self.reading, *(group.source for group in self.row_groups))

    @property
    def reading(self) -> str:
        """Changes with how rows are made of samples, whatever these are."""
        return content_hash(repr(self.manifest.columns), self._image_column, *self._group_columns)

    def new_in(self, groups: Iterable[RowGroup], known: Collection[StoredVectors]) -> int:
        """How many products of these row groups have to be encoded."""
        seen = [each for group in groups for each in self._datasets[group.split].seen_of(group.rows)]
        return int(np.any([~vectors.knows(seen) for vectors in known], axis=0).sum())

    def bring(self, group: RowGroup) -> RowGroup:
        """A row group whose shard is here."""
        self._datasets[group.split].bring_one(group.rows[0])
        return group

    def rows(self, group: RowGroup) -> Iterator[Row]:
        """The products of a row group without their images, of which none is read."""
        texts = self._datasets[group.split].texts_of(group.rows)
        for number, text in zip(group.rows, texts, strict=True):
            sample = text.sample
            names = image_names(sample.fields.get(self._image_column, ""))
            groups = (sample.fields.get(name, "").strip() for name in self._group_columns)
            stored = {
                "product_id": sample.product_id,
                "title": sample.title,
                **{name: sample.fields.get(name, "") for name in ("clean_title", *ATTRIBUTES)},
                "group": next(filter(None, groups), ""),
                "split": group.split,
                "image": names[0] if names else "",
                "content_hash": text.seen,
            }
            yield Row(number, stored, sample, len(text.image_hashes))

    def images(self, row: Row) -> tuple[Image.Image, ...]:
        """The images of a product, decoded; for any thread."""
        return tuple(map(open_image, self._datasets[row.stored["split"]][row.number].images))


@contextmanager
def encoding_threads(encoders: Collection[Encoder]) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """The threads that run the models, and how many: one a core on a CPU, else one in front of the device."""
    clips = [encoder for encoder in encoders if not isinstance(encoder, LightEncoder)]
    if not clips:  # the towers have threads of their own
        with ThreadPoolExecutor(1) as pool:
            yield pool, 1
        return
    import torch  # here, because a night's change is encoded without

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
    """Turns products into row groups. `known`: vectors, by label, that need no encoding."""

    reader: ShardReader
    clips: Mapping[str, Encoder]
    known: Mapping[str, StoredVectors]
    plan: Provenance
    pool: ThreadPoolExecutor
    threads: int
    batch_size: int

    def decoded(self, row: Row) -> Row:
        """The product with its images where a model has to see them; for any thread."""
        is_new = any(row.stored["content_hash"] not in known for known in self.known.values())
        return replace(row, images=self.reader.images(row)) if is_new else row

    def encode(self, decoded: Iterable[Row], count: int) -> Encoded:
        """The row group of these `count` rows; images are freed batch by batch."""
        rows: list[Row] = []
        images: dict[str, list[Floats]] = {label: [] for label in self.clips}
        # One batch more than are worked on, so that no thread waits for this one.
        ahead = self.threads + 1
        batches = in_batches(decoded, self._even_size(count))
        for batch, vectors in map_ahead(self.pool, self._encode_batch, batches, ahead=ahead):
            rows += batch
            for label in self.clips:
                images[label].append(vectors[label])
        stored = [row.stored for row in rows]
        columns = [pa.array([row[name] for row in stored], pa.string()) for name in PRODUCT_COLUMNS]
        for column in self.plan.columns:
            cells = [column.value(row.sample.fields.get(column.source, "")) for row in rows]
            columns.append(pa.array(cells, COLUMN_TYPES[column.kind]))
        encoded = {}
        for label in self.clips:
            table, encoded[label] = self._vectors(label, rows, np.concatenate(images[label]))
            columns += table.columns
        columns.append(pa.array([row.sample.missing_reason or None for row in rows], pa.string()))
        return pa.Table.from_arrays(columns, schema=vector_schema(self.plan, kinds=MODEL_KINDS)), encoded

    def _even_size(self, count: int) -> int:
        """The largest size of batches that leaves no thread with one batch less than the others."""
        rounds = -(-count // (self.batch_size * self.threads))
        return -(-count // (rounds * self.threads))

    def _encode_batch(self, batch: list[Row]) -> tuple[list[Row], dict[str, Floats]]:
        """The rows without their images, and the vectors (V, D) of those images that are new, by label."""
        vectors = {}
        for label, clip in self.clips.items():
            rows = [row for row in batch if row.stored["content_hash"] not in self.known[label]]
            images = [image for row in rows for image in row.images]
            parts = [clip.encode_images(part) for part in in_batches(images, max(1, len(batch)))]
            vectors[label] = np.concatenate([np.zeros((0, clip.dimension), dtype=np.float32), *parts])
        return [replace(row, images=()) for row in batch], vectors

    def _vectors(self, label: str, rows: list[Row], views: Floats) -> tuple[pa.Table, int]:
        """The columns of one model: known vectors, the `views` (V, D) encoded just now, and texts."""
        clip, known, dtype = self.clips[label], self.known[label], self.plan.dtype
        is_known, found = known.look_up([row.stored["content_hash"] for row in rows])
        new = [row for row, old in zip(rows, is_known, strict=True) if not old]
        counts = np.array([row.image_count for row in new], dtype=np.int64)
        captions = [row.sample.caption for row in new]
        texts, described = self._texts(clip, captions), np.array([bool(each) for each in captions], bool)
        for what, vectors in (("image", views), ("caption", texts)):
            if not np.isfinite(vectors).all():
                raise ModelError(
                    f"`{clip.name}` gives a {what} vector that is not finite, "
                    f"in the row group from `{rows[0].stored['product_id']}`",
                    hint='set `model.precision = "fp32"`, or train the model again',
                )
        made = [
            vector_array(unit_mean(views, counts), counts > 0, dtype),
            vector_array(texts, described, dtype),
            views_array(views, counts, dtype),
        ]
        encoded = pa.table(dict(zip(MODEL_KINDS, made, strict=True)))
        both = pa.concat_tables([found.cast(encoded.schema), encoded])
        order = np.argsort(np.concatenate([np.flatnonzero(is_known), np.flatnonzero(~is_known)]))
        return both.take(order).combine_chunks(), int((counts > 0).sum())

    def _texts(self, clip: Encoder, captions: list[str]) -> Floats:
        """(N, D), zero where there is no caption."""
        # Equal captions are encoded once, those of one length together: no padding.
        distinct = sorted(set(captions) - {""}, key=lambda caption: (len(caption), caption))
        batches = in_batches(distinct, self._even_size(len(distinct))) if distinct else iter(())
        parts = list(self.pool.map(clip.encode_texts, batches))
        vectors = np.concatenate([*parts, np.zeros((1, clip.dimension), dtype=np.float32)])
        place = {caption: index for index, caption in enumerate(distinct)}
        found: Floats = vectors[[place.get(caption, -1) for caption in captions]]
        return found


def stored_vectors(
    embeddings: Path, fingerprint: str, precision: str | None, *, kept: Collection[Path] = ()
) -> StoredVectors:
    """Vectors of the vector file, and of parts left by a kill; but those of `kept` parts."""
    left = set(kept)
    written = [embeddings / "master_vectors.parquet"]
    with suppress(InputError):
        written = [path for path in part_paths(written[0]) if path not in left]
    files = [*written, *sorted(embeddings.glob("parts/*/part-*.parquet"))]
    return StoredVectors(files, fingerprint, precision=precision)


@contextmanager
def encoding(
    config: Config,
    reader: ShardReader,
    clips: Mapping[str, Encoder],
    plan: Provenance,
    *,
    kept: Collection[Path] = (),
) -> Iterator[Encodes]:
    """Threads that encode row groups with these models, which are placed as planned.

    kept: parts of the vector file in which nothing needs to be looked up.
    """
    known = {
        label: stored_vectors(config.paths.embeddings, model.fingerprint, model.precision, kept=kept)
        for label, model in plan.models.items()
    }
    batch_size = min(config.embed.batch_size, len(reader))
    with (
        ThreadPoolExecutor(1) as bringing,  # the next shard, while this one is encoded
        ThreadPoolExecutor(config.embed.workers or cores()) as decoding_pool,
        encoding_threads(clips.values()) as (pool, threads),
    ):
        encoder = RowGroupEncoder(reader, clips, known, plan, pool, threads, batch_size)

        def tables(numbers: Iterable[int]) -> Iterator[Encoded]:
            ahead, wanted = tee(reader.row_groups[number] for number in numbers)
            here = map_ahead(bringing, reader.bring, ahead, ahead=2)
            products = chain.from_iterable(map(reader.rows, here))
            ahead_rows = (threads + 1) * batch_size
            decoded = map_ahead(decoding_pool, encoder.decoded, products, ahead=ahead_rows)
            for group in wanted:
                rows = len(group.rows)
                yield encoder.encode(islice(decoded, rows), rows)

        yield tables


def map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[_In], _Out], items: Iterable[_In], *, ahead: int
) -> Iterator[_Out]:
    """`work` of each item in order, computed by the pool at most `ahead` items in advance."""
    iterator = iter(items)
    waiting = deque(pool.submit(work, item) for item in islice(iterator, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(iterator, 1))
        yield result


def in_batches(items: Iterable[_In], size: int) -> Iterator[list[_In]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
