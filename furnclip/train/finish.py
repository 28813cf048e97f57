"""From the best checkpoint to a model that others can load.

Out: `adapter/` (PEFT), `model/` (merged, a plain Hugging Face folder with tokenizer and preprocessing).

How far to go from the base to the trained weights is chosen on validation: WiSE-FT
(https://arxiv.org/abs/2109.01903), weights between the two often beat both. Share 0 is the base, so what is
kept is never worse than it on validation. Known bias: the best of eleven measurements flatters itself on a
small split. The folder just written is loaded again and compared with the base plus adapter: cosines below
0.9999 stop the run, because a model that is not what was measured must not be handed on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from PIL import Image
from torch import Tensor

from furnclip.config import Config
from furnclip.errors import ModelError
from furnclip.journal import replacing_folder
from furnclip.model.adapters import LoraShape, lora_state, save_adapter, scaled_lora, shifted, weight_changes
from furnclip.model.clip import Clip
from furnclip.model.families import TOWERS
from furnclip.model.loading import load_float32
from furnclip.model.quiet import quiet
from furnclip.runs import ADAPTER, MODEL
from furnclip.train.data import TrainingData
from furnclip.train.encoder import Encoder
from furnclip.train.validation import recall_intervals, retrieval_figures

SHARES = tuple(round(share, 1) for share in np.linspace(0, 1, 11).tolist())


@dataclass(frozen=True)
class Sweep:
    """Validation figures at each share, and the share that is kept."""

    figures: dict[float, dict[str, float]]
    best: float


def sweep(
    plain: Encoder,
    changes: Mapping[str, Tensor],
    validation: TrainingData,
    *,
    shares: tuple[float, ...] = SHARES,
) -> Sweep:
    """Measure the plain model at each share of the changes; the model is left as the base.

    Of equal scores the largest share is kept: the data asked for it, the base does not mind.
    """
    parameters = dict(plain.clip.module.named_parameters())
    base = {name: parameters[name].detach().float().cpu().clone() for name in changes}
    figures: dict[float, dict[str, float]] = {}
    for share in shares:
        put_weights(plain, shifted(base, changes, share))
        figures[share] = retrieval_figures(
            plain.vectors("vision", validation), plain.vectors("text", validation), validation
        )
    put_weights(plain, base)
    best = max(figures, key=lambda share: (figures[share]["score"], share))
    return Sweep(figures, best)


@torch.no_grad()
def put_weights(plain: Encoder, weights: Mapping[str, Tensor]) -> None:
    """Write weights into the plain model, in whatever type it has."""
    parameters = dict(plain.clip.module.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


_PARITY = 0.9999
_PROBES = 32
_TIMED = 9


@dataclass(frozen=True)
class Finished:
    """What came out: the sweep, and the merged model's parity, fingerprint, recall and speed.

    `intervals`: figure -> [value, low, high]; `latency_ms`: one picture or caption at a time.
    """

    sweep: Sweep
    parity: float
    fingerprint: str
    intervals: dict[str, list[float]]
    latency_ms: dict[str, float]


def lora_shape(config: Config) -> LoraShape:
    """The adapters that the settings ask for."""
    train = config.train
    return LoraShape(train.lora_r, train.lora_alpha, train.lora_dropout, train.lora_targets)


def finish(run: Path, trained: Encoder, validation: TrainingData, config: Config) -> Finished:
    """Sweep, merge, save and check the trained model, which holds its best weights already."""
    name = trained.clip.name
    plain = load_float32(name, config.model)
    changes = weight_changes(trained.clip.module, plain.module)
    shares = None if config.train.wise_ft and changes else (1.0,)
    swept = _swept(plain, trained, changes, validation, shares=shares)
    base = {key: value.detach().clone() for key, value in plain.module.named_parameters() if key in changes}
    kept = shifted(base, changes, swept.best)
    lora = scaled_lora(lora_state(trained.clip.module), swept.best)
    _write_adapter(run / ADAPTER, lora, kept, trained, config)
    put_weights(_encoder(plain, trained), kept)
    with replacing_folder(run / MODEL) as aside:
        plain.save(aside)
    saved = load_float32(str(run / MODEL), config.model)
    vectors = [_encoder(plain, trained).vectors(tower, validation) for tower in TOWERS]
    return Finished(
        sweep=swept,
        parity=_parity(run, saved, plain, validation, config, base_name=name),
        fingerprint=saved.fingerprint,
        intervals=recall_intervals(vectors[0], vectors[1], validation),
        latency_ms=_latency_ms(saved, validation),
    )


def _swept(
    plain: Clip,
    trained: Encoder,
    changes: Mapping[str, Tensor],
    validation: TrainingData,
    *,
    shares: tuple[float, ...] | None,
) -> Sweep:
    """The sweep, in the arithmetic of training, on a copy that is thrown away."""
    measured = _encoder(plain, trained)
    if shares is None:
        return sweep(measured, changes, validation)
    return sweep(measured, changes, validation, shares=shares)


def _encoder(clip: Clip, like: Encoder) -> Encoder:
    """The plain model where and as the trained one runs; its frozen towers share the cache."""
    clip.module.requires_grad_(False).to(like.device)
    encoder = Encoder(clip, like.scenario, like.device, like.choice, None)
    encoder.stores.update(like.stores)
    return encoder


def _write_adapter(
    folder: Path, lora: Mapping[str, Tensor], kept: Mapping[str, Tensor], trained: Encoder, config: Config
) -> None:
    if trained.scenario.everything or not trained.scenario.trains:
        return
    projections = {f"{path}.weight" for path in trained.clip.family.projections.values()}
    projections |= {f"{path}.bias" for path in trained.clip.family.projections.values()}
    whole = {name: value for name, value in kept.items() if name in projections}
    with replacing_folder(folder) as aside:
        save_adapter(aside, lora=lora, projections=whole, shape=lora_shape(config), base=trained.clip.name)


def _parity(
    run: Path, saved: Clip, merged: Clip, validation: TrainingData, config: Config, *, base_name: str
) -> float:
    """Smallest cosine between vectors of the folder on disk and of the base with its adapter."""
    unmerged = merged
    if (run / ADAPTER / "adapter_config.json").is_file():
        unmerged = load_float32(base_name, config.model)
        with quiet():
            adapted: Any = PeftModel.from_pretrained(unmerged.module, run / ADAPTER)
        unmerged.module = adapted.base_model.model.eval()
    cosines = [float(np.min(np.sum(a * b, axis=1))) for a, b in _probes(saved, unmerged, validation)]
    if min(cosines) < _PARITY:
        raise ModelError(
            f"the merged model differs from the trained one (cosine {min(cosines):.6f})",
            hint="this is a fault of furnclip or peft; keep `checkpoints/` and report it",
        )
    return min(cosines)


def _probes(
    first: Clip, second: Clip, validation: TrainingData
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Vectors of a few pictures and captions by both models."""
    pictures, captions = _some(validation)
    return [
        (first.encode_images(pictures), second.encode_images(pictures)),
        (first.encode_texts(captions), second.encode_texts(captions)),
    ]


def _latency_ms(saved: Clip, validation: TrainingData) -> dict[str, float]:
    """Median milliseconds for one picture and for one caption, after a warm-up."""
    pictures, captions = _some(validation)
    encode = {
        "image": lambda row: saved.encode_images([pictures[row % len(pictures)]]),
        "text": lambda row: saved.encode_texts([captions[row % len(captions)]]),
    }
    return {name: _median_ms(work) for name, work in encode.items()}


def _median_ms(work: Callable[[int], object]) -> float:
    seconds = []
    for row in range(_TIMED + 1):
        start = time.perf_counter()
        work(row)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds[1:]), 2)


def _some(validation: TrainingData) -> tuple[list[Image.Image], list[str]]:
    rows = range(min(_PROBES, len(validation)))
    pictures = [Image.fromarray(square) for square in validation.squares(rows, epoch=None)]
    return pictures, validation.fixed_captions()[: len(rows)]
