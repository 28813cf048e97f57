"""Memory: whether it ran out, and what was freed back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import torch

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "os error 12",
    "failed to map segment",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, safetensors, Python or the system means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def release_freed() -> None:
    """Give back what has been freed; where the C library is not glibc it does that by itself.

    glibc keeps freed blocks in its heap, and with small ones between them large requests do not fit
    in there: a process that frees and asks by turns grows. The pages have to be asked for again, which
    takes some hundredths of the time of the work on them.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
