"""One cache of what a model said of a content, for training, evaluation and embedding.

`StoredVectors` finds what `embed` has written. Other features are in `FeatureStore`:
`work/cache/features/FINGERPRINT-KIND-PRECISION-*.npy`, one row for each image or text ever encoded, keyed by
its content. KIND is a tower before its projection (`vision`, `text`), or the unit vectors of an evaluation
(`image-vectors`, `text-vectors`). A damaged file is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.errors import FurnclipError, InputError
from furnclip.journal import open_regular, replacing
from furnclip.vectors.parquet import MODEL_KINDS, column_name, open_parquet, part_paths, read_provenance

Floats = NDArray[np.float32]
Keys = NDArray[np.uint64]
Encode = Callable[[list[int]], Floats]  # positions in the keys asked for -> (n, W)
_HELD_BYTES = 1 << 28
_PART_ROWS = 1 << 15  # 67 MB of 512 numbers


class FeatureStore:
    """Rows by content key, in parts: on the disk, or in memory where `folder` is None.

    Holds what a small catalogue has; of the parts after that 16 bytes a row, and reads what is asked for.
    """

    def __init__(self, folder: Path | None, fingerprint: str, kind: str, precision: str) -> None:
        self._folder, self._name = folder, f"{fingerprint}-{kind}-{precision}"
        self._parts: list[Path | NDArray[np.void]] = []
        self._held_bytes = 0
        self._keys = np.empty(0, dtype=np.uint64)  # (N,), ascending
        self._places = np.empty((0, 2), dtype=np.int32)  # (N, 2): part, row in it
        for path in sorted(folder.glob(f"{self._name}-*.npy")) if folder else ():
            try:
                self._add(path, _mapped(path))
            except (InputError, ValueError, OSError, EOFError):
                console.warn(f"the cache `{path}` is damaged and is made again")

    def fill(self, keys: Keys, encode: Encode, *, chunk_size: int) -> None:
        """Encode what is not there yet, each key once, `chunk_size` at a time."""
        distinct, first = np.unique(keys, return_index=True)
        missing = np.sort(first[_find(self._keys, distinct) < 0])
        for start in range(0, len(missing), _PART_ROWS):
            positions = missing[start : start + _PART_ROWS]
            cuts = range(chunk_size, len(positions), chunk_size)
            rows = np.concatenate([encode(chunk.tolist()) for chunk in np.split(positions, cuts)])
            part = np.empty(len(rows), dtype=[("key", np.uint64), ("row", np.float32, rows.shape[1:])])
            part["key"], part["row"] = keys[positions], rows
            path = None
            if self._folder:  # the name says what it holds: several processes may write at once
                path = self._folder / f"{self._name}-{content_hash(part['key'].tobytes())}.npy"
                with replacing(path) as file:
                    np.save(file, part, allow_pickle=False)
            self._add(path, part)

    def rows(self, keys: Keys) -> Floats:
        """(N, W), in the order of the keys; `KeyError` for one that was never encoded."""
        found = _find(self._keys, keys)
        if (found < 0).any():
            raise KeyError(f"{keys[found < 0][0]:016x}")
        places = self._places[found]
        rows: Floats | None = None
        for number in np.unique(places[:, 0]).tolist():
            is_here, part = places[:, 0] == number, self._parts[number]
            there = (_mapped(part) if isinstance(part, Path) else part)["row"]
            rows = np.empty((len(keys), there.shape[1]), dtype=np.float32) if rows is None else rows
            rows[is_here] = there[places[is_here, 1]]
        return np.empty((0, 0), dtype=np.float32) if rows is None else rows

    def _add(self, path: Path | None, part: NDArray[np.void]) -> None:
        keys: Keys = part["key"]
        number, rows = np.full(len(keys), len(self._parts)), np.arange(len(keys))
        places = np.concatenate([self._places, np.stack([number, rows], axis=1).astype(np.int32)])
        self._keys, first = np.unique(np.concatenate([self._keys, keys]), return_index=True)
        self._places = places[first]
        self._held_bytes += part.nbytes
        is_held = self._held_bytes <= _HELD_BYTES
        self._parts.append(np.array(part) if path is None or is_held else path)


def feature_keys(hashes: Iterable[str]) -> Keys:
    """Content hashes as the keys of a `FeatureStore`."""
    return np.fromiter((int(value, 16) for value in hashes), dtype=np.uint64)


def _find(known: Keys, keys: Keys) -> NDArray[np.int64]:
    """(N,): places of the keys among the `known` ones, which ascend; -1 of those that are not there."""
    if not len(known):
        return np.full(len(keys), -1)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[places] == keys, places, -1)


def _mapped(path: Path) -> NDArray[np.void]:
    """A part, of which only what is looked at comes into memory. Raises `ValueError` for none of ours."""
    open_regular(path, what="the cache").close()
    part: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    row = part.dtype["row"] if part.dtype.names == ("key", "row") else None
    if row is None or part.ndim != 1 or part.dtype["key"] != np.uint64 or row.base != np.float32:
        raise ValueError("it has other columns")
    return part


def _parts(path: Path) -> list[Path]:
    """The files of a vector file that are there; none of a damaged one."""
    try:
        return list(filter(Path.is_file, part_paths(path)))
    except InputError:
        return []


class StoredVectors:
    """What one model said of products, in vector files and parts of them, by `seen_hash`.

    Holds 16 bytes a product; the vectors stay on the disk until they are looked up.
    """

    def __init__(self, files: Iterable[Path], fingerprint: str, *, precision: str | None = None) -> None:
        """Look for vectors of this very model; of equal products the earlier file counts.

        `precision` None takes any precision, but only that of the first file found. What is unreadable or of
        another version is left out.
        """
        self.precision = precision
        self._groups: list[tuple[Path, int, str]] = []
        hashes, places = [feature_keys(())], [np.empty((0, 2), dtype=np.int64)]
        for path in chain.from_iterable(map(_parts, files)):
            for number, label, found in self._read_hashes(path, fingerprint):
                index = np.full(len(found), len(self._groups))
                places.append(np.stack([index, np.arange(len(found))], axis=1))
                hashes.append(found)
                self._groups.append((path, number, label))
        self._hashes, first = np.unique(np.concatenate(hashes), return_index=True)  # ascending
        self._places = np.concatenate(places)[first]  # (rows, 2): row group, row in it
        self._last_read: tuple[int, pa.Table] = -1, None

    def __contains__(self, seen: str) -> bool:
        wanted = np.uint64(int(seen, 16))
        place = int(self._hashes.searchsorted(wanted))
        return place < len(self._hashes) and bool(self._hashes[place] == wanted)

    def knows(self, seen: Sequence[str]) -> NDArray[np.bool_]:
        """Which products are known: (N,)."""
        return _find(self._hashes, feature_keys(seen)) >= 0

    def look_up(self, seen: Sequence[str]) -> tuple[NDArray[np.bool_], pa.Table]:
        """Which products are known, (N,), and the columns `image`, `text` and `views` of those, in order."""
        positions = _find(self._hashes, feature_keys(seen))
        places = self._places[positions[positions >= 0]]
        cuts = np.flatnonzero(np.diff(places[:, 0])) + 1
        tables = [
            self._read(int(rows[0, 0])).take(rows[:, 1]) for rows in np.split(places, cuts) if len(rows)
        ]
        empty = pa.table({kind: pa.array([]) for kind in MODEL_KINDS})
        return positions >= 0, pa.concat_tables(tables) if tables else empty

    def _read_hashes(self, path: Path, fingerprint: str) -> list[tuple[int, str, NDArray[np.uint64]]]:
        """Row groups of the file with vectors of the model, the model's label there, and content hashes."""
        try:
            provenance = read_provenance(path, kinds=("image", "text"))
            labels = [label for label, model in provenance.models.items() if model.fingerprint == fingerprint]
            if not labels or self.precision not in (None, provenance.models[labels[0]].precision):
                return []
            found = []
            with open_parquet(path) as file:
                if column_name("views", labels[0]) not in file.schema_arrow.names:
                    return []
                for number in range(file.metadata.num_row_groups):
                    column = file.read_row_group(number, columns=["content_hash"])["content_hash"]
                    found.append((number, labels[0], feature_keys(column.to_pylist())))
        except (FurnclipError, ValueError, TypeError, OverflowError):
            return []
        self.precision = provenance.models[labels[0]].precision
        return found

    def _read(self, index: int) -> pa.Table:
        # Catalogues keep their order, so the next row is nearly always in the row group just read.
        if index != self._last_read[0]:
            path, number, label = self._groups[index]
            with open_parquet(path) as file:
                names = [column_name(kind, label) for kind in MODEL_KINDS]
                table = file.read_row_group(number, columns=names).select(names)
            self._last_read = index, table.rename_columns(list(MODEL_KINDS))
        return self._last_read[1]
