"""`manifest.json`: which shards there are and what is in them; written last, so all that it names exists."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from furnclip.catalogue import content_hash
from furnclip.catalogue.columns import Column
from furnclip.errors import ConfigError, InputError, MissingStageError
from furnclip.journal import MANIFEST_NAME, parse_json, read_text, write_json

SPLITS = ("train", "validation", "test")
MINI_TRAIN = "mini_train"
REST = "rest"  # searchable, but in no split: never trained on, never measured on
FOLDERS = (*SPLITS, REST, MINI_TRAIN)
FORMAT = 1
_SHARD_NAME = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*\.tar")
_HINT = "run `furnclip prepare` again, or download the shards again"


@dataclass(frozen=True)
class ShardInfo:
    """One shard. `name` is its path under the manifest's folder."""

    name: str
    sha256: str
    bytes: int
    samples: int
    index_sha256: str
    index_bytes: int


@dataclass(frozen=True)
class SplitInfo:
    """One split: its shards in order, and what is in them."""

    samples: int
    groups: int
    shards: tuple[ShardInfo, ...]
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """All shards of a catalogue. `data_hash` changes exactly when a sample changes."""

    data_hash: str
    splits: dict[str, SplitInfo]
    settings: dict[str, Any] = field(default_factory=dict)
    leaks: dict[str, Any] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()  # of the catalogue, with their types
    format: int = FORMAT

    def with_hash(self) -> Manifest:
        """This manifest with the hash of what its shards hold."""
        hashes = [shard.sha256 for name in SPLITS for shard in self.splits[name].shards]
        return replace(self, data_hash=content_hash(*hashes))

    def require_side(self, image_px: int, *, model: str) -> None:
        """Raise `ConfigError` where the squares are smaller than a model reads them."""
        side_px = self.settings.get("image_px", image_px)
        if image_px > side_px:
            raise ConfigError(
                f"`{model}` reads images of {image_px} px, and the shards hold squares of {side_px} px",
                hint=f"set `prepare.image_px = {image_px}` and run `furnclip prepare` again",
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publish the shards in `folder`: they have to be on the disk already."""
    write_json(folder / MANIFEST_NAME, asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises `MissingStageError` without one, `InputError` for a wrong one."""
    path = folder / MANIFEST_NAME
    try:
        content = read_text(path, what="the manifest", hint=_HINT)
    except FileNotFoundError:
        raise MissingStageError(path, command="furnclip prepare") from None
    return parse_manifest(content, path)


def parse_manifest(content: str | bytes, place: Path | str) -> Manifest:
    """The manifest that lies at `place`. Raises `InputError` for a wrong one."""
    what = f"the manifest `{place}`"
    manifest = parse_json(content, Manifest, what=what, hint=_HINT)
    if problem := _problem(manifest):
        raise InputError(f"{what} is damaged: {problem}", hint=_HINT)
    return manifest


def _problem(manifest: Manifest) -> str:
    """What contradicts itself in a manifest, or nothing."""
    if manifest.format != FORMAT:
        return f"`format` is {manifest.format}, this furnclip reads {FORMAT}"
    missing = [name for name in SPLITS if name not in manifest.splits]
    if missing:
        return f"`splits.{missing[0]}` is missing"
    for name, split in manifest.splits.items():
        for shard in split.shards:
            if not _SHARD_NAME.fullmatch(shard.name):  # also what is absolute or leads out of the folder
                return f"`{shard.name}` cannot be the name of a shard"
            if min(shard.samples, shard.bytes, shard.index_bytes) < 0:
                return f"`{shard.name}` has a negative size"
        if split.samples != sum(shard.samples for shard in split.shards):
            return f"`splits.{name}.samples` is {split.samples}, its shards have other numbers"
        if not 0 <= split.groups <= split.samples:
            return f"`splits.{name}.groups` is {split.groups} for {split.samples} samples"
    return ""
