"""A shop on disk that a test prepares, changes and prepares again."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from PIL import Image

from furnclip.shards import SPLITS, read_manifest
from furnclip.shards.tar import read_index
from tests.conftest import invoke

Row = dict[str, str]


@dataclass
class Shop:
    """A catalogue on disk that a test can change."""

    folder: Path
    rows: list[Row] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)

    def write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with (self.folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        lines = ["[prepare]", *(f"{name} = {value}" for name, value in self.settings.items())]
        (self.folder / "furnclip.toml").write_text("\n".join(lines) + "\n")

    def add(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            draw(self.folder / f"images/{number}.png", number)
            self.rows.append(
                {
                    "product_id": f"p{number}",
                    "title": f"Sofa {number}",
                    "image": f"{number}.png",
                    "color": ("red", "blue")[number % 2],
                    "object_type": ("sofa", "chair", "lamp")[number % 3],
                }
            )

    def run(self, *arguments: str) -> Result:
        settings = self.folder / "furnclip.toml"
        return invoke("prepare", "--config", settings, *arguments, catch_exceptions=False)

    def prepared(self, *arguments: str) -> dict[str, Any]:
        self.write()
        result = self.run("--json", *arguments)
        assert result.exit_code == 0, result.stderr
        summary: dict[str, Any] = json.loads(result.stdout)
        return summary

    @property
    def shards(self) -> Path:
        return self.folder / "work/shards"

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every shard, index and manifest."""
        walk = os.walk(self.shards, followlinks=True)
        files = sorted(Path(folder, name) for folder, _, names in walk for name in names)
        return {str(path.relative_to(self.shards)): sha256_of(path) for path in files}

    def times(self) -> dict[str, int]:
        files = sorted(path for path in self.shards.rglob("*") if path.is_file())
        return {str(path.relative_to(self.shards)): path.stat().st_mtime_ns for path in files}

    def rejected(self) -> dict[str, str]:
        with (self.shards / "rejected.csv").open(encoding="utf-8", newline="") as file:
            return {row["product_id"]: row["reason"] for row in csv.DictReader(file)}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw(path: Path, seed: int, side_px: int = 48) -> None:
    """A picture of its own for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((side_px, side_px), Image.Resampling.BICUBIC).save(path)


def read_assignments(folder: Path) -> dict[str, tuple[str, str]]:
    """Product id -> (group, split) of every product in the splits of the shards in `folder`."""
    found: dict[str, tuple[str, str]] = {}
    manifest = read_manifest(folder)
    for name in SPLITS:
        for shard in manifest.splits[name].shards:
            table = read_index(folder / shard.name, ["product_id", "group"], samples=shard.samples)
            ids, groups = table["product_id"].to_pylist(), table["group"].to_pylist()
            found.update((product_id, (group, name)) for product_id, group in zip(ids, groups, strict=True))
    return found
