"""Files that survive a kill: an append-only journal, and files replaced whole or not at all.

A journal is one JSON object a line, flushed to the disk before `append` returns. A process killed in the
middle of a line leaves a torn tail; replay drops it: nobody was told that this event is safe. Everything else
goes through `replacing`, so that a file under its final name is always complete, and is read back through
`read_json` and `read_text`: users copy, edit and damage these files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from filelock import AcquireReturnProxy, FileLock, Timeout

from furnclip.errors import InputError, JournalError, first_problem

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
Event = dict[str, Any]
MANIFEST_NAME, CARD_NAME = "manifest.json", "run.json"  # written last: their folder is complete
_LARGEST_TEXT_BYTES = 1 << 30
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # process numbers mean something on one machine
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)\.(?:part|old)")


def utc_now() -> str:
    """The time in UTC, to the millisecond, so that runs and votes can be ordered."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Journal:
    """An append-only JSON-lines file, held by one process at a time from `__enter__` to `__exit__`.

    `keep_whole_tail`: see `journal_lines`. Raises `JournalError` on opening when another process holds it for
    `wait_s` seconds and longer, and on replay when a line other than the last cannot be read.
    """

    def __init__(self, path: Path, *, keep_whole_tail: bool = False, wait_s: float = 0) -> None:
        self.path = path
        self._keep_whole_tail = keep_whole_tail
        self._wait_s = wait_s

    def __enter__(self) -> Journal:
        self._lock = _take_lock(self.path, f"{self.path.name}.lock", wait_s=self._wait_s)
        is_new, last = not self.path.exists(), b""
        if not is_new:
            with open_regular(self.path, what="the journal") as lines:
                last = b"".join(deque(lines, maxlen=1))
        self._file = self.path.open("ab", buffering=0)
        if last and not last.endswith(b"\n"):  # the next event would be glued to it, and both lost
            if self._keep_whole_tail and _event(last) is not None:
                self._file.write(b"\n")
            else:
                self._file.truncate(self._file.tell() - len(last))
            os.fsync(self._file.fileno())
        if is_new:
            sync_folder(self.path.parent)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.lock.release()

    def append(self, event: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write one event; when this returns, it is on the disk. When it raises, nothing was added.

        Without `durable` it survives a kill at once, and a power cut only after the next `sync`.
        """
        end, line = os.fstat(self._file.fileno()).st_size, memoryview(encode_event(event))
        try:
            while line:
                line = line[self._file.write(line) :]
            if durable:
                self.sync()
        except OSError as error:  # a torn line would take the next one with it
            self._file.truncate(end)
            error.filename = error.filename or str(self.path)  # a full disk does not say which
            raise

    def sync(self) -> None:
        """Flush what was appended to the disk."""
        os.fsync(self._file.fileno())


@contextmanager
def exclusive(folder: Path, *, wait_s: float = 0) -> Iterator[None]:
    """Within the block this is the only process that may change `folder`, or remove it.

    The lock lies beside the folder, so that it outlives it. Raises `JournalError` when another process
    has it for longer than `wait_s` (-1: waits for ever).
    """
    with _take_lock(folder, f".{folder.name}.lock", wait_s=wait_s):
        yield


def _take_lock(path: Path, name: str, *, wait_s: float = 0) -> AcquireReturnProxy[FileLock]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path.with_name(name)).acquire(timeout=wait_s, poll_interval=0.01)
    except Timeout:
        hint = "wait for that process to end, or stop it; nothing was changed"
        raise JournalError(f"`{path}` is in use by another furnclip process", hint=hint) from None


def encode_event(event: Mapping[str, Any]) -> bytes:
    """One journal line. ASCII only, so no line separator of Unicode can split it."""
    return json.dumps(event, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"


def read_journal(path: Path) -> Iterator[Event]:
    """Events of a journal without taking its lock; a torn last line is left out.

    Raises `JournalError` naming a complete line that is not a JSON object.
    """
    for number, line in journal_lines(path):
        event = _event(line)
        if event is None:
            hint = "restore the file from a backup, or move it away to start again"
            raise JournalError(f"line {number} of `{path}` is damaged", hint=hint)
        yield event


def journal_lines(path: Path, *, keep_whole_tail: bool = False) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a journal, unread, without taking its lock; a torn last line is left out.

    `keep_whole_tail`: a last line that is a complete JSON object and lacks only its newline counts, for files
    that people edit. Where an event costs money it must not.
    """
    if not path.exists():
        return
    with open_regular(path, what="the journal") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") or (keep_whole_tail and _event(line) is not None):
                yield number, line


def _event(line: bytes) -> Event | None:
    """The JSON object on a line; None where there is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def open_regular(path: Path, *, what: str) -> IO[bytes]:
    """`path` opened for reading, if it is a regular file: opening a FIFO would wait for a writer.

    Raises `InputError` naming `what` and the path; a missing file is a `FileNotFoundError`.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(
            f"{what} `{path}` is not a regular file", hint="move it away, and run the command again"
        )
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, *, what: str, hint: str) -> str:
    """The UTF-8 text of one of furnclip's own files. Raises `InputError` with `hint` where it is no regular
    file, larger than 1 GiB or not UTF-8; a missing file is a `FileNotFoundError`.
    """
    with open_regular(path, what=what) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST_TEXT_BYTES:
            raise InputError(f"{what} `{path}` is larger than 1 GiB", hint=hint)
        try:
            return file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{what} `{path}` is not UTF-8 text: {error.reason}", hint=hint) from None


