"""A file system that is soon full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Callable[[int], None]]:
    """`folder` on a disk of its own; what the block gets gives it another size.

    Skips the test where this user may not mount anything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refusal = _mount(folder, f"size={size_kb}k") if shutil.which("mount") else "there is no `mount`"
    if refusal:
        pytest.skip(f"no small file system can be made here: {refusal}")

    def resize(size_kb: int) -> None:
        assert _mount(folder, f"remount,size={size_kb}k") == ""

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a traceback may still hold a file


def _mount(folder: Path, options: str) -> str:
    """Nothing, or why this was refused."""
    command = ["mount", "-t", "tmpfs", "-o", options, "furnclip-test", str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stderr.strip()
