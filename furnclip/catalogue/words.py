"""Captions, titles for comparing, and the hash that says "this is done already"."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping

ATTRIBUTES = ("style", "material", "color", "object_type")
CLEAN_COLUMNS = ("clean_title", *ATTRIBUTES, "clean_source")
_UNKNOWN = frozenset({"", "unknown", "none", "nan", "null", "n/a", "na", "other", "-"})


def default_caption(fields: Mapping[str, str], *, title: str = "") -> str:
    """The fixed caption of a product: for `KEY.txt`, for evaluation and for text vectors.

    "a photo of a walnut mid-century sideboard": attributes that the title does not say yet, then the
    title, in lower case. `title` is used where there is no `clean_title`; without it, the column
    `title`. Empty when nothing is known.
    """
    name = _known(fields, "clean_title") or title.strip().lower() or _known(fields, "title")
    name = " ".join(name.split()) or _known(fields, "object_type")
    words = [_known(fields, attribute) for attribute in ("style", "color", "material")]
    extra = [word for word in dict.fromkeys(words) if word and word not in name]
    described = " ".join([*extra, name]).strip()
    kind = _known(fields, "object_type")
    if not described:
        return ""
    return f"a photo of {described}" + (f", {kind}" if kind and kind not in described else "")


def _known(fields: Mapping[str, str], name: str) -> str:
    value = " ".join(fields.get(name, "").lower().split())
    return "" if value in _UNKNOWN else value


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
