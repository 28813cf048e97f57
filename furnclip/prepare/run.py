"""The conductor of `furnclip prepare`."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from furnclip import console
from furnclip.catalogue import Rejection, catalogue_path, content_hash
from furnclip.config import Config
from furnclip.errors import ConfigError, InputError, StorageError
from furnclip.journal import replacing, write_text
from furnclip.prepare.earlier import Earlier, Shelf
from furnclip.prepare.groups import UNDECIDED, Assignment, Ties, assign, find_ties, leaks_left
from furnclip.prepare.ledger import LEDGER_NAME, Ledger, read_ledger
from furnclip.prepare.pack import Packer, PlannedShard, describe_split, plan_shards, published_shards
from furnclip.prepare.scan import Scanner
from furnclip.prepare.spool import Records, Spool, entry_of, read_records
from furnclip.shards.manifest import (
    MANIFEST_NAME,
    MINI_TRAIN,
    SPLITS,
    Manifest,
    read_manifest,
    write_manifest,
)

REJECTED_NAME = "rejected.csv"


@dataclass(frozen=True)
class Summary:
    """What a run did. `changed_shards` of 0 and `decoded` of 0: there was nothing to do."""

    rows: int
    products: int
    rejected: dict[str, int]
    decoded: int
    changed_shards: int
    manifest: Manifest
    folder: Path
    catalogue: Path

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        splits = {
            name: {"samples": split.samples, "groups": split.groups, "shards": len(split.shards)}
            for name, split in self.manifest.splits.items()
        }
        return {
            "catalogue": str(self.catalogue),
            "shards": str(self.folder),
            "rows": self.rows,
            "products": self.products,
            "rejected": self.rejected,
            "decoded": self.decoded,
            "changed_shards": self.changed_shards,
            "splits": splits,
            "leaks": self.manifest.leaks,
            "data_hash": self.manifest.data_hash,
        }


def prepare(config: Config, *, fresh: bool = False, rebuild: bool = False) -> Summary:
    """Bring the shards in line with the catalogue.

    `rebuild` decodes every picture again; `fresh` also forgets which product was in which split.
    Raises `InputError` when no row of the catalogue can be used.
    """
    _check_shares(config)
    folder, cache = config.paths.shards, config.paths.cache / "prepare"
    with _only_one(cache):
        if fresh or rebuild:
            _forget(folder, cache, splits_too=fresh)
        return _Run(config, folder, cache).run()


def _check_shares(config: Config) -> None:
    if config.prepare.train_fraction + config.prepare.validation_fraction > 1 + 1e-9:
        raise ConfigError(
            "`prepare.train_fraction` and `prepare.validation_fraction` add up to more than 1",
            hint="the test split gets what is left; 0.8 and 0.1 leave 0.1",
        )


@contextmanager
def _only_one(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache / "lock", timeout=0):
            yield
    except Timeout:
        raise StorageError(
            "another `furnclip prepare` is at work in this folder", hint="wait for it to end, or stop it"
        ) from None


def _forget(folder: Path, cache: Path, *, splits_too: bool) -> None:
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    if splits_too:
        (folder / LEDGER_NAME).unlink(missing_ok=True)
    for split in (*SPLITS, MINI_TRAIN):
        shutil.rmtree(folder / split, ignore_errors=True)
    shutil.rmtree(cache / "staged", ignore_errors=True)
    for path in cache.glob("*.bin"):
        path.unlink()


class _Run:
    """One run: what it found so far, and the steps in order."""

    def __init__(self, config: Config, folder: Path, cache: Path) -> None:
        self._config = config
        self._folder = folder
        self._cache = cache
        self._staged = cache / "staged"
        self._rejections: list[Rejection] = []

    def run(self) -> Summary:
        records, decoded = self._scan()
        ledger = read_ledger(self._folder / LEDGER_NAME)
        ties = find_ties(records, by_column=bool(self._config.paths.group_column))
        assignment = self._assign(records, ties, ledger)
        earlier = self._earlier()
        self._reject_joining(records, assignment, earlier)
        self._extend_ledger(records, assignment, earlier, ledger)
        packer = Packer(self._folder, self._staged, records, assignment, earlier)
        planned = plan_shards(records, assignment, self._config.prepare)
        changed = self._pack(packer, planned)
        manifest = self._manifest(planned, assignment, self._leaks(records, ties, assignment))
        self._finish(manifest, changed, packer, planned)
        return Summary(
            rows=len(records) + len(self._rejections) - int((assignment.split == UNDECIDED).sum()),
            products=int((assignment.split != UNDECIDED).sum()),
            rejected=manifest.rejected,
            decoded=decoded,
            changed_shards=len(changed),
            manifest=manifest,
            folder=self._folder,
            catalogue=catalogue_path(self._config.paths),
        )

    def _earlier(self) -> Earlier:
        shelf = Shelf([*published_shards(self._folder), *sorted(self._staged.glob("*.tar"))])
        return Earlier.load(self._cache, shelf)

    def _scan(self) -> tuple[Records, int]:
        """Judge every row, decode what is new; the records of all usable rows."""
        path = self._cache / "current.bin"
        earlier = self._earlier()
        with (
            Spool(self._cache) as spool,
            replacing(path) as file,
            console.progress("reading products", total=None) as meter,
        ):
            scanner = Scanner(self._config, earlier, spool)
            for outcome in scanner:
                if isinstance(outcome, Rejection):
                    self._rejections.append(outcome)
                else:
                    file.write(outcome.pack())
                meter.advance()
        records = read_records(path)
        if not len(records):
            raise self._nothing_usable()
        return records, scanner.decoded

    def _nothing_usable(self) -> InputError:
        path = catalogue_path(self._config.paths)
        if not self._rejections:
            return InputError(f"`{path}` has no rows", hint="export the catalogue again")
        reason, count = Counter(item.reason for item in self._rejections).most_common(1)[0]
        first = next(item for item in self._rejections if item.reason == reason)
        return InputError(
            f"no row of `{path}` can be used; {count} of {len(self._rejections)}: {reason}, "
            f"first in row {first.row}: {first.detail}",
            hint="run `furnclip prepare --check` for a report by reason",
        )

    def _assign(self, records: Records, ties: Ties, ledger: Ledger) -> Assignment:
        settings = self._config.prepare
        before = read_records(self._cache / "records.bin")
        changed = _changed(records, before)
        return assign(records, ties, ledger, changed, (settings.train_fraction, settings.validation_fraction))

    def _reject_joining(self, records: Records, assignment: Assignment, earlier: Earlier) -> None:
        for row in np.flatnonzero(assignment.split == UNDECIDED).tolist():
            product_id = _product_id(earlier, records[row])
            self._rejections.append(
                Rejection(
                    int(records["row"][row]),
                    product_id,
                    "joins-splits",
                    "ties products that an earlier run put into different splits",
                )
            )
        self._rejections.sort(key=lambda item: item.row)

    def _extend_ledger(
        self, records: Records, assignment: Assignment, earlier: Earlier, ledger: Ledger
    ) -> None:
        """Before any shard is published, so that no later run can decide differently."""
        known, _ = ledger.lookup(records["key"])
        new = np.flatnonzero((known == UNDECIDED) & (assignment.split != UNDECIDED))
        if not len(new):
            return
        rows: dict[str, object] = {
            "key": records["key"][new],
            "product_id": [_product_id(earlier, records[row]) for row in new.tolist()],
            "group": assignment.group[new],
            "split": [SPLITS[split] for split in assignment.split[new].tolist()],
        }
        ledger.extended(rows).write(self._folder / LEDGER_NAME)

    def _pack(self, packer: Packer, planned: list[PlannedShard]) -> list[PlannedShard]:
        changed = packer.missing(planned)
        with console.progress("writing shards", total=len(changed), unit="shards") as meter:
            for shard in changed:
                packer.stage(shard)
                meter.advance()
        stale = {self._folder / shard.name for shard in planned} != set(published_shards(self._folder))
        if changed or stale:
            (self._folder / MANIFEST_NAME).unlink(missing_ok=True)
            packer.publish(planned, changed)
        return changed

    def _leaks(self, records: Records, ties: Ties, assignment: Assignment) -> dict[str, Any]:
        groups, sizes = np.unique(assignment.group[assignment.split != UNDECIDED], return_counts=True)
        return {
            **ties.counts,
            "groups": len(groups),
            "groups_joined": int((sizes > 1).sum()),
            "largest_group": int(sizes.max(initial=0)),
            "rows_rejected": int((assignment.split == UNDECIDED).sum()),
            "left_across_splits": leaks_left(records, ties, assignment),
        }

    def _manifest(
        self, planned: list[PlannedShard], assignment: Assignment, leaks: dict[str, Any]
    ) -> Manifest:
        settings = self._config.prepare
        splits = {
            name: describe_split(self._folder, name, planned, assignment) for name in (*SPLITS, MINI_TRAIN)
        }
        hashes = [shard.sha256 for name in SPLITS for shard in splits[name].shards]
        return Manifest(
            data_hash=content_hash(*hashes),
            splits=splits,
            settings=settings.model_dump(exclude={"workers"}),
            leaks=leaks,
            rejected=dict(sorted(Counter(item.reason for item in self._rejections).items())),
        )

    def _finish(
        self, manifest: Manifest, changed: list[PlannedShard], packer: Packer, planned: list[PlannedShard]
    ) -> None:
        write_rejected(self._folder / REJECTED_NAME, self._rejections)
        if not (self._folder / MANIFEST_NAME).is_file() or read_manifest(self._folder) != manifest:
            write_manifest(self._folder, manifest)
        self._settle_records(packer.records)

    def _settle_records(self, records: Records) -> None:
        """The samples are in the shards now: the records say so, and the spool can go."""
        settled = np.array(records)
        settled["offset"], settled["payload_bytes"], settled["crc32"] = -1, 0, 0
        path = self._cache / "records.bin"
        data = settled.tobytes()
        if not path.is_file() or path.read_bytes() != data:
            with replacing(path) as file:
                file.write(data)
        Spool(self._cache).clear()
        (self._cache / "current.bin").unlink(missing_ok=True)


def _changed(records: Records, before: Records) -> np.ndarray:
    """Rows whose picture, title or group differ from those of the last finished run: (N,)."""
    if not len(before):
        return np.zeros(len(records), dtype=bool)
    order = np.argsort(before["key"])
    position = np.minimum(np.searchsorted(before["key"][order], records["key"]), len(before) - 1)
    old = before[order[position]]
    changed = np.zeros(len(records), dtype=bool)
    for name in ("title", "group", "hash", "thumb", "source"):
        differs = old[name] != records[name]
        changed |= differs if differs.ndim == 1 else differs.any(axis=1)
    same_product = np.asarray(old["key"] == records["key"], dtype=bool)
    return np.asarray(changed & same_product)


def _product_id(earlier: Earlier, record: Any) -> str:
    _, about, _ = earlier.members(entry_of(record))
    product_id: str = json.loads(about)["product_id"]
    return product_id


def write_rejected(path: Path, rejections: list[Rejection]) -> None:
    """Every row that is not in the shards, with its reason; written only where it changes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["row", "product_id", "reason", "detail"])
    writer.writerows([item.row, item.product_id, item.reason, item.detail] for item in rejections)
    text = buffer.getvalue()
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
