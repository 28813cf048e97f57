"""What turns requests into vectors: the ONNX towers beside the table, else the model itself by torch.

Loading torch and a model takes seconds, so the towers are taken wherever they are of the model asked for.
"""

from __future__ import annotations

import shlex
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar

from furnclip import console
from furnclip.config import Config
from furnclip.errors import ModelError, ModelMismatchError
from furnclip.model.light import Encoder, LightEncoder, home_of, is_here, is_unchanged
from furnclip.runs import latest_run
from furnclip.vectors import Floats, ModelProvenance, Provenance

T = TypeVar("T")
_MOST_INPUTS = 32  # of one call: bounds memory, and what the last of a crowd waits


def load_encoder(
    config: Config, provenance: Provenance, label: str, *, uri: str, run: str | None, model: str | None
) -> Encoder:
    """The model that made the vectors of `label` in the table `uri`.

    Raises `ModelMismatchError` where `run`, `model` or the settings ask for another one.
    """
    made_by = provenance.models[label]
    asked = run or (made_by.name if label == "finetuned" else model or config.model.name)
    if label == "finetuned" and not run:
        newest = latest_run(config.paths.runs)
        if newest not in (None, made_by.name):
            console.note(f"searching with run `{made_by.name}`; `furnclip embed` would take `{newest}`")
    about, folder = is_here(uri, made_by.fingerprint, config), home_of(uri, made_by.fingerprint, config)
    if about and is_unchanged(about, asked, config):
        return LightEncoder(folder)
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        problem = f"`{asked}` is not the model in `{folder}`" if about else f"there is no model in `{folder}`"
        hint = "without torch no other can be loaded; run `furnclip embed` where torch is installed"
        raise ModelError(problem, hint=hint) from None
    clip = _by_torch(config, made_by, label, asked, uri=uri, trusted=bool(run))
    provenance.require(label, clip.fingerprint, where=uri)
    return clip


def _by_torch(
    config: Config, made_by: ModelProvenance, label: str, asked: str, *, uri: str, trusted: bool
) -> Encoder:
    from furnclip.model.loading import load_clip

    wanted, runs = config.model, config.paths.runs
    if wanted.precision == "auto":  # measuring which is faster takes longer than one request
        wanted = wanted.model_copy(update={"precision": "fp32"})
    if label == "base":
        return load_clip(asked, wanted)
    # A table may come from anybody: only a run of this shop is loaded unless it was asked for.
    if not trusted and (Path(made_by.name).name != made_by.name or not (runs / made_by.name).is_dir()):
        raise ModelMismatchError(
            f"the vectors of `{uri}` were made by `{made_by.name}`, which is no run under `{runs}`",
            hint=f"if you trust that model, ask for it: `--run {shlex.quote(made_by.name)}`",
        )
    return load_clip(asked, wanted, runs=runs)


class Together(Generic[T]):
    """`encode`, which takes a list and need not be thread-safe, for many threads at once.

    While the model works on one batch, further inputs gather and make up the next: nobody waits for a clock,
    a lone request is encoded at once, and sixteen that arrive together cost little more than one.
    """

    def __init__(self, encode: Callable[[list[T]], Floats]) -> None:
        self._encode = encode
        self._waiting: deque[tuple[list[T], Future[Floats]]] = deque()
        self._working = threading.Lock()

    def __call__(self, inputs: Sequence[T]) -> Floats:
        """What `encode` gives for these inputs, (N, D); raises what it raises."""
        mine: Future[Floats] = Future()
        self._waiting.append((list(inputs), mine))
        while not mine.done():
            with self._working:  # whoever comes first works for all who wait
                if not mine.done():
                    self._work()
        return mine.result()

    def _work(self) -> None:
        taken: list[tuple[list[T], Future[Floats]]] = []
        inputs: list[T] = []
        while self._waiting and (not taken or len(inputs) + len(self._waiting[0][0]) <= _MOST_INPUTS):
            taken.append(self._waiting.popleft())
            inputs += taken[-1][0]
        try:
            vectors = self._encode(inputs)
        except BaseException as error:
            for _, future in taken:
                future.set_exception(error)
            return
        start = 0
        for own, future in taken:
            future.set_result(vectors[start : start + len(own)])
            start += len(own)
