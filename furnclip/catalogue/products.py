"""Products: which rows can be used, which are rejected and why, and which were never cleaned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from furnclip.catalogue.image_names import image_names
from furnclip.catalogue.rows import Record, is_our_sheet, read_records, renamed_column
from furnclip.catalogue.structured import ImageStore
from furnclip.errors import ConfigError, InputError, nearest

if TYPE_CHECKING:
    from furnclip.config import DataPaths

MAX_ID_CHARS = 200
_MAX_SHOWN_COLUMNS = 20
_MAX_SHOWN_CHARS = 40


class Product(NamedTuple):
    """One usable row. `row` counts from 1, without the header; `fields` has every column as written."""

    row: int
    product_id: str
    title: str
    images: tuple[str, ...]
    group: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Rejection:
    """One row that cannot be used; `reason` is a short stable word for counting."""

    row: int
    product_id: str
    reason: str
    detail: str
    fields: dict[str, str] = field(default_factory=dict)


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
    path: Path, paths: DataPaths, images: ImageStore | None = None
) -> tuple[dict[str, str], Iterator[Record]]:
    """What this file calls the columns that the settings name, by `id` to `group`; and its records."""
    try:
        columns, records = read_records(path, images)
    except InputError as error:
        error.hint = _remedy(path, paths) or error.hint
        raise
    found = {}
    for name in ("id", "title", "image", "group"):
        wanted = str(getattr(paths, f"{name}_column"))
        if is_our_sheet(columns) and (renamed := renamed_column(wanted)) in columns:
            wanted = renamed
        if wanted and wanted not in columns:
            close = nearest(wanted, columns)
            advice = f"set `paths.{name}_column" + (f' = "{close}"`' if close else "`")
            shown = ", ".join(column[:_MAX_SHOWN_CHARS] for column in columns[:_MAX_SHOWN_COLUMNS])
            more = len(columns) - _MAX_SHOWN_COLUMNS
            shown += f" and {more} more" if more > 0 else ""
            raise ConfigError(f"`{path}` has no column `{wanted}`", hint=f"{advice}; columns there: {shown}")
        found[name] = wanted
    return found, records


def read_products(path: Path, paths: DataPaths) -> Iterator[Product | Rejection]:
    """Every row as a product or as a rejection with its reason, in file order, streamed.

    Raises `InputError` for a file that cannot be read and `ConfigError` for a column that is not
    there, both before the first row.
    """
    columns, records = _open(path, paths, ImageStore(paths.image_column, paths.images, path.stem))
    return _judge(records, columns)


def _judge(records: Iterable[Record], columns: dict[str, str]) -> Iterator[Product | Rejection]:
    seen: set[int] = set()  # 64-bit hashes: a million ids take 80 MB as strings in a dict, a third as these
    for record in records:
        product_id = record.fields.get(columns["id"], "").strip()
        reason, detail = record.reason, record.detail
        if reason:
            pass
        elif not product_id:
            reason, detail = "no-id", "the id is empty"
        elif len(product_id) > MAX_ID_CHARS or not product_id.isprintable():
            reason, detail = "bad-id", f"an id is printable and has at most {MAX_ID_CHARS} characters"
        elif hash(product_id) in seen:
            reason, detail = "duplicate-id", f"`{product_id}` is the id of an earlier row"
        if reason:
            yield Rejection(record.row, product_id[:MAX_ID_CHARS], reason, detail, record.fields)
            continue
        seen.add(hash(product_id))
        yield Product(
            row=record.row,
            product_id=product_id,
            title=record.fields[columns["title"]].strip(),
            images=image_names(record.fields[columns["image"]]),
            group=record.fields[columns["group"]].strip() if columns["group"] else "",
            fields=record.fields,
        )


def uncleaned_rows(paths: DataPaths) -> int:
    """Rows of the catalogue that are in neither `cleaned.csv` nor `rejected.csv`: added or left out since.

    0 where nothing was cleaned yet, or where the raw catalogue is gone: then there is no other catalogue.
    Ids are held as hashes of 8 bytes.
    """
    import numpy as np

    if not paths.cleaned.is_file() or not paths.products.is_file():
        return 0
    hashes = []
    for path in (paths.cleaned, paths.rejected, paths.products):
        if path.is_file():
            columns, records = _open(path, paths)
            # of every row, damaged ones as well: each row of the catalogue has its counterpart
            ids = (record.fields.get(columns["id"], "").strip() for record in records)
            hashes.append(np.fromiter(map(hash, ids), np.int64))
    known, at = np.unique(np.concatenate(hashes), return_inverse=True)
    settled, there = (
        np.bincount(part, minlength=len(known)) for part in np.split(at, [len(at) - len(hashes[-1])])
    )
    return int((there - settled).clip(0).sum())
