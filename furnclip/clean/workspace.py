"""The folder `work/clean/`: which file is where, the journal with its state, and what is damaged.

journal.jsonl                     what was done, what is about to be done; see `batch.state`
rows.jsonl                        one line a catalogue row: its request's id, or why it has none
parts/part-0001.jsonl             requests as sent
parts/part-0001.index.jsonl       id, place and estimated tokens of every request in the part
results/part-0001.output.jsonl    answers as received; `.errors.jsonl`: the error file
cleaned.csv, rejected.csv         what `finalize` writes

Damaged files are told by the journal's checksums. What costs nothing is planned anew; an index is read off
its part; a result file is fetched from the service, which keeps it for 30 days. Answers that were paid for
and are nowhere any more are an error: buying them again is the user's decision.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, TypeVar

from pydantic_core import from_json  # twice as fast as `json`, and there may be millions of these lines

from furnclip import console
from furnclip.catalogue import Product, Rejection, content_hash, no_rows, read_products
from furnclip.clean.batch.requests import Recipe
from furnclip.clean.batch.state import UNSENT, BatchPart, State, apply
from furnclip.clean.prompt import MAX_QUERIES
from furnclip.config import Config, DataPaths
from furnclip.errors import InputError, JournalError, MissingStageError
from furnclip.journal import (
    Event,
    Journal,
    encode_event,
    open_regular,
    read_journal,
    replacing,
    sha256_of,
    sweep,
    write_bytes,
)
from furnclip.sources import ShopImages

if TYPE_CHECKING:
    from furnclip.clean.batch.service import BatchService


class RowEntry(NamedTuple):
    """What became of one catalogue row: a request, or a rejection before anything was sent."""

    row: int
    product_id: str
    custom_id: str = ""
    reason: str = ""
    detail: str = ""


class PartRequest(NamedTuple):
    """Where one request lies in its part, and what it probably costs."""

    custom_id: str
    offset: int
    length_bytes: int
    image_tokens: int
    text_tokens: int


class RequestLine(NamedTuple):
    """One request as it is sent, newline included, with its estimated tokens."""

    custom_id: str
    content: bytes
    image_tokens: int = 0
    text_tokens: int = 0


IndexLine = TypeVar("IndexLine", RowEntry, PartRequest)


class Workspace:
    """Paths inside `work/clean/`, and its indexes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal.jsonl"
        self.rows = folder / "rows.jsonl"
        self.cleaned = folder / "cleaned.csv"
        self.rejected = folder / "rejected.csv"

    def part(self, number: int) -> Path:
        return self.folder / "parts" / f"part-{number:04d}.jsonl"

    def index(self, number: int) -> Path:
        return self.part(number).with_suffix(".index.jsonl")

    def results(self, number: int) -> tuple[Path, Path, Path]:
        """Where answers are: the service's output file and error file, and replies of the live backend."""
        part = self.folder / "results" / f"part-{number:04d}.jsonl"
        return part.with_suffix(".output.jsonl"), part.with_suffix(".errors.jsonl"), self.live(number)

    def live(self, number: int) -> Path:
        return self.folder / "results" / f"part-{number:04d}.live.jsonl"

    def content(self, number: int, backend: str) -> Path:
        """What a part holds: its requests, or with the offline backend its answers."""
        return self.results(number)[0] if backend == "local" else self.part(number)

    def read_rows(self) -> Iterator[RowEntry]:
        yield from _read_lines(self.rows, RowEntry)

    def read_index(self, number: int) -> Iterator[PartRequest]:
        yield from _read_lines(self.index(number), PartRequest)

    def write_index(self, number: int, requests: Iterable[PartRequest]) -> None:
        with replacing(self.index(number)) as file:
            for request in requests:
                file.write(encode_event(request._asdict()))

    def read_requests(self, number: int, wanted: Iterable[PartRequest]) -> Iterator[RequestLine]:
        """The lines of some requests of a part, without reading the others."""
        with self.part(number).open("rb") as file:
            for custom_id, offset, length_bytes, *tokens in wanted:
                file.seek(offset)
                yield RequestLine(custom_id, file.read(length_bytes), *tokens)


