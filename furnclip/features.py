"""One cache of what a model said of a content, for training, evaluation and embedding.

`StoredVectors` finds what `embed` has written, so that `eval` measures what is served and `embed` encodes
nothing twice. Other features are in `FeatureStore`:
`work/cache/features/FINGERPRINT-KIND-PRECISION.safetensors`, one row for each image or text ever encoded,
keyed by its content, so another catalogue, split or scenario with the same images finds them.
KIND is a tower before its projection (`vision`, `text`), because the projection may train, or the unit
vectors of an evaluation (`image-vectors`, `text-vectors`). A damaged file is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.errors import FurnclipError, InputError
from furnclip.journal import open_regular, write_bytes
from furnclip.shards import Sample
from furnclip.vectors.parquet import MODEL_KINDS, column_name, open_parquet, part_paths, read_provenance

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


def _parts(path: Path) -> list[Path]:
    """The files of a vector file that are there; none of a damaged one."""
    try:
        return list(filter(Path.is_file, part_paths(path)))
    except InputError:
        return []


def seen_hash(sample: Sample) -> str:
    """A hash of what models see of a product: its caption and its images."""
    return content_hash(sample.caption, *sample.images)


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
        hashes, places = [np.empty(0, dtype=np.uint64)], [np.empty((0, 2), dtype=np.int64)]
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
        return self._position(seen) >= 0

    def look_up(self, seen: Sequence[str]) -> tuple[NDArray[np.bool_], pa.Table]:
        """Which products are known, (N,), and the columns `image`, `text` and `views` of those, in order."""
        positions = np.array([self._position(each) for each in seen], dtype=np.int64)
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
                    hashes = np.array([int(value, 16) for value in column.to_pylist()], dtype=np.uint64)
                    found.append((number, labels[0], hashes))
        except (FurnclipError, ValueError, TypeError, OverflowError):
            return []
        self.precision = provenance.models[labels[0]].precision
        return found

    def _position(self, seen: str) -> int:
        """The place of a hash in the sorted ones, -1 where it is not known."""
        wanted = np.uint64(int(seen, 16))
        position = int(np.searchsorted(self._hashes, wanted))
        return position if position < len(self._hashes) and self._hashes[position] == wanted else -1

    def _read(self, index: int) -> pa.Table:
        # Catalogues keep their order, so the next row is nearly always in the row group just read.
        if index != self._last_read[0]:
            path, number, label = self._groups[index]
            with open_parquet(path) as file:
                names = [column_name(kind, label) for kind in MODEL_KINDS]
                table = file.read_row_group(number, columns=names).select(names)
            self._last_read = index, table.rename_columns(list(MODEL_KINDS))
        return self._last_read[1]
