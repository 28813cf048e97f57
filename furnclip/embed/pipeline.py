"""The whole of `furnclip embed`, in order, resumable at every row group.

1. Read the catalogue once for its content hashes; with models and settings they make the key. A
   vector file with this key is finished, and nothing is done.
2. Encode the row groups that have no part yet; of vectors made earlier by the same model, those
   whose content hash has not changed are copied.
3. Choose the image weight on validation, write the vector file, build the search table, and only
   then remove the parts.

Under `torchrun`, process r of w encodes every w-th row group. The parts on the disk are all they
tell each other, so the folder has to be one that all of them see; process 0 finishes the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from furnclip import console
from furnclip.catalogue import content_hash, uncleaned_rows
from furnclip.config import Config
from furnclip.embed.assemble import fused_provenance, write_vectors
from furnclip.embed.encoding import RowGroupEncoder, encoders, map_ahead
from furnclip.embed.parts import Known, PartFolder, reusable_files
from furnclip.embed.plan import PREPROCESSING, Ranks, read_or_make_plan, wait_until
from furnclip.embed.rows import CatalogueReader, Row, read_content
from furnclip.embed.sources import load_models, model_names, place
from furnclip.errors import FurnclipError, InputError
from furnclip.journal import Journal, keep_copy, replacing, sweep
from furnclip.model import Clip
from furnclip.model.precision import release_freed
from furnclip.vectors import Provenance, read_provenance
from furnclip.vectors.index import IndexLocation, IndexReport, index_location, is_index_of, write_index
from furnclip.vectors.parquet import open_parquet, reading

_REJECTED = "rejected.jsonl"
_MISSING = "missing.jsonl"


@dataclass(frozen=True)
class Summary:
    """What one `furnclip embed` did."""

    vectors: Path
    products: int
    row_groups: int
    row_groups_encoded: int
    """by this process, in this run"""
    row_groups_begun: int
    """by this process, in this run and the killed ones before it; the surplus was encoded twice"""
    encoded: dict[str, int]
    """images encoded by this process, by model label"""
    missing: dict[str, int]
    """rows without an image vector, by the first word of the reason"""
    rejected: int
    uncleaned: int
    """rows of the raw catalogue that are not here because they were never cleaned"""
    seconds: float
    loading_s: float
    """of these: loading the models and choosing their precision"""
    provenance: Provenance
    index: IndexReport | None
    was_there: bool = False

    @property
    def rejected_file(self) -> Path:
        """Why rows of the catalogue are no products."""
        return self.vectors.with_name(_REJECTED)

    @property
    def missing_file(self) -> Path:
        """Why products have no image vector."""
        return self.vectors.with_name(_MISSING)


@dataclass(frozen=True)
class _Job:
    """Everything that the steps share."""

    config: Config
    ranks: Ranks
    reader: CatalogueReader
    clips: dict[str, Clip]
    folder: PartFolder
    products: int
    loading_s: float

    @property
    def row_groups(self) -> int:
        return -(-self.products // self.config.embed.row_group_rows)

    @property
    def workers(self) -> int:
        return self.config.embed.workers or os.cpu_count() or 1


@dataclass(frozen=True)
class _Work:
    """What this process encoded, and how long it took until the models were ready."""

    row_groups: int = 0
    row_groups_begun: int = 0
    images: Counter[str] = field(default_factory=Counter)
    loading_s: float = 0.0


def embed_catalogue(config: Config, *, run: str | None = None) -> Summary:
    """Embed the catalogue with the base model and `run` (default: the run finished last).

    Raises `InputError` for a catalogue without usable products, `ModelError` for a model that cannot
    be used, `JournalError` when another process is at it.
    """
    start = time.monotonic()
    ranks = Ranks.from_environment()
    sweep(config.paths.embeddings)
    location = index_location(config)  # a bucket that refuses is told now, not when all is encoded
    with Journal(config.paths.embeddings / f"journal-{ranks.rank}.jsonl") as journal, _quiet_decoders():
        job = _open_job(config, run, ranks)
        was_there = _is_finished(job)
        work = _Work() if was_there else _encode(job, journal)
        if ranks.leads and not was_there:
            _finish(job)
        index = _index(job, location) if ranks.leads else None
        if not was_there:
            journal.append({"event": "finished", "key": job.folder.path.name})
        return _summary(job, work, index, seconds=time.monotonic() - start, was_there=was_there)


def _open_job(config: Config, run: str | None, ranks: Ranks) -> _Job:
    reader = CatalogueReader(config)
    start = time.monotonic()
    clips = load_models(model_names(config, run), config)
    loading_s = time.monotonic() - start
    key, products = _key(reader, clips, config)
    if not products:
        raise _nothing_usable(reader, config)
    folder = PartFolder(config.paths.embeddings, key)
    return _Job(config, ranks, reader, clips, folder, products=products, loading_s=loading_s)


def _nothing_usable(reader: CatalogueReader, config: Config) -> InputError:
    """The error for a catalogue without products; its rejected rows stand in a file by now."""
    reasons = _write_rejected(reader, config)
    cleaning_rejected = config.paths.clean / "rejected.csv"
    if reasons:
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        hint = f"see `{config.paths.vectors.with_name(_REJECTED)}` for each row ({counts})"
    elif reader.path == config.paths.cleaned and cleaning_rejected.is_file():
        hint = f"cleaning rejected every row: see `{cleaning_rejected}`, then run `furnclip clean run` again"
    else:
        hint = "it has no rows: export the catalogue again"
    return InputError(f"`{reader.path}` holds no usable product", hint=hint)


def _key(reader: CatalogueReader, clips: Mapping[str, Clip], config: Config) -> tuple[str, int]:
    """A hash of every input and setting that the vector file depends on, and the number of products."""
    digest = hashlib.blake2b(digest_size=8)
    models = {label: (clip.name, clip.fingerprint) for label, clip in clips.items()}
    settings = config.embed.model_dump(exclude={"workers"})
    digest.update(json.dumps([models, settings, config.model.precision, PREPROCESSING], default=str).encode())
    products = 0
    with ThreadPoolExecutor(config.embed.workers or os.cpu_count() or 1) as pool:
        for line in map_ahead(pool, _identity, reader.rows(), ahead=64):
            digest.update(line.encode())
            products += 1
    return digest.hexdigest(), products


def _identity(row: Row) -> str:
    return content_hash(*row.stored.values(), read_content(row).content_hash)


def _is_finished(job: _Job) -> bool:
    target = job.config.paths.vectors
    try:
        with open_parquet(target) as file:
            is_whole = file.metadata.num_rows == job.products
        return is_whole and read_provenance(target).key == job.folder.path.name
    except FurnclipError:
        return False  # damaged or of another version: it is written again


def _encode(job: _Job, journal: Journal) -> _Work:
    """Encode this process's row groups that have no part yet."""
    start = time.monotonic()
    plan = read_or_make_plan(job.folder, job.ranks, job.reader, job.clips, config=job.config)
    clips = {
        label: place(clip, plan.models[label].precision, job.config) for label, clip in job.clips.items()
    }
    job.clips.update(clips)
    loading_s = time.monotonic() - start
    batch_size = min(job.config.embed.batch_size, job.products)
    share = job.ranks.share(range(job.row_groups))
    job.folder.drop_damaged(share, plan, lambda number: _rows_in(job, number))
    known = {label: _known(job, plan, label) for label in clips}
    todo = [number for number in share if not job.folder.is_done(number)]
    images: Counter[str] = Counter()
    with (
        console.progress("embedding", total=job.products, unit="products") as meter,
        ThreadPoolExecutor(job.workers) as pool,
        encoders(clips.values()) as threads,
    ):
        encoder = RowGroupEncoder(clips, known, plan, encoders=threads, batch_size=batch_size)
        meter.advance((job.row_groups - len(todo)) * job.config.embed.row_group_rows)
        ahead = (threads.count + 1) * batch_size
        decoded = map_ahead(pool, encoder.decode, _rows_of(job, set(todo)), ahead=ahead)
        for number in todo:
            journal.append({"event": "begun", "key": plan.key, "row_group": number})
            rows = _rows_in(job, number)
            group = encoder.encode(islice(decoded, rows), rows)
            job.folder.write(number, group.table)
            images.update(group.encoded)
            meter.advance(group.table.num_rows)
    return _Work(len(todo), _begun(journal), images, loading_s)


