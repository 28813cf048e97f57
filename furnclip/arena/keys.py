"""Bytes from a terminal to keys, so that nothing but a single pressed key is ever a key.

Terminals answer questions (which a viewer may have asked) and send arrows and pastes as sequences
that contain letters: `ESC [ A` is the arrow up, not a vote for A. Sequences are swallowed whole, also
when they arrive in pieces over a slow line.
"""

from __future__ import annotations

ESCAPE = "\x1b"
CTRL_C = "\x03"
# An escape that nothing follows within this time was the Esc key; slow lines deliver in less.
ALONE_S = 0.5
# A string (kitty's, sixel's or a title's answer) that is not ended by then never will be.
STRING_S = 2.0
_STRING_STARTS = "_P]X^"
# Not keys of ours: seen alone, they are the rest of a sequence whose escape came much too early.
_NEVER_KEYS = "[]_"
_PASTE_START, _PASTE_END = "200~", "201~"


class KeyReader:
    """Feeds on bytes with the time they came, gives single keys; upper and lower case are the same."""

    def __init__(self) -> None:
        self._mode = "ground"
        self._since = 0.0
        self._parameters = ""
        self._pasting = False

    def feed(self, data: bytes, now_s: float) -> list[str]:
        """The keys in `data`, in order; letters in upper case, Esc as the escape character."""
        keys = self._give_up(now_s)
        for character in data.decode("utf-8", "replace"):
            key = self._step(character, now_s)
            if key and not self._pasting:
                keys.append(key)
        return keys

    def forget(self) -> None:
        """Drop what came so far; a sequence that has begun is still swallowed to its end."""
        self._pasting = False

    def _give_up(self, now_s: float) -> list[str]:
        """Leave a sequence that will not end; an escape that stood alone was a key."""
        waited = now_s - self._since
        if self._mode == "escape" and waited > ALONE_S:
            self._mode = "ground"
            return [ESCAPE]
        if self._mode in ("csi", "string", "string escape") and waited > STRING_S:
            self._mode = "ground"
        return []

    def _step(self, character: str, now_s: float) -> str:
        """The key that this character completes, or nothing."""
        if self._mode == "ground":
            self._since = now_s
        if character == ESCAPE:
            self._mode = "string escape" if self._mode == "string" else "escape"
            self._since = now_s
            return ""
        if self._mode == "ground" and character not in _NEVER_KEYS:
            return character.upper()
        {
            "ground": self._after_escape,
            "escape": self._after_escape,
            "csi": self._in_csi,
            "string": self._in_string,
            "string escape": self._ends_string,
        }[self._mode](character)
        return ""

    def _after_escape(self, character: str) -> None:
        if character in "[O":
            self._mode, self._parameters = "csi", ""
        elif character in _STRING_STARTS:
            self._mode = "string"
        else:
            self._mode = "ground"  # Alt and a key: not the key

    def _in_csi(self, character: str) -> None:
        self._parameters += character
        if "@" <= character <= "~":
            self._mode = "ground"
            if self._parameters in (_PASTE_START, _PASTE_END):
                self._pasting = self._parameters == _PASTE_START

    def _in_string(self, character: str) -> None:
        if character == "\x07":
            self._mode = "ground"

    def _ends_string(self, character: str) -> None:
        if character == "\\":
            self._mode = "ground"
        else:
            self._after_escape(character)  # the string was cut off by another sequence