def _read_lines(path: Path, kind: type[IndexLine]) -> Iterator[IndexLine]:
    """Lines of one of the indexes. Raises `InputError` naming the line that is none."""
    with open_regular(path, what="the index") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield kind(**from_json(line))
            except (ValueError, TypeError):
                hint = "remove the file and run `furnclip clean run`: it is made again"
                raise InputError(f"line {number} of `{path}` is damaged", hint=hint) from None


def is_intact(path: Path, sha256: str) -> bool:
    """Whether a file is there, and is what it was when its checksum was noted; 0.1.0 noted none for some."""
    return path.is_file() and sha256 in ("", sha256_of(path))


def check_finished(paths: DataPaths) -> None:
    """Raises `MissingStageError` where cleaning has begun and is not finished, `InputError` where it is and
    not one row could be cleaned. Where it was never begun, raw titles serve.
    """
    has_begun = Workspace(paths.clean).journal.exists()
    if has_begun and not paths.cleaned.is_file():
        raise MissingStageError(paths.cleaned, command="furnclip clean run")
    if has_begun and not any(islice(read_products(paths.cleaned, paths), 1)):
        raise no_rows(paths.cleaned, paths)


class CleaningLedger:
    """An open journal with its state; `record` writes to the disk first and changes the state after."""

    def __init__(self, config: Config, journal: Journal, spool: IO[bytes]) -> None:
        self.config = config
        self.workspace = Workspace(config.paths.clean)
        self.state = read_state(config)
        self._journal = journal
        self._spool, self._spooled_rows = spool, -1

    def products(self) -> Iterator[Product | Rejection]:
        """Every row of the raw catalogue, in file order; one pass at a time.

        The file is parsed once a command, and its rows are spooled to the disk: memory does not grow.
        """
        self._spool.seek(0)
        if self._spooled_rows < 0:
            products = read_products(self.config.paths.products, self.config.paths)
            dump = partial(pickle.dump, file=self._spool, protocol=pickle.HIGHEST_PROTOCOL)
            self._spooled_rows = sum(1 for _ in map(dump, products))
            self._spool.seek(0)
        for _ in range(self._spooled_rows):
            yield pickle.load(self._spool)

    @cached_property
    def images(self) -> ShopImages:
        return ShopImages(self.config)

    @cached_property
    def recipe(self) -> Recipe:
        """How requests are made with these settings. Raises `ConfigError` for an unknown model.

        A run goes on with as many shopper queries as it was begun with: other requests would be bought again.
        """
        wanted = Recipe.from_config(self.config.clean)
        paid = {
            part.identity
            for part in self.state.parts.values()
            if part.backend != "local"
            and (part.status not in (*UNSENT, "dropped") or self.workspace.live(part.number).is_file())
        }
        others = (replace(wanted, queries=count) for count in range(MAX_QUERIES + 1))
        is_free = wanted.identity in paid or self.config.clean.backend == "local"
        return wanted if is_free else next((other for other in others if other.identity in paid), wanted)

    def record(self, name: str, **facts: object) -> None:
        event = {"event": name, **facts}
        self._journal.append(event)
        self.state = apply(self.state, event)


@contextmanager
def open_ledger(config: Config) -> Iterator[CleaningLedger]:
    """The ledger of `work/clean/`, locked. Raises `JournalError` when another process holds it."""
    workspace = Workspace(config.paths.clean)
    with Journal(workspace.journal) as journal, tempfile.TemporaryFile(dir=workspace.folder) as spool:
        for folder in (workspace.folder, workspace.folder / "parts", workspace.folder / "results"):
            sweep(folder)
        ledger = CleaningLedger(config, journal, spool)
        if not ledger.state.run:  # uploads and batches carry it, so that they are known as ours
            run = secrets.token_hex(4)
            ledger.record("started", run=run, at=time.time(), key_print=key_print(config, run))
        yield ledger


def read_state(config: Config) -> State:
    """The state after every event of the journal, each checked before it counts; takes no lock."""
    state, path = State(), Workspace(config.paths.clean).journal
    for number, event in enumerate(read_journal(path), start=1):
        try:
            state = apply(state, event)
        except JournalError as error:
            error.message = f"line {number} of `{path}` is damaged: {error.message}"
            raise
    return state


def key_print(config: Config, run: str) -> str:
    """Tells two API keys apart without giving either away: a hash salted with the run's id."""
    key = config.openai_api_key.get_secret_value()
    return content_hash("key", run, key) if key else ""


