"""Image cells as shops write them: which names a cell has; and the table of those that are ids.

`furnclip.sources` finds the file of a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from furnclip.catalogue.rows import read_records
from furnclip.errors import InputError

_ENDING = re.compile(
    r"(?<=.)\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|avif|img)([?#][^\s.]*)?\Z", re.IGNORECASE | re.DOTALL
)
_SEPARATORS = tuple(map(re.compile, (r"\s*\n\s*", r"\s*,\s*", r"\s*;\s*", r"\s+")))
_SEPARATED = re.compile(r"[,;\s\[]")
_BEFORE_ADDRESS = re.compile(r"[,;\s]+(?=https?://)")
_LISTED = re.compile(r"""(["'])(.+?)\1""")


def image_names(cell: str) -> tuple[str, ...]:
    """The images of a cell: separated by `|`, or by what else shops take where all parts are image names."""
    return tuple(name for part in cell.split("|") for name in _names_in(part.strip().strip('"')) if name)


def _names_in(text: str) -> list[str]:
    if not _SEPARATED.search(text):
        return [text]
    if text[:1] == "[" and text[-1:] == "]":
        return [match[2].strip() for match in _LISTED.finditer(text)]
    if "://" in text:
        return [name.strip(" ,;") for name in _BEFORE_ADDRESS.split(text)]
    for separator in _SEPARATORS:
        names = [name for name in separator.split(text.strip(",; ")) if name]
        if len(names) > 1 and all(map(_ENDING.search, names)):
            return names
    return [text]


def has_image_ending(name: str) -> bool:
    """Whether a name or an address ends as those of images do."""
    return _ENDING.search(name) is not None


def image_table(path: Path) -> Mapping[str, str]:
    """The file of each image by its id, as a table of the shop has them. Raises `InputError`."""
    return _image_table(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=1)
def _image_table(path: Path, changed_ns: int) -> Mapping[str, str]:
    hint = "`paths.image_table` is a table with the columns `image_id` and `path`; empty: images have names"
    columns, records = read_records(path) if changed_ns else ([], iter(()))
    if not {"image_id", "path"} <= set(columns):
        raise InputError(f"`{path}` is no table of images", hint=hint)
    return {record.fields["image_id"]: record.fields["path"] for record in records if not record.reason}
