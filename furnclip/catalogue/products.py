"""Products: which rows can be used, which are rejected and why, and which were never cleaned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from furnclip.catalogue.columns import (
    is_published,
    known_as,
    known_names,
    names_nothing,
    plain_name,
    short_name,
)
from furnclip.catalogue.formats import formats, image_names, is_header, names_of_products
from furnclip.catalogue.rows import (
    REPEATED_HEADER,
    Record,
    is_our_sheet,
    merged,
    read_records,
    renamed_column,
    said_once,
    with_parents,
)
from furnclip.catalogue.structured import ImageStore
from furnclip.catalogue.text import plain_text
from furnclip.errors import ConfigError, InputError, nearest

if TYPE_CHECKING:
    from furnclip.config import DataPaths

MAX_ID_CHARS = 200
_MAX_SHOWN_COLUMNS = 20
_MAX_SHOWN_CHARS = 40
_ONE = ("id_column", "title_column", "image_column", "group_column", "parent_column")
_SEVERAL = ("more_image_columns", "published_columns")  # settings that name columns


class Product(NamedTuple):
    """One usable row, or several: `row` is the first, from 1 without the header; `fields` has every cell."""

    row: int
    product_id: str
    title: str
    images: tuple[str, ...]
    group: str
    fields: dict[str, str]
    file_rows: int = 1  # rows of the file that make this product
    variant: str = ""
    """options and title of a variation whose images are its parent's: what they say, the images may not"""


@dataclass(frozen=True)
class Rejection:
    """One row that cannot be used; `reason` is a short stable word for counting."""

    row: int
    product_id: str
    reason: str
    detail: str
    fields: dict[str, str] = field(default_factory=dict)
    file_rows: int = 1


def catalogue_path(paths: DataPaths) -> Path:
    """The cleaned catalogue where there is one, else the raw one."""
    return paths.cleaned if paths.cleaned.exists() else paths.products


def no_rows(path: Path, paths: DataPaths) -> InputError:
    """The error for a catalogue without a row; what to do depends on whose file it is and on the cause."""
    if path == paths.cleaned and paths.rejected.is_file() and not uncleaned_rows(paths):
        rows = read_records(paths.rejected)[1]
        return nothing_cleaned(paths.rejected, Counter(row.fields.get("rejected_reason", "") for row in rows))
    return InputError(f"`{path}` has no rows", hint=_remedy(path, paths) or "export the catalogue again")


def nothing_cleaned(rejected: Path, reasons: Counter[str]) -> InputError:
    """The error for a catalogue whose rows were all rejected; `reasons`: how many rows have each."""
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    return InputError(
        f"not one row could be cleaned ({reasons.total()} rejected: {counts})",
        hint=f"`{rejected}` has the reason of each row; fix the cause, then run `furnclip clean run` again",
    )


def _remedy(path: Path, paths: DataPaths) -> str:
    """What to do about a bad file that `clean` wrote; empty for a file of the user's."""
    if path not in (paths.cleaned, paths.rejected):
        return ""
    return f"delete `{path}` and run `furnclip clean run`: it is written again, and nothing is paid for twice"


def _open(
    path: Path, paths: DataPaths, images: ImageStore | None = None, lines: Iterable[str] | None = None
) -> tuple[DataPaths, Iterator[Record]]:
    """The settings, with columns as the file calls them; and records, those that belong together as one."""

    def read() -> tuple[list[str], Iterator[Record]]:
        names, records = read_records(path, images, language=paths.language, lines=lines)
        if (paths.merge_rows or paths.merge_untitled_rows) and not is_our_sheet(names):
            texts = [name for name in names if plain_name(name) in known_names()["columns"]["description"]]
            once = said_once(names, paths.published_columns)
            first = [name for name in (paths.id_column, paths.title_column, *texts, *once) if name in names]
            told_by = paths.title_column if paths.merge_untitled_rows else ""
            records = merged(records, paths.id_column, first, told_by)
        return names, records

    try:
        names, records = read()
    except InputError as error:
        error.hint = _remedy(path, paths) or error.hint
        raise
    one = {name: _find_column(path, names, name, getattr(paths, name)) for name in _ONE}
    several = {
        name: [_find_column(path, names, name, each) for each in getattr(paths, name)] for name in _SEVERAL
    }
    found = paths.model_copy(update={**one, **several})
    if found.parent_column:
        own = [found.id_column] if is_our_sheet(names) else names_of_products(names, found.id_column)
        records = with_parents(lambda: read()[1], found.parent_column, own, found.published_columns)
    return found, records


