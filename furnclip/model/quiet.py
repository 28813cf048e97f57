"""transformers without its own progress bars and notes, which would mix with ours.

Warnings about things that peft and transformers will change between themselves are dropped too; the
user can do nothing about them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers and peft print errors only."""
    log: Any = transformers.utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.set_verbosity(level)
        log.enable_progress_bar()