def _known(job: _Job, plan: Provenance, label: str) -> Known:
    model = plan.models[label]
    files = reusable_files(job.config.paths.embeddings, label, model.fingerprint, model.precision).files
    return Known(files, label)


def _rows_of(job: _Job, row_groups: set[int]) -> Iterator[Row]:
    rows_each = job.config.embed.row_group_rows
    for index, row in enumerate(job.reader.rows()):
        if index // rows_each in row_groups:
            yield row


def _rows_in(job: _Job, number: int) -> int:
    rows_each = job.config.embed.row_group_rows
    return min(rows_each, job.products - number * rows_each)


def _write_rejected(reader: CatalogueReader, config: Config) -> Counter[str]:
    """Every rejected row of the catalogue with its reason, in a file; how many of each reason."""
    reasons: Counter[str] = Counter()
    with replacing(config.paths.vectors.with_name(_REJECTED)) as file:
        for rejection in reader.rejections():
            reasons[rejection.reason] += 1
            line = {"row": rejection.row, "product_id": rejection.product_id, "reason": rejection.reason}
            file.write(json.dumps({**line, "detail": rejection.detail}).encode() + b"\n")
    return reasons


def _write_missing(config: Config) -> None:
    with (
        reading(config.paths.vectors),
        open_parquet(config.paths.vectors) as vectors,
        replacing(config.paths.vectors.with_name(_MISSING)) as file,
    ):
        for batch in vectors.iter_batches(columns=["product_id", "missing_reason"]):
            for row in batch.to_pylist():
                if row["missing_reason"]:
                    line = {"product_id": row["product_id"], "reason": row["missing_reason"]}
                    file.write(json.dumps(line).encode() + b"\n")


