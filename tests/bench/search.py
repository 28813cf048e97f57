"""Searching 100,000 and 1,000,000 products: time, recall, memory; and a cold start from the shell.

    python -m tests.bench.search [--quick] [--json] [--products N]

Vectors of 512 numbers in clusters (one for each hundred products, spread as CLIP's are: neighbors at a
cosine of about 0.55). Queries come from the same clusters and are no products. Truth is the exact
top 10 in numpy. `p50_ms` and `p95_ms` are whole searches by a warm `Searcher`, product fields included.
The rivals return row numbers only: numpy's exact product, faiss exact and faiss IVF with the same
number of partitions and probes.

`hybrid_p50_ms` and `hybrid_p95_ms` are a text's way from words to hits, `hybrid_filtered_...` behind a
filter. `--products`: this many instead of 100,000, and nothing else; from a million on in a process of its
own.

Without `--quick` also: where an index begins to pay (`flat_*` against `ivf_*`), and a million products
in a process of its own (time to build, peak memory, size on disk).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from examples.make_tiny_clip import build_tiny_clip
from furnclip import Searcher, vectors
from furnclip.config import Config, load_config
from furnclip.embed.parts import write_row_groups
from furnclip.model.export import write_beside
from furnclip.model.loading import load_clip
from furnclip.vectors.index import index_location, write_index
from tests.bench import measure
from tests.bench.embed import write_model

DIMENSION = 512
QUERIES = 200
COLORS = ("brown", "red", "blue", "gray", "white")
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Built:
    """A searchable table and what is true of it."""

    config: Config
    queries: np.ndarray  # (Q, D)
    truth: np.ndarray  # (Q, 10) row numbers
    red_truth: np.ndarray  # (Q, 10) row numbers among red products
    build_s: float


def main() -> None:
    if os.environ.get("BENCH_MILLION"):
        return million(Path(os.environ["BENCH_MILLION"]))
    arguments = measure.parse("search", products=100_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.products >= 1_000_000:
            return measure.report("search", {}, run_million(folder / "million"), as_json=arguments.json)
        figures = hundred_thousand(folder / "hundred-thousand", arguments.products)
        print(figures, file=sys.stderr)
        if arguments.products != 100_000:
            return measure.report("search", {}, figures, as_json=arguments.json)
        figures |= cold_start(folder / "cold", 1_000 if arguments.quick else 100_000)
        print(figures, file=sys.stderr)
        if not arguments.quick:
            figures |= threshold(folder)
            figures |= run_million(folder / "million")
    ratios = {
        rival: round(figures[f"{rival}_ms"] / figures["p50_ms"], 2)
        for rival in ("numpy_exact", "faiss_exact", "faiss_ivf")
        if f"{rival}_ms" in figures
    }
    measure.report("search", ratios, figures, as_json=arguments.json)


def hundred_thousand(folder: Path, products: int) -> dict[str, Any]:
    built = build(folder, products)
    searcher = Searcher(built.config)
    p50_ms, p95_ms, recall = nearest(built)
    filtered = nearest(built, where="color = 'red'")
    words = [f"{color} sideboard {number}" for number in range(20) for color in COLORS]
    figures: dict[str, Any] = {
        "p50_ms": p50_ms,
        "p95_ms": p95_ms,
        "recall_at_10": recall,
        "filtered_p50_ms": filtered[0],
        "filtered_p95_ms": filtered[1],
        "filtered_recall_at_10": filtered[2],
        "build_s": round(built.build_s, 1),
        **percentiles("keyword", lambda word: searcher.search(word, mode="keyword"), words),
        **percentiles("hybrid", searcher.search, words),
        **percentiles("hybrid_filtered", lambda word: searcher.search(word, where="color = 'red'"), words),
    }
    print(figures, file=sys.stderr)
    return figures | rivals(vectors.VectorTable(built.config.paths.vectors), built)


def rivals(table: vectors.VectorTable, built: Built) -> dict[str, Any]:
    gallery = table.matrix("vec_clip_base")
    figures: dict[str, Any] = {}

    def exact(query: np.ndarray) -> np.ndarray:
        return vectors.top_k(query[None], gallery, 10)[1][0]

    figures["numpy_exact_ms"], _, _ = timed(built.queries, built.truth, exact)
    try:
        import faiss
    except ImportError as error:
        return figures | {"faiss_left_out": str(error)}
    faiss.omp_set_num_threads(2)
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(gallery)
    figures["faiss_exact_ms"], _, _ = timed(
        built.queries, built.truth, lambda query: flat.search(query[None], 10)[1][0]
    )
    partitions = int(len(gallery) ** 0.5)
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIMENSION), DIMENSION, partitions, faiss.METRIC_INNER_PRODUCT)
    start = time.perf_counter()
    ivf.train(gallery)
    ivf.add(gallery)
    figures["faiss_ivf_build_s"] = round(time.perf_counter() - start, 1)
    ivf.nprobe = partitions // 10
    found = timed(built.queries, built.truth, lambda query: ivf.search(query[None], 10)[1][0])
    figures["faiss_ivf_ms"], _, figures["faiss_ivf_recall_at_10"] = found
    return figures


def threshold(folder: Path) -> dict[str, Any]:
    """Median time with every vector compared, and with the index, for growing tables."""
    figures: dict[str, Any] = {}
    for products in (5_000, 10_000, 20_000, 50_000, 100_000):
        built = build(folder / f"flat-{products}", products, exact_below=10**9)
        figures[f"flat_{products}_p50_ms"], _, _ = nearest(built)
        always = built.config.search.model_copy(update={"exact_below": 1})
        start = time.perf_counter()
        write_index(index_location(built.config), built.config.paths.vectors, always)
        figures[f"ivf_{products}_build_s"] = round(time.perf_counter() - start, 1)
        figures[f"ivf_{products}_p50_ms"], _, figures[f"ivf_{products}_recall"] = nearest(built)
        figures[f"ivf_{products}_filtered_recall"] = nearest(built, where="color = 'red'")[2]
        print(figures, file=sys.stderr)
    return figures


def nearest(built: Built, *, where: str | None = None) -> tuple[float, float, float]:
    """Warm p50 and p95 in milliseconds and recall@10 of a new `Searcher`."""
    searcher = Searcher(built.config)
    truth = built.truth if where is None else built.red_truth
    return timed(built.queries, truth, lambda query: searcher.nearest(query, k=10, where=where))


def run_million(folder: Path) -> dict[str, Any]:
    """A million products in a process of its own; peak memory is that of building and searching."""
    setting = f"BENCH_MILLION={folder}"
    _, peak_mb = measure.peak_mb(["env", setting, sys.executable, "-m", "tests.bench.search"])
    said: dict[str, Any] = json.loads((folder / "said.json").read_text())
    return {**said, "million_peak_mb": round(peak_mb, 1)}


def million(folder: Path) -> None:
    built = build(folder, 1_000_000)
    p50_ms, p95_ms, recall = nearest(built)
    filtered = nearest(built, where="color = 'red'")
    on_disk = sum(path.stat().st_size for path in built.config.paths.index.rglob("*") if path.is_file())
    said = {
        "million_p50_ms": p50_ms,
        "million_p95_ms": p95_ms,
        "million_recall_at_10": recall,
        "million_filtered_p50_ms": filtered[0],
        "million_filtered_recall_at_10": filtered[2],
        "million_build_s": round(built.build_s, 1),
        "million_index_mb": round(on_disk / 1e6),
        "million_vectors_mb": round(built.config.paths.vectors.stat().st_size / 1e6),
    }
    (folder / "said.json").write_text(json.dumps(said))


def cold_start(folder: Path, products: int) -> dict[str, Any]:
    """`furnclip search` in a new process, with a text tower of ViT-B/32's size."""
    config = build(folder, products, full_size=True).config
    command = [sys.executable, "-m", "furnclip", "search", "walnut sideboard", "--json"]

    # compiled, as pip leaves it
    environment = {
        **os.environ,
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
        "PYTHONDONTWRITEBYTECODE": "",
    }

    def run() -> None:
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)

    run()
    before = sum(os.times()[2:4])
    figures: dict[str, Any] = {"cold_s": round(measure.median_s(run, 5), 2), "cold_products": products}
    figures["cold_cpu_s"] = round((sum(os.times()[2:4]) - before) / 5, 2)
    traced = [sys.executable, "-X", "importtime", *command[1:]]
    done = subprocess.run(traced, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    for name in ("lancedb", "onnxruntime", "furnclip.search", "torch"):
        found = re.search(rf"\|\s*(\d+) \|\s*{re.escape(name)}$", done.stderr, re.MULTILINE)
        figures[f"cold_import_{name.replace('furnclip.', 'all_of_')}_s"] = (
            round(int(found.group(1)) / 1e6, 2) if found else None
        )
    searching = json.loads(done.stdout)["seconds"]
    return figures | {"cold_first_search_s": searching} | beside_torch(config)


def beside_torch(config: Config) -> dict[str, Any]:
    """Overlap of the top 10 of 300 texts with what torch finds, in float32 and in 8 bits."""
    words = ("walnut", "red", "oak", "velvet", "mid-century", "rustic", "tall", "glass", "grey", "small")
    kinds = ("sideboard", "chair", "lamp", "sofa", "bed", "desk")
    queries = [f"{word} {kind}{end}" for word in words for kind in kinds for end in ("", *map(str, range(4)))]
    searcher = Searcher(config)
    towers: Any = searcher.clip
    float32 = config.model.model_copy(update={"precision": "fp32"})
    exact = load_clip(config.model.name, float32).encode_texts(queries)

    def found(vectors_: np.ndarray) -> list[set[str]]:
        return [{hit.product_id for hit in searcher.nearest(vector, k=10)} for vector in vectors_]

    theirs = found(exact)
    figures: dict[str, Any] = {"cold_text_tower": towers.about.text}
    for name in sorted({"text.onnx", towers.about.text}):
        towers.text = name
        ours = found(towers.encode_texts(queries))
        shared = [len(one & other) / 10 for one, other in zip(ours, theirs, strict=True)]
        figures[f"overlap_{name.removesuffix('.onnx')}"] = round(float(np.mean(shared)), 4)
    return figures


# --- what is searched


def build(folder: Path, products: int, *, full_size: bool = False, exact_below: int = 10_000) -> Built:
    """A vector file and its table, as `furnclip embed` leaves them, from made-up vectors."""
    model, dimension = folder / "clip", DIMENSION
    if full_size:
        write_model(model, image_px=224, stub=False)
    else:
        build_tiny_clip(model, ["a red chair"], image_px=32, width=dimension, layers=1)
    (folder / "furnclip.toml").write_text(f'[model]\nname = "{model}"\ndevice = "cpu"\n')
    config = load_config(folder / "furnclip.toml", {"search": {"exact_below": exact_below}})
    clip = load_clip(str(model), config.model)
    provenance = vectors.Provenance(
        key="bench",
        models={
            "base": vectors.ModelProvenance(
                name=clip.name,
                fingerprint=clip.fingerprint,
                dimension=clip.dimension,
                image_px=clip.image_px,
                precision="fp32",
            )
        },
    )
    random = np.random.default_rng(0)
    centers = vectors.unit(random.normal(size=(max(10, products // 100), dimension)))
    queries = scattered(centers, QUERIES, random)
    best, red = Best(queries), Best(queries)
    schema = vectors.vector_schema(provenance, kinds=("image", "text", "vec"))
    config.paths.embeddings.mkdir(parents=True)
    with config.paths.vectors.open("wb") as file:
        write_row_groups(file, schema, tables(products, centers, schema, random, (best, red)))
    start = time.perf_counter()
    write_index(index_location(config), config.paths.vectors, config.search)
    build_s = time.perf_counter() - start
    write_beside(index_location(config).uri, config.paths.vectors, {"base": clip}, config)
    return Built(config, queries, best.rows, red.rows, build_s)


class Best:
    """The exact top 10 of a gallery that is never held whole."""

    def __init__(self, queries: np.ndarray) -> None:
        self._queries = queries
        self._scores = np.full((len(queries), 10), -np.inf, dtype=np.float32)
        self.rows = np.full((len(queries), 10), -1)

    def see(self, gallery: np.ndarray, rows: np.ndarray) -> None:
        scores, places = vectors.top_k(self._queries, gallery[rows % ROWS_AT_ONCE], 10)
        merged = np.concatenate([self._scores, scores], axis=1)
        merged_rows = np.concatenate([self.rows, rows[places]], axis=1)
        order = np.argsort(-merged, axis=1, kind="stable")[:, :10]
        self._scores = np.take_along_axis(merged, order, axis=1)
        self.rows = np.take_along_axis(merged_rows, order, axis=1)


def tables(
    products: int,
    centers: np.ndarray,
    schema: pa.Schema,
    random: np.random.Generator,
    seen: tuple[Best, Best],
) -> Iterator[pa.Table]:
    for start in range(0, products, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, products))
        gallery = scattered(centers, len(rows), random)
        seen[0].see(gallery, rows)
        seen[1].see(gallery, rows[rows % len(COLORS) == COLORS.index("red")])
        texts = {name: [""] * len(rows) for name in vectors.PRODUCT_COLUMNS}
        texts["product_id"] = [str(row) for row in rows]
        texts["color"] = [COLORS[row % len(COLORS)] for row in rows]
        texts["title"] = [f"{COLORS[row % len(COLORS)]} sideboard {row % 1000}" for row in rows]
        everywhere = np.ones(len(rows), dtype=bool)
        stored = vectors.vector_array(gallery, everywhere, "fp32")
        none = vectors.vector_array(gallery, ~everywhere, "fp32")
        columns = [pa.array(texts[name]) for name in vectors.PRODUCT_COLUMNS]
        yield pa.Table.from_arrays(
            [*columns, none, none, stored, pa.nulls(len(rows), pa.string())], schema=schema
        )


def scattered(centers: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Unit vectors around randomly chosen centers, (count, D)."""
    chosen = centers[random.integers(0, len(centers), count)]
    noise = random.normal(scale=0.9 / centers.shape[1] ** 0.5, size=chosen.shape)
    return vectors.unit(chosen + noise)


def timed(
    queries: np.ndarray, truth: np.ndarray, search: Callable[[np.ndarray], Any]
) -> tuple[float, float, float]:
    """Warm p50 and p95 in milliseconds, and recall@10."""
    for query in queries[:10]:
        search(query)
    seconds, right = [], 0
    for query, expected in zip(queries, truth, strict=False):
        start = time.perf_counter()
        found = search(query)
        seconds.append(time.perf_counter() - start)
        rows = {int(getattr(hit, "product_id", hit)) for hit in found}
        right += len(rows & set(expected.tolist()))
    p50_s, p95_s = np.percentile(seconds, [50, 95])
    return round(p50_s * 1000, 2), round(p95_s * 1000, 2), round(right / (10 * len(seconds)), 4)


def percentiles(name: str, search: Callable[[Any], object], items: list[Any]) -> dict[str, float]:
    """Warm p50 and p95 in milliseconds."""
    for item in items[:5]:
        search(item)
    found = np.percentile([measure.median_s(lambda item=item: search(item), 1) for item in items], [50, 95])
    return {
        f"{name}_p{share}_ms": round(float(s) * 1000, 2) for share, s in zip((50, 95), found, strict=True)
    }


if __name__ == "__main__":
    main()
