"""The samples of a split as training sees them: their order, captions, images and positives.

In: `work/shards/SPLIT/`. Every sample comes once an epoch. Every random choice (order, caption, mirroring,
shift) is a function of the seed, the epoch and the sample, so a resumed run, a second rank and a second look
at the same micro-batch all draw the same, and resuming needs nothing but the position.

Augmentation keeps the product whole: half a chair is not the product, so there is no random crop.

    none       as prepared
    simple     mirrored half of the time; shrunk to 80 to 100 % and shifted on white
    advanced   the same, and brightness, contrast and saturation within 20 %, tilted up to 8 degrees

Sampled captions (off by default) are built anew each epoch from a product's fields, with attributes left out
at random (LaCLIP, https://arxiv.org/abs/2305.20088); evaluation takes `relevance.default_caption`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from furnclip.catalogue import ATTRIBUTES, content_hash
from furnclip.config import TrainingConfig
from furnclip.model.pixels import Preprocessing
from furnclip.relevance import known
from furnclip.shards import ShardDataset

Indices = NDArray[np.int64]

DEFAULT_BATCH = 1024
_MIN_STEPS = 8
_MIN_BATCH = 32


def permutation(samples: int, *, seed: int, epoch: int) -> Indices:
    """Every index once, in the order of this epoch."""
    return random_stream(seed, epoch).permutation(samples)


def step_batches(samples: int, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """The epoch cut into steps of nearly equal size, none above `batch_size` and none left out.

    A short last batch would contrast against fewer wrong answers than the others.
    """
    steps = steps_per_epoch(samples, batch_size)
    return np.array_split(permutation(samples, seed=seed, epoch=epoch), steps)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimiser steps in an epoch."""
    return max(1, -(-samples // batch_size))


def default_batch_size(samples: int) -> int:
    """1024, or what gives a small catalogue eight steps an epoch."""
    return max(min(_MIN_BATCH, samples), min(DEFAULT_BATCH, -(-samples // _MIN_STEPS)))


def random_stream(*key: int) -> np.random.Generator:
    """A stream of random numbers that belongs to the key, e.g. (seed, epoch, sample)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([part % 2**32 for part in key])))


Augmentation = Literal["none", "simple", "advanced"]
_WHITE = (255, 255, 255)
_SMALLEST_SHARE = 0.8
_LARGEST_TILT_DEGREES = 8.0
_COLOUR_SPREAD = 0.2


def augment(image: Image.Image, kind: Augmentation, random: np.random.Generator) -> Image.Image:
    """The square picture changed at random, of the same size."""
    if kind == "none":
        return image
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind == "advanced":
        image = _recolour(_tilt(image, random), random)
    return _shift(image, random)


def _shift(image: Image.Image, random: np.random.Generator) -> Image.Image:
    side_px = image.width
    inner_px = max(1, round(side_px * random.uniform(_SMALLEST_SHARE, 1.0)))
    left, top = (int(value) for value in random.integers(0, side_px - inner_px + 1, size=2))
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(image.resize((inner_px, inner_px), Image.Resampling.BILINEAR), (left, top))
    return canvas


def _tilt(image: Image.Image, random: np.random.Generator) -> Image.Image:
    degrees = random.uniform(-_LARGEST_TILT_DEGREES, _LARGEST_TILT_DEGREES)
    side_px = image.width
    wide = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=_WHITE)
    return wide.resize((side_px, side_px), Image.Resampling.BILINEAR)


def _recolour(image: Image.Image, random: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(random.uniform(1 - _COLOUR_SPREAD, 1 + _COLOUR_SPREAD))
    return image


_TEMPLATES = ("a photo of {}", "{}", "a picture of {}", "{}, product photo")


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
    if not kind:
        kind = attributes["object_type"] or title
    if not kind:
        return fixed
    extras = [value for value in kept.values() if value not in kind]
    random.shuffle(extras)
    words = _joined(kind, extras, after=bool(random.random() < 0.5))
    return _TEMPLATES[int(random.integers(len(_TEMPLATES)))].format(words)


def duplicate_rate(captions: Sequence[str]) -> float:
    """Share of the samples whose caption another sample has too."""
    counts = Counter(captions)
    return sum(count for count in counts.values() if count > 1) / max(1, len(captions))


def _joined(kind: str, extras: list[str], *, after: bool) -> str:
    if after and extras:
        return f"{kind}, {', '.join(extras)}"
    return " ".join([*extras, kind])


_CAPTION, _PICTURE = 1, 2  # kinds of random choices, so that their streams differ


@dataclass(frozen=True)
class Text:
    """What is known of a sample besides its picture."""

    product_id: str
    group: str
    caption: str
    fields: dict[str, str]
    image_key: str


@dataclass
class TrainingData:
    """One split, its texts in memory and as many pictures as `image_cache_mb` holds."""

    dataset: ShardDataset
    preprocessing: Preprocessing
    config: TrainingConfig
    texts: list[Text] = field(init=False)
    _squares: dict[int, NDArray[np.uint8]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.texts = [
            Text(
                sample.product_id,
                sample.group,
                sample.caption,
                sample.fields,
                content_hash(sample.image_bytes),
            )
            for sample in self.dataset
        ]
        square_bytes = 3 * self.preprocessing.image_px**2
        self._squares_limit = self.config.image_cache_mb * 2**20 // square_bytes

    def __len__(self) -> int:
        return len(self.texts)

    def product_ids(self, indices: Indices | Sequence[int]) -> list[str]:
        return [self.texts[index].product_id for index in indices]

    def fixed_captions(self) -> list[str]:
        """The caption of every sample as evaluation uses it."""
        return [text.caption for text in self.texts]

    def captions(self, indices: Indices, *, epoch: int) -> list[str]:
        """The captions of this epoch."""
        if not self.config.caption_sampling:
            return [self.texts[index].caption for index in indices]
        return [self._caption(int(index), epoch) for index in indices]

    def _caption(self, index: int, epoch: int) -> str:
        seed, variants = self.config.seed, self.config.caption_variants
        variant = int(random_stream(seed, _CAPTION, epoch, index).integers(variants))
        text = self.texts[index]
        return sample_caption(
            text.fields,
            text.caption,
            dropout=self.config.attribute_dropout,
            random=random_stream(seed, _CAPTION, index, variant, 0),
        )

    def squares(self, indices: Indices | Sequence[int], *, epoch: int | None) -> NDArray[np.uint8]:
        """(B, H, W, 3) bytes, changed at random for training; `epoch` None: as prepared."""
        if epoch is None or self.config.augment == "none":
            return np.stack([self._square(int(index)) for index in indices])
        return np.stack([self._augmented(int(index), epoch) for index in indices])

    def _augmented(self, index: int, epoch: int) -> NDArray[np.uint8]:
        random = random_stream(self.config.seed, _PICTURE, epoch, index)
        image = augment(Image.fromarray(self._square(index)), self.config.augment, random)
        return np.asarray(image)

    def _square(self, index: int) -> NDArray[np.uint8]:
        square = self._squares.get(index)
        if square is None:
            with Image.open(io.BytesIO(self.dataset[index].image_bytes)) as image:
                square = np.asarray(self.preprocessing.square(image.convert("RGB")))
            if len(self._squares) < self._squares_limit:
                self._squares[index] = square
        return square
