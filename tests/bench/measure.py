"""What every benchmark shares: medians, peak memory of a process tree, and one way to print.

Machines are noisy, so benchmarks quote medians and ratios of two things measured in turn in the
same run; nothing here asserts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil


def parse(topic: str, *, catalogue: str = "", products: int = 0) -> argparse.Namespace:
    """The two options every benchmark has; `catalogue` says what a catalogue of one's own has to hold.

    `products`: how many are measured, where one may ask for others.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{topic}")
    parser.add_argument("--quick", action="store_true", help="end within a minute on two cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if catalogue:
        parser.add_argument(
            "--catalogue", type=Path, metavar="DIR", help=f"a catalogue of yours: {catalogue}"
        )
    if products:
        parser.add_argument("--products", type=int, default=products, help="how many products, made up")
    return parser.parse_args()


def median_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall seconds of `work` over `repeats` calls."""
    return statistics.median(_seconds(work) for _ in range(repeats))


def interleaved_s(
    ours: Callable[[], object], rival: Callable[[], object], repeats: int = 3
) -> tuple[float, float]:
    """Median seconds of both, run in turn, so that a noisy minute hits them alike."""
    pairs = [(_seconds(ours), _seconds(rival)) for _ in range(repeats)]
    return statistics.median(first for first, _ in pairs), statistics.median(second for _, second in pairs)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mb(argv: Sequence[str], *, cwd: Path | None = None) -> tuple[float, float]:
    """Run a command; its wall seconds and the peak of its process tree's resident memory in MB.

    Memory is the sum of proportional shares (PSS) where the system tells it, so that pages shared
    between forked workers count once.
    """
    seconds, peaks = peaks_mb(argv, lambda: "all", cwd=cwd)
    return seconds, peaks["all"]


def peaks_mb(
    argv: Sequence[str], stage: Callable[[], str], *, cwd: Path | None = None
) -> tuple[float, dict[str, float]]:
    """As `peak_mb`, for each stage that the command went through: `stage` says where it is now."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, cwd=cwd, stdout=subprocess.DEVNULL)
    peak_bytes: dict[str, int] = {}
    while process.poll() is None:
        now = stage()
        peak_bytes[now] = max(peak_bytes.get(now, 0), _tree_bytes(process.pid))
        time.sleep(0.05)
    if process.returncode != 0:
        sys.exit(f"benchmark command failed with {process.returncode}: {' '.join(map(str, argv))}")
    return time.perf_counter() - start, {name: size / 1e6 for name, size in peak_bytes.items()}


def _tree_bytes(pid: int) -> int:
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_process_bytes(process) for process in processes)


def _process_bytes(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    except psutil.Error:
        return 0


def report(topic: str, ratios: Mapping[str, float], figures: Mapping[str, object], *, as_json: bool) -> None:
    """Print ratios (furnclip's rate / the rival's) and figures, as a table or one JSON object."""
    if as_json:
        print(json.dumps({"topic": topic, "ratios": ratios, "figures": figures}))
        return
    print(f"\n{topic}")
    for name, ratio in ratios.items():
        print(f"  {name:<28} {ratio:8.2f} x the rival's rate")
    for name, figure in figures.items():
        text = f"{figure:10.3f}" if isinstance(figure, float) else f"{figure!s:>10}"
        print(f"  {name:<28} {text}")
