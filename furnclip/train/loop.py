"""The loop: step, log, validate, keep the best, stop in time.

In: a prepared model and data. Out: `checkpoints/`, `metrics.jsonl`. `Loop._step` is one optimizer step over
the whole effective batch; it is taken only when loss and gradient are finite.

The batch of a step is made ready while the step before is still computing. Samples are sorted by the length
of their captions, so that micro-batches carry little padding. Every process makes the captions of the whole
batch, because the loss needs all labels, and the images of its own share.

Letters: B effective batch, b micro-batch, F texts of a product, D dimension.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.errors import InputError, Interrupted, ModelError, is_out_of_memory
from furnclip.features import Keys, feature_keys
from furnclip.model.towers import TOWERS, Tower
from furnclip.relevance import AttributeQuery, known_attributes, positive_mask
from furnclip.runs import CHECKPOINTS
from furnclip.train.data import Indices, TrainingData, step_batches, steps_per_epoch
from furnclip.train.encoder import Inputs, TowerEncoder, retrieval_figures
from furnclip.train.exact import (
    Chunk,
    Loss,
    Memory,
    NonFiniteLossError,
    chance_loss,
    contrastive_loss,
    distillation_loss,
    exact_backward,
    kept_activations_bytes,
    peak_memory_mb,
    storage_addresses,
)
from furnclip.train.prepared import Prepared
from furnclip.train.processes import signals_held
from furnclip.train.records import Position, Tracker, save_checkpoint
from furnclip.train.scenarios import build_optimizer, learning_rate

_CHANCE_STEPS = 100  # so long the loss may stay at chance before the run stops
_CHANCE_SHARE = 0.99
_LONG_WAIT = 0.3
_DROPOUT_STREAM = 7919


@dataclass
class Loop:
    """Trains the parameters of `ready` from a position to the end."""

    ready: Prepared
    trackers: list[Tracker] = field(default_factory=list)

    def __post_init__(self) -> None:
        ready = self.ready
        clip, self.config = ready.encoder.clip, ready.config.train
        self.optimizer = build_optimizer(ready.parameters, self.config, clip) if ready.parameters else None
        budget = kept_activations_bytes(self.config.kept_activations_mb, ready.encoder.device)
        self.memory = Memory(budget, storage_addresses(clip.module))
        self.steps_per_epoch = steps_per_epoch(len(ready.train), ready.batch_size)
        self.total_steps = self.steps_per_epoch * self.config.epochs
        self.checkpoints = ready.folder / CHECKPOINTS
        self._recent: list[float] = []
        self._saved_at = time.monotonic()
        self._slow_loading_is_told = False

    def run(self, position: Position) -> Position:
        """Train until the last epoch or the end of patience; every state on the way can be resumed."""
        if position.best_score is None:
            self._validate(position, epochs_done=0)
        try:
            while self.optimizer and position.epoch < self.config.epochs and not position.stopped_early:
                self._epoch(position)
        except (KeyboardInterrupt, SystemExit) as stop:
            self._save(position)
            told = f"interrupted after step {position.step}, which is saved"
            if isinstance(stop, KeyboardInterrupt):
                raise Interrupted(told) from None
            console.note(told)  # SIGTERM or SIGHUP
            raise
        return position

    def _epoch(self, position: Position) -> None:
        ready, every = self.ready, np.arange(len(self.ready.train))
        for tower in ready.encoder.stores:  # frozen towers encode what this epoch needs and is not cached
            captions = ready.train.captions(every, epoch=position.epoch) if tower == "text" else None
            ready.encoder.fill(tower, ready.train, captions)
            if tower == "text" and ready.train.asks_attributes:
                queries = ready.train.short_queries(every, epoch=position.epoch)
                ready.encoder.fill(tower, ready.train, texts_of(queries, ready.train, every))
        ready.encoder.clip.module.train()
        waiting_since, waits = time.perf_counter(), []
        for batch in batches(ready, position.epoch, position.step_in_epoch):
            figures = self._step(batch, position, waited_s=time.perf_counter() - waiting_since)
            waiting_since = time.perf_counter()
            waits.append(figures["data_wait"])
            self._stop_at_chance(figures)
            due = time.monotonic() - self._saved_at >= self.config.checkpoint_interval_s
            if due and position.step_in_epoch < self.steps_per_epoch:
                self._save(position)
        waited, reads_images = sum(waits) / max(1, len(waits)), "vision" not in ready.encoder.stores
        if reads_images and waited > _LONG_WAIT and ready.processes.first and not self._slow_loading_is_told:
            self._slow_loading_is_told = True
            console.warn(
                f"{waited:.0%} of the time went into waiting for images; a faster disk, a larger "
                "`train.image_cache_mb` or `--augment none` would help"
            )
        self._validate(position, epochs_done=position.epoch + 1)

    def _step(self, batch: Batch, position: Position, *, waited_s: float) -> dict[str, Any]:
        """One optimizer step over the whole effective batch; what is logged of it."""
        assert self.optimizer is not None
        started = time.perf_counter()
        ready, config, module = self.ready, self.config, self.ready.encoder.clip.module
        positives = [torch.from_numpy(each).to(ready.encoder.device) for each in batch.positives]  # (B, B)
        weights = [1.0, config.attribute_weight][: len(positives)]
        scalars = {name: getattr(module, name) for name in ready.encoder.clip.family.scalars}
        teacher_BB = ready.teacher.logits(batch.indices) if ready.teacher else None

        def loss_of(image_BD: Tensor, text_BFD: Tensor) -> Tensor:
            losses = [
                contrastive_loss(image_BD, text_BD, scalars, positive_BB, name=ready.loss_name) * weight
                for text_BD, positive_BB, weight in zip(text_BFD.unbind(1), positives, weights, strict=True)
            ]
            if teacher_BB is None:
                return torch.stack(losses).sum() / sum(weights)
            distance = distillation_loss(image_BD, text_BFD[:, 0], scalars["logit_scale"], teacher_BB)
            return (sum(losses) + distance * config.teacher_weight) / (sum(weights) + config.teacher_weight)

        loss = self._backward(batch, position, loss_of)
        ready.processes.sum_gradients(ready.parameters, replicated=scalars)
        norms = gradient_norms(ready.parameters)
        if not math.isfinite(norms["all"]):
            raise self._non_finite(batch, [], position.step, "gradient")
        clip_grads_with_norm_(ready.parameters.values(), config.max_gradient_norm, torch.tensor(norms["all"]))
        lr = learning_rate(position.step, self.total_steps, config)
        with signals_held():  # weights, position and log change together
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["share"]
            self.optimizer.step()
            with torch.no_grad():
                module.logit_scale.clamp_(max=math.log(config.max_logit_scale))
            position.step += 1
            position.step_in_epoch += 1
            total_s = waited_s + time.perf_counter() - started
            figures = {
                "loss": loss,
                "chance": chance_loss(len(batch.indices), ready.loss_name),
                "lr": lr,
                "gradient_norm": norms,
                "logit_scale": float(module.logit_scale.detach().exp()),
                "memory_mb": peak_memory_mb(ready.encoder.device),
                "data_wait": waited_s / total_s,
                "samples_per_s": len(batch.indices) / total_s,
            }
            self._log("step", position, figures)
        return figures

    def _backward(self, batch: Batch, position: Position, loss_of: Loss) -> float:
        """The loss, its gradient in the parameters; micro-batches are halved while memory runs out."""
        assert self.optimizer is not None
        ready = self.ready
        gather = ready.processes.gather(len(batch.indices))
        while True:
            try:
                largest = max(len(batch.indices[rows]) for rows in batch.micro_batches)
                if largest > ready.micro_batch_size:
                    batch = make_batch(ready, batch.indices, position.epoch)
                images, texts = (
                    batch.chunks(ready.encoder, tower, seed=self.config.seed, step=position.step)
                    for tower in TOWERS
                )
                self.optimizer.zero_grad(set_to_none=True)
                return float(exact_backward(images, texts, loss_of, memory=self.memory, gather=gather))
            except NonFiniteLossError as error:
                raise self._non_finite(batch, error.rows, position.step, "loss") from None
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or ready.micro_batch_size == 1:
                    raise
            size = min(ready.micro_batch_size, largest)
            ready.micro_batch_size = max(1, size // 2)
            console.warn(
                f"out of memory: continuing with micro-batches of {ready.micro_batch_size} instead of {size}"
            )
            self.memory = Memory(0, self.memory.weights)

    def _non_finite(self, batch: Batch, rows: list[int], step: int, what: str) -> InputError:
        suspects = batch.indices[batch.own][rows] if rows else batch.indices
        ids = [f"`{self.ready.train.texts[index].product_id}`" for index in suspects]
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        return InputError(
            f"the {what} of step {step} is not finite; samples: {', '.join(ids[:5])}{more}",
            hint='lower `--lr`, use `model.precision = "fp32"`, or look at those products; no step was taken',
        )

    def _stop_at_chance(self, figures: Mapping[str, Any]) -> None:
        chance = figures["chance"]
        if chance is None or self.ready.teacher:  # of an unsure teacher it stays there
            return
        self._recent = [*self._recent[-_CHANCE_STEPS + 1 :], figures["loss"] / max(chance, 1e-9)]
        if len(self._recent) == _CHANCE_STEPS and min(self._recent) > _CHANCE_SHARE:
            raise ModelError(
                f"for {_CHANCE_STEPS} steps the loss has stayed at {figures['loss']:.3f}, which is chance "
                f"(ln {round(math.exp(chance))} = {chance:.3f}): the model learns nothing",
                hint="try another `--lr`, check that captions differ and fit their images, "
                "and train `full` when the base has random weights",
            )

    def _validate(self, position: Position, *, epochs_done: int) -> None:
        """Validate, remember the best, count epochs without progress, save."""
        figures = retrieval_figures(self.ready.encoder, self.ready.validation)
        with signals_held():
            position.epoch, position.step_in_epoch = epochs_done, 0
            better = position.best_score is None or figures["score"] > position.best_score
            position.stale_epochs = 0 if better else position.stale_epochs + 1
            if position.epoch == 0:
                position.base_validation = figures
            self._log("validation", position, figures)
            if better:
                position.best_score, position.best_epoch = figures["score"], position.epoch
                if self.config.patience and self.ready.processes.first:
                    save_checkpoint(self.checkpoints / "best", position, self.ready.parameters, None)
            position.stopped_early = 0 < self.config.patience <= position.stale_epochs
        self._save(position)

    def _save(self, position: Position) -> None:
        if self.ready.processes.first:
            save_checkpoint(self.checkpoints / "last", position, self.ready.parameters, self.optimizer)
            self.ready.upload(f"{CHECKPOINTS}/last")
        self._saved_at = time.monotonic()

    def _log(self, event: str, position: Position, figures: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker({"event": event, "step": position.step, "epoch": position.epoch, **figures})


def gradient_norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Norm of the gradient of each group of parameters, and of all together under `all`."""
    squares: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        if parameter.grad is None:
            continue
        if name.startswith("logit_"):
            group = "scalars"
        elif "projection" in name or name.endswith(("head.weight", "head.bias")):
            group = "projections"
        else:
            group = f"{name.split('_model.')[0]}_{'lora' if '.lora_' in name else 'weights'}"
        square = parameter.grad.detach().float().square().sum()
        squares[group] = squares[group] + square if group in squares else square
    norms = {group: float(value) ** 0.5 for group, value in sorted(squares.items())}
    return {**norms, "all": sum(norm**2 for norm in norms.values()) ** 0.5}


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
