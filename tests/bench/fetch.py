"""Images from a local web server into a folder: `furnclip fetch` against `img2dataset`.

5,000 JPEGs of 50 KB from a server, a process of its own, that waits 20 ms before each answer. Both are run as
they are used, take turns, keep every image as it was sent (img2dataset: not resized, not encoded, as plain
files) and have 64 requests under way at once (img2dataset: two processes, with a shard for each). A rate is
that of the download alone, from the first request to the last answer, as the server saw it: the time to
start, of which the rival needs more, is left out. Memory is the peak of the whole process tree.

`hostile`: the same with 20 images each of a server that stalls, drips, resets, lies, sends pages for images
or in circles; the figure is how long it takes until every address is counted, with fast limits.

IMG2DATASET in the environment names the program where it is installed elsewhere: its pins are old.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import parse, peak_mb, report

SIZE_BYTES, LATENCY_S, AT_ONCE = 50_000, 0.02, 64
RIVAL = os.environ.get("IMG2DATASET", "img2dataset")
ALLOWED = {"FURNCLIP_FETCH__ALLOW_PRIVATE": "localhost"}
HOSTILE = (
    *("ok", "stall", "drip", "reset", "short", "cut", "html", "circle", "home", "busy", "later", "broken"),
    *("gone", "huge", "endless", "garbage"),
)


def main() -> None:
    """Measure and print."""
    options = parse("fetch")
    count, repeats = (1000, 1) if options.quick else (5000, 3)
    os.environ.update(ALLOWED)
    found: dict[str, list[tuple[float, float]]] = {"furnclip": [], "img2dataset": []}
    # All are removed at the end: ext4 is slow to create files for a minute after thousands were removed.
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            names = list(found) if number % 2 else list(reversed(found))
            for name in names:
                found[name].append(measure(name, count, Path(folder, f"{name}-{number}")))
    rates = {name: statistics.median(rate for rate, _ in runs) for name, runs in found.items()}
    memory = {name: statistics.median(peak for _, peak in runs) for name, runs in found.items()}
    figures: dict[str, object] = {f"{name}_images_s": rate for name, rate in rates.items()}
    figures |= {f"{name}_peak_mb": peak for name, peak in memory.items()}
    figures["hostile_s"] = hostile(5 if options.quick else 20)
    figures["load"] = os.getloadavg()[0]
    report("fetch", {"img2dataset": rates["furnclip"] / rates["img2dataset"]}, figures, as_json=options.json)


@contextmanager
def server() -> Iterator[str]:
    """The address of a new server."""
    command = [sys.executable, "-m", "tests.image_server", str(SIZE_BYTES), str(LATENCY_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://localhost:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def measure(name: str, count: int, folder: Path) -> tuple[float, float]:
    """Images a second, and peak memory in MB, of one program and a new server."""
    folder.mkdir()
    with server() as address:
        names = [f"{address}/ok/{number}.jpg" for number in range(count)]
        command = {"furnclip": ours, "img2dataset": rivals}[name](folder, names)
        _, memory_mb = peak_mb(command, cwd=folder)
        seen = json.loads(urllib.request.urlopen(f"{address}/counts").read())
    kept = [path for path in (folder / "images").rglob("*.jpg") if path.stat().st_size > SIZE_BYTES / 2]
    if len(kept) != count:
        sys.exit(f"{name} kept {len(kept)} of {count} images")
    return count / seen["seconds"], memory_mb


def ours(folder: Path, addresses: list[str]) -> list[str]:
    rows = [f"p{number},Sofa {number},{address}" for number, address in enumerate(addresses)]
    (folder / "products.csv").write_text("\n".join(["product_id,title,image", *rows]))
    flags = ["--concurrency", str(AT_ONCE), "--per-host", str(AT_ONCE), "--json"]
    return [sys.executable, "-m", "furnclip", "fetch", *flags]


def rivals(folder: Path, addresses: list[str]) -> list[str]:
    (folder / "addresses.txt").write_text("\n".join(addresses))
    settings = {
        "url_list": "addresses.txt",
        "output_folder": "images",
        "processes_count": 2,
        "thread_count": AT_ONCE // 2,
        "number_sample_per_shard": -(-len(addresses) // 2),
        "resize_mode": "no",
        "disable_all_reencoding": True,
    }
    return [RIVAL, *(f"--{name}={value}" for name, value in settings.items())]


def hostile(each: int) -> float:
    """Seconds until every address of a server that misbehaves is counted."""
    limits = {"ATTEMPTS": "2", "READ_TIMEOUT_S": "1", "TOTAL_TIMEOUT_S": "3"}
    environment = {**os.environ, **{f"FURNCLIP_FETCH__{name}": value for name, value in limits.items()}}
    with tempfile.TemporaryDirectory() as folder, server() as address:
        names = [f"{address}/{kind}/{number}.jpg" for number in range(each) for kind in HOSTILE]
        command, start = ours(Path(folder), names), time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
        seconds, found = time.perf_counter() - start, json.loads(done.stdout)
    if found["fetched"] + sum(found["failed"].values()) != len(names) or found["fetched"] != 2 * each:
        sys.exit(f"addresses are missing: {found}")
    return seconds


if __name__ == "__main__":
    main()
