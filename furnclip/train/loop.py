"""The loop: step, log, validate, keep the best, stop in time.

In: a prepared model and data. Out: `checkpoints/`, `metrics.jsonl`. A step is an optimiser step over
the whole effective batch; it is taken only when loss and gradient are finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from furnclip import console
from furnclip.config import TrainingConfig
from furnclip.errors import InputError, Interrupted, ModelError
from furnclip.model.memory import is_out_of_memory
from furnclip.train.checkpoints import Position, save_checkpoint
from furnclip.train.data import TrainingData, steps_per_epoch
from furnclip.train.encoder import Encoder
from furnclip.train.exact import Memory, NonFiniteLossError, exact_backward
from furnclip.train.losses import LossName, chance_loss, contrastive_loss, right_answers
from furnclip.train.memory import peak_memory_mb
from furnclip.train.processes import Interrupts, Processes
from furnclip.train.schedule import gradient_norms, learning_rate, set_learning_rate
from furnclip.train.steps import Step, StepMaker
from furnclip.train.trackers import Tracker
from furnclip.train.validation import retrieval_figures

_CHANCE_STEPS = 100  # so long the loss may stay at chance before the run stops
_CHANCE_SHARE = 0.99
_LONG_WAIT = 0.3


@dataclass
class Loop:
    """Trains `parameters` from a position to the end."""

    config: TrainingConfig
    loss_name: LossName
    encoder: Encoder
    maker: StepMaker
    validation: TrainingData
    parameters: Mapping[str, nn.Parameter]
    optimiser: torch.optim.Optimizer | None  # None: nothing trains
    memory: Memory
    processes: Processes
    checkpoints: Path
    trackers: list[Tracker] = field(default_factory=list)
    saved: Callable[[Path], None] = lambda folder: None
    interrupts: Interrupts = field(default_factory=Interrupts)
    _recent: list[float] = field(default_factory=list, init=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False)
    _waiting_is_told: bool = field(default=False, init=False)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.maker.data), self.maker.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def run(self, position: Position) -> Position:
        """Train until the last epoch or the end of patience; every state on the way can be resumed."""
        if position.best_score is None:
            self._validate(position, epochs_done=0)
        try:
            while self.optimiser and position.epoch < self.config.epochs and not position.stopped_early:
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
        self._fill_caches(position.epoch)
        self.encoder.clip.module.train()
        waited_since, waits = time.perf_counter(), []
        for step in self.maker.steps(position.epoch, position.step_in_epoch):
            started = time.perf_counter()
            gradient = self._gradient_that_fits(step, position)
            with self.interrupts.held():
                figures = self._update(gradient, position)
                ended = time.perf_counter()
                figures["data_wait"] = (started - waited_since) / (ended - waited_since)
                figures["samples_per_s"] = len(step.indices) / (ended - waited_since)
                self._log("step", position, figures)
            waited_since = ended
            waits.append(figures["data_wait"])
            self._stop_at_chance(figures)
            if position.step_in_epoch < self.steps_per_epoch:
                self._save_if_due(position)
        self._warn_slow_loading(waits)
        self._validate(position, epochs_done=position.epoch + 1)

    def _warn_slow_loading(self, waits: list[float]) -> None:
        """Tell once a run what pictures cost."""
        share = sum(waits) / max(1, len(waits))
        reads_pictures = self.encoder.scenario.is_live("vision")
        if reads_pictures and share > _LONG_WAIT and self.processes.first and not self._waiting_is_told:
            self._waiting_is_told = True
            console.warn(
                f"{share:.0%} of the time went into waiting for pictures; a faster disk, a larger "
                "`train.image_cache_mb` or `--augment none` would help"
            )

    def _gradient_that_fits(self, step: Step, position: Position) -> dict[str, Any]:
        """The step's gradient; while memory runs out, in micro-batches of half the size."""
        while True:
            try:
                if _longest(step) > self.maker.micro_batch_size:
                    step = self.maker.prepare(step.indices, position.epoch)
                return self._gradient(step, position)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.maker.micro_batch_size == 1:
                    raise
            size = min(self.maker.micro_batch_size, _longest(step))
            half = max(1, size // 2)
            console.warn(f"out of memory: continuing with micro-batches of {half} instead of {size}")
            self.maker = replace(self.maker, micro_batch_size=half)
            self.memory = Memory(0, self.memory.weights)
            step = self.maker.prepare(step.indices, position.epoch)

    def _gradient(self, step: Step, position: Position) -> dict[str, Any]:
        """The clipped gradient of the whole effective batch, in the parameters; figures about it."""
        assert self.optimiser is not None
        rate = learning_rate(
            position.step,
            total_steps=self.total_steps,
            peak=self.config.lr,
            warmup_fraction=self.config.warmup_fraction,
        )
        set_learning_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._backward(step, position.step)
        scalars = self.encoder.clip.family.scalars
        self.processes.sum_gradients(self.parameters, replicated=scalars)
        norms = gradient_norms(self.parameters)
        if not math.isfinite(norms["all"]):
            raise self._non_finite(step, [], position.step, "gradient")
        self._clip_gradients(norms["all"])
        return {
            "loss": loss,
            "chance": chance_loss(len(step.indices), self.loss_name),
            "lr": rate,
            "gradient_norm": norms,
        }

    def _update(self, figures: dict[str, Any], position: Position) -> dict[str, Any]:
        """Change the weights and the position together; the figures of the whole step."""
        assert self.optimiser is not None
        self.optimiser.step()
        self._clamp_logit_scale()
        position.step += 1
        position.step_in_epoch += 1
        return {
            **figures,
            "logit_scale": self.encoder.clip.logit_scale,
            "memory_mb": peak_memory_mb(self.encoder.device),
        }

    def _backward(self, step: Step, number: int) -> float:
        """Gradients of the whole effective batch into the parameters; the loss."""
        labels = [step.captions, step.groups] if self.config.multi_positive else [range(len(step.indices))]
        right_BB = right_answers(*labels).to(self.encoder.device)
        module, family = self.encoder.clip.module, self.encoder.clip.family
        scalars = {name: getattr(module, name) for name in family.scalars}

        def loss(images_BD: Tensor, texts_BD: Tensor) -> Tensor:
            return contrastive_loss(images_BD, texts_BD, scalars, right_BB, name=self.loss_name)

        try:
            value = exact_backward(
                self.maker.image_chunks(step, number),
                self.maker.text_chunks(step, number),
                loss,
                memory=self.memory,
                gather=self.processes.gather(len(step.indices)),
            )
        except NonFiniteLossError as error:
            raise self._non_finite(step, error.rows, number, "loss") from None
        return float(value)

    def _clip_gradients(self, norm: float) -> None:
        factor = self.config.max_gradient_norm / (norm + 1e-6)
        if factor < 1:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    @torch.no_grad()
    def _clamp_logit_scale(self) -> None:
        self.encoder.clip.module.logit_scale.clamp_(max=math.log(self.config.max_logit_scale))

    def _validate(self, position: Position, *, epochs_done: int) -> None:
        """Validate, remember the best, count epochs without progress, save."""
        figures = retrieval_figures(
            self.encoder.vectors("vision", self.validation),
            self.encoder.vectors("text", self.validation),
            self.validation,
        )
        with self.interrupts.held():
            position.epoch, position.step_in_epoch = epochs_done, 0
            better = position.best_score is None or figures["score"] > position.best_score
            position.stale_epochs = 0 if better else position.stale_epochs + 1
            if position.epoch == 0:
                position.base_validation = figures
            self._log("validation", position, figures)
            if better:
                position.best_score, position.best_epoch = figures["score"], position.epoch
                if self.processes.first:
                    save_checkpoint(self.checkpoints / "best", position, self.parameters, None)
            position.stopped_early = 0 < self.config.patience <= position.stale_epochs
        self._save(position)

    def _save_if_due(self, position: Position) -> None:
        if time.monotonic() - self._saved_at >= self.config.checkpoint_interval_s:
            self._save(position)

    def _save(self, position: Position) -> None:
        if self.processes.first:
            save_checkpoint(self.checkpoints / "last", position, self.parameters, self.optimiser)
            self.saved(self.checkpoints / "last")
        self._saved_at = time.monotonic()

    def _fill_caches(self, epoch: int) -> None:
        """Let frozen towers see what this epoch needs and they have not seen yet."""
        data, scenario = self.maker.data, self.encoder.scenario
        if not scenario.is_live("vision"):
            self.encoder.fill("vision", data)
        if not scenario.is_live("text"):
            every = torch.arange(len(data)).numpy()
            self.encoder.fill("text", data, data.captions(every, epoch=epoch))

    def _log(self, event: str, position: Position, figures: Mapping[str, Any]) -> None:
        place = {"event": event, "step": position.step, "epoch": position.epoch}
        for tracker in self.trackers:
            tracker.log({**place, **figures})

    def _stop_at_chance(self, figures: Mapping[str, Any]) -> None:
        chance = figures["chance"]
        if chance is None:
            return
        self._recent = [*self._recent[-_CHANCE_STEPS + 1 :], figures["loss"] / max(chance, 1e-9)]
        if len(self._recent) == _CHANCE_STEPS and min(self._recent) > _CHANCE_SHARE:
            raise ModelError(
                f"for {_CHANCE_STEPS} steps the loss has stayed at {figures['loss']:.3f}, which is chance "
                f"(ln {round(math.exp(chance))} = {chance:.3f}): the model learns nothing",
                hint="try another `--lr`, check that captions differ and fit their pictures, "
                "and train `full` when the base has random weights",
            )

    def _non_finite(self, step: Step, rows: list[int], number: int, what: str) -> InputError:
        own = step.indices[step.own]
        ids = self.maker.data.product_ids([own[row] for row in rows] if rows else step.indices)
        named = ", ".join(f"`{product_id}`" for product_id in ids[:5])
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        return InputError(
            f"the {what} of step {number} is not finite; samples: {named}{more}",
            hint='lower `--lr`, use `model.precision = "fp32"`, or look at those products; no step was taken',
        )


def _longest(step: Step) -> int:
    return max(len(range(rows.start, rows.stop)) for rows in step.micro_batches)
