"""From the trained weights to a model that others can load: `adapter/` (PEFT) and `model/` (merged).

How far to go from the base to the trained weights is chosen on validation: WiSE-FT
(https://arxiv.org/abs/2109.01903). Share 0 is the base, so what is kept is never worse than it on validation.
Known bias: the best of eleven measurements flatters itself on a small split. The folder just written is
loaded again: cosines below 0.9999 to the base plus adapter stop the run.
"""

from __future__ import annotations

import itertools
import statistics
import timeit
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from peft import PeftModel
from PIL import Image

from furnclip.errors import ModelError
from furnclip.journal import replacing_folder
from furnclip.metrics.bootstrap import bootstrap_interval
from furnclip.metrics.retrieval import ranks
from furnclip.model.adapters import save_adapter, shifted, weight_changes
from furnclip.model.clip import Clip, quiet
from furnclip.model.loading import load_float32
from furnclip.runs import ADAPTER, MODEL
from furnclip.train.data import TrainingData
from furnclip.train.encoder import TowerEncoder, retrieval_figures
from furnclip.train.prepared import Prepared

SHARES = tuple(round(share, 1) for share in np.linspace(0, 1, 11).tolist())
_PARITY = 0.9999
_PROBES = 32
_TIMED = 9


def finish(ready: Prepared) -> None:
    """Sweep, merge, save and check the trained model, which holds its best weights; fill in its card."""
    config, trained, validation = ready.config, ready.encoder, ready.validation
    clip = load_float32(trained.clip.name, config.model, runs=config.paths.runs)
    changes = weight_changes(trained.clip.module, clip.module)
    base = {name: value.detach().clone() for name, value in clip.module.named_parameters() if name in changes}
    # The plain model runs where and in the precision that the trained one did; frozen towers share the cache.
    clip.module.requires_grad_(False).to(trained.device)
    plain = TowerEncoder(clip, trained.scenario, trained.device, trained.choice, None)
    plain.stores.update(trained.stores)
    figures: dict[float, dict[str, float]] = {}
    for share in SHARES if config.train.wise_ft and changes else (1.0,):
        clip.module.load_state_dict(shifted(base, changes, share), strict=False)
        figures[share] = retrieval_figures(plain, validation)
    # Of equal scores the largest share: the data asked for it, the base does not mind.
    best = max(figures, key=lambda share: (figures[share]["score"], share))
    if 0.0 in figures and figures[best]["score"] <= figures[0.0]["score"]:
        best = 0.0  # no share is better than the base: nothing was learnt
    kept = shifted(base, changes, best)
    clip.module.load_state_dict(kept, strict=False)
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
    card = ready.card
    card.validation = {**card.validation, "finetuned": figures[best]}
    card.share = best
    card.wise_ft = {str(share): measured["score"] for share, measured in figures.items()}
    card.parity = _parity(ready, saved, clip, images, captions)
    card.model_fingerprint = saved.fingerprint
    card.intervals = _recall_intervals(plain, validation)
    card.latency_ms = {
        "image": _median_ms(saved.encode_images, images),
        "text": _median_ms(saved.encode_texts, captions),
    }


def _parity(
    ready: Prepared, saved: Clip, merged: Clip, images: list[Image.Image], captions: list[str]
) -> float:
    """Smallest cosine between vectors of the folder on disk and of the base with its adapter."""
    unmerged = merged
    if (ready.folder / ADAPTER / "adapter_config.json").is_file():
        unmerged = load_float32(merged.name, ready.config.model, runs=ready.config.paths.runs)
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


def _recall_intervals(encoder: TowerEncoder, data: TrainingData) -> dict[str, list[float]]:
    """Text-to-image recall@1 and @5 as [value, low, high], 95 % by resampling whole groups."""
    groups = data.texts.column("group")
    texts, images = encoder.vectors("text", data), encoder.vectors("vision", data)
    first = ranks(texts, images, data.positives())
    intervals = {}
    for k in (1, 5):
        interval = bootstrap_interval((first <= k).astype(np.float64), groups)
        intervals[f"text_to_image_recall@{k}"] = [interval.value, interval.low, interval.high]
    return intervals


def _median_ms(encode: Callable[[list[Any]], object], items: Sequence[Any]) -> float:
    """Median milliseconds for one item, after a warm-up."""
    each = itertools.cycle(items)
    seconds = timeit.repeat(lambda: encode([next(each)]), number=1, repeat=_TIMED + 1)
    return round(1000 * statistics.median(seconds[1:]), 2)
