"""Training: exact batches, frozen towers for free, runs that resume to the bit.

One run, from settings to a finished folder; or all scenarios one after another, and a table of them.
In: `work/shards/`, a base model. Out: `work/runs/NAME/`, as `furnclip.runs` has it. Run again, a finished run
does nothing; an interrupted one continues; a changed one is refused, with what changed.

How far to go from the base to the trained weights is chosen on validation: WiSE-FT
(https://arxiv.org/abs/2109.01903). Share 0 is the base, so what is kept is never worse than it on validation.
Known bias: the best of eleven measurements flatters itself on a small split. The folder just written is
loaded again: cosines below 0.9999 to the base plus adapter stop the run.
"""

from __future__ import annotations

import itertools
import statistics
import time
import timeit
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from peft import PeftModel
from PIL import Image

from furnclip import console
from furnclip.config import Config, TrainingConfig, torchrun_launch
from furnclip.errors import InputError, ModelError, UsageError
from furnclip.journal import (
    Journal,
    discard_folder,
    exclusive,
    replacing_folder,
    sweep,
    utc_now,
    write_json,
    write_text,
)
from furnclip.metrics.bootstrap import bootstrap_interval
from furnclip.metrics.retrieval import ranks
from furnclip.model.adapters import save_adapter, shifted, weight_changes
from furnclip.model.clip import Clip, quiet
from furnclip.model.loading import load_float32
from furnclip.runs import ADAPTER, CHECKPOINTS, METRICS_NAME, MODEL, PUBLISHED, README, read_card, write_card
from furnclip.train.data import TrainingData, duplicate_rate
from furnclip.train.encoder import TowerEncoder, retrieval_figures
from furnclip.train.exact import chance_loss
from furnclip.train.loop import Loop
from furnclip.train.prepared import Prepared, check_settings, prepare_run
from furnclip.train.processes import Processes, joined
from furnclip.train.records import Position, WandbTracker, forget_after, load_checkpoint, progress_tracker
from furnclip.train.scenarios import ABLATION

_MANY_DUPLICATES = 0.5
SHARES = tuple(round(share, 1) for share in np.linspace(0, 1, 11).tolist())
_PARITY = 0.9999
_PROBES = 32
_TIMED = 9
_TAKEN_NAMES = ("base", "master_vectors")  # of the base model in votes and reports; of the vector file


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
    if name != Path(name).name or name.startswith(".") or name in _TAKEN_NAMES:
        hint = f"use letters, digits, `-` and `_`, but not `{'` or `'.join(_TAKEN_NAMES)}`"
        raise UsageError(f"`{name}` cannot be a run's name", hint=hint)
    folder = config.paths.runs / name
    check_settings(config)
    with joined() as processes, exclusive(folder) if processes.first else nullcontext():
        if processes.first:
            # Killed runs left files; a checkpoint that was moved away for its successor is put back.
            for inside in (folder, folder / CHECKPOINTS):
                sweep(inside, exclusively=True)
            for shared in (folder.parent, config.paths.features):
                sweep(shared)
        processes.wait()
        return _train(config, folder, processes, resume=resume)


def _train(config: Config, folder: Path, processes: Processes, *, resume: bool) -> dict[str, Any]:
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
    position = _run_loop(ready)
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


def _run_loop(ready: Prepared) -> Position:
    """Train from the last checkpoint if anything trains; the model then holds the weights to keep.

    The last epoch's: which one is best by a small validation split is mostly noise. With `patience` the best.
    """
    loop = Loop(ready)
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


