"""One run, from settings to a finished folder; or all scenarios one after another, and a table of them.

In: `work/shards/`, a base model. Out: `work/runs/NAME/`, as `furnclip.runs` has it. Run again, a finished run
does nothing; an interrupted one continues; a changed one is refused, with what changed.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from furnclip import console
from furnclip.config import Config, TrainingConfig, torchrun_launch
from furnclip.errors import InputError, ModelError, UsageError
from furnclip.journal import Journal, discard_folder, exclusive, sweep, utc_now, write_json, write_text
from furnclip.runs import CHECKPOINTS, METRICS_NAME, MODEL, PUBLISHED, README, read_card, write_card
from furnclip.train.checkpoints import Position, load_checkpoint
from furnclip.train.data import duplicate_rate
from furnclip.train.exact import chance_loss
from furnclip.train.finish import finish
from furnclip.train.loop import Loop
from furnclip.train.prepared import Prepared, check_settings, prepare_run
from furnclip.train.processes import Interrupts, Processes, joined
from furnclip.train.scenarios import ABLATION
from furnclip.train.trackers import WandbTracker, forget_after, progress_tracker

_MANY_DUPLICATES = 0.5


def train_all(config: Config, *, prefix: str = "", resume: bool = True) -> dict[str, Any]:
    """Train every scenario of the ablation; returns one row for each, and writes them to `ablation.json`.

    The figures are of the validation split, which also chose each run's share, so they flatter all alike.
    Raises `UsageError` under torchrun: the scenarios share nothing but this process.
    """
    if torchrun_launch().count > 1:
        raise UsageError(
            "`--scenario all` runs in one process",
            hint="start each scenario with torchrun, or leave torchrun out",
        )
    rows = []
    for scenario in ABLATION:
        one = config.model_copy(update={"train": config.train.model_copy(update={"scenario": scenario})})
        card = train(one, run=f"{prefix}-{scenario}" if prefix else scenario, resume=resume)
        copied = (
            *("run", "scenario", "trainable_parameters", "seconds", "latency_ms"),
            *("share", "verdict", "already_done"),
        )
        recalls = {f"recall@{k}": card["intervals"][f"text_to_image_recall@{k}"] for k in (1, 5)}
        rows.append({name: card[name] for name in copied} | recalls)
    result = {"ablation": rows, "already_done": all(row["already_done"] for row in rows)}
    write_json(config.paths.runs / "ablation.json", result)
    return result


def train(config: Config, *, run: str = "", resume: bool = True) -> dict[str, Any]:
    """Train one scenario; the card of the finished run, plus `already_done`; empty in all but one process.

    `run`: its name; empty: the scenario's. `resume` off: an older run of that name is removed.
    """
    name = run or config.train.scenario
    if name != Path(name).name or name.startswith("."):
        raise UsageError(f"`{name}` cannot be a run's name", hint="use letters, digits, `-` and `_`")
    folder = config.paths.runs / name
    check_settings(config)
    interrupts = Interrupts()
    with interrupts.handled(), joined() as processes, exclusive(folder) if processes.first else nullcontext():
        if processes.first:
            # Killed runs left files; a checkpoint that was moved away for its successor is put back.
            for inside in (folder, folder / CHECKPOINTS):
                sweep(inside, exclusively=True)
            for shared in (folder.parent, config.paths.features):
                sweep(shared)
        processes.wait()
        return _train(config, folder, processes, interrupts, resume=resume)


def _train(
    config: Config, folder: Path, processes: Processes, interrupts: Interrupts, *, resume: bool
) -> dict[str, Any]:
    ready = prepare_run(config, folder, processes, card=read_card(folder) if resume else None)
    if ready.card.finished:
        if not ready.card.tells_result:
            raise InputError(
                f"the run card in `{folder}` is damaged: `validation` or `samples` is not complete",
                hint=f"restore it, or train again: `furnclip train --run {folder.name} --no-resume`",
            )
        if processes.first:
            ready.upload(*PUBLISHED)
        return {**asdict(ready.card), "already_done": True}
    if not resume and processes.first:
        discard_folder(folder)
    processes.wait()  # until an older run is gone, no process looks for its checkpoints
    if processes.first:
        if config.train.scenario == "auto":
            console.note(f"`{ready.card.scenario}` by the size of the base; `--scenario` names another")
        _announce(ready)
    started = time.monotonic()
    ready.encode_frozen()
    position = _run_loop(ready, interrupts)
    ready.card.seconds = round(ready.card.seconds + time.monotonic() - started, 1)
    if not processes.first:
        return {}
    ready.card.validation = {"base": position.base_validation}
    finish(ready)
    _close(ready, position)
    return {**asdict(ready.card), "already_done": False}


def _announce(ready: Prepared) -> None:
    """Write the card and say, before the first step, what is going to happen."""
    card, train = ready.card, ready.train
    rate = duplicate_rate(train.fixed_captions())
    card.samples = {"train": len(train), "validation": len(ready.validation)}
    card.batch = {"effective": ready.batch_size, "micro": ready.micro_batch_size}
    card.duplicate_caption_rate = round(rate, 4)
    card.trainable_parameters = sum(parameter.numel() for parameter in ready.parameters.values())
    card.parameters = sum(parameter.numel() for parameter in ready.encoder.clip.module.parameters())
    write_card(ready.folder, card)
    chance = chance_loss(ready.batch_size, ready.loss_name)
    precision = ready.encoder.choice
    console.note(
        f"{card.scenario}: {card.trainable_parameters:,} of {card.parameters:,} parameters train on "
        f"{len(train)} samples, batch {ready.batch_size} in micro-batches of {ready.micro_batch_size}, "
        f"{precision.precision} ({precision.reason})" + (f", loss at chance {chance:.3f}" if chance else "")
    )
    if ready.parameters:
        chosen = ready.config.train  # by `settled` where nothing was set
        dropout = f", word dropout {chosen.word_dropout:.2g}" if chosen.word_dropout else ""
        console.note(f"{chosen.epochs} epochs, peak learning rate {chosen.lr:.2g}{dropout}")
    console.note(f"{rate:.1%} of the captions are shared with another sample")
    if rate > _MANY_DUPLICATES:
        console.warn("most captions are not unique, so retrieval by caption cannot become sharp")


def _run_loop(ready: Prepared, interrupts: Interrupts) -> Position:
    """Train from the last checkpoint if anything trains; the model then holds the weights to keep.

    The last epoch's: which one is best by a small validation split is mostly noise. With `patience` the best.
    """
    loop = Loop(ready, interrupts)
    position, last = Position(), loop.checkpoints / "last"
    if last.exists():  # a damaged one too, so that it is told
        position = load_checkpoint(last, ready.parameters, loop.optimizer)
    with ExitStack() as stack:
        if ready.processes.first:
            forget_after(ready.folder, position.step)
            journal = stack.enter_context(Journal(ready.folder / METRICS_NAME))
            epochs, total = ready.config.train.epochs, loop.total_steps
            meter = stack.enter_context(console.progress("validating the base", total=total))
            loop.trackers += [journal.append, progress_tracker(meter, epochs=epochs, total_steps=total)]
            if ready.config.train.wandb != "off":
                wandb = WandbTracker(ready.config, ready.folder, ready.card.tracker_id)
                stack.callback(wandb.close)
                loop.trackers.append(wandb.log)
        position = loop.run(position)
    if ready.parameters and ready.config.train.patience:
        load_checkpoint(loop.checkpoints / "best", ready.parameters)
    return position


def verdict(config: TrainingConfig, position: Position, *, share: float) -> str:
    """Whether nothing was learnt or the run ended too early, and what to try; empty where neither is so."""
    if share == 0 or (config.patience and position.best_epoch == 0):
        other = "full" if config.scenario == "dual_lora" else "dual_lora"
        return (
            "nothing was learnt: no epoch is better than the base on validation, so the model is the base; "
            f"try `--lr {config.lr / 3:.1g}` or `--lr {config.lr * 3:.1g}` instead of {config.lr:.2g}, "
            f"`--scenario {other}`, or more products"
        )
    if position.best_epoch == config.epochs:
        return (
            f"validation was still rising at the last epoch: `--epochs {2 * config.epochs}` may give more "
            "(under another `--run` name)"
        )
    return ""


def _close(ready: Prepared, position: Position) -> None:
    """Write the model card, and last of all the run card that says `finished`."""
    card = ready.card
    card.status, card.finished_at = "finished", utc_now()
    card.epochs_done, card.best_epoch = position.epoch, position.best_epoch
    card.steps, card.stopped_early = position.step, position.stopped_early
    card.verdict = verdict(ready.config.train, position, share=card.share) if ready.parameters else ""
    if not card.tells_result:
        raise ModelError(
            f"the checkpoints in `{ready.folder / CHECKPOINTS}` hold other figures than this run makes",
            hint="train again with `--no-resume`",
        )
    templates = PackageLoader("furnclip.train")
    jinja = Environment(loader=templates, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    write_text(ready.folder / README, jinja.get_template("model_card.md").render(card=card) + "\n")
    if ready.config.train.wandb != "off" and ready.config.train.wandb_artifacts:
        tracker = WandbTracker(ready.config, ready.folder, card.tracker_id)
        tracker.log_model(ready.folder / MODEL)
        tracker.close()
    write_card(ready.folder, card)
    ready.upload(*PUBLISHED)
