"""Normalised titles for comparing, and the hash that identifies content."""

from __future__ import annotations

import hashlib
import unicodedata

ATTRIBUTES = ("style", "material", "color", "object_type")
CLEAN_COLUMNS = ("clean_title", *ATTRIBUTES, "clean_source")


def normalised_title(title: str) -> str:
    """The title without case, accents' spelling, punctuation and doubled spaces, for comparing."""
    folded = unicodedata.normalize("NFKC", title).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def content_hash(*parts: bytes | str) -> str:
    """16 hex digits over the parts; ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
