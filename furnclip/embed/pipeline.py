"""The whole of `furnclip embed`, in order, resumable at every row group.

1. The manifest of the shards, models and settings make the key. A vector file with this key is finished.
2. Encode the row groups that have no part yet; vectors of the same model and content are copied, and parts of
   shards that did not change are kept.
3. Choose the image weight on validation, write the vector file, build the search table, and only then remove
   the parts. Until `_MOST_CHANGED` of the products changed, the weight stays, and what changed is merged into
   the table. A few products are encoded by the ONNX files beside it, because torch takes seconds to import.

Under `torchrun`, process r of w encodes every w-th row group into a folder that all of them see; process 0
finishes the work. On Ray, the cluster encodes and this process writes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
from pydantic import SecretStr

from furnclip import console
from furnclip.catalogue import content_hash
from furnclip.config import Config, torchrun_launch
from furnclip.config.environment import Launch
from furnclip.embed import plan as planning
from furnclip.embed.encoding import Encoded, Encodes, RowGroup, ShardReader, encoding, stored_vectors
from furnclip.embed.parts import PartFolder, VectorWriter, copy_vectors, drop_old_parts, write_row_groups
from furnclip.errors import FurnclipError, ModelError, UsageError
from furnclip.journal import Journal, encode_event, read_journal, replacing, sweep
from furnclip.model.light import Encoder, LightEncoder
from furnclip.parallel import Workers
from furnclip.vectors import Provenance, VectorTable, read_provenance
from furnclip.vectors.index import IndexReport, index_location, is_index_of, write_index
from furnclip.vectors.parquet import VectorFile, VectorManifest, read_vector_manifest
from furnclip.vectors.upsert import update_index

if TYPE_CHECKING:
    from furnclip.model.clip import Clip

_MOST_BY_LIGHT = 64  # products, which are encoded in the time that torch takes to import
_MOST_CHANGED = 0.05  # of the products, before the image weight is chosen anew
_LONGEST_WAIT = timedelta(days=30)  # for another process; the launcher ends all of them when one fails


@dataclass
class EmbedSummary:
    """What one `furnclip embed` did."""

    vectors: Path
    products: int
    row_groups: int
    row_groups_encoded: int = 0  # by this process, in this run
    row_groups_begun: int = 0
    """by this process, in this run and the killed ones before it; the surplus was encoded twice"""
    encoded: Counter[str] = field(default_factory=Counter)  # images encoded by this process, by model label
    missing: dict[str, int] = field(default_factory=dict)
    """rows without an image vector, by the first word of the reason"""
    seconds: float = 0.0
    loading_s: float = 0.0
    """of these, once a model: loading it, choosing its precision, writing it for searches without torch"""
    provenance: Provenance = field(default_factory=Provenance)
    index: IndexReport | None = None  # None in the processes of `torchrun` but the first
    was_there: bool = False

    @property
    def missing_file(self) -> Path:
        """Why products have no image vector."""
        return self.vectors.with_name("missing.jsonl")


def embed_catalogue(config: Config, *, run: str | None = None) -> EmbedSummary:
    """Embed the catalogue with the base model and `run` (default: the run finished last).

    Raises `MissingStageError` without shards, `ModelError` for a model that cannot be used, `ConfigError`
    for one that reads larger images than they hold, `JournalError` when another process is embedding.
    """
    start = time.monotonic()
    launch = torchrun_launch()
    if launch.ignored:
        console.warn(launch.ignored)
    sweep(config.paths.embeddings)
    if config.embed.engine == "ray" and launch.count > 1:
        hint = "start `furnclip embed` without torchrun: the cluster has the processes"
        raise UsageError("torchrun and `embed.engine` = ray at once", hint=hint)
    location = index_location(config)  # a bucket that refuses is reported now, not when all is encoded
    journal_path = config.paths.embeddings / f"journal-{launch.rank}.jsonl"
    with Journal(journal_path) as journal, _together(launch):
        work = _Work(config, run, launch, location.uri)
        summary = work.summary
        if not summary.was_there:
            work.encode(journal)
        if launch.rank == 0:
            if not summary.was_there:
                work.finish()
            if work.models:
                start_beside = time.monotonic()
                write_beside(location.uri, summary.vectors, work.models, config)
                summary.loading_s += time.monotonic() - start_beside
            work.free_models()  # LanceDB takes memory of its own
            report = is_index_of(location, work.key, config.search)
            report = report or update_index(location, summary.vectors, config.search)
            summary.index = report or write_index(location, summary.vectors, config.search)
            drop_old_parts(summary.vectors)
            shutil.rmtree(work.folder.path.parent, ignore_errors=True)  # of every key: the work is complete
            summary.provenance = read_provenance(summary.vectors)
            summary.missing = dict(Counter(row["reason"].split(":")[0] for row in _missing(summary.vectors)))
        if not summary.was_there:
            journal.append({"event": "finished", "key": work.key})
        summary.seconds = time.monotonic() - start
        return summary


def write_beside(uri: str, vectors: Path, clips: Mapping[str, Clip], config: Config) -> None:
    """Write what a search, and the embedding of a night's change, need without torch."""
    from furnclip.model import export  # with torch, as the models that are there

    export.write_beside(uri, vectors, clips, config)


