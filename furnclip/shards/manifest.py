"""`manifest.json`: which shards there are, what is in them, and that they are complete.

It is written last, so where it exists everything it names exists. `assignments.parquet` beside it
says which group and split each product was ever given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from furnclip.catalogue import content_hash
from furnclip.errors import MissingStageError, StorageError
from furnclip.journal import write_json
from furnclip.shards.tar import read_index

MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "validation", "test")
MINI_TRAIN = "mini_train"
FORMAT = 1


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

    def with_hash(self) -> Manifest:
        """This manifest with the hash of what its shards hold."""
        hashes = [shard.sha256 for name in SPLITS for shard in self.splits[name].shards]
        return replace(self, data_hash=content_hash(*hashes))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publish the shards in `folder`: they have to be on the disk already."""
    value = {
        "format": FORMAT,
        "data_hash": manifest.data_hash,
        "settings": manifest.settings,
        "leaks": manifest.leaks,
        "rejected": manifest.rejected,
        "splits": {
            name: {
                "samples": split.samples,
                "groups": split.groups,
                "attributes": split.attributes,
                "shards": [vars(shard) for shard in split.shards],
            }
            for name, split in manifest.splits.items()
        },
    }
    write_json(folder / MANIFEST_NAME, value)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises `MissingStageError` where there is none."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise MissingStageError(path, command="furnclip prepare")
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"`{path}` is damaged ({error!r})", hint="run `furnclip prepare` again, or download it again"
        ) from None


def _parse(value: Mapping[str, Any]) -> Manifest:
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']}, this furnclip reads {FORMAT}")
    splits = {
        name: SplitInfo(
            samples=split["samples"],
            groups=split["groups"],
            shards=tuple(ShardInfo(**shard) for shard in split["shards"]),
            attributes=split["attributes"],
        )
        for name, split in value["splits"].items()
    }
    return Manifest(value["data_hash"], splits, value["settings"], value["leaks"], value["rejected"])


def read_assignments(folder: Path) -> dict[str, tuple[str, str]]:
    """Product id -> (group, split) of every product in the shards of `folder`."""
    found: dict[str, tuple[str, str]] = {}
    manifest = read_manifest(folder)
    for name in SPLITS:
        for shard in manifest.splits[name].shards:
            table = read_index(folder / shard.name, ["product_id", "group"])
            ids, groups = table["product_id"].to_pylist(), table["group"].to_pylist()
            found.update((product_id, (group, name)) for product_id, group in zip(ids, groups, strict=True))
    return found