def finish(ready: Prepared) -> None:
    """Sweep, merge, save and check the trained model, which holds its best weights; fill in its card."""
    config, trained, validation = ready.config, ready.encoder, ready.validation
    clip = load_float32(trained.clip.name, config.model, runs=config.paths.runs)
    changes = weight_changes(trained.clip.module, clip.module)
    base = {name: value.detach().clone() for name, value in clip.module.named_parameters() if name in changes}
    # The plain model runs where and in the precision that the trained one did; frozen towers share the cache.
    clip.module.requires_grad_(False).to(trained.device)
    plain = TowerEncoder(clip, trained.scenario, trained.device, trained.choice, None)
    plain.stores.update(trained.stores)
    figures: dict[float, dict[str, float]] = {}
    for share in SHARES if config.train.wise_ft and changes else (1.0,):
        clip.module.load_state_dict(shifted(base, changes, share), strict=False)
        figures[share] = retrieval_figures(plain, validation)
    # Of equal scores the largest share: the data asked for it, the base does not mind.
    best = max(figures, key=lambda share: (figures[share]["score"], share))
    if 0.0 in figures and figures[best]["score"] <= figures[0.0]["score"]:
        best = 0.0  # no share is better than the base: nothing was learnt
    kept = shifted(base, changes, best)
    clip.module.load_state_dict(kept, strict=False)
    if trained.scenario.projections and not trained.scenario.everything:
        paths = clip.family.projections.values()
        whole = {name: value for name, value in kept.items() if name.rpartition(".")[0] in paths}
        with replacing_folder(ready.folder / ADAPTER) as aside:
            save_adapter(aside, trained.clip, whole, config.train, share=best)
    with replacing_folder(ready.folder / MODEL) as aside:
        clip.save(aside)
    saved = load_float32(str(ready.folder / MODEL), config.model)
    rows = range(min(_PROBES, len(validation)))
    images = [Image.fromarray(square) for square in validation.squares(rows, epoch=None)]
    captions = validation.fixed_captions()[: len(rows)]
    card = ready.card
    card.validation = {**card.validation, "finetuned": figures[best]}
    card.share = best
    card.wise_ft = {str(share): measured["score"] for share, measured in figures.items()}
    card.parity = _parity(ready, saved, clip, images, captions)
    card.model_fingerprint = saved.fingerprint
    card.intervals = _recall_intervals(plain, validation)
    card.latency_ms = {
        "image": _median_ms(saved.encode_images, images),
        "text": _median_ms(saved.encode_texts, captions),
    }


def _parity(
    ready: Prepared, saved: Clip, merged: Clip, images: list[Image.Image], captions: list[str]
) -> float:
    """Smallest cosine between vectors of the folder on disk and of the base with its adapter."""
    unmerged = merged
    if (ready.folder / ADAPTER / "adapter_config.json").is_file():
        unmerged = load_float32(merged.name, ready.config.model, runs=ready.config.paths.runs)
        with quiet():
            adapted: Any = PeftModel.from_pretrained(unmerged.module, ready.folder / ADAPTER)
        unmerged.module = adapted.base_model.model.eval()
    lowest = min(
        float(np.min(np.sum(first * second, axis=1)))
        for first, second in (
            (saved.encode_images(images), unmerged.encode_images(images)),
            (saved.encode_texts(captions), unmerged.encode_texts(captions)),
        )
    )
    if lowest < _PARITY:
        raise ModelError(
            f"the merged model differs from the trained one (cosine {lowest:.6f})",
            hint="this is a fault of furnclip or peft; keep `checkpoints/` and report it",
        )
    return lowest


def _recall_intervals(encoder: TowerEncoder, data: TrainingData) -> dict[str, list[float]]:
    """Text-to-image recall@1 and @5 as [value, low, high], 95 % by resampling whole groups."""
    groups = data.texts.column("group")
    texts, images = encoder.vectors("text", data), encoder.vectors("vision", data)
    first = ranks(texts, images, data.positives())
    intervals = {}
    for k in (1, 5):
        interval = bootstrap_interval((first <= k).astype(np.float64), groups)
        intervals[f"text_to_image_recall@{k}"] = [interval.value, interval.low, interval.high]
    return intervals


def _median_ms(encode: Callable[[list[Any]], object], items: Sequence[Any]) -> float:
    """Median milliseconds for one item, after a warm-up."""
    each = itertools.cycle(items)
    seconds = timeit.repeat(lambda: encode([next(each)]), number=1, repeat=_TIMED + 1)
    return round(1000 * statistics.median(seconds[1:]), 2)


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
