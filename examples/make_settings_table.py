"""The README's tables of settings, made from the settings' own documentation.

    python examples/make_settings_table.py

Out: the part of `README.md` between its two `<!-- settings -->` marks. A test compares them, so a new
key cannot be forgotten. The list of each vocabulary is left to `furnclip.toml`: it is long.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from furnclip.config import sections, toml_value
from furnclip.journal import write_text

README = Path(__file__).parent.parent / "README.md"
MARK = "<!-- settings -->"
_LONGEST = 60  # characters of a default that a table can hold


def main() -> None:
    """Put the tables of today's settings into the README."""
    before, _, after = README.read_text("utf-8").split(MARK)
    write_text(README, f"{before}{MARK}\n{settings_tables()}\n{MARK}{after}")


def settings_tables() -> str:
    """A folded table for each section, in pipeline order."""
    return "\n".join(line for name, model in sections().items() for line in _section(name, model))


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"\n<details><summary><code>[{name}]</code> {model.__doc__}</summary>\n"
    yield "| key | default | meaning |"
    yield "| --- | --- | --- |"
    for key, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{key}` | {_default(field)} | {meaning} |"
    yield "\n</details>"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    text = toml_value(value)
    return f"`{text}`" if len(text) <= _LONGEST else f"{len(value)} words, see furnclip.toml"


if __name__ == "__main__":
    main()
