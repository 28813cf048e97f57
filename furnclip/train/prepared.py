"""Everything that a run needs, checked and loaded before its first step."""

from __future__ import annotations

import json
import platform
import secrets
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from furnclip import console
from furnclip.config import Config
from furnclip.errors import ConfigError, UsageError
from furnclip.journal import utc_now
from furnclip.model.clip import Clip, quiet
from furnclip.model.loading import load_float32
from furnclip.model.precision import choose_device, choose_precision
from furnclip.model.towers import LossName
from furnclip.runs import RunCard
from furnclip.shards import MINI_TRAIN, ShardDataset, ShardPlace, open_shards
from furnclip.storage import S3Manager
from furnclip.train.data import TrainingData
from furnclip.train.encoder import Teacher, TowerEncoder, largest_micro_batch
from furnclip.train.exact import checked_loss
from furnclip.train.processes import Processes
from furnclip.train.scenarios import SCENARIOS, settled, unfreeze

_LONG_CAPTION_TOKENS = 40
_ENOUGH_VALIDATED = 20_000  # every query is compared with every product: of a million it would take a day
_PACKAGES = ("furnclip", "torch", "transformers", "peft", "numpy", "pillow")

# Settings that change how a run is watched or kept, not what comes out of it.
_HARMLESS = (
    *("kept_activations_mb", "gradient_checkpointing", "checkpoint_interval_s", "image_cache_mb"),
    *("feature_cache", "wandb", "wandb_project", "wandb_artifacts", "upload"),
)


@dataclass
class Prepared:
    """A run before its first step. `micro_batch_size` shrinks when memory runs out."""

    folder: Path
    config: Config
    processes: Processes
    encoder: TowerEncoder
    parameters: dict[str, torch.nn.Parameter]  # those that train
    train: TrainingData
    validation: TrainingData
    loss_name: LossName
    batch_size: int
    micro_batch_size: int
    card: RunCard
    teacher: Teacher | None = None

    def encode_frozen(self) -> None:
        """Encode the images that no step changes, and all that the teacher reads: it may take hours."""
        if not self.processes.first:
            return  # the others do it when they need it, without a word
        images, captions = len(self.train.image_keys), len(self.train)
        if self.parameters and "vision" in self.encoder.stores:
            with console.progress("images, frozen encoder", total=images) as meter:
                self.encoder.fill("vision", self.train, advance=meter.advance)
        if self.teacher:
            with console.progress("images and captions, teacher", total=images + captions) as meter:
                self.teacher.read(meter.advance)

    def upload(self, *names: str) -> None:
        """Copy these parts of the run to the bucket, if that was asked for, one after another."""
        storage = self.config.storage
        if not self.config.train.upload:
            return
        with S3Manager.from_config(storage) as manager:
            for name in names:
                if (self.folder / name).exists():
                    place = f"{storage.runs}/{self.folder.name}/{name}"
                    manager.upload_checkpoint(self.folder / name, place)


