"""The effective batch of a step, made ready while the step before is still computing.

Samples are sorted by the length of their captions, so that micro-batches carry little padding. Every process
makes the captions of the whole batch, because the loss needs all labels, and the images of its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from furnclip.catalogue import content_hash
from furnclip.features import Keys, feature_keys
from furnclip.model.towers import TOWERS, Tower
from furnclip.relevance import AttributeQuery, known_attributes, positive_mask
from furnclip.train.data import Indices, TrainingData, step_batches
from furnclip.train.encoder import Inputs, TowerEncoder
from furnclip.train.exact import Chunk
from furnclip.train.prepared import Prepared

_DROPOUT_STREAM = 7919


@dataclass(frozen=True)
class Batch:
    """The effective batch, and this process's `own` part of it in micro-batches.

    Each product has F texts: its caption and, where attributes are trained on, a short query. `positives`:
    for each of the F texts (B, B) booleans, whether the image of a row is right for the text of a column.
    `inputs`: one array a micro-batch, for towers that run; `keys`: in the cache, for frozen towers; both hold
    all captions of their rows, then all short queries.
    """

    indices: Indices
    positives: list[NDArray[np.bool_]]
    own: slice
    micro_batches: list[slice]
    inputs: dict[Tower, list[Inputs]]
    keys: dict[Tower, Keys]

    def chunks(self, encoder: TowerEncoder, tower: Tower, *, seed: int, step: int) -> list[Chunk]:
        """The tower's part as micro-batches, images (b, D) or texts (b, F, D); as one when it is frozen."""
        if tower in self.keys:
            chunks = [encoder.frozen(tower, self.keys[tower])]
        else:
            chunks = [
                encoder.live(tower, inputs, dropout_seed(seed, step=step, tower=tower, start=rows.start))
                for inputs, rows in zip(self.inputs[tower], self.micro_batches, strict=True)
            ]
        if tower == "vision":
            return chunks
        texts = len(self.positives)

        def by_product(chunk: Chunk) -> Tensor:
            vectors = chunk()  # (F * b, D), all captions first
            return vectors.view(texts, len(vectors) // texts, vectors.shape[1]).transpose(0, 1)

        return [partial(by_product, chunk) for chunk in chunks]


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
    texts, positives = [captions], [positives_of(captions, data, indices)]
    if data.asks_attributes:
        queries = data.short_queries(indices, epoch=epoch)
        texts.append(texts_of(queries, data, indices))
        positives.append(positives_of(texts[1], data, indices) | _answers(queries, data, indices))
    own, size = ready.processes.slice_of(len(indices)), ready.micro_batch_size
    parts = [slice(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)]
    inputs: dict[Tower, list[Inputs]] = {}
    keys: dict[Tower, Keys] = {}
    if "vision" in encoder.stores:
        keys["vision"] = data.image_keys[data.drawn_images(indices[own], epoch=epoch)]
    else:
        inputs["vision"] = [data.squares(indices[rows], epoch=epoch) for rows in parts]
    if "text" in encoder.stores:
        keys["text"] = feature_keys(content_hash(text) for each in texts for text in each[own])
    else:
        asked = ([text for each in texts for text in each[rows]] for rows in parts)
        inputs["text"] = list(map(encoder.clip.tokenize, asked))
    return Batch(indices, positives, own, parts, inputs, keys)


def texts_of(queries: Sequence[AttributeQuery | None], data: TrainingData, indices: Indices) -> list[str]:
    """The short queries; the product's caption where there is none."""
    captions = (data.texts[index].caption for index in indices)
    return [query.text if query else caption for query, caption in zip(queries, captions, strict=True)]


def positives_of(texts: Sequence[str], data: TrainingData, indices: Indices) -> NDArray[np.bool_]:
    """(B, B): whether the text of a column is also right for the product of a row.

    It is for products of the same group or caption, for those with the same text, and where it is another
    product's own caption: words that are left out can leave just that.
    """
    if not data.config.multi_positive:
        return np.eye(len(indices), dtype=bool)
    products = [data.texts[index] for index in indices]
    captions = [product.caption for product in products]
    numbers = np.unique([*captions, *texts], return_inverse=True)[1].reshape(2, -1)
    shared = positive_mask(texts, captions, [product.group for product in products])
    shared |= numbers[0][:, None] == numbers[1][None, :]
    return shared


def _answers(
    queries: Sequence[AttributeQuery | None], data: TrainingData, indices: Indices
) -> NDArray[np.bool_]:
    """(B, B): whether the product of a row answers the short query of a column."""
    attributes = known_attributes([data.texts[index].fields for index in indices])
    answers = np.zeros((len(indices), len(indices)), dtype=bool)
    found: dict[str, NDArray[np.int64]] = {}
    for column, query in enumerate(queries):
        if query and query.wanted:
            if query.text not in found:
                found[query.text] = query.answers(attributes)
            answers[found[query.text], column] = True
    return answers


def dropout_seed(seed: int, *, step: int, tower: Tower, start: int) -> int:
    """The seed of the dropout of the micro-batch that begins at `start` of the effective batch."""
    sequence = np.random.SeedSequence([seed % 2**32, _DROPOUT_STREAM, step, TOWERS.index(tower), start])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