@contextmanager
def _together(launch: Launch) -> Iterator[None]:
    """The processes of `torchrun` as one group; one process needs none."""
    if launch.count == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Work:
    """The steps of one process, and what they share."""

    def __init__(self, config: Config, run: str | None, launch: Launch, uri: str) -> None:
        """`uri`: of the table, beside which the models may lie as they run without torch."""
        self.config, self.run, self.launch = config, run, launch
        self.reader = ShardReader(config)
        start = time.monotonic()
        self.here = config
        if config.embed.engine == "ray":  # then this process encodes no more than a few requests
            on_cpu = config.model.model_copy(update={"device": "cpu"})
            self.here = config.model_copy(update={"model": on_cpu})
        manifest = None
        try:
            manifest = read_vector_manifest(config.paths.vectors)
        except FurnclipError as error:
            console.warn(error.message)
        light = self._light_models(uri, manifest) if manifest else {}
        self.models = {} if light else planning.load_models(self.here, run, self.reader.manifest)
        self.clips: dict[str, Encoder] = {**light, **self.models}
        loading_s = time.monotonic() - start
        self.settings = _settings(self.reader, self.clips, config)
        self.key, products = content_hash(self.reader.content, self.settings), len(self.reader)
        groups, vectors = self.reader.row_groups, config.paths.vectors
        self.summary = EmbedSummary(vectors, products, len(groups), loading_s=loading_s)
        self.earlier = manifest if manifest and manifest.settings == self.settings else None
        kept = _kept(vectors, self.earlier, groups) if self.earlier else {}
        self.folder = PartFolder(config.paths.embeddings, self.key, groups, kept)
        with suppress(FurnclipError):  # damaged or of another version: it is written again
            table = VectorTable(vectors)
            is_ours = len(table) == products and table.provenance.key == self.key
            self.summary.was_there = is_ours and (self.earlier is None or len(kept) == len(groups))

    def _light_models(self, uri: str, earlier: VectorManifest) -> dict[str, LightEncoder]:
        """The models without torch where they can encode what a night has changed, which is little."""
        vectors, reader = self.config.paths.vectors, self.reader
        if self.launch.count > 1 or self.config.embed.engine == "ray":
            return {}
        models = earlier.provenance.models
        light = planning.light_models(self.config, self.run, uri, models)
        if not light or earlier.settings != _settings(reader, light, self.config):
            return {}
        kept = _kept(vectors, earlier, reader.row_groups)
        known = [
            stored_vectors(vectors.parent, model.fingerprint, model.precision, kept=kept.values())
            for model in models.values()
        ]
        new = reader.new_in((group for n, group in enumerate(reader.row_groups) if n not in kept), known)
        is_exact = all(model.precision == "fp32" for model in models.values())
        is_little = earlier.changed + new <= _MOST_CHANGED * len(reader)
        return light if is_little and new <= (_MOST_BY_LIGHT if is_exact else 0) else {}

    def free_models(self) -> None:
        """Give back the memory of the models."""
        self.clips.clear()
        if self.models:
            from furnclip.model.precision import release_freed

            self.models.clear()
            release_freed()

    def encode(self, journal: Journal) -> None:
        """Encode the row groups of this process's share that have no part yet."""
        make = None
        if self.earlier:  # parts of the vector file are kept, and its plan with them
            make = partial(self.earlier.provenance.model_copy, update={"key": self.key})
        if self.config.embed.engine == "ray":
            worker = FarEncoder(self.config, self.run, self.key, self.reader)
            with Workers(worker, engine="ray", on_devices=True, here_first=0) as workers:
                far: Any = partial(workers.map, name_of=lambda task: f"row group {task[0]}", chunk_items=1)
                plan = self._settle(make or (lambda: next(far([(0, None)]))))
                self._encode(journal, lambda numbers: far((number, plan) for number in numbers))
            return
        made = partial(planning.make_plan, self.key, self.reader, self.models, self.config)
        plan = self._settle(make or made)
        kept = self.folder.kept.values()
        with encoding(self.config, self.reader, self.clips, plan, kept=kept) as encodes:
            self._encode(journal, encodes)

    @property
    def _share(self) -> range:
        """The row groups of this process."""
        return range(self.launch.rank, self.summary.row_groups, self.launch.count)

    def _meet(self, plan: Provenance | None = None) -> Provenance | None:
        """What process 0 brings, for all of them; nobody goes on before all are here."""
        if self.launch.count == 1:
            return plan
        import torch.distributed as dist

        plans = [plan]
        dist.broadcast_object_list(plans)
        dist.barrier()
        return plans[0]

    def _settle(self, make: Callable[[], Provenance]) -> Provenance:
        """Agree on the plan, which process 0 has read or made, and bring models and parts in line with it."""
        start = time.monotonic()
        is_first = self.launch.rank == 0
        plan = self._meet(planning.read_or_make_plan(self.folder, self.clips, make) if is_first else None)
        assert plan is not None
        for label, clip in self.models.items():
            self.models[label] = planning.place(clip, plan.models[label].precision, self.here)
        self.clips.update(self.models)
        self.folder.drop_damaged(self._share, plan)
        self._meet()  # before anybody looks vectors up in damaged parts
        self.summary.loading_s += time.monotonic() - start
        self.plan = plan
        return plan

    def _encode(self, journal: Journal, encodes: Callable[[Iterable[int]], Iterator[Encoded]]) -> None:
        summary, folder, groups = self.summary, self.folder, self.reader.row_groups
        todo = [number for number in self._share if not folder.is_done(number)]
        with console.progress("embedding", total=summary.products, unit="products") as meter:
            meter.advance(summary.products - sum(len(groups[number].rows) for number in todo))
            tables = encodes(todo)
            for number in todo:  # what is read ahead has not begun yet
                journal.append({"event": "begun", "key": self.key, "row_group": number})
                table, encoded = next(tables)
                with replacing(folder.part(number)) as file:
                    write_row_groups(file, table.schema, [table])
                summary.encoded.update(encoded)
                meter.advance(table.num_rows)
        self._meet()
        summary.row_groups_encoded = len(todo)
        for event in read_journal(journal.path):
            summary.row_groups_begun = summary.row_groups_begun + 1 if event.get("event") == "begun" else 0

    def finish(self) -> None:
        """Write what is made of all parts together."""
        summary, config, earlier = self.summary, self.config, self.earlier
        changed = (earlier.changed if earlier else 0) + max(summary.encoded.values(), default=0)
        if earlier and changed <= _MOST_CHANGED * summary.products:
            provenance = self.plan.model_copy(update={"models": earlier.provenance.models})
            stand_ins = earlier.stand_ins
        else:
            provenance = planning.fused_provenance(self.folder, self.plan, self.clips, config=config.embed)
            changed, stand_ins = 0, {}
        writer = VectorWriter(self.folder, provenance, self.settings, stand_ins)
        writer.write(summary.vectors, earlier=earlier.parts if earlier else (), changed=changed)
        with replacing(summary.missing_file) as file:
            file.writelines(map(encode_event, _missing(summary.vectors)))
        if "finetuned" in provenance.models:
            # under the run's name as well, so that `furnclip arena --run a --run b` can compare runs
            run = Path(provenance.models["finetuned"].name).name
            copy_vectors(summary.vectors, config.paths.embeddings / f"{run}.parquet")


