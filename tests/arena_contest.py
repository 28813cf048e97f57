"""A folder with pictures and vectors of two or more models, ready for `furnclip arena`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from furnclip.catalogue import content_hash
from furnclip.vectors import (
    PRODUCT_COLUMNS,
    Provenance,
    unit,
    vector_array,
    vector_schema,
)
from furnclip.vectors.nearest import Floats
from furnclip.vectors.parquet import ModelProvenance

TYPES = ("sofa", "chair", "table", "lamp")
COLORS = ("red", "green", "blue", "orange", "purple", "gray")


def write_contest(
    folder: Path,
    *,
    products: int = 40,
    dimension: int = 16,
    runs: Sequence[str] = ("tuned-run",),
    config: str = "",
    picture: Callable[[int], Image.Image] | None = None,
    pictures: int | None = None,
    words: Sequence[str] = (),
) -> Path:
    """`images/`, `furnclip.toml` and one vector file for each run; the folder.

    The first run is in the master file. `config` is the body of the `[arena]` section. Each product
    has a file name of its own; `pictures` is how many different files there are behind them. `words`
    stand in titles, colors and types, one after the other.
    """
    (folder / "images").mkdir(parents=True)
    rows = [product(index) for index in range(products)]
    for number, row in enumerate(rows if words else ()):
        odd = words[number % len(words)]
        row.update(clean_title=f"{odd} {number}", color=odd, object_type=odd)
    files = [folder / "images" / row["image"] for row in rows]
    different = pictures or products
    for index, file in enumerate(files):
        if index < different:
            file.write_bytes(_encoded((picture or _picture)(index)))
        else:
            file.hardlink_to(files[index % different])
    vectors = folder / "work" / "embeddings"
    for number, run in enumerate(runs):
        name = "master_vectors.parquet" if number == 0 else f"{run}.parquet"
        _write_vectors(vectors / name, rows, dimension=dimension, run=run, seed=number)
    (folder / "furnclip.toml").write_text(f"[arena]\n{config}\n", encoding="utf-8")
    return folder


def product(index: int) -> dict[str, str]:
    kind, color = TYPES[index % len(TYPES)], COLORS[index % len(COLORS)]
    return {
        **dict.fromkeys(PRODUCT_COLUMNS, ""),
        "product_id": f"P{index:05d}",
        "title": f"{color} {kind} number {index}",
        "clean_title": f"{color} {kind} {index}",
        "color": color,
        "object_type": kind,
        "split": "test" if index % 2 == 0 else "train",
        "image": f"{index:05d}.jpg",
    }


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return file.getvalue()


def _picture(index: int, side_px: int = 60) -> Image.Image:
    image = Image.new("RGB", (side_px, side_px), "white")
    box = (side_px // 6, side_px // 4, side_px * 5 // 6, side_px * 3 // 4)
    ImageDraw.Draw(image).rectangle(box, fill=COLORS[index % len(COLORS)])
    return image


def _write_vectors(
    path: Path, rows: Sequence[dict[str, str]], *, dimension: int, run: str, seed: int
) -> None:
    base = unit(np.random.default_rng(0).normal(size=(len(rows), dimension)))
    noise = np.random.default_rng(seed + 1).normal(size=base.shape)
    models = {
        "base": _model("test/base", "b" * 16, dimension),
        "finetuned": _model(run, f"f{seed}" * 8, dimension),
    }
    write_vectors(path, rows, {"base": base, "finetuned": unit(base + 0.15 * noise)}, models)


def _model(name: str, fingerprint: str, dimension: int) -> ModelProvenance:
    return ModelProvenance(
        name=name, fingerprint=fingerprint, dimension=dimension, image_px=32, precision="fp32"
    )


def write_vectors(
    path: Path,
    rows: Sequence[dict[str, str]],
    vectors: Mapping[str, Floats],
    models: Mapping[str, ModelProvenance],
) -> None:
    """A vector file in which image, text and fused vectors of a model are the same (N, D)."""
    provenance = Provenance(key=content_hash(str(path)), models=dict(models))
    everywhere = np.ones(len(rows), dtype=bool)
    arrays = [pa.array([row[name] for row in rows], type=pa.string()) for name in PRODUCT_COLUMNS]
    for label in models:
        arrays += [vector_array(vectors[label], everywhere, "fp32")] * 3
    arrays.append(pa.nulls(len(rows), pa.string()))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=vector_schema(provenance, kinds=("image", "text", "vec"))), path
    )
