"""Damaged versions of a file: what disks, editors, merges and hostile people do to bytes and to JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

TOKENS = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"`",
    b"\n",
    b"\r",
    b",",
    b"\t",
    b"{",
    b"[" * 2000,
    b"}",
    b"null",
    b"NaN",
    b"Infinity",
    b"-1",
    b"0",
    b"1e999",
    b"99999999999999999999",
    b"true",
    b"../../../etc/passwd",
    b"/etc/passwd",
    b"\x1b]0;title\x07\x1b[2J",
    b"\xed\xa0\x80",
    "\u202egnp.exe".encode(),
    "椅子 ist Stuhl, é ü".encode(),
    "é ü ß".encode("cp1252"),
    "椅子木".encode("gbk"),
    b"=cmd|' /C calc'!A0",
    b"<script>",
    b"%s%n%d",
    b"\\u0000",
    b"\\ud800",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "../up",
    "/absolute",
    "\x1b[2J",
    "\ud800",
    [],
    [None],
    {},
    {"a": 1},
    [[["deep"]]],
)


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """`content` after one to three edits of bytes, lines or length."""
    for _ in range(random.randint(1, 3)):
        content = random.choice(_EDITS)(content, random)
    return content


def mutate_json(content: bytes, random: Random) -> bytes:
    """`content`, a JSON document or JSON lines, still JSON but with other fields, types or lines."""
    lines = content.splitlines() if _is_lines(content) else [content]
    for _ in range(random.randint(1, 2)):
        index = random.randrange(len(lines))
        action = random.randrange(6) if len(lines) > 1 else 0
        if action == 1:
            del lines[index]
        elif action == 2:
            lines.insert(random.randrange(len(lines) + 1), lines[index])
        elif action == 3:
            other = random.randrange(len(lines))
            lines[index], lines[other] = lines[other], lines[index]
        else:
            lines[index] = _encode(_damaged_value(json.loads(lines[index]), random))
    return b"\n".join(lines) + (b"" if random.randrange(8) == 0 else b"\n")


def _is_lines(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return True
    return False


def _encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def _damaged_value(value: Any, random: Random) -> Any:
    """`value` with one of its inner values replaced, removed, renamed or doubled."""
    if not isinstance(value, dict | list) or not value or random.randrange(6) == 0:
        return random.choice(VALUES)
    if isinstance(value, list):
        index = random.randrange(len(value))
        action = random.randrange(4)
        if action == 0:
            return value[:index] + value[index + 1 :]
        if action == 1:
            return [*value, value[index]]
        return [*value[:index], _damaged_value(value[index], random), *value[index + 1 :]]
    name = random.choice(list(value))
    action = random.randrange(5)
    changed = dict(value)
    if action == 0:
        del changed[name]
    elif action == 1:
        changed[f"{name}_"] = changed.pop(name)
    else:
        changed[name] = _damaged_value(value[name], random)
    return changed


def _flip(content: bytes, random: Random) -> bytes:
    if not content:
        return content
    index = random.randrange(len(content))
    return content[:index] + bytes([random.randrange(256)]) + content[index + 1 :]


def _insert(content: bytes, random: Random) -> bytes:
    index = random.randrange(len(content) + 1)
    return content[:index] + random.choice(TOKENS) + content[index:]


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _remove(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    return content[:start] + content[start + random.randint(1, 40) :]


def _double(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    end = start + random.randint(1, 200)
    return content[:end] + content[start:end] + content[end:]


def _join_lines(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    index = random.randrange(len(lines))
    return b"\n".join(
        [*lines[:index], lines[index] + b"".join(lines[index + 1 : index + 2]), *lines[index + 2 :]]
    )


_EDITS: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flip,
    _flip,
    _insert,
    _insert,
    _insert,
    _cut,
    _remove,
    _double,
    _join_lines,
)
