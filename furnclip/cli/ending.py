"""How a command ends: its exit code, its errors as two lines, and what signals do to it.

SIGTERM and SIGHUP unwind the command, so that what it started ends with it; a second one ends it at once.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from furnclip import console
from furnclip.cli import leave
from furnclip.errors import (
    FULL_DISK,
    FurnclipError,
    InputError,
    Interrupted,
    StorageError,
    UsageError,
    is_out_of_memory,
)

# What a machine that only searches may lack (`examples/serve/requirements.py`).
_NOT_WHERE_SEARCHED = ("torch", "transformers", "peft", "safetensors", "openai", "onnx", "pycurl")
_LITTLE_MEMORY_BYTES = 1 << 27
# A full disk, as libraries say it in words of their own.
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|os error (28|122)\b", re.IGNORECASE)
_OS_HINTS = {
    errno.EACCES: "check who owns the file or folder and its permissions",
    errno.EROFS: "the disk is read-only; choose another folder with `paths.work`",
    errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`) and run the same command again",
    errno.EIO: "the disk or the connection to it fails; check it, then run the same command again",
}
_told: list[FurnclipError] = []
_interrupts: list[int] = []
_exit_code = [1]  # of a process that ends without having come to an end here


def run() -> NoReturn:
    """Run the command line and end the process. Ctrl-C is an exception inside the app and nowhere else."""
    atexit.register(_quit)  # first in, last out: after all threads and everybody's exit functions
    sys.unraisablehook = _unraisable
    console.replace_unprintable()
    for name in ("SIGTERM", "SIGHUP"):
        if (number := getattr(signal, name, None)) and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _unwind)
    is_heard = signal.getsignal(signal.SIGINT) is leave
    try:
        from furnclip.cli.commands import app

        try:
            if is_heard:
                signal.signal(signal.SIGINT, _interrupt)
            code = app(prog_name="furnclip", standalone_mode=False) or 0
            if code == Interrupted.exit_code and not _told:  # while the command line was parsed
                raise KeyboardInterrupt
        finally:
            if is_heard:
                signal.signal(signal.SIGINT, leave)
        _exit_code[0] = code
        console.flush()
    except BaseException as error:
        _exit_code[0] = report(error)
    if _is_memory_short():  # other exit functions would fail with tracebacks
        _quit()
    raise SystemExit(_exit_code[0])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Ctrl-C inside a command. An exception out of an import can abort a library's own code, so not there."""
    here = frame
    while here is not None:
        if here.f_code.co_filename.startswith("<frozen importlib"):
            leave(number, frame)
        here = here.f_back
    _interrupts.append(number)
    raise KeyboardInterrupt


def _quit() -> None:
    """End without taking the interpreter apart: that takes long, and Ctrl-C would be a traceback then."""
    with suppress(OSError, ValueError):
        console.flush()
    os._exit(_exit_code[0])


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    """Python drops exceptions raised in destructors: a signal that raised one is sent again."""
    ended = failure.exc_value
    number = signal.SIGINT if isinstance(ended, KeyboardInterrupt) else 0
    if isinstance(ended, SystemExit) and isinstance(ended.code, int):
        number = ended.code - 128
    if number > 0:
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(failure)


def report(error: BaseException) -> int:
    """Print what ended a command as `error:` and `hint:`, where it is not a bug; the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError):  # `furnclip ... | head`
        return 1
    if not str(error) and hasattr(error, "show"):  # a group without its command: typer's way to show the help
        error.show()
        return UsageError.exit_code
    told = explain(error)
    if told is None and _interrupts:  # libraries make other errors of Ctrl-C
        told = Interrupted()
    if told is None and _is_memory_short():  # and of memory that they do not get
        told = explain(MemoryError())
    if told is None:
        raise error
    _told.append(told)
    try:
        console.print_error(told)
    except OSError:
        pass  # the terminal is gone
    except Exception:  # not even memory to print
        for label, text in (("error", told.message), ("hint", told.hint)):
            os.write(2, f"{label}: {console.one_line(text)}\n".encode())
    return told.exit_code


def _is_memory_short() -> bool:
    try:
        mmap(-1, _LITTLE_MEMORY_BYTES).close()  # not filled: that would take a tenth of a second
    except OSError:
        return True
    return False


def explain(error: BaseException) -> FurnclipError | None:
    """What to tell the user about an exception that ended a command; None for one that is a bug."""
    if isinstance(error, FurnclipError):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted()
    if hasattr(error, "format_message"):  # typer's; which package its parser comes from differs by version
        message = error.format_message().strip().rstrip(".")
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "furnclip"
        return UsageError(f"{message[:1].lower()}{message[1:]}", hint=f"see `{command} --help`")
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _NOT_WHERE_SEARCHED:
        return FurnclipError(
            f"this command needs `{error.name}`, which is not installed",
            hint="only searching and serving work without; for all commands: `pip install furnclip`",
        )
    if is_out_of_memory(error):
        hint = "close other programs, raise the limit (`ulimit -v`), or use fewer workers and smaller batches"
        return FurnclipError("there is not enough memory", hint=hint)
    if told := full_disk(error):
        return told
    if isinstance(error, RecursionError):
        hint = "check the files that the settings name"
        return InputError("a file is nested too deeply to be read", hint=hint)
    if isinstance(error, OSError) and error.errno is not None and error.strerror is not None:
        thing = f"`{error.filename}`" if error.filename else "the system does not say which file"
        hint = _OS_HINTS.get(error.errno, "check the path and run the same command again")
        return StorageError(f"{error.strerror.lower()}: {thing}", hint=hint)
    return None


def full_disk(error: BaseException, written: Iterable[Path] = ()) -> StorageError | None:
    """The error that names the full disk; without a file name, the fullest of those `written` to."""
    if getattr(error, "errno", None) not in FULL_DISK and not _NO_SPACE.search(str(error)):
        return None
    folders = [path for folder in written for path in (folder, *folder.glob("*/"), *folder.glob("*/*/"))]
    folders = [path for path in (*folders, Path.cwd(), Path(tempfile.gettempdir())) if path.exists()]
    folder = min(folders, key=lambda path: shutil.disk_usage(path).free)
    if filename := getattr(error, "filename", None):
        folder = Path(os.fsdecode(filename)).parent
    disk = folder.resolve()
    while not os.path.ismount(disk) and disk != disk.parent:
        disk = disk.parent
    return StorageError(
        f"the disk `{disk}` is full: no room in `{folder}`",
        hint="free some space, or set `paths.work` to another disk; the same command continues from here",
    )
