"""The README's table of measured results, made from what the benchmarks printed.

    python -m tests.bench.embed --json > embed.json
    python -m tests.bench.tools.make_benchmark_table *.json --machine "2 cores of an Intel Xeon, 16 GB"

In: the JSON object of each benchmark, on any line of its file. Out: the part of `README.md` between its two
`<!-- benchmarks -->` marks. A line whose topic has no file keeps its result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from furnclip.journal import write_text

README = Path(__file__).parents[3] / "README.md"
MARK = "<!-- benchmarks -->"
_FASTER = "{%s:.1f} times as fast"
# topic, task, compared with, result as a format of the topic's ratios and figures
LINES = (
    (
        "clean",
        "build Batch API requests from images and titles",
        "full decode, one process",
        _FASTER % "prepare",
    ),
    ("prepare", "pack photos of 2,000 px into shards", "Pillow and `webdataset`", _FASTER % "photos_2000px"),
    ("prepare", "pack photos of 500 px into shards", "Pillow and `webdataset`", _FASTER % "photos_500px"),
    ("fetch", "fetch images of 50 KB from a local server", "`img2dataset`", _FASTER % "img2dataset"),
    ("train", "a `dual_lora` step, exact large batch", "plain PyTorch and PEFT", _FASTER % "dual_lora"),
    ("embed", "embed products with ViT-B/32", "`sentence-transformers`", _FASTER % "sentence_transformers"),
    ("embed", "embed products with ViT-B/32", "`open_clip`", _FASTER % "open_clip"),
    ("search", "one query among 100,000 products", "exact search with `faiss`", _FASTER % "faiss_exact"),
    (
        "search",
        "one query among 100,000 products",
        "approximate search with `faiss`, row numbers only",
        _FASTER % "faiss_ivf",
    ),
    (
        "search",
        "the same: median latency, recall of the ten nearest",
        "",
        "{p50_ms:.1f} ms, {recall_at_10:.3f}",
    ),
    ("search", "one query among 1,000,000 products: median latency", "", "{million_p50_ms:.0f} ms"),
)


def main() -> None:
    """Read the files and put their figures into the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", type=Path, nargs="+", help="what `python -m tests.bench.TOPIC --json` printed"
    )
    parser.add_argument("--machine", required=True, help="what they ran on, for the table's title")
    arguments = parser.parse_args()
    before, old, after = README.read_text("utf-8").split(MARK)
    results = {found["topic"]: found for path in arguments.results for found in _objects(path)}
    table = "\n".join(_table(results, old.splitlines(), machine=arguments.machine))
    write_text(README, f"{before}{MARK}\n{table}\n{MARK}{after}")


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        if line.startswith('{"topic"'):
            yield json.loads(line)


def _table(results: Mapping[str, Mapping[str, Any]], old: Sequence[str], *, machine: str) -> Iterator[str]:
    yield f"\nOn {machine}. Both sides on the same input.\n"
    yield "| task | compared with | furnclip |"
    yield "| --- | --- | --- |"
    for topic, task, rival, result in LINES:
        start = f"| {task} | {rival} | "
        kept = next((line for line in old if line.startswith(start)), f"{start}not measured yet |")
        if topic in results:
            found = results[topic]
            kept = f"{start}{result.format_map({**found['figures'], **found['ratios']})} |"
        yield kept


if __name__ == "__main__":
    main()
