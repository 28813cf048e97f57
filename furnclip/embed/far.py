"""Encoding on a Ray cluster: every GPU holds the models once, in an actor, and takes row groups.

In: numbers of row groups. Out: their tables, in order, for this process to write. The machines read the
models, the shards and earlier vectors by the same paths as this one, from a shared disk; or the shards from
the bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, cast

from pydantic import SecretStr

from furnclip.config import Config
from furnclip.embed.encoding import Encoded, Encodes, ShardReader
from furnclip.embed.plan import encoding, load_models, make_plan, place
from furnclip.errors import ModelError
from furnclip.parallel import Workers
from furnclip.vectors import Provenance

if TYPE_CHECKING:
    from furnclip.model.clip import Clip

_Task = tuple[int, Provenance | None]  # a row group and its plan; without one, make it


class FarEncoder:
    """Runs in an actor. Pickled, it is settings and names; the models are loaded with its first task."""

    def __init__(self, config: Config, run: str | None, key: str, reader: ShardReader) -> None:
        self._config = config.model_copy(update={"openai_api_key": SecretStr("")})
        self._run, self._key, self._reader = run, key, reader
        self._open: Encodes | None = None

    def __call__(self, task: _Task) -> Provenance | Encoded:
        number, plan = task
        if plan is None:
            return make_plan(self._key, self._reader, self._clips, self._config)
        return next(self._encodes(plan)([number]))

    @cached_property
    def _clips(self) -> dict[str, Clip]:
        return load_models(self._config, self._run, self._reader.manifest)

    def _encodes(self, plan: Provenance) -> Encodes:
        if self._open is None:
            for label, model in plan.models.items():
                if self._clips[label].fingerprint != model.fingerprint:
                    hint = "let every machine read it from the same place"
                    raise ModelError(f"a machine of the cluster has another `{model.name}`", hint=hint)
                self._clips[label] = place(self._clips[label], model.precision, self._config)
            at_work = encoding(self._config, self._reader, self._clips, plan)
            self._open = self._until_end.enter_context(at_work)
        return self._open

    @cached_property
    def _until_end(self) -> ExitStack:
        return ExitStack()


class Cluster:
    """The same from the side of the driver."""

    def __init__(self, workers: Workers[_Task, Provenance | Encoded]) -> None:
        self._workers = workers

    def make_plan(self) -> Provenance:
        """The plan, made where the models will run."""
        return cast(Provenance, next(self._workers.map([(0, None)], name_of=_name)))

    def encodes(self, plan: Provenance) -> Encodes:
        """Encodes row groups by this plan."""

        def tables(numbers: Iterable[int]) -> Iterator[Encoded]:
            tasks: Iterator[_Task] = ((number, plan) for number in numbers)
            return cast(Iterator[Encoded], self._workers.map(tasks, name_of=_name, chunk_items=1))

        return tables


@contextmanager
def cluster(config: Config, run: str | None, key: str, reader: ShardReader) -> Iterator[Cluster]:
    """The cluster of RAY_ADDRESS, or one that is started here."""
    encoder = FarEncoder(config, run, key, reader)
    with Workers(encoder, engine="ray", on_devices=True, here_first=0) as workers:
        yield Cluster(workers)


def _name(task: _Task) -> str:
    return f"row group {task[0]}"
