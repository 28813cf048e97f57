"""Runs the towers for training: live ones chunk by chunk, frozen ones from their cache.

Letters: B effective batch, b micro-batch, W width of a tower, D shared dimension, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnclip.catalogue import content_hash
from furnclip.features import FeatureStore
from furnclip.model.clip import Clip
from furnclip.model.families import TOWERS, Tower
from furnclip.model.precision import Choice
from furnclip.model.quiet import quiet
from furnclip.model.towers import pooled_images, pooled_texts, project
from furnclip.train.data import TrainingData
from furnclip.train.exact import Chunk
from furnclip.train.scenarios import Scenario

_FILL_CHUNK = 128
_DROPOUT_STREAM = 7919


@dataclass
class Encoder:
    """The model in training: which towers run, and what the frozen ones said before."""

    clip: Clip
    scenario: Scenario
    device: torch.device
    choice: Choice
    cache: Path | None
    stores: dict[Tower, FeatureStore] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for tower in TOWERS:
            if not self.scenario.is_live(tower):
                self.stores[tower] = FeatureStore(
                    self.cache, self.clip.fingerprint, tower, self.choice.precision
                )

    def place(self) -> None:
        """Move the model; frozen weights take the narrow type, training weights stay float32."""
        self.clip.module.to(self.device)
        if self.choice.precision == "bf16":
            for parameter in self.clip.module.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)

    def recompute_layers(self) -> None:
        """Keep only each layer's input for the backward pass."""
        with quiet():
            self.clip.module.gradient_checkpointing_enable({"use_reentrant": False})

    def live(self, tower: Tower, inputs: NDArray[np.uint8] | Tensor, seed: int) -> Chunk:
        """A micro-batch of pictures (b, H, W, 3) or tokens (b, T), through the tower and projected."""

        def encode() -> Tensor:
            torch.manual_seed(seed)  # the same dropout on both passes
            with self._arithmetic():
                return self._project(tower, self._pooled(tower, inputs))

        return encode

    def frozen(self, tower: Tower, keys: Sequence[str]) -> Chunk:
        """Any number of samples from the cache, projected."""
        pooled = torch.from_numpy(self.stores[tower].rows(keys)).to(self.device)
        return lambda: self._project(tower, pooled)

    def fill(self, tower: Tower, data: TrainingData, captions: Sequence[str] | None = None) -> list[str]:
        """Encode what the frozen tower has not seen; the keys of all samples (or captions)."""
        spoken = data.fixed_captions() if captions is None else captions
        keys = [content_hash(caption) for caption in spoken]
        if tower == "vision":
            keys = [text.image_key for text in data.texts]

        def encode(positions: list[int]) -> NDArray[np.float32]:
            inputs = (
                data.squares(positions, epoch=None)
                if tower == "vision"
                else self.clip.tokenize([spoken[position] for position in positions])
            )
            with torch.no_grad(), self._arithmetic():
                return self._pooled(tower, inputs).float().cpu().numpy()

        self.stores[tower].fill(keys, encode, chunk_size=_FILL_CHUNK)
        return keys

    @torch.no_grad()
    def vectors(self, tower: Tower, data: TrainingData) -> NDArray[np.float32]:
        """(N, D): the whole split as evaluation sees it, in the order of the split."""
        was_training = self.clip.module.training
        self.clip.module.eval()
        if tower in self.stores:
            parts = [self.frozen(tower, self.fill(tower, data))()]
        else:
            parts = list(self._live_parts(tower, data))
        self.clip.module.train(was_training)
        return torch.cat(parts).float().cpu().numpy()

    def _live_parts(self, tower: Tower, data: TrainingData) -> Iterator[Tensor]:
        captions = data.fixed_captions()
        for start in range(0, len(data), _FILL_CHUNK):
            positions = range(start, min(start + _FILL_CHUNK, len(data)))
            if tower == "vision":
                yield self.live(tower, data.squares(positions, epoch=None), seed=0)()
            else:
                yield self.live(tower, self.clip.tokenize([captions[row] for row in positions]), seed=0)()

    def _pooled(self, tower: Tower, inputs: NDArray[np.uint8] | Tensor) -> Tensor:
        if isinstance(inputs, Tensor):
            return pooled_texts(self.clip.module, self.clip.family, inputs)
        pixels = self.clip.preprocessing.normalise(inputs).to(self.device)
        if self.choice.precision == "bf16":
            pixels = pixels.bfloat16()
        return pooled_images(self.clip.module, self.clip.family, pixels)

    def _project(self, tower: Tower, pooled: Tensor) -> Tensor:
        # in float32 for live and cached towers alike: a rounded vector moves the whole loss
        with torch.autocast(self.device.type, enabled=False):
            return project(self.clip.module, self.clip.family, tower, pooled)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.choice.precision == "bf16"):
            yield


def dropout_seed(seed: int, *, step: int, tower: Tower, start: int) -> int:
    """The seed of the dropout of the micro-batch that begins at `start` of the effective batch."""
    sequence = np.random.SeedSequence([seed % 2**32, _DROPOUT_STREAM, step, TOWERS.index(tower), start])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