def _kept(vectors: Path, earlier: VectorManifest, groups: Sequence[RowGroup]) -> dict[int, Path]:
    """Whole parts of the vector file by the number of the row group that they hold."""
    paths = {}
    for part in earlier.parts:
        path = vectors / part.name
        if path.is_file() and path.stat().st_size == part.bytes:
            paths[part.source] = path
    return {number: paths[group.source] for number, group in enumerate(groups) if group.source in paths}


def _settings(reader: ShardReader, clips: Mapping[str, Encoder], config: Config) -> str:
    """A hash of everything but the samples that the vector file depends on."""
    models = {label: (clip.name, clip.fingerprint) for label, clip in clips.items()}
    settings = config.embed.model_dump(exclude={"workers", "engine"})
    parts = [models, settings, config.model.precision, planning.PREPROCESSING]
    return content_hash(reader.reading, json.dumps(parts, default=str))


def _missing(vectors: Path) -> Iterator[dict[str, str]]:
    """The id and the reason of every product without an image vector."""
    manifest = read_vector_manifest(vectors)
    parts = [vectors / part.name for part in manifest.parts if part.missing] if manifest else [vectors]
    for path in parts:
        for batch in VectorFile(path).batches(["product_id", "missing_reason"]):
            for row in batch.filter(pc.is_valid(batch.column(1))).to_pylist():
                yield {"product_id": row["product_id"], "reason": row["missing_reason"]}