def _finish(job: _Job) -> None:
    """Write what is made of all parts together."""
    wait_until(lambda: all(job.folder.is_done(number) for number in range(job.row_groups)))
    plan = read_or_make_plan(job.folder, job.ranks, job.reader, job.clips, config=job.config)
    provenance = fused_provenance(job.folder, job.row_groups, plan, job.clips, config=job.config.embed)
    _write_rejected(job.reader, job.config)
    write_vectors(job.folder, job.row_groups, provenance, job.config.paths.vectors)
    _write_missing(job.config)
    if "finetuned" in provenance.models:
        # under the run's name as well, so that `furnclip arena --run a --run b` can compare runs
        run = Path(provenance.models["finetuned"].name).name
        keep_copy(job.config.paths.vectors, job.config.paths.embeddings / f"{run}.parquet")


def _index(job: _Job, location: IndexLocation) -> IndexReport:
    """The search table of the finished vector file; then the parts are no longer needed."""
    key = job.folder.path.name
    job.clips.clear()  # LanceDB takes memory of its own
    release_freed()
    report = is_index_of(location, key) or write_index(location, job.config.paths.vectors, job.config.search)
    job.folder.remove_all()
    return report


def _begun(journal: Journal) -> int:
    """Row groups that this process and its killed predecessors began since the last finished run."""
    count = 0
    for event in journal.events():
        count = count + 1 if event.get("event") == "begun" else 0
    return count


def _summary(
    job: _Job, work: _Work, index: IndexReport | None, *, seconds: float, was_there: bool
) -> Summary:
    vectors = job.config.paths.vectors
    return Summary(
        vectors=vectors,
        products=job.products,
        row_groups=job.row_groups,
        row_groups_encoded=work.row_groups,
        row_groups_begun=work.row_groups_begun,
        encoded=dict(work.images),
        missing=_missing(vectors) if job.ranks.leads else {},
        rejected=sum(1 for _ in job.reader.rejections()),
        uncleaned=uncleaned_rows(job.config.paths),
        seconds=seconds,
        loading_s=job.loading_s + work.loading_s,
        provenance=read_provenance(vectors) if job.ranks.leads else Provenance(),
        index=index,
        was_there=was_there,
    )


def _missing(vectors: Path) -> dict[str, int]:
    with reading(vectors), open_parquet(vectors) as file:
        reasons = file.read(columns=["missing_reason"])["missing_reason"].drop_null().to_pylist()
    return dict(Counter(reason.split(":")[0] for reason in reasons))


@contextmanager
def _quiet_decoders() -> Iterator[None]:
    # Images are opened in several threads, and each opening saves and restores the process's
    # warning filters; whatever order they end in, the filters are as before behind this block.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield
