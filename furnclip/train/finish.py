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
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from furnclip.errors import ModelError
from furnclip.journal import replacing_folder
from furnclip.metrics.bootstrap import bootstrap_interval
from furnclip.metrics.retrieval import ranks
from furnclip.model.adapters import save_adapter, shifted, weight_changes
from furnclip.model.clip import Clip, quiet
from furnclip.model.loading import load_float32
from furnclip.relevance import positives
from furnclip.runs import ADAPTER, MODEL
from furnclip.train.data import TrainingData
from furnclip.train.encoder import Encoder, retrieval_figures
from furnclip.train.prepared import Prepared

SHARES = tuple(round(share, 1) for share in np.linspace(0, 1, 11).tolist())
_PARITY = 0.9999
_PROBES = 32
_TIMED = 9


@dataclass(frozen=True)
class Finished:
    """What came out: validation figures at each share, the share that is kept, and the merged model's
    parity, fingerprint, recall and speed.

    `intervals`: figure -> [value, low, high]; `latency_ms`: one image or caption at a time.
    """

    figures: dict[float, dict[str, float]]
    share: float
    parity: float
    fingerprint: str
    intervals: dict[str, list[float]]
    latency_ms: dict[str, float]


def finish(ready: Prepared) -> Finished:
    """Sweep, merge, save and check the trained model, which holds its best weights already."""
    config, trained, validation = ready.config, ready.encoder, ready.validation
    clip = _load_base(ready)
    changes = weight_changes(trained.clip.module, clip.module)
    base = {name: value.detach().clone() for name, value in clip.module.named_parameters() if name in changes}
    # The plain model runs where and in the precision that the trained one did; frozen towers share the cache.
    clip.module.requires_grad_(False).to(trained.device)
    plain = Encoder(clip, trained.scenario, trained.device, trained.choice, None)
    plain.stores.update(trained.stores)
    figures: dict[float, dict[str, float]] = {}
    for share in SHARES if config.train.wise_ft and changes else (1.0,):
        _put_weights(clip, shifted(base, changes, share))
        figures[share] = retrieval_figures(plain, validation)
    # Of equal scores the largest share: the data asked for it, the base does not mind.
    best = max(figures, key=lambda share: (figures[share]["score"], share))
    kept = shifted(base, changes, best)
    _put_weights(clip, kept)
    if trained.scenario.projections and not trained.scenario.everything:
        paths = clip.family.projections.values()
        whole = {name: value for name, value in kept.items() if name.rpartition(".")[0] in paths}
        with replacing_folder(ready.folder / ADAPTER) as aside:
            save_adapter(aside, trained.clip, whole, config.train, share=best)
    with replacing_folder(ready.folder / MODEL) as aside:
        clip.save(aside)
    saved = load_float32(str(ready.folder / MODEL), config.model)
    rows = range(min(_PROBES, len(validation)))
    images = [Image.fromarray(square) for square in validation.squares(rows, epoch=None)]
    captions = validation.fixed_captions()[: len(rows)]
    return Finished(
        figures=figures,
        share=best,
        parity=_parity(ready, saved, clip, images, captions),
        fingerprint=saved.fingerprint,
        intervals=_recall_intervals(plain, validation),
        latency_ms={
            "image": _median_ms(lambda row: saved.encode_images([images[row % len(images)]])),
            "text": _median_ms(lambda row: saved.encode_texts([captions[row % len(captions)]])),
        },
    )


def _load_base(ready: Prepared) -> Clip:
    return load_float32(ready.encoder.clip.name, ready.config.model, runs=ready.config.paths.runs)


@torch.no_grad()
def _put_weights(clip: Clip, weights: Mapping[str, Tensor]) -> None:
    """Write weights into the plain model."""
    parameters = dict(clip.module.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


def _parity(
    ready: Prepared, saved: Clip, merged: Clip, images: list[Image.Image], captions: list[str]
) -> float:
    """Smallest cosine between vectors of the folder on disk and of the base with its adapter."""
    unmerged = merged
    if (ready.folder / ADAPTER / "adapter_config.json").is_file():
        unmerged = _load_base(ready)
        with quiet():
            adapted: Any = PeftModel.from_pretrained(unmerged.module, ready.folder / ADAPTER)
        unmerged.module = adapted.base_model.model.eval()
    lowest = min(
        float(np.min(np.sum(first * second, axis=1)))
        for first, second in (
            (saved.encode_images(images), unmerged.encode_images(images)),
            (saved.encode_texts(captions), unmerged.encode_texts(captions)),
        )
    )
    if lowest < _PARITY:
        raise ModelError(
            f"the merged model differs from the trained one (cosine {lowest:.6f})",
            hint="this is a fault of furnclip or peft; keep `checkpoints/` and report it",
        )
    return lowest


def _recall_intervals(encoder: Encoder, data: TrainingData) -> dict[str, list[float]]:
    """Text-to-image recall@1 and @5 as [value, low, high], 95 % by resampling whole groups."""
    groups = [text.group for text in data.texts]
    texts, images = encoder.vectors("text", data), encoder.vectors("vision", data)
    first = ranks(texts, images, positives(data.fixed_captions(), groups))
    intervals = {}
    for k in (1, 5):
        interval = bootstrap_interval((first <= k).astype(np.float64), groups)
        intervals[f"text_to_image_recall@{k}"] = [interval.value, interval.low, interval.high]
    return intervals


def _median_ms(encode: Callable[[int], object]) -> float:
    """Median milliseconds of one call, after a warm-up."""
    seconds = []
    for row in range(_TIMED + 1):
        start = time.perf_counter()
        encode(row)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds[1:]), 2)
