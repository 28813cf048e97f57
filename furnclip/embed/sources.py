"""Which models to embed with, and in which precision.

bfloat16 is taken where the machine is faster in it and the vectors stay what they are: on a sample of
the catalogue's own images and captions every cosine to float32 has to be at least `LEAST_COSINE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from furnclip import console
from furnclip.config import Config
from furnclip.errors import ModelError
from furnclip.model import Clip, latest_run, load_clip
from furnclip.model.precision import can_pack, choose_precision, pack
from furnclip.runs import PrecisionChoice as Choice
from furnclip.vectors import LABELS, Floats

LEAST_COSINE = 0.999
SAMPLE_ROWS = 16


@dataclass(frozen=True)
class Settled:
    """The precision of one model's towers, and the lowest cosine to float32 on the sample."""

    precision: str
    cosine: float | None
    reason: str


@dataclass(frozen=True)
class Sample:
    """A few rows of the catalogue to try a model on."""

    images: Sequence[Image.Image]
    captions: Sequence[str]


def model_names(config: Config, run: str | None) -> dict[str, str]:
    """Label -> model name: the base, and the run asked for or finished last, where there is one."""
    names = {"base": config.model.name}
    finetuned = run or latest_run(config.paths.runs)
    if finetuned:
        names["finetuned"] = finetuned
    return names


def load_models(names: dict[str, str], config: Config) -> dict[str, Clip]:
    """The models in float32, by label."""
    exact = config.model.model_copy(update={"precision": "fp32"})
    return {
        label: load_clip(names[label], exact, runs=config.paths.runs) for label in LABELS if label in names
    }


def settle_precision(clip: Clip, config: Config, sample: Sample, *, earlier: str | None) -> Settled:
    """Put the towers of `clip` (in float32 now) into the precision that this catalogue gets.

    `earlier`: the precision of vectors that will be kept; mixing two in one column helps nobody.
    """
    wanted = config.model.precision
    if wanted == "auto" and earlier:
        wanted = "bf16" if earlier == "bf16" else "fp32"
    choice = choose_precision(wanted, clip.module, clip.device)
    if choice.precision == "fp32":
        return Settled("fp32", None, choice.reason)
    exact = _encode(clip, sample)
    cosine = _lowest_cosine(exact, _encode(_rounded(clip, choice), sample))
    if cosine >= LEAST_COSINE:
        return Settled("bf16", cosine, choice.reason)
    if config.model.precision == "bf16":
        console.warn(f"bf16 moves vectors of this catalogue: cosine {cosine:.4f} to float32")
        return Settled("bf16", cosine, choice.reason)
    return Settled("fp32", cosine, f"bf16 moved vectors to a cosine of {cosine:.4f}")


def place(clip: Clip, precision: str, config: Config) -> Clip:
    """The model in `precision`; loaded again where float32 is wanted and it has been rounded."""
    if clip.precision.precision == precision:
        return clip
    if precision == "bf16":
        return _rounded(clip, Choice("bf16", "planned"))
    exact = config.model.model_copy(update={"precision": "fp32"})
    return load_clip(clip.name, exact, runs=config.paths.runs)


def _rounded(clip: Clip, choice: Choice) -> Clip:
    return pack(clip, choice) if can_pack(clip) else clip.place(clip.device, choice)


def _encode(clip: Clip, sample: Sample) -> Floats:
    """Vectors of the sample's images, then of its captions, (S, D)."""
    vectors = np.concatenate([clip.encode_images(sample.images), clip.encode_texts(sample.captions)])
    if not np.isfinite(vectors).all():
        raise ModelError(
            f"`{clip.name}` gives vectors that are not finite", hint="train or download the model again"
        )
    return vectors


def _lowest_cosine(first: Floats, second: Floats) -> float:
    return float((first * second).sum(axis=1).min(initial=1.0))
