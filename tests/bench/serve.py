"""`furnclip serve` under 16 clients, against the server that people write; cold start and memory.

    python -m tests.bench.serve [--quick] [--json]

100,000 products (20,000 with `--quick`) with vectors in clusters, and a ViT-B/32 with random weights, whose
text tower costs what a trained one does. The rival is FastAPI, transformers and numpy's exact product, one
request at a time. Sixteen clients keep their connections and ask by meaning (`mode=vector`), as the rival
does, each query once; `hybrid_*` are the same with words as well, the default. Servers take turns on the
machine of the clients.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np
import psutil

from furnclip import vectors
from tests.bench import measure, search

CLIENTS = 16
WORDS = ("walnut", "oak", "velvet", "red", "small", "round", "modern", "sofa", "table", "lamp", "bed")
PLAIN = """
import json, sys
import numpy as np, torch, uvicorn
from fastapi import FastAPI
from transformers import CLIPModel, CLIPTokenizerFast

folder, port = sys.argv[1], int(sys.argv[2])
model = CLIPModel.from_pretrained(f"{folder}/clip").eval()
tokenizer = CLIPTokenizerFast.from_pretrained(f"{folder}/clip")
gallery = np.load(f"{folder}/vectors.npy")
products = json.load(open(f"{folder}/products.json"))
app = FastAPI()

@app.get("/ready")
async def ready():
    return {"status": "ready"}

@app.get("/search")
async def search(q: str, k: int = 10):
    with torch.inference_mode():
        tokens = tokenizer([q], padding=True, truncation=True, return_tensors="pt")
        found = model.text_projection(model.text_model(**tokens).pooler_output)[0].numpy()
    scores = gallery @ (found / np.linalg.norm(found))
    best = np.argpartition(-scores, k)[:k]
    best = best[np.argsort(-scores[best])]
    return {"hits": [{**products[row], "score": float(scores[row])} for row in best]}

uvicorn.run(app, port=port, log_level="error")
"""


def main() -> None:
    arguments = measure.parse("serve")
    products, seconds = (20_000, 4.0) if arguments.quick else (100_000, 20.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, products)
        ours = [sys.executable, "-m", "furnclip", "serve", "--port", "8399"]
        plain = [sys.executable, "-c", PLAIN, str(folder), "8399"]
        figures: dict[str, Any] = {"products": products}
        rates: dict[str, list[float]] = {"": [], "hybrid_": [], "plain_": []}
        for turn in range(1 if arguments.quick else 3):
            for prefix, command, mode in (("", ours, "&mode=vector"), ("plain_", plain, "")):
                with running(command, folder) as (process, cold_s):
                    measured = load(seconds, mode, turn)
                    rates[prefix].append(measured["requests_per_s"])
                    figures |= {f"{prefix}{key}": value for key, value in measured.items()}
                    figures[f"{prefix}cold_s"], figures[f"{prefix}memory_mb"] = cold_s, memory_mb(process)
                    if not prefix:
                        hybrid = load(seconds, "&mode=hybrid", turn + 10)
                        rates["hybrid_"].append(hybrid["requests_per_s"])
                        figures |= {f"hybrid_{key}": value for key, value in hybrid.items()}
                print(figures, file=sys.stderr)
    medians = {prefix: statistics.median(found) for prefix, found in rates.items()}
    figures |= {f"{prefix}requests_per_s": round(median, 1) for prefix, median in medians.items()}
    ratios = {"plain": round(medians[""] / medians["plain_"], 2)}
    measure.report("serve", ratios, figures, as_json=arguments.json)


def build(folder: Path, products: int) -> None:
    """A table and its towers as `furnclip embed` leaves them, and the same vectors for the rival."""
    config = search.build(folder, products, full_size=True).config
    with (folder / "furnclip.toml").open("a") as file:
        file.write("[serve]\naccess_log = false\n")
    table = vectors.VectorTable(config.paths.vectors)
    np.save(folder / "vectors.npy", table.matrix("vec_clip_base"))
    (folder / "products.json").write_text(json.dumps(table.products))


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A server, and the seconds until it was ready."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        while ask(http.client.HTTPConnection("127.0.0.1", 8399), "/ready") != 200:
            if process.poll() is not None:
                raise SystemExit("the server ended")
            time.sleep(0.02)
        yield process, round(time.perf_counter() - start, 2)
    finally:
        process.terminate()
        process.wait()


def ask(connection: http.client.HTTPConnection, path: str) -> int:
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    except OSError:
        connection.close()
        return 0


def load(seconds: float, mode: str, seed: int) -> dict[str, float]:
    """Requests a second and percentiles of their time, of clients that ask without a pause."""
    times_s: list[float] = []
    failed: list[int] = []
    begun = time.perf_counter()
    end = begun + seconds

    def client(number: int) -> None:
        random = np.random.default_rng((seed, number))
        connection = http.client.HTTPConnection("127.0.0.1", 8399)
        while (start := time.perf_counter()) < end:
            words = " ".join(random.choice(WORDS, size=random.integers(2, 6)))
            status = ask(connection, f"/search?q={quote_plus(f'{words} {len(times_s)}')}&k=10{mode}")
            times_s.append(time.perf_counter() - start)
            if status != 200:
                failed.append(status)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, p95, p99 = np.percentile(np.array(times_s) * 1000, [50, 95, 99]).round(1).tolist()
    rate = round((len(times_s) - len(failed)) / (time.perf_counter() - begun), 1)
    return {"requests_per_s": rate, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "failed": len(failed)}


def memory_mb(process: subprocess.Popen[bytes]) -> int:
    return psutil.Process(process.pid).memory_info().rss >> 20


if __name__ == "__main__":
    main()
