"""The samples of a split as training sees them: their order, captions and images.

In: `work/shards/SPLIT/`. Every sample comes once an epoch, with one of its images. Every choice (order,
image, caption, mirroring, shift) is a function of the seed, the epoch and the sample, so a resumed run, a
second rank and a second look at the same micro-batch all draw the same.

A training caption is the product's own, with words left out at random (`train.word_dropout`), or built anew
from its fields (`train.caption_sampling`, LaCLIP, https://arxiv.org/abs/2305.20088). Beside it each product
has a short query: made of its attributes, "red velvet armchair", or one of its shopper queries. Evaluation
takes `relevance.default_caption`.
"""

from __future__ import annotations

import io
import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from furnclip.catalogue import ATTRIBUTES
from furnclip.config import TrainingConfig
from furnclip.features import Keys
from furnclip.model.inputs import Preprocessing
from furnclip.relevance import AttributeQuery, known, positives, queries_of, shopper_queries
from furnclip.shards import Sample, ShardDataset

Indices = NDArray[np.int64]
Rows = Indices | Sequence[int]
Squares = NDArray[np.uint8]
Augmentation = Literal["none", "simple", "advanced"]

_WHITE = (255, 255, 255)
_SMALLEST_SHARE = 0.8
_LARGEST_TILT_DEGREES = 8.0
_COLOR_SPREAD = 0.2
_USED = (*ATTRIBUTES, "title", "clean_title", "queries")  # of the columns
_TEXT_SCHEMA = pa.schema(dict.fromkeys(("product_id", "group", "caption", "used"), pa.string()))
_TEXTS_AT_ONCE = 1024
_HELD_TEXTS = 1 << 16  # of some 1 kB
_TEMPLATES = ("a photo of {}", "{}", "a picture of {}", "{}, product photo")
_CAPTION, _IMAGE, _QUERY, _VIEW = 1, 2, 3, 4  # kinds of random choices, so that their streams differ


