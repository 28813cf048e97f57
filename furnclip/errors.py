"""Every error a user can meet, with its exit code and what to do next.

    FurnclipError                1   the work failed
    ├── InputError               1   a file or row the user gave cannot be used
    ├── ModelError               1   a model folder, adapter or checkpoint cannot be used
    │   └── ModelMismatchError   1   vectors or a run were made by another model
    ├── StorageError             1   disk or bucket refused, or what arrived is damaged
    ├── JournalError             1   a journal is locked by another process or damaged
    ├── ServiceError             1   a paid or remote service refused or failed
    ├── UsageError               2   a flag, a value or an order of commands is wrong
    │   ├── ConfigError          2   `furnclip.toml`, an environment variable or `.env`
    │   └── MissingStageError    2   an earlier command has to run first
    └── Interrupted            130   stopped by Ctrl-C; running again continues from there

`cli` prints `error: MESSAGE` and `hint: HINT` and exits with the class's code. Messages are lower
case, one sentence, no full stop, and name the thing that is wrong; the hint says what to do next.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

# Where there is no catalogue yet, whatever stage was asked for.
HOW_TO_BEGIN = "run `furnclip init YOUR-FILE`, or set `paths.products` in furnclip.toml to your file"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = re.compile(
    r"(cannot|can't) allocate memory|not enough memory|out of memory|failed to map segment|bad_alloc"
    r"|can't start new thread|os error 12\b",
    re.IGNORECASE,
)


class FurnclipError(Exception):
    """`message` says what is wrong with which thing; `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(FurnclipError):
    """A file or row that the user gave cannot be used."""


class ModelError(FurnclipError):
    """A model folder, adapter or checkpoint cannot be used."""


class ModelMismatchError(ModelError):
    """Vectors, an index or a run were made by another model than the one asked for."""


class StorageError(FurnclipError):
    """The disk or the bucket refused, or what arrived is damaged."""


class JournalError(FurnclipError):
    """A journal is held by another process, or damaged in the middle."""


class ServiceError(FurnclipError):
    """A remote service refused or failed for good."""


class UsageError(FurnclipError):
    """A flag, a value or the order of commands is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """`furnclip.toml`, an environment variable or `.env` holds something that cannot be used."""


class MissingStageError(UsageError):
    """An earlier command has to run first."""

    def __init__(self, needs: Path | str, *, command: str) -> None:
        super().__init__(f"`{needs}` does not exist yet", hint=f"run `{command}` first")


class Interrupted(FurnclipError):
    """Stopped by Ctrl-C; everything finished so far is kept."""

    exit_code = 130

    def __init__(
        self,
        message: str = "interrupted",
        *,
        hint: str = "run the same command again to continue from here",
    ) -> None:
        super().__init__(message, hint=hint)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, the system or a library means that memory ran out."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None when none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def first_line(error: BaseException) -> str:
    """What a library says in its error: the first line, or the name of its class where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Where pydantic found the first thing wrong, as `section.key`, and its message."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"]
