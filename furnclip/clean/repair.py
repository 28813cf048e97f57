"""Files of `work/clean/` that are missing or damaged: made again, fetched again, or named in an error.

In: the journal's checksums. What costs nothing is planned anew; an index is read off its part; a result file
is fetched from the service, which keeps it for 30 days. Answers that were paid for and are nowhere any
more are an error: buying them again is the user's decision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from furnclip import console
from furnclip.clean.ledger import Ledger
from furnclip.clean.state import UNSENT, Part
from furnclip.clean.workspace import Request, Workspace, is_intact
from furnclip.errors import InputError, MissingStageError
from furnclip.journal import write_bytes

if TYPE_CHECKING:
    from furnclip.clean.openai import BatchService


class Damaged(NamedTuple):
    """A result file that is not what was noted when it arrived."""

    part: Part
    path: Path
    sha256: str  # empty in a journal of 0.1.0
    file_id: str


def drop_damaged(ledger: Ledger) -> bool:
    """Give up parts whose files are damaged and cost nothing to make again; whether there were any."""
    workspace = ledger.workspace
    parts = [*ledger.state.with_status(*UNSENT), *_local_parts(ledger)]
    damaged = [
        part
        for part in parts
        if not is_intact(_content(workspace, part), part.sha256)
        or not (_is_index_intact(workspace, part) or workspace.live(part.number).exists())
    ]
    for part in damaged:
        if workspace.live(part.number).exists():
            raise InputError(
                f"`{workspace.part(part.number)}` is missing or damaged, and some of its rows were asked",
                hint="restore the file from a backup",
            )
        ledger.record("dropped", part=part.number)
    return bool(damaged)


def repair_indexes(ledger: Ledger) -> None:
    """Write the index of a part again where it is damaged. Raises `InputError` when the part is as well."""
    workspace = ledger.workspace
    for part in ledger.state.parts.values():
        if part.status in ("dropped", "replaced") or _is_index_intact(workspace, part):
            continue
        path = _content(workspace, part)
        if not is_intact(path, part.sha256):
            raise InputError(
                f"`{path}` and `{workspace.index(part.number)}` are missing or damaged",
                hint="restore one of them from a backup: without it, the part's answers belong to no row",
            )
        workspace.write_index(part.number, _index_of(path, part))


def _index_of(path: Path, part: Part) -> Iterator[Request]:
    """The index of a part by its content; tokens are those of the average request."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            tokens = part.tokens // part.requests
            yield Request(json.loads(line)["custom_id"], offset, len(line), tokens, 0)
            offset += len(line)


def check_rows(ledger: Ledger) -> None:
    """Raises where `rows.jsonl` is not what was prepared."""
    prepared, rows = ledger.state.prepared, ledger.workspace.rows
    if prepared is None or not rows.is_file():
        raise MissingStageError(rows, command="furnclip clean prepare")
    if not is_intact(rows, prepared["rows_sha256"]):
        raise InputError(
            f"`{rows}` was changed after it was prepared",
            hint="run `furnclip clean run`: it makes the file again, and no row is asked twice",
        )


def damaged_results(ledger: Ledger) -> Iterator[Damaged]:
    """Result files that are missing or damaged."""
    workspace = ledger.workspace
    for part in ledger.state.with_status("downloaded", "merged"):
        files = (
            (workspace.output(part.number), part.output_file_id),
            (workspace.errors(part.number), part.error_file_id),
            (workspace.live(part.number), ""),
        )
        known = dict(part.results)
        if part.backend == "local":
            known = {files[0][0].name: part.sha256}
        elif not known:  # 0.1.0 did not note checksums
            known = {path.name: "" for path, file_id in files if file_id}
        for path, file_id in files:
            sha256 = known.get(path.name)
            if sha256 is not None and not (is_intact(path, sha256) if sha256 else path.is_file()):
                yield Damaged(part, path, sha256, file_id)


def check_results(ledger: Ledger) -> None:
    """Raises `InputError` where an answer that arrived is missing."""
    for damaged in damaged_results(ledger):
        raise InputError(
            f"the result file `{damaged.path}` is missing or damaged",
            hint="run `furnclip clean run`: it gets the file again, or tells what cannot be got",
        )


def restore_results(ledger: Ledger, service: BatchService | None, *, give_up: bool) -> None:
    """Fetch damaged result files again.

    Raises `InputError` where the service does not keep one any more; with `give_up` its rows count as
    unanswered instead.
    """
    for damaged in list(damaged_results(ledger)):
        part, path = damaged.part, damaged.path
        content = service.download(damaged.file_id) if service and damaged.file_id else None
        if content is not None and damaged.sha256 in ("", hashlib.sha256(content).hexdigest()):
            write_bytes(path, content)
            console.note(f"`{path}` was missing or damaged; fetched it again")
        elif give_up:
            ledger.record("results_lost", part=part.number)
        else:
            why = "the service does not keep it any more" if damaged.file_id else "no service keeps a copy"
            if damaged.file_id and service is None:
                why = "only the backend `openai` can fetch it"
            raise InputError(
                f"the result file `{path}` is missing or damaged, and {why}",
                hint="restore it from a backup; `furnclip clean run --ignore-errors` asks its rows again "
                f"(up to {part.requests}, about ${part.usage.cost_usd:.4f})",
            )


def _local_parts(ledger: Ledger) -> list[Part]:
    return [part for part in ledger.state.with_status("downloaded") if part.backend == "local"]


def _content(workspace: Workspace, part: Part) -> Path:
    return workspace.output(part.number) if part.backend == "local" else workspace.part(part.number)


def _is_index_intact(workspace: Workspace, part: Part) -> bool:
    index = workspace.index(part.number)
    if part.index_sha256:
        return is_intact(index, part.index_sha256)
    try:  # 0.1.0 did not note checksums
        requests = list(workspace.read_index(part.number))
    except (OSError, InputError):
        return False
    return len(requests) == part.requests and sum(r.length_bytes for r in requests) == part.size_bytes
