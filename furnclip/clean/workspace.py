"""The folder `work/clean/`: which file is where, and the small indexes beside the big files.

journal.jsonl                     what was done, what is about to be done; see `state`
rows.jsonl                        one line a catalogue row: its request's id, or why it has none
parts/part-0001.jsonl             requests as sent
parts/part-0001.index.jsonl       id, place and estimated tokens of every request in the part
results/part-0001.output.jsonl    answers as received; `.errors.jsonl`: the error file
cleaned.csv, rejected.csv         what `finalize` writes
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pydantic_core import from_json  # twice as fast as `json`, and there may be millions of these lines

from furnclip.catalogue import no_rows, read_products
from furnclip.errors import InputError, MissingStageError
from furnclip.journal import encode_event, open_regular, replacing, sweep

if TYPE_CHECKING:
    from furnclip.config import DataPaths


class RowEntry(NamedTuple):
    """What became of one catalogue row: a request, or a rejection before anything was sent."""

    row: int
    product_id: str
    custom_id: str = ""
    reason: str = ""
    detail: str = ""


class Request(NamedTuple):
    """Where one request lies in its part, and what it probably costs."""

    custom_id: str
    offset: int
    length_bytes: int
    image_tokens: int
    text_tokens: int


Line = TypeVar("Line", RowEntry, Request)


@dataclass(frozen=True)
class Workspace:
    """Paths inside `work/clean/`."""

    folder: Path

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def cleaned(self) -> Path:
        return self.folder / "cleaned.csv"

    @property
    def rejected(self) -> Path:
        return self.folder / "rejected.csv"

    def part(self, number: int) -> Path:
        return self.folder / "parts" / f"part-{number:04d}.jsonl"

    def index(self, number: int) -> Path:
        return self.folder / "parts" / f"part-{number:04d}.index.jsonl"

    def output(self, number: int) -> Path:
        return self.folder / "results" / f"part-{number:04d}.output.jsonl"

    def errors(self, number: int) -> Path:
        return self.folder / "results" / f"part-{number:04d}.errors.jsonl"

    def live(self, number: int) -> Path:
        return self.folder / "results" / f"part-{number:04d}.live.jsonl"

    def sweep(self) -> None:
        """Remove what killed processes were writing."""
        for folder in (self.folder, self.folder / "parts", self.folder / "results"):
            sweep(folder)

    def read_rows(self) -> Iterator[RowEntry]:
        yield from _read_lines(self.rows, RowEntry)

    def read_index(self, number: int) -> Iterator[Request]:
        yield from _read_lines(self.index(number), Request)

    def read_ids(self, number: int) -> Iterator[str]:
        """The `custom_id` of every request of a part."""
        return (request.custom_id for request in self.read_index(number))

    def write_index(self, number: int, requests: Iterable[Request]) -> None:
        with replacing(self.index(number)) as file:
            for request in requests:
                file.write(encode_event(request._asdict()))

    def read_requests(self, number: int, wanted: Iterable[Request]) -> Iterator[tuple[Request, bytes]]:
        """The lines of some requests of a part, without reading the others."""
        with self.part(number).open("rb") as file:
            for request in wanted:
                file.seek(request.offset)
                yield request, file.read(request.length_bytes)


def _read_lines(path: Path, kind: type[Line]) -> Iterator[Line]:
    """Lines of one of the indexes. Raises `InputError` naming the line that is none."""
    with open_regular(path, what="the index") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield kind(**from_json(line))
            except (ValueError, TypeError):
                raise InputError(
                    f"line {number} of `{path}` is damaged", hint="run `furnclip clean run` to make it again"
                ) from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_intact(path: Path, sha256: str) -> bool:
    """Whether a file is there, and is what it was when its checksum was noted."""
    return path.is_file() and file_digest(path) == sha256


def check_finished(paths: DataPaths) -> None:
    """Raw titles serve where cleaning was never begun.

    Raises `MissingStageError` when cleaning has begun and is not finished, and `InputError` when it is and
    not one row could be cleaned.
    """
    workspace = Workspace(paths.clean)
    if not paths.cleaned.is_file():
        if workspace.journal.exists():
            raise MissingStageError(paths.cleaned, command="furnclip clean run")
    elif workspace.journal.exists() and not any(islice(read_products(paths.cleaned, paths), 1)):
        raise no_rows(paths.cleaned, paths)