def step_batches(samples: int, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """The epoch's order in steps of like size: a short last batch would contrast fewer negatives."""
    order = random_stream(seed, epoch).permutation(samples)
    return np.array_split(order, steps_per_epoch(samples, batch_size))


def steps_per_epoch(samples: int, batch_size: int) -> int:
    return max(1, -(-samples // batch_size))


def random_stream(*key: int) -> np.random.Generator:
    """A stream of random numbers that belongs to the key, e.g. (seed, epoch, sample)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([part % 2**32 for part in key])))


def augment(image: Image.Image, kind: Augmentation, random: np.random.Generator) -> Image.Image:
    """The square image changed at random, of the same size; whole, because half a chair is not the product.

    `simple`: mirrored half of the time; `advanced`: also tilted, recolored, shrunk and shifted on white.
    """
    if kind == "none":
        return image
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind == "simple":
        return image
    side_px = image.width
    degrees = random.uniform(-_LARGEST_TILT_DEGREES, _LARGEST_TILT_DEGREES)
    tilted = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=_WHITE)
    image = tilted.resize((side_px, side_px), Image.Resampling.BILINEAR)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(random.uniform(1 - _COLOR_SPREAD, 1 + _COLOR_SPREAD))
    inner_px = max(1, round(side_px * random.uniform(_SMALLEST_SHARE, 1.0)))
    left, top = (int(value) for value in random.integers(0, side_px - inner_px + 1, size=2))
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(image.resize((inner_px, inner_px), Image.Resampling.BILINEAR), (left, top))
    return canvas


def sample_caption(
    fields: Mapping[str, str], fixed: str, *, dropout: float, random: np.random.Generator
) -> str:
    """A caption of the product; `fixed` (the caption of the shards) where the fields say nothing.

    `dropout`: chance of each attribute to be left out. The title and the type stand for each other:
    at most one of them is dropped.
    """
    attributes = {name: known(fields.get(name)) for name in ATTRIBUTES}
    kept = {name: value for name, value in attributes.items() if value and random.random() >= dropout}
    title = known(fields.get("clean_title", "")) or known(fields.get("title", ""))
    kind = kept.pop("object_type", "")
    if title and not (attributes["object_type"] and random.random() < dropout):
        kind = title
    kind = kind or attributes["object_type"] or title
    if not kind:
        return fixed
    extras = [value for value in kept.values() if value not in kind]
    random.shuffle(extras)
    words = " ".join([*extras, kind])
    if random.random() < 0.5 and extras:
        words = f"{kind}, {', '.join(extras)}"
    return _TEMPLATES[int(random.integers(len(_TEMPLATES)))].format(words)


def without_words(caption: str, dropout: float, random: np.random.Generator) -> str:
    """The caption without some of its words; with all of them where none would be left."""
    words = caption.split()
    kept = [word for word in words if random.random() >= dropout]
    return " ".join(kept or words)


@dataclass(frozen=True)
class Text:
    """What training reads of a product beside its images."""

    product_id: str
    group: str
    caption: str
    fields: dict[str, str]


class Texts:
    """The texts of a split as columns: as objects, those of millions of products take gigabytes."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()  # (N,) rows of `_TEXT_SCHEMA`
        self._held = lru_cache(maxsize=_HELD_TEXTS)(self._read)  # a step reads each several times

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Text:
        return self._held(int(index))

    def _read(self, index: int) -> Text:
        product_id, group, caption, used = (column[index].as_py() for column in self._table.columns)
        fields = zip(_USED, json.loads(used), strict=True)
        return Text(product_id, group, caption, {name: value for name, value in fields if value is not None})

    def column(self, name: str) -> list[str]:
        """`caption` or `group` of all products."""
        values: list[str] = self._table[name].to_pylist()
        return values


def _text_row(sample: Sample) -> dict[str, str]:
    used = json.dumps([sample.fields.get(name) for name in _USED], ensure_ascii=False)
    return {**{name: getattr(sample, name) for name in _TEXT_SCHEMA.names[:3]}, "used": used}


def _short_queries(fields: Mapping[str, str]) -> list[AttributeQuery]:
    """Those of its attributes, then its shopper queries, which ask for the attributes that they name."""
    values = {name: known(fields.get(name)) for name in ATTRIBUTES}
    typed = [
        AttributeQuery(text, {name: value for name, value in values.items() if value and value in text})
        for text in shopper_queries(fields)
    ]
    return queries_of(fields) + typed


def duplicate_rate(captions: Sequence[str]) -> float:
    """Share of the samples whose caption another sample has too."""
    counts = Counter(captions)
    return sum(count for count in counts.values() if count > 1) / max(1, len(captions))


class TrainingData:
    """One split, its texts in memory and as many images as `image_cache_mb` holds."""

    def __init__(self, dataset: ShardDataset, preprocessing: Preprocessing, config: TrainingConfig) -> None:
        self.dataset, self.preprocessing, self.config = dataset, preprocessing, config
        counts, hashes = array("q"), array("Q")
        has_queries, batches = False, [pa.RecordBatch.from_pylist([], _TEXT_SCHEMA)]
        texts = dataset.texts()
        while rows := list(islice(texts, _TEXTS_AT_ONCE)):
            batches.append(pa.RecordBatch.from_pylist([_text_row(row.sample) for row in rows], _TEXT_SCHEMA))
            hashes.extend(chain.from_iterable(row.image_hashes for row in rows))
            counts.extend(len(row.image_hashes) for row in rows)
            has_queries = has_queries or any(_short_queries(row.sample.fields) for row in rows)
        self.texts = Texts(pa.Table.from_batches(batches))
        self.image_counts: Indices = np.array(counts, dtype=np.int64)  # (N,) images of each sample
        self.image_keys: Keys = np.array(hashes, dtype=np.uint64)  # (V,) of all images, sample by sample
        self._first_image = np.cumsum(self.image_counts) - self.image_counts
        self.asks_attributes = config.attribute_weight > 0 and has_queries
        self._squares: dict[int, Squares] = {}
        self._squares_limit = config.image_cache_mb * 2**20 // (3 * preprocessing.image_px**2)

    def __len__(self) -> int:
        return len(self.texts)

    def fixed_captions(self) -> list[str]:
        """The caption of every sample as evaluation uses it."""
        return self.texts.column("caption")

    def positives(self) -> list[Indices]:
        """For each sample those of its group or with its caption."""
        return positives(self.fixed_captions(), self.texts.column("group"))

    def captions(self, indices: Indices, *, epoch: int) -> list[str]:
        """The captions of this epoch."""
        config, captions = self.config, [self.texts[index].caption for index in indices]
        if not config.caption_sampling and config.word_dropout <= 0:
            return captions
        for row, index in enumerate(map(int, indices)):
            drawn = random_stream(config.seed, _CAPTION, epoch, index).integers(config.caption_variants)
            random = random_stream(config.seed, _CAPTION, index, int(drawn), 0)
            if config.caption_sampling:
                fields, dropout = self.texts[index].fields, config.attribute_dropout
                captions[row] = sample_caption(fields, captions[row], dropout=dropout, random=random)
            if config.word_dropout > 0:
                captions[row] = without_words(captions[row], config.word_dropout, random)
        return captions

    def short_queries(self, indices: Indices, *, epoch: int) -> list[AttributeQuery | None]:
        """One attribute query of each product, drawn each epoch; None where too little is known."""
        drawn: list[AttributeQuery | None] = []
        for index in indices:
            queries = _short_queries(self.texts[index].fields)
            random = random_stream(self.config.seed, _QUERY, epoch, int(index))
            drawn.append(queries[int(random.integers(len(queries)))] if queries else None)
        return drawn

    def drawn_images(self, indices: Rows, *, epoch: int | None) -> list[int]:
        """The place in `image_keys` of each sample's image in this epoch; `epoch` None: the main image."""
        places = []
        for index in map(int, indices):
            count, view = int(self.image_counts[index]), 0
            if epoch is not None and count > 1:
                view = int(random_stream(self.config.seed, _VIEW, epoch, index).integers(count))
            places.append(int(self._first_image[index]) + view)
        return places

    def squares(self, indices: Rows, *, epoch: int | None) -> Squares:
        """(B, H, W, 3) bytes, drawn and changed at random for training; `epoch` None: as prepared."""
        squares = self.image_squares(self.drawn_images(indices, epoch=epoch))
        if epoch is None or self.config.augment == "none":
            return squares
        changed = []
        for square, index in zip(squares, indices, strict=True):
            random = random_stream(self.config.seed, _IMAGE, epoch, int(index))
            changed.append(np.asarray(augment(Image.fromarray(square), self.config.augment, random)))
        return np.stack(changed)

    def image_squares(self, images: Rows) -> Squares:
        """(B, H, W, 3) bytes of images by their places in `image_keys`, as prepared."""
        return np.stack([self._image_square(int(image)) for image in images])

    def _image_square(self, number: int) -> Squares:
        square = self._squares.get(number)
        if square is None:
            index = int(np.searchsorted(self._first_image, number, side="right")) - 1
            data = self.dataset[index].images[number - int(self._first_image[index])]
            with Image.open(io.BytesIO(data)) as image:
                square = np.asarray(self.preprocessing.square(image.convert("RGB")))
            if len(self._squares) < self._squares_limit:
                self._squares[number] = square
        return square