def read_json(path: Path, shape: type[T], *, what: str, hint: str) -> T:
    """One of furnclip's own JSON files, checked against `shape`: a type that pydantic can validate, without
    conversions (`"3"` is no number).

    `what` names the file's role ("the run card"), `hint` says how to get a good one. Raises `InputError`
    naming the file and the first wrong field; a missing file is a `FileNotFoundError`.
    """
    return parse_json(read_text(path, what=what, hint=hint), shape, what=f"{what} `{path}`", hint=hint)


def parse_json(content: str | bytes, shape: type[T], *, what: str, hint: str) -> T:
    """JSON checked against `shape`, as `read_json` does; `what` names where it comes from."""
    from pydantic import ValidationError  # here, not above: `--help` comes by this file

    try:
        return cast(T, _adapter(cast(Any, shape)).validate_json(content, strict=True))
    except ValidationError as error:
        field, problem = first_problem(error)
        reason = f"`{field}`: {problem}" if field else problem
        raise InputError(f"{what} is damaged: {reason}", hint=hint) from None


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    """Building one takes longer than checking a thousand journal lines with it."""
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def aside_name(path: Path, *, ending: str = "part") -> Path:
    """Where this process writes what is to become `path`; `sweep` finds it when the process died."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.{ending}")


def sweep(folder: Path, *, exclusively: bool = False) -> None:
    """Remove what processes of this machine that no longer run were writing directly in `folder`.

    Another machine on a shared disk may still be writing its own, so those stay, unless the caller holds
    the folder `exclusively`: then every writer is gone. A folder that was moved away is put back where its
    replacement never arrived.
    """
    for path in folder.glob(".*"):
        match = _LEFTOVER.fullmatch(path.name)
        is_ours = match and match["host"] == _HOST and not _is_running(int(match["process"]))
        if not match or not (exclusively or is_ours):
            continue
        target = path.with_name(match["name"])
        if path.suffix == ".old" and not target.exists():
            path.replace(target)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 is Ctrl-C there, so there is no asking
    try:
        os.kill(process, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)  # else it is not ours to signal: it runs
    return True


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and not before.

    On an error or a kill the old file stays as it was and no half-written file has its name. Without
    `durable` nothing waits for the disk, and a power cut may leave the file empty: for caches.
    """
    aside = aside_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = error.filename or str(path)
        raise
    if durable:
        sync_folder(path.parent)


def move_file(source: Path, target: Path) -> None:
    """Rename `source` to `target`, by way of a copy where they lie on different disks."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with source.open("rb") as content, replacing(target) as file:
            shutil.copyfileobj(content, file)
        source.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of `path` when the block ends well, and not before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_name(path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for inner in (*aside.rglob("*"), aside):
            if inner.is_file():
                with inner.open("rb+") as file:
                    os.fsync(file.fileno())
            else:
                sync_folder(inner)
        old = aside_name(path, ending="old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a replacement that was interrupted here
            path.replace(old)
        aside.replace(path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def discard_folder(path: Path) -> None:
    """Remove a folder so that a kill on the way leaves nothing that looks like it."""
    aside = aside_name(path)
    shutil.rmtree(aside, ignore_errors=True)
    if path.exists():
        path.replace(aside)
        shutil.rmtree(aside)


def keep_copy(source: Path, path: Path) -> None:
    """Give `source` a second name, `path`, which stays what it was when `source` is replaced later."""
    aside = aside_name(path)
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:  # no hard links here: FAT, some network drives
        shutil.copyfile(source, aside)
    aside.replace(path)
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Replace `path` by indented JSON with a stable key order, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a new or renamed file survives a power cut."""
    if os.name == "nt":
        return  # Windows cannot open a folder; its renames are flushed by the file system
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
