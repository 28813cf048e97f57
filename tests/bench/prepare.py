"""`furnclip prepare` against the plain approach, and its memory on 50,000 products.

The rival does what the usual script does: one process, full decode, LANCZOS, letterbox, JPEG 95,
`webdataset.ShardWriter`. It looks for no duplicates and splits by row; furnclip does both in its time.

    python -m tests.bench.prepare            2,000 photos of 2,000 px, 8,000 of 500 px, 50,000 products
    python -m tests.bench.prepare --quick    a tenth and less
"""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from tests.bench.duplicates import pairs_growth
from tests.bench.measure import interleaved_s, parse, peak_mb, report

_BASES = 12


def draw_photos(folder: Path, count: int, side_px: int) -> None:
    """A catalogue of `count` different JPEG photos: light, texture and grain, 0.15 byte a pixel."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(side_px)
    bases = [_photo(generator, side_px) for _ in range(_BASES)]
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["product_id", "title", "image", "style", "material", "color", "object_type"])
        for number in range(count):
            image = np.roll(bases[number % _BASES], generator.integers(side_px, size=2), axis=(0, 1))
            Image.fromarray(image).save(folder / f"images/{number:06d}.jpg", quality=85)
            words = [random.Random(f"{number}{kind}").choice(_WORDS[kind]) for kind in _WORDS]
            writer.writerow(
                [f"p{number:06d}", f"{' '.join(words)} no. {number}", f"{number:06d}.jpg", *words]
            )


_WORDS = {
    "style": ["modern", "rustic", "industrial"],
    "material": ["oak", "steel", "velvet"],
    "color": ["black", "white", "green"],
    "object_type": ["chair", "table", "sofa", "lamp"],
}


def _photo(generator: np.random.Generator, side_px: int) -> np.ndarray:
    layers = zip((6, side_px // 12, side_px), (0.75, 0.2, 0.05), strict=True)
    total = np.zeros((side_px, side_px, 3), dtype=np.float32)
    for cells, weight in layers:
        noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += weight * np.asarray(
            Image.fromarray(noise).resize((side_px, side_px), Image.Resampling.BICUBIC)
        )
    return total.astype(np.uint8)


def plain(folder: Path, out: Path, side_px: int = 224) -> None:
    """What a script without furnclip does."""
    out.mkdir(parents=True, exist_ok=True)
    with (folder / "products.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with webdataset.ShardWriter(f"file:{out}/shard-%06d.tar", maxcount=5000, verbose=0) as sink:
        for number, row in enumerate(rows):
            image = Image.open(folder / "images" / row["image"]).convert("RGB")
            scale = side_px / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            square = Image.new("RGB", (side_px, side_px), (255, 255, 255))
            square.paste(
                image.resize(size, Image.Resampling.LANCZOS),
                ((side_px - size[0]) // 2, (side_px - size[1]) // 2),
            )
            about = {"product_id": row["product_id"], "fields": row}
            sink.write({"__key__": f"{number:09d}", "jpg": _jpeg(square), "txt": row["title"], "json": about})


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def furnclip(folder: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "furnclip", "prepare", *arguments],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def compare(folder: Path, count: int, side_px: int) -> tuple[float, dict[str, float]]:
    """furnclip's rate over the rival's, and both times."""
    draw_photos(folder, count, side_px)
    ours_s, rival_s = interleaved_s(
        lambda: furnclip(folder, "--fresh"), lambda: plain(folder, folder / "rival"), repeats=1
    )
    name = f"photos_{side_px}px"
    return rival_s / ours_s, {f"{name}_s": ours_s, f"{name}_rival_s": rival_s}


def large_catalogue(folder: Path, count: int) -> dict[str, float]:
    """Wall time and peak memory of a first and a second run."""
    draw_photos(folder, count, 320)
    command = [sys.executable, "-m", "furnclip", "prepare", "--json"]
    first_s, first_mb = peak_mb(command, cwd=folder)
    second_s, second_mb = peak_mb(command, cwd=folder)
    manifest = json.loads((folder / "work/shards/manifest.json").read_text(encoding="utf-8"))
    return {
        "products": count,
        "products_in_shards": sum(
            manifest["splits"][name]["samples"] for name in ("train", "validation", "test")
        ),
        "wall_s": first_s,
        "peak_mb": first_mb,
        "second_run_s": second_s,
        "second_run_peak_mb": second_mb,
    }


def million_rows(folder: Path, count: int) -> dict[str, float]:
    """Reading alone: a CSV of `count` rows, streamed."""
    path = folder / "million.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["product_id", "title", "image"])
        writer.writerows((f"p{number}", f"Sofa Nº {number}", f"{number}.jpg") for number in range(count))
    script = (
        "import sys; from pathlib import Path; from furnclip.catalogue import read_products; "
        "from furnclip.config import DataPaths; "
        "print(sum(1 for _ in read_products(Path(sys.argv[1]), DataPaths())))"
    )
    wall_s, mb = peak_mb([sys.executable, "-c", script, str(path)])
    return {"read_rows": count, "read_rows_s": wall_s, "read_rows_peak_mb": mb}


def main() -> None:
    options = parse("prepare")
    photos, products, rows = (300, 1500, 100_000) if options.quick else (2000, 50_000, 1_000_000)
    ratios, figures = {}, {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for side_px, count in ((2000, photos), (500, max(4 * photos, 800))):  # starting takes a second
            ratio, measured = compare(root / str(side_px), count, side_px)
            ratios[f"photos_{side_px}px"] = ratio
            figures |= measured
        figures |= large_catalogue(root / "large", products)
        figures |= million_rows(root, rows)
    figures |= pairs_growth()
    report("prepare", ratios, figures, as_json=options.json)


if __name__ == "__main__":
    main()
