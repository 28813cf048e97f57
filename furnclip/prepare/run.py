"""The conductor of `furnclip prepare`: scan, find ties, assign, pack, publish; and what it tells of a run."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from furnclip import console
from furnclip.catalogue import ATTRIBUTES, Rejection, catalogue_path, no_rows, sheet_text, uncleaned_rows
from furnclip.errors import ConfigError, InputError, MissingStageError
from furnclip.journal import exclusive, sweep, told_when_full, write_text
from furnclip.prepare.pack import MOST_VALUES, describe_split, plan_shards, write_shards
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
from furnclip.prepare.store import Records, SampleStore, records_of, store_errors
from furnclip.prepare.ties import Ties, find_ties, placeholder_rows
from furnclip.shards import MANIFEST_NAME, MINI_TRAIN, SPLITS, Manifest, read_manifest, write_manifest

if TYPE_CHECKING:
    from furnclip.config import Config

REJECTED_NAME = "rejected.csv"
_EXAMPLES = 3
_CHUNK_ROWS = 4096
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
    rows = 0
    with console.progress("checking products", total=None) as meter, decoders(config.prepare) as workers:
        for outcome in Scanner(config, None, workers):
            rows += 1
            meter.advance()
            if isinstance(outcome, Rejection):
                reasons[outcome.reason] += 1
                if len(examples[outcome.reason]) < _EXAMPLES:
                    example = {name: getattr(outcome, name) for name in ("row", "product_id", "detail")}
                    examples[outcome.reason].append(example)
    path = catalogue_path(config.paths)
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
    with exclusive(cache), told_when_full(folder, cache), store_errors(store.path):
        for written in (cache, folder):
            sweep(written, exclusively=True)
        for path in cache.glob("*.bin"):
            path.unlink()  # of release 0.1
        if fresh or rebuild:
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            if fresh:
                (folder / LEDGER_NAME).unlink(missing_ok=True)
            # the folder of a split itself may be a link to another disk
            built = [path for split in (*SPLITS, MINI_TRAIN) for path in (folder / split).glob("shard-*")]
            for path in (*built, *cache.glob("samples-*")):
                path.unlink()
            shutil.rmtree(cache / "staged", ignore_errors=True)
        with store:
            return _Preparation(config, cache, store).run()


@dataclass
class _Preparation:
    """One run's places and the rows rejected so far."""

    config: Config
    cache: Path
    store: SampleStore
    rejections: list[Rejection] = field(default_factory=list)

    def run(self) -> PrepareSummary:
        settings, folder = self.config.prepare, self.config.paths.shards
        by_column = bool(self.config.paths.group_column)
        records, decoded = self._scan()
        ties = find_ties(records, by_column=by_column)
        ledger = read_ledger(folder / LEDGER_NAME)
        assignment = self._assign(records, ties, ledger)
        planned = plan_shards(records, assignment, settings)
        staged = self.cache / "staged"
        changed = write_shards(
            planned, folder, staged=staged, store=self.store.path, ledger=ledger, processes=settings.workers
        )
        rejected = Counter(item.reason for item in self.rejections)
        manifest = Manifest(
            data_hash="",
            splits={
                name: describe_split(folder, [shard for shard in planned if shard.split == name])
                for name in (*SPLITS, MINI_TRAIN)
            },
            settings=settings.model_dump(exclude={"workers"}),
            leaks=leak_report(ties, assignment, by_column=by_column),
            rejected=dict(sorted(rejected.items())),
        ).with_hash()
        _write_rejected(folder, self.rejections)
        published = None
        with suppress(MissingStageError, InputError):  # there is none, or a damaged one
            published = read_manifest(folder)
        if published != manifest:
            write_manifest(folder, manifest)
        self.store.finish(records)
        shutil.rmtree(staged, ignore_errors=True)
        products = sum(manifest.splits[name].samples for name in SPLITS)
        return PrepareSummary(
            catalogue=catalogue_path(self.config.paths),
            folder=folder,
            rows=len(self.rejections) + products,
            products=products,
            rejected=manifest.rejected,
            decoded=decoded,
            changed_shards=changed,
            not_cleaned=uncleaned_rows(self.config.paths),
            manifest=manifest,
        )

    def _scan(self) -> tuple[Records, int]:
        """Judge every row and decode what is new; the records of all usable rows, and the number decoded."""
        parts: list[Records] = []
        entries = []
        with (
            decoders(self.config.prepare) as workers,
            console.progress("reading products", total=None) as meter,
        ):
            scanner = Scanner(self.config, self.store, workers)
            for outcome in scanner:
                meter.advance()
                if isinstance(outcome, Rejection):
                    self.rejections.append(outcome)
                    continue
                entries.append(outcome)
                if len(entries) == _CHUNK_ROWS:  # records take less memory
                    parts.append(records_of(entries))
                    entries.clear()
        self.store.commit()
        records = np.concatenate([*parts, records_of(entries)])
        if not len(records):
            raise self._nothing_usable()
        return records, scanner.decoded

    def _assign(self, records: Records, ties: Ties, ledger: Ledger) -> Assignment:
        settings = self.config.prepare

        def about(row: int) -> dict[str, Any]:
            value: dict[str, Any] = json.loads(self.store.members(int(records["key"][row]))[1])
            return value

        placeholders = placeholder_rows(records, ties, lambda rows: [about(row)["title"] for row in rows])
        changed = self.store.changed(records)
        shares = (settings.train_fraction, settings.validation_fraction)
        assignment = assign(records, ties, ledger, changed=changed, left_out=placeholders, shares=shares)
        for row in np.flatnonzero(assignment.split == UNDECIDED).tolist():
            product, reason, detail = about(row), "joins-splits", _JOINS_SPLITS
            if row in placeholders:
                image = product["fields"].get(self.config.paths.image_column, "")
                reason, detail = "placeholder-image", _PLACEHOLDER % (image, placeholders[row])
            number = int(records["row"][row])
            self.rejections.append(Rejection(number, product["product_id"], reason, detail))
        self.rejections.sort(key=lambda item: item.row)
        if not (assignment.split != UNDECIDED).any():
            raise self._nothing_usable()
        return assignment

    def _nothing_usable(self) -> InputError:
        """The error for a catalogue without a single usable row."""
        catalogue, folder = catalogue_path(self.config.paths), self.config.paths.shards
        if not self.rejections:
            return no_rows(catalogue, self.config.paths)
        _write_rejected(folder, self.rejections)
        reason, count = Counter(item.reason for item in self.rejections).most_common(1)[0]
        first = next(item for item in self.rejections if item.reason == reason)
        reasons = folder / REJECTED_NAME
        return InputError(
            f"no row of `{catalogue}` can be used; {count} of {len(self.rejections)}: {reason}, "
            f"first in row {first.row}: {first.detail}",
            hint=f"`{reasons}` has the reason of each row; fix them and run the command again",
        )


def _write_rejected(folder: Path, rejections: Sequence[Rejection]) -> None:
    """`rejected.csv`: every row that is not in the shards, with its reason."""
    rows = (
        (item.row, console.printable(item.product_id), item.reason, console.printable(item.detail))
        for item in rejections
    )
    text = sheet_text([("row", "product_id", "reason", "detail"), *rows])
    path = folder / REJECTED_NAME
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
