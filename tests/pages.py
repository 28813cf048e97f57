"""The code blocks of the documentation, and what its pages say about running them.

Above each block of commands or Python stands a comment that the reader does not see:

    <!-- run -->                              tests/test_examples_pages.py types it
    <!-- run by tests/test_train.py -->       that file does
    <!-- not run: needs a GPU -->             nothing does, for this reason
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(page for folder in ("docs", "examples", "tests/bench") for page in (ROOT / folder).rglob("*.md")),
]
LANGUAGES = ("bash", "sh", "console", "python")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block with a language; `mark` is empty where nothing stands above it."""

    page: Path
    language: str
    mark: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.splitlines()[0]

    def lines(self) -> Iterator[list[str]]:
        """The words of each command of a shell block, comments left out."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words:
                    yield words


def blocks(page: Path) -> list[Block]:
    """Every block of a page that somebody could type, and marked settings."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    every = [Block(page, match["language"], match["mark"] or "", match["text"]) for match in found]
    return [block for block in every if block.language in LANGUAGES or block.mark]
