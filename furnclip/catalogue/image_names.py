"""Image cells as shops write them: which names a cell has, and which file of the image folder each one is.

A name is relative to the image folder. Where there is no such file, the one that is nearly it is taken and
counted: without a leading slash, `?v=1` or `%20`, below or without a folder that is named twice, in another
letter case, or with another image ending. Names that lead out of the folder are refused; links in it that
lead out are the user's own, unless the folder belongs to somebody else.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from furnclip import console
from furnclip.images import BrokenImage

_ENDING = re.compile(
    r"(?<=.)\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|avif|img)([?#][^\s.]*)?\Z", re.IGNORECASE | re.DOTALL
)
_AFTER_NAME = re.compile(r"[?#].*")
_SEPARATORS = tuple(map(re.compile, (r"\s*\n\s*", r"\s*,\s*", r"\s*;\s*", r"\s+")))
_SEPARATED = re.compile(r"[,;\s\[]")
_BEFORE_ADDRESS = re.compile(r"[,;\s]+(?=https?://)")
_LISTED = re.compile(r"""(["'])(.+?)\1""")


def image_names(cell: str) -> tuple[str, ...]:
    """The images of a cell: separated by `|`, or by what else shops take where all parts are image names."""
    return tuple(name for part in cell.split("|") for name in _names_in(part.strip()) if name)


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


def find_images(names: Iterable[str], image_root: Path) -> list[Path]:
    """Every image of the names that is there, as listed. Raises `BrokenImage` when there is none."""
    problem = BrokenImage("missing", "the row names no image", hint="fill the image column")
    folder, found = _ImageFolder(image_root), []
    for name in reversed(tuple(names)):
        try:
            found.append(folder.find(name))
        except BrokenImage as error:
            problem = error  # of several, the first one is what the user will look at
    if not found:
        raise problem
    return found[::-1]


def tell_near_matches(image_root: Path) -> None:
    """Say how many images this process found under nearly the name that the catalogue gives them."""
    folder = _ImageFolder(image_root)
    if folder.near:
        name, path = folder.example
        console.warn(
            f"{len(folder.near):,} image names are not quite those of the files in `{image_root}`, "
            f"the nearest are taken: `{path}` for `{name}`"
        )


@lru_cache(maxsize=8)  # one object a folder, which remembers what it found
class _ImageFolder:
    """One image folder, and what was found in it under nearly the name."""

    def __init__(self, root: Path) -> None:
        self._given = root
        self._root = root.resolve()
        # Links in it are the user's own; for the administrator, those in all folders are.
        self._links_may_lead_out = (
            os.name == "nt"
            or os.getuid() == 0
            or not self._root.exists()
            or self._root.stat().st_uid in (os.getuid(), 0)
        )
        self.near: set[int] = set()  # hashes of the names
        self.example = ("", "")

    def find(self, name: str) -> Path:
        if "://" in name:
            hint = "download the images to the folder"
            raise BrokenImage("outside", f"`{name}` is a web address", hint=hint)
        candidates = self._candidates(name)
        if any(".." in candidate.split("/") for candidate in candidates):
            raise BrokenImage("outside", f"`{name}` leads out of the image folder")
        try:
            whole = (self._root / candidate for candidate in candidates)
            path = next(filter(Path.exists, whole), None)
            path = path or next(filter(None, map(self._respelt, candidates)), None)
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a loop of links
            raise BrokenImage("missing", f"`{name}` is not the name of an image ({error})") from None
        if path is None and name.startswith("/"):
            raise BrokenImage("outside", f"`{name}` is not in the image folder `{self._given}`")
        if path is None:
            raise BrokenImage("missing", f"there is no image `{name}` in `{self._given}`")
        if path != self._root / candidates[0]:
            self.near.add(hash(name))
            self.example = self.example if self.example[0] else (name, str(path.relative_to(self._root)))
        if not self._links_may_lead_out and not path.resolve().is_relative_to(self._root):
            place = f"the image folder `{self._given}`, which is another user's"
            raise BrokenImage("outside", f"`{name}` leads out of {place}")
        if not path.is_file():
            raise BrokenImage("not-a-file", f"`{name}` is not a file")
        return path

    def _candidates(self, name: str) -> list[str]:
        """The names below the folder that this one may stand for, as it is first, then the likeliest."""
        relative = name.replace("\\", "/")
        for root in (self._root, self._given.absolute()):
            relative = relative.removeprefix(f"{root.as_posix()}/")
        relative = relative.lstrip("/")
        whole = [relative, _AFTER_NAME.sub("", relative)]
        whole += [unquote(text) for text in whole]
        moved = []
        for text in whole:
            first, _, rest = text.partition("/")
            is_doubled = rest and first.casefold() == self._root.name.casefold()
            moved.append(rest if is_doubled else f"{self._root.name}/{text}")
        return list(dict.fromkeys(whole + moved))

    def _respelt(self, name: str) -> Path | None:
        """The one file whose name differs from this one in case, accents' spelling or image ending."""
        path = self._root
        for part in name.split("/"):
            names, folded = _listing(path), _folded(part)
            found = names.get(folded) or names.get(_ENDING.sub("", folded)) or []
            if len(found) != 1:
                return None
            path = path / found[0]
        return path


@lru_cache(maxsize=256)
def _listing(folder: Path) -> dict[str, list[str]]:
    """Names in a folder by themselves in one case, and those of images without their ending as well."""
    listed: dict[str, list[str]] = {}
    with suppress(OSError):
        for name in [entry.name for entry in folder.iterdir()]:
            folded = _folded(name)
            for key in {folded, _ENDING.sub("", folded)}:
                listed.setdefault(key, []).append(name)
    return listed


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
