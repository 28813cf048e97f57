"""The effective batch of a step, made ready while the step before is still computing.

The samples of a batch are sorted by the length of their captions, so that micro-batches carry little
padding; the loss does not see their order. Every process makes the captions of the whole effective
batch, because the loss needs all labels, and the images of its own share only.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from furnclip.catalogue import content_hash
from furnclip.model.towers import TOWERS, Tower
from furnclip.train.data import Indices, step_batches
from furnclip.train.encoder import Encoder, Inputs
from furnclip.train.exact import Chunk
from furnclip.train.prepared import Prepared

_DROPOUT_STREAM = 7919


@dataclass(frozen=True)
class Batch:
    """The effective batch, and this process's `own` part of it in micro-batches.

    `inputs`: one array a micro-batch, for towers that run. `keys`: in the cache, for frozen towers.
    """

    indices: Indices
    captions: list[str]
    groups: list[str]
    own: slice
    micro_batches: list[slice]
    inputs: dict[Tower, list[Inputs]]
    keys: dict[Tower, list[str]]

    @property
    def micro_batch_size(self) -> int:
        return max(len(self.indices[rows]) for rows in self.micro_batches)

    def chunks(self, encoder: Encoder, tower: Tower, *, seed: int, step: int) -> list[Chunk]:
        """The tower's part as micro-batches; as one from the cache when it is frozen."""
        if tower in self.keys:
            return [encoder.frozen(tower, self.keys[tower])]
        return [
            encoder.live(tower, inputs, dropout_seed(seed, step=step, tower=tower, start=rows.start))
            for inputs, rows in zip(self.inputs[tower], self.micro_batches, strict=True)
        ]


def batches(ready: Prepared, epoch: int, first: int) -> Iterator[Batch]:
    """The epoch's batches from `first` on, each made while the caller works on the one before."""
    seed = ready.config.train.seed
    parts = step_batches(len(ready.train), ready.batch_size, seed=seed, epoch=epoch)[first:]
    with ThreadPoolExecutor(1, thread_name_prefix="images") as thread:
        waiting = [thread.submit(make_batch, ready, parts[0], epoch)] if parts else []
        for part in parts[1:]:
            batch = waiting.pop().result()
            waiting.append(thread.submit(make_batch, ready, part, epoch))
            yield batch
        for last in waiting:
            yield last.result()


def make_batch(ready: Prepared, indices: Indices, epoch: int) -> Batch:
    """Captions for all, images and tokens for this process's share."""
    data, encoder = ready.train, ready.encoder
    captions = data.captions(indices, epoch=epoch)
    by_length = np.argsort([len(caption) for caption in captions], kind="stable")
    indices, captions = indices[by_length], [captions[row] for row in by_length]
    own, size = ready.processes.slice_of(len(indices)), ready.micro_batch_size
    parts = [slice(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)]
    keys: dict[Tower, list[str]] = {
        "vision": [data.image_keys[index] for index in indices[own]],
        "text": [content_hash(caption) for caption in captions[own]],
    }
    return Batch(
        indices=indices,
        captions=captions,
        groups=[data.texts[index].group for index in indices],
        own=own,
        micro_batches=parts,
        inputs={
            tower: [encoder.inputs(tower, data, indices[rows], captions[rows], epoch=epoch) for rows in parts]
            for tower in TOWERS
            if tower not in encoder.stores
        },
        keys={tower: keys[tower] for tower in encoder.stores},
    )


def dropout_seed(seed: int, *, step: int, tower: Tower, start: int) -> int:
    """The seed of the dropout of the micro-batch that begins at `start` of the effective batch."""
    sequence = np.random.SeedSequence([seed % 2**32, _DROPOUT_STREAM, step, TOWERS.index(tower), start])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
