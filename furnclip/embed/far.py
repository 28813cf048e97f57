"""Encoding on a Ray cluster: every GPU holds the models once, in an actor, and takes row groups.

The machines read the models, the shards and earlier vectors by the same paths as this one, from a shared
disk; or the shards from the bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from furnclip.config import Config
from furnclip.embed.encoding import Encoded, Encodes, ShardReader, encoding
from furnclip.embed.plan import load_models, make_plan, place
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
        self._encodes: Encodes | None = None

    def __call__(self, task: _Task) -> Provenance | Encoded:
        number, plan = task
        if plan is None:
            return make_plan(self._key, self._reader, self._clips, self._config)
        if self._encodes is None:
            for label, model in plan.models.items():
                if self._clips[label].fingerprint != model.fingerprint:
                    hint = "let every machine read it from the same place"
                    raise ModelError(f"a machine of the cluster has another `{model.name}`", hint=hint)
                self._clips[label] = place(self._clips[label], model.precision, self._config)
            self._until_end = ExitStack()
            at_work = encoding(self._config, self._reader, self._clips, plan)
            self._encodes = self._until_end.enter_context(at_work)
        return next(self._encodes([number]))

    @cached_property
    def _clips(self) -> dict[str, Clip]:
        return load_models(self._config, self._run, self._reader.manifest)


@contextmanager
def cluster(
    config: Config, run: str | None, key: str, reader: ShardReader
) -> Iterator[Callable[[Iterable[int], Provenance | None], Iterator[Any]]]:
    """Work for the cluster of RAY_ADDRESS, or one that is started here: from numbers of row groups and their
    plan to the row groups, in order; without a plan to one, made where the models will run.
    """
    with Workers(
        FarEncoder(config, run, key, reader), engine="ray", on_devices=True, here_first=0
    ) as workers:

        def made(numbers: Iterable[int], plan: Provenance | None) -> Iterator[Any]:
            tasks: Iterator[_Task] = ((number, plan) for number in numbers)
            return workers.map(tasks, name_of=lambda task: f"row group {task[0]}", chunk_items=1)

        yield made
