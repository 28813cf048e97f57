"""The README's table of benchmarks, made from what the benchmarks printed.

    python -m tests.bench.embed --json > embed.json
    python -m tests.bench.tools.make_benchmark_table *.json --machine "2 cores of an Intel Xeon, 16 GB"

In: the JSON object of each benchmark, on any line of its file. Out: the part of `README.md` between its two
`<!-- benchmarks -->` marks. A topic without a file keeps the line that it had.
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
# topic -> what is measured, against what, and the figures worth a place beside the ratios
TOPICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "help": ("`furnclip --help` in a fresh process", "", ("help_s",)),
    "clean": (
        "pictures and titles to batch requests; answers to `cleaned.csv`",
        "full decode in one process; a pandas loop",
        ("peak_mb",),
    ),
    "prepare": ("catalogue to shards", "decode, resize, `webdataset.ShardWriter`", ("peak_mb",)),
    "storage": ("shards and small files to a local S3 server and back", "`aws s3 sync`", ()),
    "train": ("a step of each scenario at the exact large batch; memory", "a plain PyTorch + PEFT loop", ()),
    "embed": (
        "JPEG to vector file, ViT-B/32",
        "plain loop, bare model, `open_clip`, `sentence-transformers`",
        ("encoding_peak_growth", "peak_growth"),
    ),
    "search": (
        "a query among 100,000 vectors of 512 numbers, product fields included",
        "exact numpy, `faiss`",
        (
            *("p50_ms", "filtered_p50_ms", "hybrid_p50_ms", "recall_at_10", "filtered_recall_at_10"),
            *("million_p50_ms", "million_recall_at_10", "million_peak_mb"),
        ),
    ),
    "arena": ("from the key press to the next query with its pictures", "", ("next_query_p95_ms",)),
}


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
    yield f"\nOn {machine}. A ratio is furnclip's rate over the rival's: above 1, furnclip is faster.\n"
    yield "| `tests.bench.` | measured | against | result |"
    yield "| --- | --- | --- | --- |"
    for topic, (measured, rival, figures) in TOPICS.items():
        kept = next((line for line in old if line.startswith(f"| `{topic}` ")), "")
        if topic in results or not kept:
            result = _result(results[topic], figures) if topic in results else "not measured yet"
            kept = f"| `{topic}` | {measured} | {rival} | {result} |"
        yield kept


def _result(found: Mapping[str, Any], figures: Sequence[str]) -> str:
    ratios = [f"{name} {value:.2f} x" for name, value in found["ratios"].items()]
    return ", ".join([*ratios, *(f"{name} {found['figures'][name]:.4g}" for name in figures)])


if __name__ == "__main__":
    main()
