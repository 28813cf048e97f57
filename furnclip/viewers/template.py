"""The user's own viewer command: placeholders, split once, never given to a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from furnclip.errors import ConfigError, nearest

Setting = str | Sequence[str]
PLACEHOLDERS = (
    *("path", "original", "uri", "winpath", "cols", "rows", "left", "top", "pxw", "pxh"),
    *("tcols", "trows", "tpxw", "tpxh"),
)
_NAMES_PICTURE = frozenset({"path", "original", "uri", "winpath"})
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def parse_template(setting: Setting) -> tuple[str, ...]:
    """The command's arguments with their placeholders; raises `ConfigError` when it cannot work."""
    arguments = _split(setting)
    if not arguments:
        raise _unusable("is empty", setting)
    used = [name for argument in arguments for name in _placeholders(argument)]
    for name in used:
        if name not in PLACEHOLDERS:
            raise _unknown(name)
    if _placeholders(arguments[0]):
        raise _unusable("starts with a placeholder instead of a program", setting)
    if not _NAMES_PICTURE.intersection(used):
        raise _unusable("does not contain {path}", setting)
    if {"|", ";", ">", "&&"}.intersection(arguments):
        raise _unusable("needs a shell, and none is used", setting)
    return arguments


def fill(arguments: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """The arguments with placeholders replaced.

    What is put in is never split or looked at again, so a file called `{cols} $(rm).png` is safe;
    `str.format` would allow `{path.__class__}`.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        return match.group()[0] if name is None else str(values[name])

    return [_TOKEN.sub(replace, argument) for argument in arguments]


def mentions(arguments: Sequence[str], name: str) -> bool:
    """Whether a placeholder is anywhere in the arguments."""
    return any(name in _placeholders(argument) for argument in arguments)


def _split(setting: Setting) -> tuple[str, ...]:
    if not isinstance(setting, str):
        return tuple(setting)
    try:
        return tuple(shlex.split(setting))
    except ValueError as error:
        raise _unusable(f"cannot be split: {str(error).lower()}", setting) from None


def _placeholders(argument: str) -> list[str]:
    return [match.group(1) for match in _TOKEN.finditer(argument) if match.group(1) is not None]


def _unknown(name: str) -> ConfigError:
    close = nearest(name, PLACEHOLDERS)
    known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
    return ConfigError(
        f"the viewer's `{{{name}}}` is not a placeholder",
        hint=f"did you mean `{{{close}}}`?" if close else f"known here: {known}",
    )


def _unusable(why: str, setting: Setting) -> ConfigError:
    shown = setting if isinstance(setting, str) else list(setting)
    return ConfigError(
        f"the viewer `{shown}` {why}",
        hint='use `auto`, `none`, `builtin` or a command like `["chafa", "--size={cols}x{rows}", "{path}"]`',
    )