def check_rows(ledger: CleaningLedger) -> Event:
    """The facts of `prepare`. Raises where `rows.jsonl` is not what was prepared."""
    prepared, rows = ledger.state.prepared, ledger.workspace.rows
    if prepared is None or not rows.is_file():
        raise MissingStageError(rows, command="furnclip clean prepare")
    if not is_intact(rows, prepared["rows_sha256"]):
        hint = "run `furnclip clean run`: it makes the file again, and no row is asked twice"
        raise InputError(f"`{rows}` was changed after it was prepared", hint=hint)
    return prepared


def drop_damaged(ledger: CleaningLedger) -> None:
    """Give up parts whose files are damaged and cost nothing to make again."""
    state, workspace = ledger.state, ledger.workspace
    for part in [*state.with_status(*UNSENT), *state.with_status("downloaded", backend="local")]:
        was_asked = workspace.live(part.number).exists()
        is_index_intact = is_intact(workspace.index(part.number), part.index_sha256)
        if is_intact(workspace.content(part.number, part.backend), part.sha256):
            if was_asked or is_index_intact:
                continue
        elif was_asked:
            raise InputError(
                f"`{workspace.part(part.number)}` is missing or damaged, and some of its rows were asked",
                hint="restore the file from a backup",
            )
        ledger.record("dropped", part=part.number)


def repair_indexes(ledger: CleaningLedger) -> None:
    """Write the index of a part again where it is damaged. Raises `InputError` when the part is as well."""
    workspace = ledger.workspace
    for part in ledger.state.current_parts:
        if is_intact(workspace.index(part.number), part.index_sha256):
            continue
        path = workspace.content(part.number, part.backend)
        if not is_intact(path, part.sha256):
            raise InputError(
                f"`{path}` and `{workspace.index(part.number)}` are missing or damaged",
                hint="restore one of them from a backup: without it, the part's answers belong to no row",
            )
        requests, offset, tokens = [], 0, part.tokens // part.requests  # those of the average request
        with path.open("rb") as file:
            for line in file:
                requests.append(PartRequest(json.loads(line)["custom_id"], offset, len(line), tokens, 0))
                offset += len(line)
        workspace.write_index(part.number, requests)


def _damaged_results(ledger: CleaningLedger) -> Iterator[tuple[BatchPart, Path, str, str]]:
    """(part, path, SHA-256, file id at the service) of result files that are not what had arrived."""
    for part in ledger.state.with_status("downloaded", "merged"):
        output, errors, live = ledger.workspace.results(part.number)
        known = {output.name: part.sha256} if part.backend == "local" else part.results
        for path, file_id in ((output, part.output_file_id), (errors, part.error_file_id), (live, "")):
            is_expected = path.name in known or (file_id and not known)  # 0.1.0 noted none of them
            sha256 = known.get(path.name, "")
            if is_expected and not is_intact(path, sha256):
                yield part, path, sha256, file_id


def check_results(ledger: CleaningLedger) -> None:
    """Raises `InputError` where an answer that arrived is missing."""
    for _, path, _, _ in _damaged_results(ledger):
        hint = "run `furnclip clean run`: it gets the file again, or tells what cannot be got"
        raise InputError(f"the result file `{path}` is missing or damaged", hint=hint)


def restore_results(ledger: CleaningLedger, service: BatchService | None, *, give_up: bool) -> None:
    """Fetch damaged result files again. Raises `InputError` where the service does not keep one any more;
    with `give_up` its rows count as unanswered instead.
    """
    for part, path, sha256, file_id in list(_damaged_results(ledger)):
        content = service.download(file_id) if service and file_id else None
        if content is not None and sha256 in ("", hashlib.sha256(content).hexdigest()):
            write_bytes(path, content)
            console.note(f"`{path}` was missing or damaged; fetched it again")
        elif give_up:
            ledger.record("results_lost", part=part.number)
        else:
            why = "the service does not keep it any more" if service else "only `openai` can fetch it"
            why = why if file_id else "no service keeps a copy"
            price = f"up to {part.requests}, about ${part.usage.cost_usd:.4f}"
            hint = f"restore it, or let `furnclip clean run --ignore-errors` ask its rows again ({price})"
            raise InputError(f"the result file `{path}` is missing or damaged, and {why}", hint=hint)
