"""Which export a file is, and which of its columns is what: for `furnclip init`, by `formats.toml`.

A column is taken by its name, in any case, order and of several languages, and only where it is filled; where
no name is known, by what its cells look like. Every choice has its reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import tomli

from furnclip.catalogue.columns import (
    Column,
    ColumnTypes,
    is_published,
    known_as,
    known_names,
    names_nothing,
    plain_name,
    says_nothing,
    short_name,
    tells_published,
)
from furnclip.catalogue.rows import Record, merged, read_records, said_once, with_parents
from furnclip.catalogue.structured import ImageStore
from furnclip.errors import InputError

_SAMPLE_ROWS = 1000
_HEADER_ROWS = 3
_MOST = 0.9
_USUAL = "a usual name for it"
_LARGEST_GROUP = 30  # variations that a product may have in a small file
_WORDS_FOR_GROUPS = ("group", "gruppe", "groupe", "grupo")  # of variations, or a category
_LONGER = "a usual name for it is a part of its name"
_PLAIN: dict[str, Any] = {"name": "plain table", "why": "each row is a product"}
_ENDING = re.compile(
    r"(?<=.)\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|avif|img)([?#][^\s.]*)?\Z", re.IGNORECASE | re.DOTALL
)
_SEPARATORS = tuple(map(re.compile, (r"\s*\n\s*", r"\s*,\s*", r"\s*;\s*", r"\s+")))
_SEPARATED = re.compile(r"[,;\s\[]")
_BEFORE_ADDRESS = re.compile(r"[,;\s]+(?=(?:https?:)?//)")
_HOST = re.compile(r"//[\w-]+(\.[\w-]+)+/")  # of an address without `https:`
_LISTED = re.compile(r"""(["'])(.+?)\1""")


@cache
def formats() -> dict[str, Any]:
    """The content of `formats.toml`."""
    loaded: dict[str, Any] = tomli.loads(Path(__file__).with_name("formats.toml").read_text(encoding="utf-8"))
    return loaded


@dataclass
class Recognition:
    """What was taken for what. `settings`: of the section `paths`; `reasons`: why, by setting."""

    format: str
    why: str
    others: list[str]  # further formats that the file fits
    rows: int  # of the file, that were looked at
    products: int  # that they make
    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # names and addresses of images, as many as were seen


def recognize(path: Path, *, reserved: Iterable[str] = ()) -> Recognition:
    """What a file is, told by its header and first rows. Raises `InputError` for what is no catalogue.

    reserved: names that a column cannot have.
    """
    names = read_records(path)[0]
    records = read_records(path, ImageStore(tuple(names), None, path.stem))[1]
    sample = [row for row in islice(records, _SAMPLE_ROWS) if not row.reason and not is_header(row)]
    if not sample:
        raise InputError(f"`{path}` has no row that can be read", hint="export the catalogue again")
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(short_name(name) or name, name)
    fits = [
        each
        for each in formats()["format"]
        if all(not known.keys().isdisjoint(alternatives) for alternatives in each["needs"])
    ]
    chosen = {**_PLAIN, **(fits[0] if fits else {})}
    found = Recognition(chosen["name"], chosen["why"], [each["name"] for each in fits[1:]], len(sample), 0)
    chooser = _Chooser(chosen, known, sample, found, path.parent)
    chooser.choose()
    types = ColumnTypes()
    for record in chooser.sample:
        types.add(record.fields)
    found.columns, found.products = types.columns(list(reserved)), len(chooser.sample)
    return found


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """Matches the names of `more_images`, with any words before them."""
    escaped = (re.escape(pattern).replace(r"\*", r"\w*").replace(r"\#", r"\d+") for pattern in patterns)
    return re.compile(rf"(\w+_)?({'|'.join(escaped)})")


@dataclass
class _Chooser:
    """Chooses the columns of one file, and notes the reason of each choice."""

    _format: dict[str, Any]
    _known: dict[str, str]  # columns by their short names
    sample: list[Record]
    _found: Recognition
    _folder: Path

    def choose(self) -> None:
        """Fills in the settings and reasons of the recognition."""
        for name, value in self._format.get("settings", {}).items():
            self._found.settings[name] = value
            self._found.reasons[name] = self._format["why"]
        image = self._take("image") or self._take_looking_like_images()
        title = self._take("title") or self._take_text()
        self._take_id(image or title)
        settings, published = self._found.settings, self._published()
        if settings.get("merge_rows") or settings.get("merge_untitled_rows"):
            key, told_by = settings["id_column"], title if settings.get("merge_untitled_rows") else ""
            first = [key, title, *said_once(self._known.values(), published)]
            self.sample = list(merged(self.sample, key, first, told_by))
        self._take("parent")
        if "parent_column" not in self._found.settings:
            self._take("group")
        self._take_more_images(image)
        self._find_table()
        self._leave_out(published)
        columns = [name for name in (image, *self._found.settings.get("more_image_columns", ())) if name]
        self._found.images = [
            name for column in columns for cell in self._cells(column) for name in image_names(cell)
        ]

    def _published(self) -> list[str]:
        """The columns by which products are not in the shop."""
        if own := self._format.get("published", ()):
            return [column for name in own if self._cells(column := self._known.get(name, ""))]
        usual = [self._known[name] for name in formats()["usual"]["published"] if name in self._known]
        cells = {column: set(self._cells(column)) for column in usual}
        return [
            column
            for column, texts in cells.items()
            if any(map(is_published, texts)) and all(map(tells_published, texts))
        ]

    def _leave_out(self, columns: list[str]) -> None:
        """Leave what the shop does not show out of the sample."""
        if columns:
            rows, settings = self.sample, self._found.settings
            if parent := settings.get("parent_column"):
                own = names_of_products(self._known.values(), settings["id_column"])
                rows = list(with_parents(lambda: self.sample, parent, own, columns))
            shown = [row for row in rows if all(is_published(row.fields.get(name, "")) for name in columns)]
            why = f"of {len(rows):,} products {len(rows) - len(shown):,} are not published"
            self._found.settings["published_columns"] = columns
            self._found.reasons["published_columns"] = f"{why}; those are left out"
            self.sample = shown

    def _find_table(self) -> None:
        """The table that says which files image ids are; where there is none, what to do about it."""
        if not (names := self._format.get("image_tables")):
            return
        table = next((path for name in names if (path := self._folder / name).is_file()), "")
        why = "it names the file of each image id"
        if not table:
            why = f"put `{names[0]}`, which names the file of each image id, beside it and run `init` again"
        self._found.settings["image_table"], self._found.reasons["image_table"] = str(table), why

    def _cells(self, column: str) -> list[str]:
        """What is in the column, without empty cells."""
        return [cell for record in self.sample if (cell := record.fields.get(column, "").strip())]

    def _candidates(self, role: str) -> list[tuple[str, str]]:
        """(column, why) of the columns that may have this role by their names, the likeliest first."""
        own, usual = self._format.get(role, []), formats()["usual"].get(role, [])
        named = [(name, f"as {self._format['name']} calls it") for name in own if name in self._known]
        longer = known_as(usual, self._known, role) if role in known_names()["unlike"] else []
        named += [(name, _USUAL) for name in usual if name in self._known]
        named += [(name, _LONGER) for name in longer if name not in usual]
        return [(self._known[name], why) for name, why in named]

    def _set(self, role: str, column: str, why: str) -> str:
        self._found.settings[f"{role}_column"], self._found.reasons[f"{role}_column"] = column, why
        return column

    def _take(self, role: str) -> str:
        """The first column by name that has a cell of the right looks; empty where there is none."""
        for column, why in self._candidates(role):
            cells = self._cells(column)
            is_image = any("://" in cell for cell in cells) or self._are_images(cells)
            is_wrong = is_image if role == "title" else role == "image" and why == _LONGER and not is_image
            is_wrong = is_wrong or (
                role in ("parent", "group") and not self._tells_families(role, column, why)
            )
            if cells and not is_wrong and column not in self._found.settings.values():
                return self._set(role, column, why)
        return ""

    def _tells_families(self, role: str, column: str, why: str) -> bool:
        """Whether cells name parents or groups of variations: no categories, and not the same in all rows."""
        cells = [cell for cell in self._cells(column) if not names_nothing(cell)]
        if not cells or why not in (_USUAL, _LONGER):
            return bool(cells)
        if role == "parent":
            own = names_of_products(self._known.values(), self._found.settings["id_column"])
            return not {cell for name in own for cell in self._cells(name)}.isdisjoint(cells)
        largest = max(Counter(cells).values())
        codes = sum(any(map(str.isdigit, cell)) for cell in cells)
        is_id = short_name(column) not in _WORDS_FOR_GROUPS or codes >= _MOST * len(cells)
        return is_id and largest <= max(_LARGEST_GROUP, len(self.sample) // 10)

    def _take_looking_like_images(self) -> str:
        for column in self._known.values():
            if self._are_images(self._cells(column)):
                return self._set("image", column, "its cells are names of images")
        return self._set("image", "", "no column names images: products are found by their words")

    def _are_images(self, cells: Sequence[str]) -> bool:
        names = [name for cell in cells for name in image_names(cell)]
        return bool(names) and sum(_ENDING.search(name) is not None for name in names) >= _MOST * len(names)

    def _take_text(self) -> str:
        taken = self._found.settings.values()
        texts = {column: sum(map(len, self._cells(column))) for column in self._known.values()}
        texts = {name: 0 if self._are_images(self._cells(name)) else size for name, size in texts.items()}
        longest = max(texts, key=lambda column: texts[column] * (column not in taken))
        return self._set("title", longest, "no name for a title is known; it has the longest texts")

    def _take_id(self, fallback: str) -> str:
        """A column by name that is filled and tells products apart; or what names each row for certain."""
        merges = any(name.startswith("merge") for name in self._found.settings)
        candidates = self._candidates("id")
        if not merges and (found := self._id_in_languages(candidates)):
            return found
        for column, why in candidates:
            cells = self._cells(column)
            is_filled = len(cells) >= _MOST * len(self.sample)
            if (merges and cells) or (is_filled and len(set(cells)) >= _MOST * len(cells)):
                return self._set("id", column, why)
        for column in (fallback, self._found.settings["title_column"]):
            cells = self._cells(column)
            if len(cells) == len(self.sample) == len(set(cells)):
                return self._set("id", column, "no column is an id by its name; it tells the rows apart")
        columns = [column for column, _ in candidates] or [fallback]
        column = max(columns, key=lambda column: len(self._cells(column)))
        return self._set(
            "id", column, "no column tells all rows apart; rows with the id of another are rejected"
        )

    def _id_in_languages(self, candidates: Sequence[tuple[str, str]]) -> str:
        """An id that each product has once in each language, if there is one."""
        languages = [self._known[name] for name in known_names()["header"]["language"] if name in self._known]
        for column, why in candidates if languages else ():
            keys = [(row.fields[column].strip(), row.fields[languages[0]].strip()) for row in self.sample]
            ids = {name for name, _ in keys}
            if "" not in ids and len(set(keys)) == len(keys) and len(ids) < _MOST * len(keys):
                self._found.settings["merge_rows"] = True
                self._found.reasons["merge_rows"] = (
                    "rows with the same id are one product in several languages"
                )
                return self._set("id", column, why)
        return ""

    def _take_more_images(self, image: str) -> None:
        own, usual = map(_any_of, (self._format.get("more_images", []), formats()["usual"]["more_images"]))
        main = next((name for name, column in self._known.items() if column == image), "")
        if stem := re.fullmatch(r"(.*\D)_?\d+", main):  # `bild_2` beside `bild_1`
            usual = _any_of([f"{stem[1].rstrip('_')}_#", f"{stem[1]}#", *formats()["usual"]["more_images"]])
        taken = [image, *self._found.settings.values()]
        more = [
            column
            for name, column in self._known.items()
            if column not in taken and self._cells(column) and (own.fullmatch(name) or usual.fullmatch(name))
        ]
        if more and image:
            self._found.settings["more_image_columns"] = more
            self._found.reasons["more_image_columns"] = "further images of the same product"


def names_of_products(columns: Iterable[str], id_column: str) -> list[str]:
    """The columns by which a variation may name its parent, the id first."""
    usual = formats()["usual"]["id"]
    return [id_column, *(name for name in columns if plain_name(name) in usual and name != id_column)]


def is_header(record: Record) -> bool:
    """Whether one of the first rows has names of columns in it, in another language or for machines."""
    if record.row > _HEADER_ROWS:
        return False
    cells = [cell for cell in record.fields.values() if cell.strip()]
    known = {name for role in ("id", "title", "image") for name in formats()["usual"][role]}
    return len(cells) > 2 and sum(plain_name(cell) in known for cell in cells) > len(cells) / 2


@lru_cache(maxsize=1024)
def image_names(cell: str) -> tuple[str, ...]:
    """The images of a cell: separated by `|`, or by what else shops take where all parts are image names."""
    names = (name for part in cell.split("|") for name in _names_in(part.strip().strip('"')))
    return tuple(
        f"https:{name}" if name[:2] == "//" and _HOST.match(name) else name
        for name in names
        if not says_nothing(name)
    )


def _names_in(text: str) -> list[str]:
    if not _SEPARATED.search(text):
        return [text]
    if text[:1] == "[" and text[-1:] == "]":
        with suppress(ValueError, RecursionError):
            return ImageStore((), None, "").cell(json.loads(text), "en").split("|")
        return [match[2].strip() for match in _LISTED.finditer(text)]
    if "://" in text or text[:2] == "//":
        return [name.strip(" ,;") for name in _BEFORE_ADDRESS.split(text)]
    for separator in _SEPARATORS:
        names = [name for name in separator.split(text.strip(",; ")) if name]
        if len(names) > 1 and all(map(_ENDING.search, names)):
            return names
    return [text]


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
