"""The master vector file and the search table built from it.

`master_vectors.parquet` has one row a product: the columns of `PRODUCT_COLUMNS`, then for each model
(`base`, and `finetuned` where a run was embedded) `image_clip_M`, `text_clip_M` and the fused
`vec_clip_M`, unit-length fixed-size lists, then `missing_reason`. A vector is null where there is
nothing to encode, and `missing_reason` says why. Which models made the vectors, from what and how is
in the file's metadata under `furnclip`, as JSON; whoever reads vectors compares fingerprints first.

`parquet` writes and reads the file, `nearest` finds exact neighbours in memory, `index` is the same
data as a LanceDB table.
"""

from furnclip.vectors.nearest import Floats, fuse, top_k, unit
from furnclip.vectors.parquet import (
    KINDS,
    LABELS,
    METADATA_KEY,
    PRODUCT_COLUMNS,
    ModelProvenance,
    Provenance,
    VectorTable,
    column_name,
    read_provenance,
    read_vectors,
    vector_array,
    vector_schema,
)

__all__ = [
    "KINDS",
    "LABELS",
    "METADATA_KEY",
    "PRODUCT_COLUMNS",
    "Floats",
    "ModelProvenance",
    "Provenance",
    "VectorTable",
    "column_name",
    "fuse",
    "read_provenance",
    "read_vectors",
    "top_k",
    "unit",
    "vector_array",
    "vector_schema",
]
