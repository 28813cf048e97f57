"""A folder with pictures and vectors of two or more models, ready for `furnclip arena`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from furnclip.vectors import (
    PRODUCT_COLUMNS,
    Provenance,
    column_name,
    unit,
    vector_array,
    vector_schema,
)
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
    picture_px: int = 60,
) -> Path:
    """`images/`, `furnclip.toml` and one vector file for each run; the folder.

    The first run is in the master file. `config` is the body of the `[arena]` section.
    """
    (folder / "images").mkdir(parents=True)
    rows = [_product(index) for index in range(products)]
    for index, row in enumerate(rows):
        _picture(index, picture_px).save(folder / "images" / str(row["image"]), quality=85)
    vectors = folder / "work" / "embeddings"
    vectors.mkdir(parents=True)
    for number, run in enumerate(runs):
        name = "master_vectors.parquet" if number == 0 else f"{run}.parquet"
        _write_vectors(vectors / name, rows, dimension=dimension, run=run, seed=number)
    (folder / "furnclip.toml").write_text(f"[arena]\n{config}\n", encoding="utf-8")
    return folder


def _product(index: int) -> dict[str, str]:
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


def _picture(index: int, side_px: int) -> Image.Image:
    image = Image.new("RGB", (side_px, side_px), "white")
    box = (side_px // 6, side_px // 4, side_px * 5 // 6, side_px * 3 // 4)
    ImageDraw.Draw(image).rectangle(box, fill=COLORS[index % len(COLORS)])
    return image


def _write_vectors(
    path: Path, rows: Sequence[dict[str, str]], *, dimension: int, run: str, seed: int
) -> None:
    random = np.random.default_rng(0)
    base = unit(random.normal(size=(len(rows), dimension)))
    noise = np.random.default_rng(seed + 1).normal(size=base.shape)
    tuned = unit(base + 0.15 * noise)
    models = {
        "base": ModelProvenance(
            name="test/base", fingerprint="b" * 16, dimension=dimension, image_px=32, precision="fp32"
        ),
        "finetuned": ModelProvenance(
            name=run, fingerprint=f"f{seed}" * 8, dimension=dimension, image_px=32, precision="fp32"
        ),
    }
    provenance = Provenance(key=f"key-{seed}", models=models)
    everywhere = np.ones(len(rows), dtype=bool)
    arrays = [pa.array([row[name] for row in rows], type=pa.string()) for name in PRODUCT_COLUMNS]
    schema = vector_schema(provenance)
    for label, matrix in (("base", base), ("finetuned", tuned)):
        arrays += [vector_array(matrix, everywhere, "fp32") for _ in ("image", "text", "vec")]
        assert column_name("vec", label) in schema.names
    arrays.append(pa.nulls(len(rows), pa.string()))
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)
