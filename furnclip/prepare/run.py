"""The conductor of `furnclip prepare`: scan, tie, assign, pack, publish."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from furnclip import console
from furnclip.catalogue import Rejection, catalogue_path, uncleaned_rows
from furnclip.errors import ConfigError, InputError, MissingStageError
from furnclip.journal import exclusive, sweep, told_when_full
from furnclip.parallel import Workers
from furnclip.prepare.groups import Assignment, Ties, assign, find_ties
from furnclip.prepare.ledger import LEDGER_NAME, UNDECIDED, Ledger, read_ledger
from furnclip.prepare.pack import (
    Packer,
    PlannedShard,
    describe_split,
    pack_shard,
    plan_shards,
    published_shards,
)
from furnclip.prepare.placeholders import placeholder_rows
from furnclip.prepare.report import (
    Summary,
    by_reason,
    joins_splits,
    leak_report,
    nothing_usable,
    placeholder,
    write_rejected,
)
from furnclip.prepare.scan import Scanner, decoders
from furnclip.prepare.store import Entry, Records, Store, records_of, store_errors
from furnclip.shards.manifest import (
    MANIFEST_NAME,
    MINI_TRAIN,
    SPLITS,
    Manifest,
    read_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    from furnclip.config import Config


_CHUNK_ROWS = 4096


def prepare(config: Config, *, fresh: bool = False, rebuild: bool = False) -> Summary:
    """Bring the shards in line with the catalogue.

    `rebuild` decodes every picture again; `fresh` also forgets which product was in which split.
    Raises `InputError` when no row of the catalogue can be used.
    """
    if config.prepare.train_fraction + config.prepare.validation_fraction > 1 + 1e-9:
        raise ConfigError(
            "`prepare.train_fraction` and `prepare.validation_fraction` add up to more than 1",
            hint="the test split gets what is left; 0.8 and 0.1 leave 0.1",
        )
    cache = config.paths.cache / "prepare"
    store = Store(cache)
    with exclusive(cache), told_when_full(config.paths.shards, cache), store_errors(store.path):
        for folder in (cache, config.paths.shards):
            sweep(folder, exclusively=True)
        for path in cache.glob("*.bin"):
            path.unlink()  # of release 0.1
        if fresh or rebuild:
            _forget(config.paths.shards, cache, splits_too=fresh)
        with store:
            return _Run(config, cache, store).run()


def _forget(folder: Path, cache: Path, *, splits_too: bool) -> None:
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    if splits_too:
        (folder / LEDGER_NAME).unlink(missing_ok=True)
    for split in (*SPLITS, MINI_TRAIN):
        for path in (folder / split).glob("shard-*"):  # the folder itself may be a link to another disk
            path.unlink()
    shutil.rmtree(cache / "staged", ignore_errors=True)
    for path in cache.glob("samples-*"):
        path.unlink()


class _Run:
    """One run's places and the rows rejected so far."""

    def __init__(self, config: Config, cache: Path, store: Store) -> None:
        self._config = config
        self._folder = config.paths.shards
        self._cache = cache
        self._store = store
        self._rejections: list[Rejection] = []

    def run(self) -> Summary:
        records, decoded = self._scan()
        ties = find_ties(records, by_column=bool(self._config.paths.group_column))
        ledger = read_ledger(self._folder / LEDGER_NAME)
        assignment = self._assign(records, ties, ledger)
        planned = plan_shards(records, assignment, self._config.prepare)
        changed = self._pack(records, assignment, planned, ledger)
        manifest = Manifest(
            data_hash="",
            splits={
                name: describe_split(self._folder, name, planned, assignment)
                for name in (*SPLITS, MINI_TRAIN)
            },
            settings=self._config.prepare.model_dump(exclude={"workers"}),
            leaks=leak_report(ties, assignment, by_column=bool(self._config.paths.group_column)),
            rejected=by_reason(self._rejections),
        )
        self._finish(manifest.with_hash(), records)
        return Summary(
            catalogue=catalogue_path(self._config.paths),
            folder=self._folder,
            rows=len(self._rejections) + int((assignment.split != UNDECIDED).sum()),
            products=int((assignment.split != UNDECIDED).sum()),
            rejected=manifest.rejected,
            decoded=decoded,
            changed_shards=changed,
            not_cleaned=uncleaned_rows(self._config.paths),
            manifest=manifest.with_hash(),
        )

    def _scan(self) -> tuple[Records, int]:
        """Judge every row and decode what is new; the records of all usable rows, and the number decoded."""
        parts: list[Records] = []
        with decoders(self._config.prepare) as workers:
            scanner = Scanner(self._config, self._store, workers=workers)
            entries = self._usable(scanner)
            while chunk := list(islice(entries, _CHUNK_ROWS)):
                parts.append(records_of(chunk))
        self._store.commit()
        if not parts:
            raise self._nothing_usable()
        return np.concatenate(parts), scanner.decoded

    def _usable(self, scanner: Scanner) -> Iterator[Entry]:
        with console.progress("reading products", total=None) as meter:
            for outcome in scanner:
                meter.advance()
                if isinstance(outcome, Rejection):
                    self._rejections.append(outcome)
                else:
                    yield outcome

    def _assign(self, records: Records, ties: Ties, ledger: Ledger) -> Assignment:
        settings = self._config.prepare

        def about(row: int) -> dict[str, Any]:
            value: dict[str, Any] = json.loads(self._store.members(int(records["key"][row]))[1])
            return value

        placeholders = placeholder_rows(records, ties, lambda rows: [about(row)["title"] for row in rows])
        changed = self._store.changed(records)
        shares = (settings.train_fraction, settings.validation_fraction)
        assignment = assign(records, ties, ledger, changed=changed, left_out=placeholders, shares=shares)
        image_column = self._config.paths.image_column
        for row in np.flatnonzero(assignment.split == UNDECIDED).tolist():
            found, number = about(row), int(records["row"][row])
            if row in placeholders:
                image = found["fields"].get(image_column, "")
                rejection = placeholder(number, found["product_id"], image, products=placeholders[row])
            else:
                rejection = joins_splits(number, found["product_id"])
            self._rejections.append(rejection)
        self._rejections.sort(key=lambda item: item.row)
        if not (assignment.split != UNDECIDED).any():
            raise self._nothing_usable()
        return assignment

    def _nothing_usable(self) -> InputError:
        if self._rejections:
            write_rejected(self._folder, self._rejections)
        return nothing_usable(self._config.paths, self._rejections, self._folder)

    def _pack(
        self, records: Records, assignment: Assignment, planned: list[PlannedShard], ledger: Ledger
    ) -> int:
        """Write and publish what is not in place; the number of shards changed."""
        packer = Packer(self._folder, self._cache / "staged", records, assignment, self._store.path)
        changed = packer.missing(planned)
        workers = Workers(pack_shard, self._config.prepare.workers, here_first=1, setting="prepare.workers")
        with workers, console.progress("writing shards", total=len(changed), unit="shards") as meter:
            for _ in workers.pairs(
                changed, task_of=packer.task, name_of=lambda shard: shard.name, chunk_items=1
            ):
                meter.advance()
        # Splits are settled before a shard shows them, so that no later run can decide differently.
        shards = [shard for shard in planned if shard.split in SPLITS]
        extended = ledger.extended((shard.split, packer.index(shard)) for shard in shards)
        if extended is not ledger:
            extended.write(self._folder / LEDGER_NAME)
        stale = {self._folder / shard.name for shard in planned} != set(published_shards(self._folder))
        if changed or stale:
            (self._folder / MANIFEST_NAME).unlink(missing_ok=True)
            packer.publish(planned, changed)
        return len(changed)

    def _finish(self, manifest: Manifest, records: Records) -> None:
        write_rejected(self._folder, self._rejections)
        if not self._is_announced(manifest):
            write_manifest(self._folder, manifest)
        self._store.finish(records)
        shutil.rmtree(self._cache / "staged", ignore_errors=True)

    def _is_announced(self, manifest: Manifest) -> bool:
        """Whether `manifest.json` says just this; a damaged one does not."""
        try:
            return read_manifest(self._folder) == manifest
        except (MissingStageError, InputError):
            return False
