"""One optimiser step's samples, made ready while the step before is still computing.

The samples of a step are sorted by the length of their captions, so that micro-batches carry little
padding; the loss does not see their order. Every process makes the captions of the whole effective
batch, because the loss needs all labels, and the pictures of its own share only.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from furnclip.catalogue import content_hash
from furnclip.model.families import Tower
from furnclip.train.data import Indices, TrainingData, step_batches
from furnclip.train.encoder import Encoder, dropout_seed
from furnclip.train.exact import Chunk
from furnclip.train.processes import Processes


@dataclass(frozen=True)
class Step:
    """The effective batch, and this process's part of it in micro-batches (empty for frozen towers)."""

    indices: Indices
    captions: list[str]
    groups: list[str]
    own: slice
    micro_batches: list[slice]
    pictures: list[NDArray[np.uint8]]
    tokens: list[Tensor]


@dataclass(frozen=True)
class StepMaker:
    """Cuts epochs into steps and prepares them."""

    data: TrainingData
    encoder: Encoder
    processes: Processes
    batch_size: int
    micro_batch_size: int

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """The epoch's steps from `first` on, each prepared while the caller works on the one before."""
        seed = self.data.config.seed
        batches = step_batches(len(self.data), self.batch_size, seed=seed, epoch=epoch)[first:]
        with ThreadPoolExecutor(1, thread_name_prefix="pictures") as thread:
            waiting = [thread.submit(self.prepare, batches[0], epoch)] if batches else []
            for batch in batches[1:]:
                ready = waiting.pop().result()
                waiting.append(thread.submit(self.prepare, batch, epoch))
                yield ready
            for last in waiting:
                yield last.result()

    def prepare(self, indices: Indices, epoch: int) -> Step:
        """Captions for all, pictures and tokens for this process's share."""
        captions = self.data.captions(indices, epoch=epoch)
        by_length = np.argsort([len(caption) for caption in captions], kind="stable")
        indices, captions = indices[by_length], [captions[row] for row in by_length]
        own = self.processes.slice_of(len(indices))
        parts = self._micro_batches(own)
        scenario = self.encoder.scenario
        return Step(
            indices=indices,
            captions=captions,
            groups=[self.data.texts[index].group for index in indices],
            own=own,
            micro_batches=parts,
            pictures=[
                self.data.squares(indices[rows], epoch=epoch) for rows in parts if scenario.is_live("vision")
            ],
            tokens=[self.encoder.clip.tokenize(captions[rows]) for rows in parts if scenario.is_live("text")],
        )

    def image_chunks(self, step: Step, number: int) -> list[Chunk]:
        """This process's pictures as micro-batches; one from the cache when the tower is frozen."""
        if not self.encoder.scenario.is_live("vision"):
            keys = [self.data.texts[index].image_key for index in step.indices[step.own]]
            return [self.encoder.frozen("vision", keys)]
        seeds = self._dropout_seeds("vision", number, step)
        return [self.encoder.live("vision", *pair) for pair in zip(step.pictures, seeds, strict=True)]

    def text_chunks(self, step: Step, number: int) -> list[Chunk]:
        """This process's captions as micro-batches; one from the cache when the tower is frozen."""
        if not self.encoder.scenario.is_live("text"):
            keys = [content_hash(caption) for caption in step.captions[step.own]]
            return [self.encoder.frozen("text", keys)]
        seeds = self._dropout_seeds("text", number, step)
        return [self.encoder.live("text", *pair) for pair in zip(step.tokens, seeds, strict=True)]

    def _dropout_seeds(self, tower: Tower, number: int, step: Step) -> list[int]:
        """One for each micro-batch of the step, by where in the effective batch it begins."""
        seed = self.data.config.seed
        return [dropout_seed(seed, step=number, tower=tower, start=rows.start) for rows in step.micro_batches]

    def _micro_batches(self, own: slice) -> list[slice]:
        size = self.micro_batch_size
        return [slice(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)]