_Task = tuple[int, Provenance | None]  # a row group and its plan; without one, make it


class FarEncoder:
    """Runs in an actor on a Ray cluster: every GPU holds the models once and takes row groups.

    Pickled, it is settings and names; the models are loaded with its first task. The machines read the
    models, the shards and earlier vectors by the same paths as this one, from a shared disk; or the shards
    from the bucket.
    """

    def __init__(self, config: Config, run: str | None, key: str, reader: ShardReader) -> None:
        self._config = config.model_copy(update={"openai_api_key": SecretStr("")})
        self._run, self._key, self._reader = run, key, reader
        self._encodes: Encodes | None = None

    def __call__(self, task: _Task) -> Provenance | Encoded:
        number, plan = task
        if plan is None:
            return planning.make_plan(self._key, self._reader, self._clips, self._config)
        if self._encodes is None:
            for label, model in plan.models.items():
                if self._clips[label].fingerprint != model.fingerprint:
                    hint = "let every machine read it from the same place"
                    raise ModelError(f"a machine of the cluster has another `{model.name}`", hint=hint)
                self._clips[label] = planning.place(self._clips[label], model.precision, self._config)
            self._until_end = ExitStack()
            at_work = encoding(self._config, self._reader, self._clips, plan)
            self._encodes = self._until_end.enter_context(at_work)
        return next(self._encodes([number]))

    @cached_property
    def _clips(self) -> dict[str, Clip]:
        return planning.load_models(self._config, self._run, self._reader.manifest)
