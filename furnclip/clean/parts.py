"""Cutting requests into parts: files small enough for one batch.

In: request lines in catalogue order. Out: `parts/part-NNNN.jsonl`, its index, and the facts that the
journal keeps about it. The same requests and limits always give the same bytes, so a part can be written
again after a kill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from furnclip.clean.workspace import Request, Workspace, file_digest
from furnclip.errors import InputError
from furnclip.journal import Event, replacing


@dataclass(frozen=True)
class Limits:
    """What one part may hold at most."""

    requests: int
    size_bytes: int
    tokens: int
    overhead_tokens: int  # of every request: prompt and schema

    def allow(self, requests: int, size_bytes: int, tokens: int) -> bool:
        total_tokens = tokens + requests * self.overhead_tokens
        return requests <= self.requests and size_bytes <= self.size_bytes and total_tokens <= self.tokens


@dataclass(frozen=True)
class Line:
    """One request as it will be sent, newline included, with its estimated tokens."""

    custom_id: str
    content: bytes
    image_tokens: int = 0
    text_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.text_tokens


def write_parts(
    workspace: Workspace,
    lines: Iterable[Line],
    limits: Limits,
    *,
    first_number: int,
    target: Callable[[int], Path] | None = None,
) -> Iterator[Event]:
    """Write parts one after another; yields each part's facts when its files are complete.

    `target`: part number -> file; by default `workspace.part`.
    """
    source = iter(lines)
    pending = next(source, None)
    number = first_number
    while pending is not None:
        path = (target or workspace.part)(number)
        facts, requests, pending = _write_part(path, pending, source, limits)
        workspace.write_index(number, requests)
        facts = {"part": number, **facts, "index_sha256": file_digest(workspace.index(number))}
        yield facts
        number += 1


def _write_part(
    path: Path, first: Line, source: Iterator[Line], limits: Limits
) -> tuple[Event, list[Request], Line | None]:
    """One part from `first` on; returns its facts, its index and the first line that did not fit."""
    requests: list[Request] = []
    seen: set[str] = set()
    digest = hashlib.sha256()
    size_bytes = tokens = 0
    pending: Line | None = first
    with replacing(path) as file:
        while pending is not None:
            after = (len(requests) + 1, size_bytes + len(pending.content), tokens + pending.tokens)
            if requests and not limits.allow(*after):
                break
            if pending.custom_id in seen:
                raise InputError(
                    f"two rows ask for `{pending.custom_id}`", hint="make the product ids unique"
                )
            seen.add(pending.custom_id)
            file.write(pending.content)
            digest.update(pending.content)
            requests.append(_indexed(pending, size_bytes))
            _, size_bytes, tokens = after
            pending = next(source, None)
    facts = {
        "requests": len(requests),
        "size_bytes": size_bytes,
        "tokens": tokens,
        "sha256": digest.hexdigest(),
    }
    return facts, requests, pending


def _indexed(line: Line, offset: int) -> Request:
    return Request(line.custom_id, offset, len(line.content), line.image_tokens, line.text_tokens)
