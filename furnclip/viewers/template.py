"""The user's own viewer command: placeholders, split once, never given to a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from furnclip.errors import ConfigError, nearest

ViewerSetting = str | Sequence[str]
_IMAGE_PLACEHOLDERS = ("path", "original", "uri", "winpath")
PLACEHOLDERS = (
    *(*_IMAGE_PLACEHOLDERS, "cols", "rows", "left", "top"),
    *("pxw", "pxh", "tcols", "trows", "tpxw", "tpxh"),
)
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def parse_template(setting: ViewerSetting) -> tuple[str, ...]:
    """The command's arguments with their placeholders; raises `ConfigError` when it cannot work."""
    try:
        arguments = tuple(shlex.split(setting) if isinstance(setting, str) else setting)
    except ValueError as error:
        raise _unusable(f"cannot be split: {str(error).lower()}", setting) from None
    if not arguments:
        raise _unusable("is empty", setting)
    used = {name for argument in arguments for name in placeholders(argument)}
    if unknown := sorted(used.difference(PLACEHOLDERS)):
        raise _unknown(unknown[0])
    if placeholders(arguments[0]):
        raise _unusable("starts with a placeholder instead of a program", setting)
    if used.isdisjoint(_IMAGE_PLACEHOLDERS):
        raise _unusable("does not contain {path}", setting)
    if {"|", ";", ">", "&&"}.intersection(arguments):
        raise _unusable("needs a shell, and none is used", setting)
    return arguments


def fill(arguments: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """The arguments with placeholders replaced.

    Inserted text is never split or scanned again, so a file called `{cols} $(rm).png` is safe;
    `str.format` would allow `{path.__class__}`.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        return match.group()[0] if name is None else str(values[name])

    return [_TOKEN.sub(replace, argument) for argument in arguments]


def placeholders(argument: str) -> list[str]:
    """The names in braces, in order."""
    return [match.group(1) for match in _TOKEN.finditer(argument) if match.group(1) is not None]


def _unknown(name: str) -> ConfigError:
    close = nearest(name, PLACEHOLDERS)
    known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
    return ConfigError(
        f"the viewer's `{{{name}}}` is not a placeholder",
        hint=f"did you mean `{{{close}}}`?" if close else f"known here: {known}",
    )


def _unusable(why: str, setting: ViewerSetting) -> ConfigError:
    shown = setting if isinstance(setting, str) else list(setting)
    return ConfigError(
        f"the viewer `{shown}` {why}",
        hint='use `auto`, `none`, `builtin` or a command like `["chafa", "--size={cols}x{rows}", "{path}"]`',
    )
