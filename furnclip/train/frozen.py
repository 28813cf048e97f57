"""What a frozen tower says, encoded once and kept on disk.

Out: `work/cache/features/FINGERPRINT-TOWER-PRECISION.safetensors`, one row for each picture or
caption ever encoded by that tower, keyed by its content, so another catalogue, split or scenario with
the same pictures finds them. Rows are what the tower says before its projection, because the
projection may train. A damaged file is thrown away: it can always be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from furnclip.journal import write_bytes

Encode = Callable[[list[int]], Tensor]  # positions in the sequence asked for -> (n, W)


class FeatureStore:
    """Rows by content key; in memory, and in `path` unless that is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._row_of: dict[str, int] = {}
        self._rows: list[NDArray[np.float32]] = []
        if path is not None and path.is_file():
            self._load(path)

    def __len__(self) -> int:
        return len(self._rows)

    def fill(self, keys: Sequence[str], encode: Encode, *, chunk_size: int) -> int:
        """Encode what is not there yet, each key once; returns how many that were."""
        first = {
            key: position for position, key in reversed(list(enumerate(keys))) if key not in self._row_of
        }
        missing = sorted(first.values())
        for start in range(0, len(missing), chunk_size):
            positions = missing[start : start + chunk_size]
            for position, row in zip(positions, encode(positions).float().cpu().numpy(), strict=True):
                self._row_of[keys[position]] = len(self._rows)
                self._rows.append(row)
        if missing:
            self._save()
        return len(missing)

    def rows(self, keys: Sequence[str]) -> Tensor:
        """(N, W) float32, in the order of the keys; `KeyError` for one that was never encoded."""
        return torch.from_numpy(np.stack([self._rows[self._row_of[key]] for key in keys]))

    def _load(self, path: Path) -> None:
        try:
            tensors = load_file(path)
            keys = [bytes(row).decode("ascii") for row in tensors["keys"]]
            self._rows = list(tensors["features"])
            self._row_of = {key: index for index, key in enumerate(keys)}
        except (SafetensorError, KeyError, UnicodeDecodeError):
            self._rows, self._row_of = [], {}

    def _save(self) -> None:
        if self._path is None:
            return
        keys = np.frombuffer("".join(self._row_of).encode("ascii"), dtype=np.uint8)
        tensors: dict[str, NDArray[Any]] = {
            "keys": keys.reshape(len(self._rows), -1),
            "features": np.stack(self._rows),
        }
        write_bytes(self._path, save(tensors))
