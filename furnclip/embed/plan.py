"""What is decided once for one key: the models, their precision, the image weight of their fused vectors.

bfloat16 is taken where the machine is faster in it and on a sample of the catalogue's own images and captions
every cosine to float32 is at least `LEAST_COSINE`.

The image weight is chosen on validation products by what searching is for: short requests ("red velvet
armchair") have to find every product of that kind, and an image its like. The best mean average precision
over both wins, between equals the weight nearest to one half. Known bias: requests are made of attributes
that captions spell out as well, so the choice leans towards the text.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from furnclip import __version__, console
from furnclip.catalogue import ATTRIBUTES, catalogue_path
from furnclip.config import Config, EmbeddingConfig
from furnclip.embed.encoding import ShardReader, stored_vectors
from furnclip.embed.parts import PartFolder
from furnclip.errors import InputError, ModelError
from furnclip.journal import read_json, write_text
from furnclip.metrics.retrieval import average_precision, every_rank
from furnclip.model.light import Encoder, LightEncoder, home_of, is_whole, stamp
from furnclip.relevance import OF_A_KIND, attribute_queries, known_attributes, positives
from furnclip.runs import PrecisionChoice, latest_run
from furnclip.shards import Manifest
from furnclip.vectors import Floats, ModelProvenance, Provenance, column_name, fuse
from furnclip.vectors.parquet import matrix_of

if TYPE_CHECKING:
    from furnclip.model.clip import Clip

PREPROCESSING = "squares of the shards, bicubic, unit mean of all images"
LEAST_COSINE = 0.999
_SAMPLE_ROWS = 16
_SAMPLE_SEARCHED = 64
EVEN = 0.5
WEIGHTS = tuple(step / 10 for step in range(11))
LEAST_QUERIES = 10
MOST_QUERIES = 300
_MOST_VALIDATION_ROWS = 2000
_Item = TypeVar("_Item")


def load_models(config: Config, run: str | None, manifest: Manifest) -> dict[str, Clip]:
    """The base, and the run asked for or finished last, where there is one; by label, in float32."""
    clips = {label: _load_exact(name, config) for label, name in _asked(config, run).items()}
    for clip in clips.values():
        manifest.require_side(clip.image_px, model=clip.name)
    return clips


def light_models(
    config: Config, run: str | None, uri: str, models: Mapping[str, ModelProvenance]
) -> dict[str, LightEncoder]:
    """The models that made the vectors, without torch, as they lie beside the table `uri`; none where one may
    be another now.
    """
    names, found = _asked(config, run), dict[str, LightEncoder]()
    for label, model in models.items():
        home = home_of(uri, model.fingerprint, config)
        about = is_whole(home, model.fingerprint)
        if about is None or about.sources.get(names.get(label, "")) != stamp(model.name, config):
            return {}
        found[label] = LightEncoder(home)
        found[label].name, found[label].text = model.name, "text.onnx"  # captions are not rounded
    return found if {label: model.name for label, model in found.items()} == names else {}


def _asked(config: Config, run: str | None) -> dict[str, str]:
    """The names of the models by label."""
    names = {"base": config.model.name, "finetuned": run or latest_run(config.paths.runs)}
    return {label: name for label, name in names.items() if name}


def _load_exact(name: str, config: Config) -> Clip:
    gc.disable()  # torch makes a million objects that stay
    try:
        from furnclip.model.loading import load_clip
    finally:
        gc.enable()
    exact = config.model.model_copy(update={"precision": "fp32"})
    return load_clip(name, exact, runs=config.paths.runs)


def read_or_make_plan(
    folder: PartFolder, clips: Mapping[str, Encoder], make: Callable[[], Provenance]
) -> Provenance:
    """The plan in `folder`, made where there is none for these models."""
    wanted = {label: (clip.fingerprint, clip.dimension) for label, clip in clips.items()}
    with suppress(OSError, InputError):
        plan = read_json(folder.plan, Provenance, what="the plan", hint="it is made again")
        planned = {label: (model.fingerprint, model.dimension) for label, model in plan.models.items()}
        if plan.key == folder.key and planned == wanted:
            return plan
    plan = make()
    write_text(folder.plan, plan.model_dump_json(indent=2) + "\n")
    return plan


def make_plan(key: str, reader: ShardReader, clips: Mapping[str, Clip], config: Config) -> Provenance:
    """The plan for these models, where they are now."""
    images, captions = _sample(reader)
    wanted = None if config.model.precision == "auto" else config.model.precision
    models = {}
    for label, clip in clips.items():
        earlier = stored_vectors(config.paths.embeddings, clip.fingerprint, wanted).precision
        choice, cosine = settle_precision(clip, config, images, captions, earlier=earlier)
        models[label] = ModelProvenance(
            name=clip.name,
            fingerprint=clip.fingerprint,
            dimension=clip.dimension,
            image_px=clip.image_px,
            precision=choice.precision,
            precision_reason=choice.reason,
            precision_cosine=cosine,
        )
    return Provenance(
        furnclip_version=__version__,
        key=key,
        dtype=config.embed.dtype,
        preprocessing=PREPROCESSING,
        source=catalogue_path(config.paths).name,
        columns=tuple(sorted(reader.manifest.columns, key=lambda column: column.name != "description")),
        models=models,
    )


def _sample(reader: ShardReader) -> tuple[list[Image.Image], list[str]]:
    """Images and captions of the first products that have both."""
    images: list[Image.Image] = []
    captions: list[str] = []
    products = chain.from_iterable(map(reader.rows, reader.row_groups))
    for row in islice(products, _SAMPLE_SEARCHED):
        if row.image_count and row.sample.caption:
            images.append(reader.images(row)[0])
            captions.append(row.sample.caption)
        if len(images) == _SAMPLE_ROWS:
            break
    return images, captions


def settle_precision(
    clip: Clip, config: Config, images: Sequence[Image.Image], captions: Sequence[str], *, earlier: str | None
) -> tuple[PrecisionChoice, float | None]:
    """Put the towers of `clip` (in float32 now) into the precision that this catalogue gets.

    Returns it with the lowest cosine to float32 on the sample, where they were compared. `earlier`: the
    precision of vectors that will be kept; a column holds one.
    """
    from furnclip.model.precision import choose_precision

    wanted = config.model.precision
    if wanted == "auto" and earlier:
        wanted = "bf16" if earlier == "bf16" else "fp32"
    choice = choose_precision(wanted, clip.module, clip.device)
    if choice.precision == "fp32":
        return choice, None
    exact = _encode(clip, images, captions)
    rounded = _encode(_rounded(clip, choice), images, captions)
    cosine = float((exact * rounded).sum(axis=1).min(initial=1.0))
    if cosine < LEAST_COSINE and config.model.precision != "bf16":
        return PrecisionChoice("fp32", f"bf16 moved vectors to a cosine of {cosine:.4f}"), cosine
    if cosine < LEAST_COSINE:
        console.warn(f"bf16 moves vectors of this catalogue: cosine {cosine:.4f} to float32")
    return choice, cosine


def place(clip: Clip, precision: str, config: Config) -> Clip:
    """The model in `precision`; loaded again where float32 is wanted and it has been rounded."""
    if clip.precision.precision == precision:
        return clip
    if precision == "fp32":
        return _load_exact(clip.name, config)
    return _rounded(clip, PrecisionChoice("bf16", "planned"))


def _rounded(clip: Clip, choice: PrecisionChoice) -> Clip:
    from furnclip.model.precision import can_pack, pack

    return pack(clip, choice) if can_pack(clip) else clip.place(clip.device, choice)


def _encode(clip: Clip, images: Sequence[Image.Image], captions: Sequence[str]) -> Floats:
    """Vectors of the images, then of the captions, (S, D)."""
    vectors = np.concatenate([clip.encode_images(images), clip.encode_texts(captions)])
    if not np.isfinite(vectors).all():
        hint = "train or download the model again"
        raise ModelError(f"`{clip.name}` gives vectors that are not finite", hint=hint)
    return vectors


def fused_provenance(
    folder: PartFolder, plan: Provenance, clips: Mapping[str, Encoder], *, config: EmbeddingConfig
) -> Provenance:
    """The plan with the image weight of each model in it."""
    models: dict[str, ModelProvenance] = {}
    for label, model in plan.models.items():
        chosen = choose_image_weight(*_validation(folder, label), clips[label], wanted=config.image_weight)
        names = ("image_weight", "image_weight_reason", "request_precision")
        models[label] = model.model_copy(update=dict(zip(names, chosen, strict=True)))
    return plan.model_copy(update={"models": models})


def _validation(folder: PartFolder, label: str) -> tuple[list[dict[str, Any]], Floats, Floats]:
    """Validation products that have both vectors, the first `_MOST_VALIDATION_ROWS`: rows, (N, D), (N, D)."""
    image, text = column_name("image", label), column_name("text", label)
    columns, chosen = [*ATTRIBUTES, "split", image, text], list[pa.Table]()
    for table in folder.tables(columns):  # kept parts have more
        has_both = pc.and_(pc.is_valid(table[image]), pc.is_valid(table[text]))
        chosen.append(table.select(columns).filter(pc.and_(has_both, pc.equal(table["split"], "validation"))))
        if sum(map(len, chosen)) >= _MOST_VALIDATION_ROWS:
            break
    rows = pa.concat_tables(chosen).slice(0, _MOST_VALIDATION_ROWS)
    return rows.select(ATTRIBUTES).to_pylist(), matrix_of(rows[image])[0], matrix_of(rows[text])[0]


def choose_image_weight(
    products: Sequence[Mapping[str, str | None]],
    image: Floats,
    text: Floats,
    clip: Encoder,
    *,
    wanted: float | Literal["auto"] = "auto",
) -> tuple[float, str, float | None]:
    """The image weight for these validation products, its reason, and the mean average precision of short
    requests by vectors of this weight, None where there are too few; `image` and `text` are (N, D).
    """
    attributes = known_attributes(products)
    requests = _evenly(attribute_queries(attributes))
    # Images of which the catalogue holds others of the same kind; none finds itself.
    kinds = list(zip(*(attributes[name] for name in OF_A_KIND), strict=True))
    alike = positives(kinds, exclude_self=True)
    rows = _evenly([row for row, others in enumerate(alike) if all(kinds[row]) and len(others)])
    counts = {"requests": len(requests), "images": len(rows)}
    few = next((f"only {count} {name}" for name, count in counts.items() if count < LEAST_QUERIES), "")
    asked = clip.encode_texts([request.text for request in requests]) if requests else text[:0]
    answers = [request.answers(attributes) for request in requests]

    def by_text(weight: float) -> float:
        return float(average_precision(every_rank(asked, fuse(image, text, weight), answers)).mean())

    def by_image(weight: float) -> float:
        found = [alike[row] for row in rows]
        ranks = every_rank(image[rows], fuse(image, text, weight), found, exclude=np.array(rows))
        return float(average_precision(ranks).mean())

    if wanted != "auto":
        weight, reason = wanted, "set by `embed.image_weight`"
    elif few:
        weight, reason = EVEN, f"{few} to choose with, {LEAST_QUERIES} needed"
    else:
        scores = {weight: (by_text(weight) + by_image(weight)) / 2 for weight in WEIGHTS}
        weight = max(WEIGHTS, key=lambda weight: (round(scores[weight], 6), -abs(weight - EVEN)))
        figures = (
            f"{scores[weight]:.3f} on {len(products)} validation products ({scores[EVEN]:.3f} at {EVEN})"
        )
        reason = f"mean average precision {figures}"
    return weight, reason, round(by_text(weight), 4) if len(requests) >= LEAST_QUERIES else None


def _evenly(items: list[_Item]) -> list[_Item]:
    """At most `MOST_QUERIES` of the items, spread over all of them."""
    count = min(len(items), MOST_QUERIES)
    return [items[index * len(items) // count] for index in range(count)]
