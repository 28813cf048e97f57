"""The conductor of `furnclip prepare`: scan, find ties, assign, pack, publish; and what it tells of a run."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from furnclip import console
from furnclip.catalogue import (
    ATTRIBUTES,
    Rejection,
    catalogue_path,
    no_rows,
    read_products,
    sheet_text,
    uncleaned_rows,
)
from furnclip.errors import ConfigError, InputError, MissingStageError
from furnclip.journal import exclusive, sweep, write_text
from furnclip.prepare.kept import Kept
from furnclip.prepare.pack import (
    MOST_VALUES,
    PlannedShard,
    SampleChange,
    describe_split,
    plan_shards,
    with_earlier,
    write_shards,
)
from furnclip.prepare.reading import Catalogue, Note, Reading
from furnclip.prepare.scan import Scanner, decoders
from furnclip.prepare.splits import (
    LEDGER_NAME,
    UNDECIDED,
    Assignment,
    Ledger,
    assign,
    leak_report,
    read_ledger,
)
from furnclip.prepare.store import Records, SampleStore, Scanned, store_errors
from furnclip.prepare.ties import NearGroups, Ties, find_ties, near_groups, placeholder_images
from furnclip.shards import FOLDERS, MANIFEST_NAME, SPLITS, Manifest, read_manifest, write_manifest
from furnclip.shards.tar import ShardAbout

if TYPE_CHECKING:
    from furnclip.config import Config

REJECTED_NAME = "rejected.csv"
REJECTED_IMAGES_NAME = "rejected_images.csv"
NEAR_NAME = "near_duplicates.csv"
_LISTED_GROUPS, _LISTED_PRODUCTS = 200, 20  # of each group
_EXAMPLES = 3
_PLACEHOLDER = "`%s` is the image of %d products that have nothing else in common: a placeholder"
_JOINS_SPLITS = "shares a group, title or image with products that an earlier run put into different splits"


@dataclass(frozen=True)
class CheckReport:
    """Rows by reason, with the first few of each."""

    catalogue: Path
    rows: int
    usable: int
    reasons: dict[str, int]
    examples: dict[str, list[dict[str, Any]]]
    """row, product id and detail"""
    not_cleaned: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "catalogue": str(self.catalogue)}


def check(config: Config) -> CheckReport:
    """Read every row and open every image, and write nothing. Raises `InputError` where there is no row."""
    reasons: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    rows, path = 0, catalogue_path(config.paths)
    with console.progress("checking products", total=None) as meter, decoders(config.prepare) as workers:
        for outcome in Scanner(config, None, workers, read_products(path, config.paths)):
            rows += 1
            meter.advance()
            why = outcome.why_in_no_split if isinstance(outcome, Scanned) else outcome
            if why:
                reasons[why.reason] += 1
                if len(examples[why.reason]) < _EXAMPLES:
                    row = outcome.entry.row if isinstance(outcome, Scanned) else outcome.row
                    about = {"row": row, "product_id": outcome.product_id, "detail": why.detail}
                    examples[why.reason].append(about)
    if not rows:
        raise no_rows(path, config.paths)
    usable, by_reason = rows - reasons.total(), dict(reasons.most_common())
    return CheckReport(path, rows, usable, by_reason, dict(examples), uncleaned_rows(config.paths))


@dataclass(frozen=True)
class PrepareSummary:
    """What a run did. `changed_shards` of 0 and `decoded` of 0: there was nothing to do."""

    catalogue: Path
    folder: Path
    rows: int
    products: int
    rejected: dict[str, int]
    rejected_images: dict[str, int]
    """images of products that are not in the shards, by reason; some of them belong to no rejected product"""
    decoded: int
    changed_shards: int
    not_cleaned: int
    """rows of the raw catalogue that are not in the cleaned one, and therefore not in the shards"""
    manifest: Manifest

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        splits = {
            name: {"samples": split.samples, "groups": split.groups, "shards": len(split.shards)}
            for name, split in self.manifest.splits.items()
        }
        return {
            **vars(self),
            "catalogue": str(self.catalogue),
            "folder": str(self.folder),
            "manifest": str(self.folder / MANIFEST_NAME),
            "data_hash": self.manifest.data_hash,
            "splits": splits,
            "attributes": {name: spread(self.manifest, name) for name in ATTRIBUTES},
            "leaks": self.manifest.leaks,
        }


def spread(manifest: Manifest, attribute: str) -> dict[str, dict[str, int | None]]:
    """Products of each split by the value of an attribute, the commonest value first.

    None: the value is not among the commonest of that split, which are all that a manifest keeps.
    """
    counts = {name: manifest.splits[name].attributes.get(attribute, {}) for name in SPLITS}
    total = sum((Counter(values) for values in counts.values()), Counter[str]())
    rest = {name: None if len(values) == MOST_VALUES else 0 for name, values in counts.items()}
    ordered = sorted((value for value in total if value), key=lambda value: (-total[value], value))
    return {value: {name: counts[name].get(value, rest[name]) for name in SPLITS} for value in ordered}


def prepare(config: Config, *, fresh: bool = False, rebuild: bool = False) -> PrepareSummary:
    """Bring the shards in line with the catalogue.

    `rebuild` decodes every image again; `fresh` also forgets which product was in which split.
    Raises `InputError` when no row of the catalogue can be used.
    """
    if config.prepare.train_fraction + config.prepare.validation_fraction > 1 + 1e-9:
        raise ConfigError(
            "`prepare.train_fraction` and `prepare.validation_fraction` add up to more than 1",
            hint="the test split gets what is left; 0.8 and 0.1 leave 0.1",
        )
    folder, cache = config.paths.shards, config.paths.cache / "prepare"
    store = SampleStore(cache)
    with exclusive(cache), store_errors(store.path):
        for written in (cache, folder):
            sweep(written, exclusively=True)
        for path in cache.glob("*.bin"):
            path.unlink()  # of release 0.1
        if fresh or rebuild:
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            if fresh:
                (folder / LEDGER_NAME).unlink(missing_ok=True)
            # the folder of a split itself may be a link to another disk
            built = [path for split in FOLDERS for path in (folder / split).glob("shard-*")]
            for path in (*built, *cache.glob("samples-*")):
                path.unlink()
            shutil.rmtree(cache / "staged", ignore_errors=True)
        with store:
            return _Preparation(config, cache, store, Kept(cache, store.name)).run()


@dataclass
class _Preparation:
    """One run's places, and what was rejected so far."""

    config: Config
    cache: Path
    store: SampleStore
    kept: Kept
    rejections: list[Rejection] = field(default_factory=list)
    """rows that are in no split"""
    image_rejections: list[Rejection] = field(default_factory=list)
    """rows and their images that are not used, with the image's name in `fields`"""
    left_out: set[int] = field(default_factory=set)
    """rows of the records that are in no split"""
    changes: dict[int, SampleChange] = field(default_factory=dict)

    def run(self) -> PrepareSummary:
        settings, folder = self.config.prepare, self.config.paths.shards
        by_column = bool(self.config.paths.group_column)
        reading = Reading(self.config, self.store, self.kept)
        ledger = read_ledger(folder / LEDGER_NAME)  # while the images are looked at
        catalogue = reading.catalogue()
        del reading  # which holds the file
        records = catalogue.records
        self.rejections += catalogue.rejections
        for note in catalogue.notes:
            self._note(note, int(records["row"][note.row]))
        near = partial(self.kept.near_pairs, catalogue.places)
        ties = find_ties(records, catalogue.images, catalogue.rows, near, by_column=by_column)
        ties = self._without_placeholders(catalogue, ties)
        assignment = self._assign(catalogue, ties, ledger)
        staged = self.cache / "staged"
        with ThreadPoolExecutor(1) as aside:  # what is told of the ties, counted while shards are written
            leaks = aside.submit(leak_report, ties, assignment, by_column=by_column)
            alike = aside.submit(near_groups, records, ties)
            planned = with_earlier(plan_shards(records, assignment, self.changes, settings), folder)
            known = write_shards(
                planned,
                folder,
                staged=staged,
                store=self.store.path,
                ledger=ledger,
                processes=settings.workers,
            )
        manifest = self._publish(catalogue, planned, known, alike.result(), leaks.result())
        self._finish(catalogue)
        shutil.rmtree(staged, ignore_errors=True)
        products = sum(manifest.splits[name].samples for name in SPLITS)
        return PrepareSummary(
            catalogue=catalogue_path(self.config.paths),
            folder=folder,
            rows=len(self.rejections) + products,
            products=products,
            rejected=manifest.rejected,
            rejected_images=_counted(self.image_rejections),
            decoded=catalogue.decoded,
            changed_shards=len(planned) - len(known),
            not_cleaned=uncleaned_rows(self.config.paths),
            manifest=manifest,
        )

    def _publish(
        self,
        catalogue: Catalogue,
        planned: Sequence[PlannedShard],
        known: Mapping[str, ShardAbout],
        alike: NearGroups,
        leaks: dict[str, Any],
    ) -> Manifest:
        """Write what is said of the shards, the manifest last, each file only where it differs."""
        settings, folder = self.config.prepare, self.config.paths.shards
        manifest = Manifest(
            data_hash="",
            splits={
                name: describe_split(folder, [shard for shard in planned if shard.split == name], known)
                for name in FOLDERS
            },
            settings=settings.model_dump(exclude={"workers", "engine"}),
            leaks=leaks | alike.counts,
            columns=catalogue.columns,
            rejected=_counted(self.rejections),
        ).with_hash()
        self._write_near_groups(folder / NEAR_NAME, catalogue.records, alike)
        _write_rejected(folder / REJECTED_NAME, self.rejections)
        _write_rejected(folder / REJECTED_IMAGES_NAME, self.image_rejections)
        published = None
        with suppress(MissingStageError, InputError):  # there is none, or a damaged one
            published = read_manifest(folder)
        if published != manifest:
            write_manifest(folder, manifest)
        return manifest

    def _finish(self, catalogue: Catalogue) -> None:
        """Note that the shards hold these products, and forget all others."""
        records = catalogue.records
        gone = self.kept.gone(records)
        if not self.kept.is_continued:
            gone = np.setdiff1d(self.store.keys(), records["key"], assume_unique=True)
        self.store.forget(gone)
        self.kept.finish(records, catalogue.digests, **catalogue.about)

    def _note(self, note: Note, row: int) -> None:
        """What of a product is not used, and why; `row`: in the catalogue."""
        for image, reason, detail in note.problems:
            self.image_rejections.append(Rejection(row, note.product_id, reason, detail, {"image": image}))
        if why := note.why_in_no_split:
            self._leave_out(note.row, Rejection(row, note.product_id, why.reason, why.detail))
            if not note.has_images:
                self.changes[note.row] = SampleChange(missing_reason=f"{why.reason}: {why.detail}")

    def _leave_out(self, row: int, why: Rejection) -> None:
        self.left_out.add(row)
        self.rejections.append(why)

    def _without_placeholders(self, catalogue: Catalogue, ties: Ties) -> Ties:
        """The ties without placeholders, which are not packed either; who has nothing else is left out."""
        records = catalogue.records

        def titles_of(rows: Sequence[int]) -> list[str]:
            return [self._about(int(records["key"][row]))["title"] for row in rows]

        placeholders = placeholder_images(records, ties, titles_of)
        first_image = np.searchsorted(catalogue.rows, np.arange(len(records) + 1))
        for row in np.unique(catalogue.rows[list(placeholders)]).tolist():
            images = range(first_image[row], first_image[row + 1])
            dropped = tuple(number for number, image in enumerate(images) if image in placeholders)
            product, number = self._about(int(records["key"][row])), int(records["row"][row])
            name = product["fields"].get(self.config.paths.image_column, "")
            detail = _PLACEHOLDER % (name, placeholders[images[dropped[0]]])
            why = Rejection(number, product["product_id"], "placeholder-image", detail, {"image": name})
            self.image_rejections += [why] * len(dropped)
            if len(dropped) < len(images):
                self.changes[row] = SampleChange(dropped)
                continue
            self.changes[row] = SampleChange(dropped, "placeholder-image: it stands for a missing image")
            if row not in self.left_out:
                self._leave_out(row, why)
        return ties.without(placeholders)

    def _assign(self, catalogue: Catalogue, ties: Ties, ledger: Ledger) -> Assignment:
        records, settings = catalogue.records, self.config.prepare
        changed = self.kept.changed(records)
        shares = (settings.train_fraction, settings.validation_fraction)
        assignment = assign(records, ties, ledger, changed=changed, left_out=self.left_out, shares=shares)
        for row in np.flatnonzero(assignment.split == UNDECIDED).tolist():
            if row not in self.left_out:
                product_id = self._about(int(records["key"][row]))["product_id"]
                number = int(records["row"][row])
                self._leave_out(row, Rejection(number, product_id, "joins-splits", _JOINS_SPLITS))
        self.rejections.sort(key=lambda item: item.row)
        self.image_rejections.sort(key=lambda item: item.row)
        if not (assignment.split != UNDECIDED).any():
            raise self._nothing_usable()
        return assignment

    def _write_near_groups(self, path: Path, records: Records, groups: NearGroups) -> None:
        """Near-duplicate groups for a look: those that mix types, and the largest."""
        lines: list[tuple[object, ...]] = [
            ("group", "products", "types", "titles", "product_id", "object_type", "title")
        ]
        listed = zip(groups.starts[:_LISTED_GROUPS].tolist(), groups.sizes.tolist(), strict=False)
        for number, (start, size) in enumerate(listed, start=1):
            members = groups.members[start : start + size]
            counts = size, *(len(np.unique(records[name][members])) for name in ("stratum", "title"))
            for row in members[:_LISTED_PRODUCTS].tolist():
                product = self._about(int(records["key"][row]))
                shown = product["product_id"], product["fields"].get("object_type", ""), product["title"]
                lines.append((number, *counts, *map(console.printable, shown)))
        _write_changed(path, sheet_text(lines))

    def _about(self, key: int) -> dict[str, Any]:
        """What the JSON of a product says."""
        value: dict[str, Any] = json.loads(self.store.members(key).json)
        return value

    def _nothing_usable(self) -> InputError:
        """The error for a catalogue without a single usable row."""
        catalogue, folder = catalogue_path(self.config.paths), self.config.paths.shards
        if not self.rejections:
            return no_rows(catalogue, self.config.paths)
        reasons = folder / REJECTED_NAME
        _write_rejected(reasons, self.rejections)
        reason, count = Counter(item.reason for item in self.rejections).most_common(1)[0]
        first = next(item for item in self.rejections if item.reason == reason)
        return InputError(
            f"no row of `{catalogue}` can be used; {count} of {len(self.rejections)}: {reason}, "
            f"first in row {first.row}: {first.detail}",
            hint=f"`{reasons}` has the reason of each row; fix them and run the command again",
        )


def _counted(rejections: Sequence[Rejection]) -> dict[str, int]:
    return dict(sorted(Counter(item.reason for item in rejections).items()))


def _write_rejected(path: Path, rejections: Sequence[Rejection]) -> None:
    """Every row that is in no split, or every image that is not used, with its reason."""
    named = ["image"] if path.name == REJECTED_IMAGES_NAME else []
    rows = (
        (
            *(item.row, console.printable(item.product_id)),
            *(console.printable(item.fields[name]) for name in named),
            *(item.reason, console.printable(item.detail)),
        )
        for item in rejections
    )
    _write_changed(path, sheet_text([("row", "product_id", *named, "reason", "detail"), *rows]))


def _write_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
