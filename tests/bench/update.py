"""One product changed among many: seconds of `prepare` and `embed`, what they write and hold in memory.

    python -m tests.bench.update [--quick] [--json]

20,000 and 200,000 products (`--quick`: 1,000), three of a family with one image of 32 pixels; BENCH_PRODUCTS
gives other numbers, and BENCH_FOLDER a folder that is kept, in which the next call goes on. Vectors of 512
numbers are drawn from a hash of image and caption, so that the encoder is not the cost. Each command is a
process of its own, its imports included. First all is made anew; then one product gets another title and
image, one is removed and one added, and what is timed is the two commands; the median of three such changes.
`one_product_s` is the sum at the largest number. `peak_mb` is of the process that held most, imports
included; of `train` it is that of a linear probe whose features are drawn as well.
`growth_kb`: what a product more adds to it, from the smallest to the largest number.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.bench import measure

DIMENSION = 512
SIDE_PX = 32
FAMILY = 3
WORDS = ("oak", "walnut", "velvet", "steel", "glass", "red", "blue", "chair", "table", "lamp", "shelf", "rug")


def main() -> None:
    if os.environ.get("BENCH_COMMAND"):
        return command(os.environ["BENCH_COMMAND"].split())
    arguments = measure.parse("update")
    given = os.environ.get("BENCH_PRODUCTS", "1000" if arguments.quick else "20000 200000")
    figures: dict[str, Any] = {}
    for products in map(int, given.split()):
        with tempfile.TemporaryDirectory() as name:
            kept = os.environ.get("BENCH_FOLDER")
            figures |= one_product(Path(kept) / str(products) if kept else Path(name), products)
            print(figures, file=sys.stderr)
    least, *_, most = [*map(int, given.split())] * 2
    for words in ("prepare", "embed", "train") if most > least else ():
        more_mb = figures[f"{most}_{words}_peak_mb"] - figures[f"{least}_{words}_peak_mb"]
        figures[f"{words}_growth_kb"] = round(1000 * more_mb / (most - least), 2)
    figures["one_product_s"] = figures[f"{products}_prepare_s"] + figures[f"{products}_embed_s"]
    measure.report("update", {}, figures, as_json=arguments.json)


def one_product(folder: Path, products: int) -> dict[str, Any]:
    if not (folder / "furnclip.toml").exists():
        write_shop(folder, products)
    found: dict[str, list[float]] = {}
    before = len([*folder.glob("images/new-*")])
    for number in range(4):
        kind = "one" if number else "all"
        if number:
            change(folder, before + number)
        for words in ("prepare", "embed"):
            seconds, written = run(folder, words)
            if words == "embed":  # of what `prepare` gives it
                assert written["products"] == products, written
            found.setdefault(f"{words}_{kind}_s", []).append(seconds)
            found.setdefault(f"{words}_{kind}_mb", []).append(written["written_mb"])
            found.setdefault(f"{words}_peak_mb", []).append(written["peak_mb"])
    _, trained = run(folder, "train --scenario linear_probe --epochs 1")
    found["train_peak_mb"] = [trained["peak_mb"]]
    shutil.rmtree(folder / "work/runs")  # or the next call embeds by it as well
    figures: dict[str, Any] = {
        f"{products}_{words}_peak_mb": max(found[f"{words}_peak_mb"])
        for words in ("prepare", "embed", "train")
    }
    for words in ("prepare", "embed"):
        figures[f"{products}_{words}_s"] = round(statistics.median(found[f"{words}_one_s"]), 2)
        figures[f"{products}_{words}_mb"] = round(statistics.median(found[f"{words}_one_mb"]), 1)
        figures[f"{products}_{words}_all_s"] = round(found[f"{words}_all_s"][0], 1)
    return figures


def write_shop(folder: Path, products: int) -> None:
    from examples.make_tiny_clip import build_tiny_clip

    (folder / "images").mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")  # as `change` writes: other bytes are judged anew
        writer.writerow(["product_id", "title", "image", "family", "price"])
        for number in range(products):
            family = number // FAMILY
            if number % FAMILY == 0:
                draw(folder / f"images/{family}.jpg", family)
            title = " ".join(chance.choices(WORDS, k=5)) + f" {family}"
            writer.writerow([f"p{number:07d}", title, f"{family}.jpg", f"f{family}", 10 + number % 500])
    build_tiny_clip(folder / "clip", ["a red chair"], image_px=SIDE_PX, width=DIMENSION, layers=1)
    (folder / "furnclip.toml").write_text(
        f'[model]\nname = "{folder / "clip"}"\ndevice = "cpu"\nprecision = "fp32"\n\n'
        f'[paths]\ngroup_column = "family"\n\n[prepare]\nimage_px = {SIDE_PX}\n\n[train]\nwise_ft = false\n'
    )


def draw(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=80)
    path.write_bytes(buffer.getvalue())


def change(folder: Path, number: int) -> None:
    path = folder / "products.csv"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    place = len(lines) // (number + 1)
    draw(folder / f"images/new-{number}.jpg", 10**9 + number)
    key, *_, family, price = lines[place].strip().split(",")
    lines[place] = f"{key},a changed chair {number},new-{number}.jpg,{family},{price}\n"
    del lines[place + 5]
    lines.append(f"n{number:07d},a new velvet lamp {number},new-{number}.jpg,{family},{price}\n")
    path.write_text("".join(lines), "utf-8")


def run(folder: Path, words: str) -> tuple[float, dict[str, Any]]:
    """Seconds of a furnclip command in a process of its own, and its JSON result with what it wrote."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.update"],
        env={**os.environ, "BENCH_COMMAND": f"{words} --json --config {folder / 'furnclip.toml'}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    said, *counted = done.stdout.strip().splitlines()[-3:]
    written_mb, peak_mb = (round(float(each), 1) for each in counted)
    print(f"{words}: {seconds:.1f} s, {written_mb} MB written, {peak_mb} MB in memory", file=sys.stderr)
    return seconds, {**json.loads(said), "written_mb": written_mb, "peak_mb": peak_mb}


def command(words: list[str]) -> None:
    """A furnclip command whose model draws its vectors; then the megabytes that it wrote and held."""
    from furnclip.cli.commands import app
    from furnclip.cli.imports import quick_imports

    if words[0] == "embed":
        with quick_imports():  # as the command does
            from furnclip.embed import pipeline
        from furnclip.model.light import LightEncoder

        load, write = pipeline.planning.load_models, pipeline.write_beside
        own = [draws(LightEncoder)]

        def load_models(*given: Any) -> Any:  # torch is imported where it is needed, and not before
            clips = load(*given)
            own.append(draws(type(clips["base"])))
            return clips

        def write_beside(*given: Any) -> None:  # it compares what models say, not what is drawn
            for kind, methods in own:
                for name, method in methods.items():
                    setattr(kind, name, method)
            write(*given)

        pipeline.planning.load_models, pipeline.write_beside = load_models, write_beside
    if words[0] == "train":
        from furnclip.train.encoder import TowerEncoder

        TowerEncoder.fill = fill_drawn
    try:
        app(words)
    except SystemExit as ended:
        if ended.code:
            raise
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    print(int(counts["write_bytes"]) / 1e6)
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    print(max(resource.getrusage(user).ru_maxrss for user in users) / 1e3)


def draws(kind: type) -> tuple[type, dict[str, Any]]:
    """Let a class of encoders draw its vectors; its own methods."""
    before = {name: getattr(kind, name) for name in ("encode_images", "encode_texts")}
    kind.encode_images = lambda self, images: drawn([image.tobytes() for image in images])
    kind.encode_texts = lambda self, texts: drawn([text.encode() for text in texts])
    return kind, before


def fill_drawn(
    encoder: Any, tower: str, data: Any, captions: list[str] | None = None, **_: object
) -> np.ndarray:
    """`TowerEncoder.fill` that draws features of a frozen tower, alike for image and captions of a family."""
    from furnclip.catalogue import content_hash
    from furnclip.features import feature_keys

    texts = data.fixed_captions() if captions is None else captions
    keys = data.image_keys if tower == "vision" else feature_keys(map(content_hash, texts))
    groups = [text.group.encode() for text in data.texts]
    encoder.stores[tower].fill(keys, lambda rows: drawn([groups[row] for row in rows]), chunk_size=4096)
    return keys


def drawn(contents: list[bytes]) -> np.ndarray:
    """Unit vectors (N, D), each of its content alone."""
    from furnclip.catalogue import content_hash
    from furnclip.vectors import unit

    seeds = [int(content_hash(content), 16) for content in contents]
    rows = [np.random.Generator(np.random.SFC64(seed)).standard_normal(DIMENSION) for seed in seeds]
    return unit(np.stack(rows)) if rows else np.empty((0, DIMENSION), dtype=np.float32)


if __name__ == "__main__":
    main()
