"""One shard: a plain tar file whose bytes depend on its samples alone, and the index beside it.

Each sample is three members, `KEY.jpg`, `KEY.json`, `KEY.txt`, in this order, with owner, mode and
time fixed. The index (`shard-000000.parquet`, one row a sample, in the order of the tar) holds what
random access needs; its metadata holds what the manifest says about the shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from furnclip.catalogue import ATTRIBUTES, content_hash
from furnclip.errors import InputError, StorageError
from furnclip.journal import open_regular, parse_json, replacing

BLOCK_BYTES = tarfile.BLOCKSIZE
_METADATA_KEY = b"furnclip.shard"
_INDEX_SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("product_id", pyarrow.string()),
        ("group", pyarrow.string()),
        ("content", pyarrow.string()),
        ("offset", pyarrow.int64()),
        ("jpg_bytes", pyarrow.int32()),
        ("json_bytes", pyarrow.int32()),
        ("txt_bytes", pyarrow.int32()),
        ("crc32", pyarrow.uint32()),
    ]
)


@dataclass(frozen=True)
class Sample:
    """One product as it lies in a shard. `fields` has every column of the catalogue."""

    key: str
    image_bytes: bytes
    caption: str
    product_id: str
    group: str
    fields: dict[str, str]
    title: str = ""


@dataclass(frozen=True)
class Place:
    """Where a sample lies in its tar: the first byte of its first header, and the members' sizes."""

    key: str
    offset: int
    jpg_bytes: int
    json_bytes: int
    txt_bytes: int
    crc32: int

    @property
    def size_bytes(self) -> int:
        return sum(member_bytes(size) for size in (self.jpg_bytes, self.json_bytes, self.txt_bytes))


@dataclass(frozen=True)
class ShardAbout:
    """What the index says about its shard."""

    content: str
    """names what should be in the shard, as given to `write_shard`"""
    sha256: str
    bytes: int
    samples: int
    attributes: dict[str, dict[str, int]]


def member_bytes(size_bytes: int) -> int:
    """Bytes that a member of this size takes: a header block and whole blocks of content."""
    return BLOCK_BYTES + -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def index_path(shard: Path) -> Path:
    """The index of a shard."""
    return shard.with_suffix(".parquet")


