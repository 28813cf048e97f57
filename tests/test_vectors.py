"""The vector file round trip, its refusals, and exact neighbours against the obvious way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furnclip import vectors
from furnclip.errors import InputError, MissingStageError, ModelMismatchError
from furnclip.vectors.parquet import Dtype, ModelProvenance, open_parquet


def write_file(
    path: Path, image: np.ndarray, present: np.ndarray, dtype: Dtype = "fp32", *, row_group_rows: int = 2
) -> Path:
    model = ModelProvenance(
        name="tiny", fingerprint="aa", dimension=image.shape[1], image_px=8, precision="fp32"
    )
    provenance = vectors.Provenance(dtype=dtype, models={"base": model})
    columns = {name: [f"{name}-{row}" for row in range(len(image))] for name in vectors.PRODUCT_COLUMNS}
    schema = vectors.vector_schema(provenance, kinds=("image", "text", "vec"))
    arrays = [pa.array(column) for column in columns.values()]
    arrays += [vectors.vector_array(image, present, dtype)] * 3
    arrays.append(pa.array([None if there else "missing" for there in present], pa.string()))
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, row_group_size=row_group_rows)
    return path


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("fp16", 1e-3)])
def test_a_file_reads_back_as_it_was_written(tmp_path: Path, dtype: Dtype, tolerance: float) -> None:
    image = vectors.unit(np.random.default_rng(0).normal(size=(5, 8)))
    present = np.array([True, False, True, True, False])
    table = vectors.VectorTable(write_file(tmp_path / "v.parquet", image, present, dtype))
    assert len(table) == 5
    assert table.products[1]["title"] == "title-1"
    assert table.products[1]["missing_reason"] == "missing"
    assert table.provenance.models["base"].fingerprint == "aa"
    assert (table.present("vec_clip_base") == present).all()
    matrix = table.matrix("vec_clip_base")
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix[present], image[present], atol=tolerance)
    assert not matrix[~present].any()


def test_going_through_a_file_keeps_none_of_it_in_memory(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    path = tmp_path / "v.parquet"
    write_file(path, image, np.ones(len(image), dtype=bool), row_group_rows=1000)
    before_bytes = pa.total_allocated_bytes()
    with open_parquet(path) as file:
        kept_bytes = [pa.total_allocated_bytes() - before_bytes for _ in file.iter_batches(1000)]
    assert max(kept_bytes) < path.stat().st_size / 4


def test_what_is_not_a_vector_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match="does not exist yet") as missing:
        vectors.VectorTable(tmp_path / "none.parquet")
    assert missing.value.hint == "run `furnclip embed` first"
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="is not a Parquet file"):
        vectors.VectorTable(tmp_path / "text.parquet")
    pq.write_table(pa.table({"product_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="does not say which model made it"):
        vectors.VectorTable(tmp_path / "other.parquet")


def test_another_model_or_column_is_refused_by_name(tmp_path: Path) -> None:
    image = vectors.unit(np.ones((2, 4)))
    table = vectors.VectorTable(write_file(tmp_path / "v.parquet", image, np.ones(2, dtype=bool)))
    table.provenance.require("base", "aa", where="v.parquet")
    with pytest.raises(ModelMismatchError, match=r"made by `tiny` \(aa\), not by the model asked for \(bb\)"):
        table.provenance.require("base", "bb", where="v.parquet")
    with pytest.raises(ModelMismatchError, match="has no finetuned vectors, only base"):
        table.provenance.require("finetuned", "aa", where="v.parquet")
    with pytest.raises(InputError, match="has no column `vec_clip_finetuned`"):
        table.matrix("vec_clip_finetuned")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    queries=st.integers(0, 5),
    k=st.integers(1, 50),
    levels=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_top_k_equals_sorting_everything(rows: int, queries: int, k: int, levels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Few distinct integer values, so that there are many exact ties.
    gallery = random.integers(0, levels, size=(rows, 3)).astype(np.float32)
    query = random.integers(0, levels, size=(queries, 3)).astype(np.float32)
    present = random.random(rows) < 0.7
    scores, indices = vectors.top_k(query, gallery, k, present=present)
    places = np.flatnonzero(present)
    for number in range(queries):
        wanted = sorted(places, key=lambda place: (-(query[number] @ gallery[place]), place))[:k]
        assert indices[number].tolist() == wanted
        np.testing.assert_array_equal(scores[number], gallery[wanted] @ query[number])


def test_top_k_over_several_blocks_keeps_the_order_of_ties() -> None:
    gallery = np.tile(np.eye(4, dtype=np.float32), (10_000, 1))  # 40,000 rows: three blocks
    _, indices = vectors.top_k(np.eye(4, dtype=np.float32)[:1], gallery, 5)
    assert indices.tolist() == [[0, 4, 8, 12, 16]]


def test_fusing_is_a_weighted_mean_on_the_unit_sphere() -> None:
    image, text = np.array([[1, 0]], dtype=np.float32), np.array([[0, 1]], dtype=np.float32)
    np.testing.assert_allclose(vectors.fuse(image, text, 0.5), [[2**-0.5, 2**-0.5]], rtol=1e-6)
    np.testing.assert_array_equal(vectors.fuse(image, text, 1.0), image)
    np.testing.assert_array_equal(vectors.unit(np.zeros((1, 2))), [[0, 0]])