def check_settings(config: Config) -> None:
    """Refuse combinations that cannot be meant, before any work."""
    train = config.train
    if train.effective_batch_size == 1:
        raise ConfigError(
            "`train.effective_batch_size` cannot be 1", hint="a contrastive loss needs negatives: 2 or more"
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


def prepare_run(config: Config, folder: Path, processes: Processes, *, card: RunCard | None) -> Prepared:
    """Load, check and place what the run needs; `card`: of the run that is resumed, if there is one."""
    shards = open_shards(config)
    manifest = shards.manifest  # before a base is downloaded
    load = partial(load_float32, config=config.model, runs=config.paths.runs)
    clip, teacher = load(config.model.name), load(config.train.teacher) if config.train.teacher else None
    for model in filter(None, (clip, teacher)):
        manifest.require_side(model.image_px, model=model.name)
    loss_name = checked_loss(config.train.loss, clip.family)
    train_split = _split(shards, MINI_TRAIN if config.train.mini_train else "train")
    train_data = TrainingData(train_split, clip.preprocessing, config.train)
    train = train_data.config = settled(config.train, clip, train_data.fixed_captions())
    validation_data = TrainingData(_split(shards, "validation"), clip.preprocessing, train)
    config = config.model_copy(update={"train": train})
    models = {"base model": clip, "teacher": teacher}
    card = _card(config, folder, data_hash=manifest.data_hash, models=models, earlier=card)
    device = choose_device(config.model.device)
    parameters = unfreeze(clip, train)
    # a resumed run keeps the precision and the micro-batch that it began with
    card.precision = card.precision or choose_precision(config.model.precision, clip.module, device)
    cache = config.paths.features if train.feature_cache and processes.first else None
    encoder = TowerEncoder(clip, SCENARIOS[train.scenario], device, card.precision, cache)
    encoder.place()
    if train.gradient_checkpointing:
        with quiet():
            clip.module.gradient_checkpointing_enable({"use_reentrant": False})
    batch_size = train.effective_batch_size
    micro_batch_size = min(train.micro_batch_size, batch_size) or card.batch.get("micro")
    texts = 2 if train_data.asks_attributes else 1
    return Prepared(
        folder=folder,
        config=config,
        processes=processes,
        encoder=encoder,
        parameters=parameters,
        train=train_data,
        validation=validation_data,
        loss_name=loss_name,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size
        or largest_micro_batch(encoder, limit=batch_size, texts=texts, tokens=_LONG_CAPTION_TOKENS),
        card=card,
        teacher=_teacher(teacher, encoder, train_data) if teacher and parameters else None,
    )


def _split(shards: ShardPlace, name: str) -> ShardDataset:
    """A split to train or to validate on, on this disk."""
    dataset = ShardDataset(shards, name, enough=_ENOUGH_VALIDATED if name == "validation" else None)
    if len(dataset) < 2:
        raise UsageError(
            f"the {name} split holds {len(dataset)} samples, training needs at least 2",
            hint="change `prepare.train_fraction` and `prepare.validation_fraction`, or add products",
        )
    dataset.bring()
    return dataset


def _teacher(clip: Clip, student: TowerEncoder, data: TrainingData) -> Teacher:
    """The model to distill from, placed where the student is."""
    encoder = TowerEncoder(clip, SCENARIOS["zero_shot"], student.device, student.choice, student.cache)
    clip.module.requires_grad_(requires_grad=False).eval()
    encoder.place()
    return Teacher(encoder, data.dataset, data.config)


def _card(
    config: Config,
    folder: Path,
    *,
    data_hash: str,
    models: Mapping[str, Clip | None],
    earlier: RunCard | None,
) -> RunCard:
    """The card of the run that is resumed, or a new one; `ConfigError` where their `identity` differs."""
    settings = json.loads(config.train.model_dump_json())
    identity = {
        **{f"train.{name}": value for name, value in settings.items() if name not in _HARMLESS},
        "model.precision": config.model.precision,
        **{name: clip.fingerprint for name, clip in models.items() if clip},
        "data": data_hash,
    }
    if earlier is not None:
        before = earlier.identity
        changed = [
            f"`{key}` was {json.dumps(before.get(key))}, is {json.dumps(identity.get(key))}"
            for key in sorted({*before, *identity})
            if before.get(key) != identity.get(key)
        ]
        if changed:
            raise ConfigError(
                f"the run `{folder.name}` was started differently: {', '.join(changed)}",
                hint="undo that, give the new run its own name with `--run NAME`, "
                "or start over with `--no-resume`",
            )
        return earlier
    return RunCard(
        run=folder.name,
        scenario=config.train.scenario,
        identity=identity,
        tracker_id=secrets.token_hex(8),
        config=settings,
        base={"name": config.model.name, "fingerprint": identity["base model"]},
        data_hash=data_hash,
        started_at=utc_now(),
        machine=f"{platform.system()} {platform.machine()}",
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        git=_commit(config.paths.work.parent),
    )


def _commit(folder: Path) -> str | None:
    with suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
        return answer.stdout.strip() or None
    return None