def encode_sample(sample: Sample) -> tuple[bytes, bytes, bytes]:
    """The contents of `KEY.jpg`, `KEY.json` and `KEY.txt`."""
    about = {
        "product_id": sample.product_id,
        "group": sample.group,
        "title": sample.title,
        "fields": sample.fields,
    }
    text = json.dumps(about, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return sample.image_bytes, text.encode("utf-8"), sample.caption.encode("utf-8")


def sample_content(members: tuple[bytes, bytes, bytes]) -> str:
    """Of a sample's members without a group: changes exactly when anything but the group does."""
    return content_hash(*members)


def decode_sample(key: str, image_bytes: bytes, about_bytes: bytes, caption_bytes: bytes) -> Sample:
    """The sample of three members' contents."""
    about = json.loads(about_bytes)
    return Sample(
        key=key,
        image_bytes=image_bytes,
        caption=caption_bytes.decode("utf-8"),
        product_id=about["product_id"],
        group=about["group"],
        fields=about["fields"],
        title=about["title"],
    )


def write_shard(path: Path, samples: Iterable[tuple[str, Sample]], *, content: str) -> ShardAbout:
    """Write the tar at `path` and then its index; what the manifest says about the shard.

    samples: (content hash, sample), where the hash is `sample_content`.
    content: names what should be in the shard; an index with that name proves that the tar beside it
    is complete, because it is written after the tar.
    """
    index_path(path).unlink(missing_ok=True)
    columns: dict[str, list[Any]] = {name: [] for name in _INDEX_SCHEMA.names}
    attributes: dict[str, Counter[str]] = {name: Counter() for name in ATTRIBUTES}
    with replacing(path) as file:
        hashed = _HashedFile(file)
        for sample_hash, sample in samples:
            columns["content"].append(sample_hash)
            _write_sample(hashed, sample, columns)
            for name, counts in attributes.items():
                counts[sample.fields.get(name, "")] += 1
        hashed.write(bytes(2 * BLOCK_BYTES))
    about = ShardAbout(
        content=content,
        sha256=hashed.sha256.hexdigest(),
        bytes=hashed.position,
        samples=len(columns["key"]),
        attributes={name: dict(sorted(counts.items())) for name, counts in attributes.items()},
    )
    _write_index(index_path(path), columns, about)
    return about


class _HashedFile:
    """Writes through to a file, counting and hashing what goes by."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.position = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.position += len(data)


def _write_sample(file: _HashedFile, sample: Sample, columns: dict[str, list[Any]]) -> None:
    contents = dict(zip(("jpg", "json", "txt"), encode_sample(sample), strict=True))
    data = b"".join(_member(f"{sample.key}.{suffix}", content) for suffix, content in contents.items())
    columns["key"].append(sample.key)
    columns["product_id"].append(sample.product_id)
    columns["group"].append(sample.group)
    columns["offset"].append(file.position)
    for suffix, content in contents.items():
        columns[f"{suffix}_bytes"].append(len(content))
    columns["crc32"].append(zlib.crc32(data))
    file.write(data)


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK_BYTES)


def _write_index(path: Path, columns: Mapping[str, list[Any]], about: ShardAbout) -> None:
    metadata = {_METADATA_KEY: json.dumps(asdict(about), sort_keys=True).encode()}
    table = pyarrow.table(dict(columns), schema=_INDEX_SCHEMA.with_metadata(metadata))
    with replacing(path) as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")


def read_index(shard: Path, columns: list[str] | None = None, *, samples: int) -> pyarrow.Table:
    """The index of a shard. Raises `StorageError` where it is missing, damaged or has not `samples` rows."""
    path = index_path(shard)
    schema = pyarrow.schema([_INDEX_SCHEMA.field(name) for name in columns or _INDEX_SCHEMA.names])
    if not path.is_file():  # opening a FIFO would wait for ever
        raise damaged(path, "it is missing, or not a file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows != samples:
                raise ValueError(f"it has {file.metadata.num_rows} rows for {samples} samples")
            table = file.read(columns=schema.names).select(schema.names).cast(schema)
    except KeyError as error:
        raise damaged(path, f"it has no column {error}") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise damaged(path, str(error)) from None
    if any(column.null_count for column in table.columns):
        raise damaged(path, "it has empty cells")
    return table


def read_about(shard: Path) -> ShardAbout | None:
    """What the index says about the shard, or None where there is no whole shard."""
    path = index_path(shard)
    if not path.is_file() or not shard.is_file():
        return None
    try:
        index = pyarrow.parquet.read_metadata(path)
        content = (index.metadata or {}).get(_METADATA_KEY, b"")
        about = parse_json(content, ShardAbout, what=f"`{path}`", hint="")
    except (pyarrow.ArrowException, OSError, InputError):
        return None
    is_whole = (about.bytes, about.samples) == (shard.stat().st_size, index.num_rows)
    return about if is_whole and set(_INDEX_SCHEMA.names) <= set(index.schema.names) else None


def read_sample(shard: Path, place: Place) -> Sample:
    """The sample at a place. Raises `StorageError` where it is not what was written."""
    members = read_place(shard, place)
    try:
        return decode_sample(place.key, *members)
    except (ValueError, LookupError, TypeError, RecursionError):
        raise damaged(shard, f"sample `{place.key}` is not one of furnclip") from None


def read_place(shard: Path, place: Place) -> tuple[bytes, bytes, bytes]:
    """The three members at a place, checked. Raises `StorageError` where they are not what was written."""
    sizes = (place.jpg_bytes, place.json_bytes, place.txt_bytes)
    try:
        with open_regular(shard, what="the shard") as file:
            if (
                min(place.offset, *sizes) < 0
                or place.offset + place.size_bytes > os.fstat(file.fileno()).st_size
            ):
                raise damaged(shard, f"sample `{place.key}` lies outside of it")
            file.seek(place.offset)
            data = file.read(place.size_bytes)
    except OSError as error:
        raise damaged(shard, error.strerror or str(error)) from None
    if zlib.crc32(data) != place.crc32:
        raise damaged(shard, f"sample `{place.key}` has changed")
    start, contents = 0, []
    for size_bytes in sizes:
        contents.append(data[start + BLOCK_BYTES : start + BLOCK_BYTES + size_bytes])
        start += member_bytes(size_bytes)
    return contents[0], contents[1], contents[2]


def damaged(path: Path, detail: str) -> StorageError:
    """The error for a shard that is not what the manifest promises."""
    return StorageError(
        f"the shard file `{path}` is damaged: {detail}",
        hint="run `furnclip prepare --rebuild`, or download the shards again",
    )
