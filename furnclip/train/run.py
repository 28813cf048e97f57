"""One run, from settings to a finished folder.

In: `work/shards/`, a base model. Out: `work/runs/NAME/` with `run.json`, `metrics.jsonl`, `checkpoints/`,
`adapter/`, `model/` and `README.md`. `run.json` says `finished` only when all the rest is there.

Where a run starts from, in this order: its own last checkpoint, else the base model. Run again, a
finished run does nothing; an interrupted one goes on; a changed one is refused, with what changed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from furnclip import console
from furnclip.config import Config
from furnclip.errors import ConfigError, FurnclipError, InputError, ModelError, StorageError, UsageError
from furnclip.journal import discard_folder, exclusive, sweep, write_text
from furnclip.model.loading import load_float32
from furnclip.model.precision import Choice, choose_device, choose_precision
from furnclip.runs import CHECKPOINTS, MODEL, PUBLISHED, README, RunCard, read_card, write_card
from furnclip.shards import MANIFEST_NAME, MINI_TRAIN, ShardDataset, read_manifest
from furnclip.storage import S3Manager
from furnclip.train.card import check_same, identity, model_card, new_card, now
from furnclip.train.checkpoints import Position, has_checkpoint, load_checkpoint
from furnclip.train.data import TrainingData, default_batch_size, duplicate_rate, steps_per_epoch
from furnclip.train.encoder import Encoder
from furnclip.train.exact import Memory
from furnclip.train.finish import Finished, finish, lora_shape
from furnclip.train.loop import Loop
from furnclip.train.losses import LossName, chance_loss, checked_loss
from furnclip.train.memory import kept_activations_bytes, largest_micro_batch, storage_addresses
from furnclip.train.processes import Interrupts, Processes, joined
from furnclip.train.scenarios import SCENARIOS, unfreeze
from furnclip.train.schedule import build_optimiser
from furnclip.train.steps import StepMaker
from furnclip.train.trackers import JournalTracker, LiveView, Tracker, WandbTracker, forget_after

_MANY_DUPLICATES = 0.5
_LONG_CAPTION_TOKENS = 40


@dataclass
class Prepared:
    """Everything that a run needs, checked and loaded, before the first step."""

    folder: Path
    config: Config
    processes: Processes
    encoder: Encoder
    parameters: dict[str, torch.nn.Parameter]
    train: TrainingData
    validation: TrainingData
    loss_name: LossName
    batch_size: int
    micro_batch_size: int
    card: RunCard


def train(config: Config, *, run: str = "", resume: bool = True) -> dict[str, Any]:
    """Train one scenario; returns the run card of the finished run, plus `already_done`.

    Of several processes only the first has a card, the others return an empty one.

    `run`: its name; empty: the scenario's. `resume` off: an older run of that name is removed.
    """
    folder = _run_folder(config, run or config.train.scenario)
    check_settings(config)
    interrupts = Interrupts()
    with (
        interrupts.handled(),
        joined() as processes,
        _full_disk_told(folder),
        exclusive(folder) if processes.first else nullcontext(),
    ):
        if processes.first:
            _sweep(config, folder)
        return _train(config, folder, processes, interrupts, resume=resume)


def _train(
    config: Config, folder: Path, processes: Processes, interrupts: Interrupts, *, resume: bool
) -> dict[str, Any]:
    if processes.first:
        _fetch_shards(config)
    processes.wait()
    ready = _prepare(config, folder, processes, card=read_card(folder) if resume else None)
    if ready.card.finished:
        if not ready.card.tells_result:
            raise InputError(
                f"the run card in `{folder}` is damaged: `validation` or `samples` is not complete",
                hint=f"restore it, or train again: `furnclip train --run {folder.name} --no-resume`",
            )
        if processes.first:
            _upload_finished(ready)
        return {**asdict(ready.card), "already_done": True}
    if not resume and processes.first:
        discard_folder(folder)
    processes.wait()  # until an older run is gone, nobody looks for its checkpoints
    _announce(ready)
    started = time.monotonic()
    position, base = _trained(ready, interrupts)
    ready.card.seconds = round(ready.card.seconds + time.monotonic() - started, 1)
    if not processes.first:
        return {}
    finished = finish(folder, ready.encoder, ready.validation, config)
    return {**_close(ready, position, finished, base=base), "already_done": False}


def _sweep(config: Config, folder: Path) -> None:
    """Remove what killed runs left; a checkpoint that was moved away for its successor is put back."""
    for inside in (folder, folder / CHECKPOINTS):
        sweep(inside, exclusively=True)
    for shared in (folder.parent, config.paths.cache / "features"):
        sweep(shared)


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """A full disk as an error that names it, also where a library does not say which file it was."""
    try:
        yield
    except FurnclipError:
        raise
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
        if full:
            place = Path(getattr(error, "filename", None) or folder).resolve()
            disk = next((each for each in (place, *place.parents) if each.is_mount()), place)
            raise StorageError(
                f"the disk `{disk}` is full: `{place}` could not be written",
                hint="free some space and run the same command again; it continues from the last checkpoint",
            ) from None
        raise


def check_settings(config: Config) -> None:
    """Refuse combinations that cannot be meant, before any work."""
    train = config.train
    if train.effective_batch_size == 1:
        raise ConfigError(
            "`train.effective_batch_size` cannot be 1",
            hint="a contrastive loss needs negatives: 2 or more",
        )
    if 0 < train.effective_batch_size < train.micro_batch_size:
        raise ConfigError(
            f"`train.micro_batch_size` ({train.micro_batch_size}) is larger than "
            f"`train.effective_batch_size` ({train.effective_batch_size})",
            hint="a micro-batch is a part of the effective batch: make it smaller",
        )
    if train.upload and not config.storage.bucket:
        raise ConfigError("there is no bucket to upload to", hint="set `storage.bucket` or add `--s3-bucket`")
    if train.wandb != "off" and not find_spec("wandb"):
        raise UsageError("`--wandb` needs the package wandb", hint="run `pip install 'furnclip[wandb]'`")


def _fetch_shards(config: Config) -> None:
    """Shards that are only in the bucket are brought here; those that are here are taken as they are."""
    if not config.storage.bucket or (config.paths.shards / MANIFEST_NAME).is_file():
        return
    with S3Manager.from_config(config.storage) as manager:
        manager.download_dataset(config.storage.shards, config.paths.shards)


def _run_folder(config: Config, name: str) -> Path:
    if name != Path(name).name or name.startswith("."):
        raise UsageError(f"`{name}` cannot be a run's name", hint="use letters, digits, `-` and `_`")
    return config.paths.runs / name


def _prepare(config: Config, folder: Path, processes: Processes, *, card: RunCard | None = None) -> Prepared:
    """Load, check and place what the run needs; `card`: of the run that is resumed, if there is one."""
    settings = config.train
    scenario = SCENARIOS[settings.scenario]
    manifest = read_manifest(config.paths.shards)
    clip = load_float32(config.model.name, config.model, runs=config.paths.runs)
    loss_name = checked_loss(settings.loss, clip.family)
    same = identity(
        config, scenario=settings.scenario, data_hash=manifest.data_hash, fingerprint=clip.fingerprint
    )
    if card is None:
        card = new_card(config, folder.name, same)
    else:
        check_same(folder.name, card.identity, same)
    train_data, validation = _read_splits(config, clip.preprocessing)
    device = choose_device(config.model.device)
    parameters = unfreeze(clip, scenario, lora_shape(config), seed=settings.seed)
    choice = _precision(card, lambda: choose_precision(config.model.precision, clip.module, device))
    cache = config.paths.cache / "features" if settings.feature_cache and processes.first else None
    encoder = Encoder(clip, scenario, device, choice, cache)
    encoder.place()
    if settings.gradient_checkpointing:
        encoder.recompute_layers()
    batch_size = min(settings.effective_batch_size or default_batch_size(len(train_data)), len(train_data))
    return Prepared(
        folder=folder,
        config=config,
        processes=processes,
        encoder=encoder,
        parameters=parameters,
        train=train_data,
        validation=validation,
        loss_name=loss_name,
        batch_size=batch_size,
        micro_batch_size=_micro_batch_size(config, encoder, card, batch_size),
        card=card,
    )


def _micro_batch_size(config: Config, encoder: Encoder, card: RunCard, batch_size: int) -> int:
    """As asked for; where it is to be found, what the run began with, else the largest that fits."""
    if config.train.micro_batch_size:
        return min(config.train.micro_batch_size, batch_size)
    if "micro" in card.batch:
        return card.batch["micro"]
    return largest_micro_batch(encoder, limit=batch_size, tokens=_LONG_CAPTION_TOKENS)


def _read_splits(config: Config, preprocessing: Any) -> tuple[TrainingData, TrainingData]:
    names = (MINI_TRAIN if config.train.mini_train else "train", "validation")
    splits = []
    for name in names:
        dataset = ShardDataset(config.paths.shards, name)
        if len(dataset) < 2:
            raise UsageError(
                f"the {name} split holds {len(dataset)} samples, training needs at least 2",
                hint="change `prepare.train_fraction` and `prepare.validation_fraction`, or add products",
            )
        splits.append(TrainingData(dataset, preprocessing, config.train))
    return splits[0], splits[1]


def _precision(card: RunCard, measure: Callable[[], Choice]) -> Choice:
    """The precision that the run began with, else the one that suits this machine."""
    card.precision = card.precision or measure()
    return card.precision


def _announce(ready: Prepared) -> None:
    """Write the card and say, before the first step, what is going to happen."""
    if not ready.processes.first:
        return
    card, train = ready.card, ready.train
    module = ready.encoder.clip.module
    rate = duplicate_rate(train.fixed_captions())
    card.samples = {"train": len(train), "validation": len(ready.validation)}
    card.batch = {"effective": ready.batch_size, "micro": ready.micro_batch_size}
    card.duplicate_caption_rate = round(rate, 4)
    card.trainable_parameters = sum(parameter.numel() for parameter in ready.parameters.values())
    card.parameters = sum(parameter.numel() for parameter in module.parameters())
    write_card(ready.folder, card)
    chance = chance_loss(ready.batch_size, ready.loss_name)
    precision = ready.encoder.choice
    console.note(
        f"{card.scenario}: {card.trainable_parameters:,} of {card.parameters:,} parameters train on "
        f"{len(train)} samples, batch {ready.batch_size} in micro-batches of {ready.micro_batch_size}, "
        f"{precision.precision} ({precision.reason})" + (f", loss at chance {chance:.3f}" if chance else "")
    )
    console.note(f"{rate:.1%} of the captions are shared with another sample")
    if rate > _MANY_DUPLICATES:
        console.warn("most captions are not unique, so retrieval by caption cannot become sharp")


def _trained(ready: Prepared, interrupts: Interrupts) -> tuple[Position, dict[str, float]]:
    """Run the loop if anything trains; the model then holds its best weights."""
    checkpoints = ready.folder / CHECKPOINTS
    optimiser = _optimiser(ready)
    position = Position()
    if has_checkpoint(checkpoints / "last"):
        position = load_checkpoint(checkpoints / "last", ready.parameters, optimiser)
    if ready.processes.first:
        forget_after(ready.folder, position.step)
    loop = replace(_loop(ready, optimiser, checkpoints), interrupts=interrupts)
    try:
        position = loop.run(position)
    finally:
        for tracker in loop.trackers:
            tracker.close()
    if ready.parameters:
        load_checkpoint(checkpoints / "best", ready.parameters)
    return position, position.base_validation


def _optimiser(ready: Prepared) -> torch.optim.Optimizer | None:
    """None where nothing trains."""
    if not ready.parameters:
        return None
    return build_optimiser(ready.parameters, ready.config.train, layers=ready.encoder.clip.layers)


def _loop(ready: Prepared, optimiser: torch.optim.Optimizer | None, checkpoints: Path) -> Loop:
    train = ready.config.train
    weights = storage_addresses(ready.encoder.clip.module)
    budget = kept_activations_bytes(train.kept_activations_mb, ready.encoder.device)
    return Loop(
        config=train,
        loss_name=ready.loss_name,
        encoder=ready.encoder,
        maker=StepMaker(
            ready.train, ready.encoder, ready.processes, ready.batch_size, ready.micro_batch_size
        ),
        validation=ready.validation,
        parameters=ready.parameters,
        optimiser=optimiser,
        memory=Memory(budget, weights),
        processes=ready.processes,
        checkpoints=checkpoints,
        trackers=_trackers(ready),
        saved=_uploader(ready),
    )


def _trackers(ready: Prepared) -> list[Tracker]:
    if not ready.processes.first:
        return []
    trackers: list[Tracker] = [JournalTracker(ready.folder)]
    steps = steps_per_epoch(len(ready.train), ready.batch_size)
    epochs = ready.config.train.epochs
    trackers.append(LiveView(ready.folder.name, epochs=epochs, total_steps=steps * epochs))
    if ready.config.train.wandb != "off":
        trackers.append(WandbTracker(ready.config, ready.folder, ready.card.tracker_id))
    return trackers


def _uploader(ready: Prepared) -> Callable[[Path], None]:
    """Copies a file or folder of the run to its place in the bucket, if that was asked for."""
    storage = ready.config.storage
    if not ready.config.train.upload:
        return lambda path: None
    manager = S3Manager.from_config(storage)

    def upload(path: Path) -> None:
        inside = path.relative_to(ready.folder).as_posix()
        manager.upload_checkpoint(path, f"{storage.runs}/{ready.folder.name}/{inside}")

    return upload


def _close(
    ready: Prepared, position: Position, finished: Finished, *, base: dict[str, float]
) -> dict[str, Any]:
    """Write the model card, and last of all the run card that says `finished`."""
    tuned = finished.sweep.figures[finished.sweep.best]
    if base.keys() != tuned.keys():
        raise ModelError(
            f"the checkpoints in `{ready.folder / CHECKPOINTS}` hold other figures than this run makes",
            hint="train again with `--no-resume`",
        )
    card = replace(
        ready.card,
        status="finished",
        finished_at=now(),
        epochs_done=position.epoch,
        steps=position.step,
        stopped_early=position.stopped_early,
        best_epoch=position.best_epoch,
        validation={"base": base, "finetuned": tuned},
        share=finished.sweep.best,
        wise_ft={str(share): figures["score"] for share, figures in finished.sweep.figures.items()},
        parity=finished.parity,
        model_fingerprint=finished.fingerprint,
        intervals=finished.intervals,
        latency_ms=finished.latency_ms,
    )
    write_text(ready.folder / README, model_card(card))
    if ready.config.train.wandb != "off" and ready.config.train.wandb_artifacts:
        tracker = WandbTracker(ready.config, ready.folder, card.tracker_id)
        tracker.log_folder(ready.folder / MODEL, kind="model")
        tracker.close()
    write_card(ready.folder, card)
    _upload_finished(ready)
    return asdict(card)


def _upload_finished(ready: Prepared) -> None:
    """Bring the bucket up to date, if that was asked for; the card that says `finished` goes last."""
    upload = _uploader(ready)
    for name in PUBLISHED:
        if (ready.folder / name).exists():
            upload(ready.folder / name)
