"""From finished row groups to the vector file: choose the image weight, fuse, write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from furnclip.catalogue import ATTRIBUTES
from furnclip.config import EmbeddingConfig
from furnclip.embed.fusion import Choice, choose_image_weight
from furnclip.embed.parts import PartFolder, write_row_groups
from furnclip.journal import replacing
from furnclip.model import Clip
from furnclip.vectors import (
    KINDS,
    PRODUCT_COLUMNS,
    Floats,
    Provenance,
    column_name,
    fuse,
    vector_array,
    vector_schema,
)
from furnclip.vectors.parquet import matrix_of

_MOST_VALIDATION_ROWS = 2000


def fused_provenance(
    folder: PartFolder, count: int, plan: Provenance, clips: Mapping[str, Clip], *, config: EmbeddingConfig
) -> Provenance:
    """The plan with the image weight of each model in it."""
    models = {}
    for label, model in plan.models.items():
        choice = _choice(folder, count, label, clips[label], config=config)
        update = {"image_weight": choice.image_weight, "image_weight_reason": choice.reason}
        models[label] = model.model_copy(update=update)
    return plan.model_copy(update={"models": models})


def write_vectors(folder: PartFolder, count: int, provenance: Provenance, target: Path) -> None:
    """Write the vector file: every row group of `folder` with its fused vectors."""
    schema = vector_schema(provenance)
    tables = (_with_fused(table, provenance, schema) for table in folder.tables(count))
    with replacing(target) as file:
        write_row_groups(file, schema, tables)


def _choice(folder: PartFolder, count: int, label: str, clip: Clip, *, config: EmbeddingConfig) -> Choice:
    if config.image_weight != "auto":
        return Choice(config.image_weight, "set by `embed.image_weight`")
    products, image, text = _validation(folder, count, label, clip.dimension)
    return choose_image_weight(products, image, text, clip)


def _validation(
    folder: PartFolder, count: int, label: str, dimension: int
) -> tuple[list[dict[str, Any]], Floats, Floats]:
    """Validation products that have both vectors, the first `_MOST_VALIDATION_ROWS`: rows, (N, D), (N, D)."""
    products: list[dict[str, Any]] = []
    images, texts = [np.empty((0, dimension), np.float32)], [np.empty((0, dimension), np.float32)]
    for table in folder.tables(count):
        image, image_there = matrix_of(table[column_name("image", label)])
        text, text_there = matrix_of(table[column_name("text", label)])
        chosen = np.array([split == "validation" for split in table["split"].to_pylist()], dtype=bool)
        rows = np.flatnonzero(chosen & image_there & text_there)[: _MOST_VALIDATION_ROWS - len(products)]
        products += table.select(ATTRIBUTES).take(rows).to_pylist()
        images.append(image[rows])
        texts.append(text[rows])
        if len(products) >= _MOST_VALIDATION_ROWS:
            break
    return products, np.concatenate(images), np.concatenate(texts)


def _with_fused(table: pa.Table, provenance: Provenance, schema: pa.Schema) -> pa.Table:
    columns = [table[name] for name in PRODUCT_COLUMNS]
    for label, model in provenance.models.items():
        image, image_there = matrix_of(table[column_name("image", label)])
        text, text_there = matrix_of(table[column_name("text", label)])
        fused = fuse(image, text, model.image_weight)
        columns += [table[column_name(kind, label)] for kind in KINDS if kind != "vec"]
        columns.append(vector_array(fused, image_there & text_there, provenance.dtype))
    columns.append(table["missing_reason"])
    return pa.Table.from_arrays(columns, schema=schema)
