"""The samples of a split as training sees them: pictures, captions, right answers.

In: `work/shards/SPLIT/`. Every random choice (caption, mirroring, shift) is a function of the seed, the
epoch and the sample, so a resumed run, a second rank and a second look at the same micro-batch all
draw the same.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from furnclip.catalogue import content_hash
from furnclip.config import TrainingConfig
from furnclip.model.pixels import Preprocessing
from furnclip.shards import ShardDataset
from furnclip.train.augment import augment
from furnclip.train.captions import sample_caption
from furnclip.train.order import Indices, random_stream

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
