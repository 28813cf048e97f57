"""One cache of features, for training and evaluation.

Out: `work/cache/features/FINGERPRINT-KIND-PRECISION.safetensors`, one row for each image or text ever
encoded, keyed by its content, so another catalogue, split or scenario with the same images finds them.
KIND is a tower before its projection (`vision`, `text`), because the projection may train, or the unit
vectors of an evaluation (`image-vectors`, `text-vectors`). A damaged file is rebuilt.

`embed` needs no copy here: its vector file holds every vector with the hash of its content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from furnclip import console
from furnclip.errors import InputError
from furnclip.journal import open_regular, write_bytes

Floats = NDArray[np.float32]
Encode = Callable[[list[int]], Floats]  # positions in the sequence asked for -> (n, W)


class FeatureStore:
    """Rows by content key; in memory, and on disk unless `folder` is None."""

    def __init__(self, folder: Path | None, fingerprint: str, kind: str, precision: str) -> None:
        self._path = folder / f"{fingerprint}-{kind}-{precision}.safetensors" if folder else None
        self._row_of: dict[str, int] = {}
        self._rows: list[Floats] = []
        self._load()

    def fill(self, keys: Sequence[str], encode: Encode, *, chunk_size: int) -> None:
        """Encode what is not there yet, each key once, `chunk_size` at a time."""
        first: dict[str, int] = {}
        for position, key in enumerate(keys):
            if key not in self._row_of:
                first.setdefault(key, position)
        missing = list(first.values())
        for start in range(0, len(missing), chunk_size):
            positions = missing[start : start + chunk_size]
            for position, row in zip(positions, encode(positions), strict=True):
                self._row_of[keys[position]] = len(self._rows)
                self._rows.append(row)
        if missing and self._path is not None:
            names = np.frombuffer("".join(self._row_of).encode("ascii"), dtype=np.uint8)
            features = np.stack(self._rows)
            content = save({"keys": names.reshape(len(features), -1), "features": features})
            write_bytes(self._path, content)

    def rows(self, keys: Sequence[str]) -> Floats:
        """(N, W), in the order of the keys; `KeyError` for one that was never encoded."""
        return np.stack([self._rows[self._row_of[key]] for key in keys])

    def _load(self) -> None:
        path = self._path
        if path is None or not path.exists():
            return
        try:
            open_regular(path, what="the cache").close()
            tensors = load_file(path)
            keys = [bytes(row).decode("ascii") for row in tensors["keys"]]
            features = tensors["features"]
        except (SafetensorError, InputError, KeyError, TypeError, ValueError):
            keys, features = [], np.empty(0)
        if features.ndim != 2 or len(features) != len(set(keys)) or features.dtype != np.float32:
            console.warn(f"the cache `{path}` is damaged and is made again")
        else:
            self._rows, self._row_of = list(features), {key: row for row, key in enumerate(keys)}
