"""The master vector file and the search table built from it.

`master_vectors.parquet` has one row a product: the columns of `PRODUCT_COLUMNS`, the shop's own columns with
their types, then for each model (`base`, and `finetuned` where a run was embedded) `image_clip_M`,
`text_clip_M` and the fused `vec_clip_M`, unit-length fixed-size lists, and `views_clip_M`, a list of such
lists for a product of several images, whose unit mean is `image_clip_M`; then `missing_reason`. A vector is
null where there is nothing to encode; `vec_clip_M` is then made of the text and of the mean image. Which
models made the vectors, from what and how is in the file's metadata under `furnclip`, as JSON.

The file of a large catalogue is a folder of parts. `parquet` reads both, `nearest` finds exact neighbors in
memory, `index` is the same data as a LanceDB table, and `upsert` merges a small change into that.
"""

from furnclip.vectors.nearest import Floats as Floats
from furnclip.vectors.nearest import fuse as fuse
from furnclip.vectors.nearest import top_k as top_k
from furnclip.vectors.nearest import unit as unit
from furnclip.vectors.nearest import unit_mean as unit_mean
from furnclip.vectors.parquet import PRODUCT_COLUMNS as PRODUCT_COLUMNS
from furnclip.vectors.parquet import ModelProvenance as ModelProvenance
from furnclip.vectors.parquet import Provenance as Provenance
from furnclip.vectors.parquet import VectorTable as VectorTable
from furnclip.vectors.parquet import column_name as column_name
from furnclip.vectors.parquet import read_provenance as read_provenance
from furnclip.vectors.parquet import vector_array as vector_array
from furnclip.vectors.parquet import vector_schema as vector_schema