def _find_column(path: Path, columns: list[str], setting: str, wanted: str) -> str:
    """What the file calls a column of the settings. Raises `ConfigError` where it is not there."""
    if is_our_sheet(columns) and (renamed := renamed_column(wanted)) in columns:
        return renamed
    if wanted and wanted not in columns:
        close = nearest(wanted, columns)
        if not close and (role := setting.removesuffix("_column")) in known_names()["unlike"]:
            shorts = {short_name(name): name for name in columns}
            close = shorts.get(next(iter(known_as(formats()["usual"][role], shorts, role)), ""))
        advice = f"set `paths.{setting}" + (f' = "{close}"`' if close else "`")
        shown = ", ".join(column[:_MAX_SHOWN_CHARS] for column in columns[:_MAX_SHOWN_COLUMNS])
        more = len(columns) - _MAX_SHOWN_COLUMNS
        shown += f" and {more} more" if more > 0 else ""
        raise ConfigError(f"`{path}` has no column `{wanted}`", hint=f"{advice}; columns there: {shown}")
    return wanted


def read_products(
    path: Path, paths: DataPaths, *, lines: Iterable[str] | None = None
) -> Iterator[Product | Rejection]:
    """Every row as a product or as a rejection with its reason, in file order, streamed.

    `lines`: of a table, instead of those below its header. Raises `InputError` for a file that cannot be read
    and `ConfigError` for a column that is not there, both before the first row.
    """
    image_columns = (paths.image_column, *paths.more_image_columns)
    columns, records = _open(path, paths, ImageStore(image_columns, paths.images, path.stem), lines)
    return _judge(records, columns)


def _judge(records: Iterable[Record], columns: DataPaths) -> Iterator[Product | Rejection]:
    seen: set[int] = set()  # 64-bit hashes: a million ids take 80 MB as strings in a dict, a third as these
    families = [name for name in (columns.group_column, columns.parent_column) if name]
    for record in records:
        fields = record.fields
        product_id = fields.get(columns.id_column, "").strip()
        reason, detail = _problem(record, product_id, columns)
        if not reason and hash(product_id) in seen:
            reason, detail = "duplicate-id", f"`{product_id}` is the id of an earlier row"
        if reason:
            yield Rejection(record.row, product_id[:MAX_ID_CHARS], reason, detail, fields, record.file_rows)
            continue
        for name in families:
            if (cell := fields[name]) and names_nothing(cell.strip()):
                fields[name] = ""
        seen.add(hash(product_id))
        named = [
            name
            for name in (columns.image_column, *columns.more_image_columns)
            if name and fields[name].strip()
        ]
        title = plain_text(fields[columns.title_column])
        told: list[str] = []
        if named and record.inherited.issuperset(named):
            told = [*(text for text in record.options if text.casefold() not in title.casefold()), title]
        group = fields[columns.group_column].strip() if columns.group_column else ""
        yield Product(
            row=record.row,
            product_id=product_id,
            title=title,
            images=tuple(dict.fromkeys(name for column in named for name in image_names(fields[column]))),
            group=group or record.group,
            fields=fields,
            file_rows=record.file_rows,
            variant=", ".join(told),
        )


def _problem(record: Record, product_id: str, columns: DataPaths) -> tuple[str, str]:
    """Why a row is no product, in a word and in words; empty where it is one."""
    if record.reason:
        return record.reason, record.detail
    if is_header(record):
        return REPEATED_HEADER
    if not product_id:
        return "no-id", "the id is empty"
    if len(product_id) > MAX_ID_CHARS or not product_id.isprintable():
        return "bad-id", f"an id is printable and has at most {MAX_ID_CHARS} characters"
    for name in columns.published_columns:
        if not is_published(cell := record.fields[name]):
            return "unpublished", f"column `{name}` says `{cell.strip()}`"
    return "", ""


def uncleaned_rows(paths: DataPaths) -> int:
    """Rows of the catalogue in neither `cleaned.csv` nor `rejected.csv`; 0 where nothing was cleaned yet."""
    import numpy as np

    if not paths.cleaned.is_file() or not paths.products.is_file():
        return 0
    hashes = []
    for path in (paths.cleaned, paths.rejected, paths.products):
        if path.is_file():
            # an image can be the id, where the file has the images themselves
            columns, records = _open(path, paths, ImageStore((paths.id_column,), None, path.stem))
            # of every row, damaged ones as well: each row of the catalogue has its counterpart
            ids = (record.fields.get(columns.id_column, "").strip() for record in records)
            hashes.append(np.fromiter(map(hash, ids), np.int64))
    known, at = np.unique(np.concatenate(hashes), return_inverse=True)
    settled, there = (
        np.bincount(part, minlength=len(known)) for part in np.split(at, [len(at) - len(hashes[-1])])
    )
    return int((there - settled).clip(0).sum())
