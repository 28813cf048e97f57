"""Near-duplicates of `furnclip prepare`: what is missed, what is mixed, and time and memory at a million.

Missed: copies made of photographs (sizes, qualities, borders, crops, mirrored) that are not near to them.
Mixed: groups of one photograph whose products have several values in a column. Both need `--catalogue`;
without it, only the search is measured, on drawn products on white.

    python -m tests.bench.duplicates --catalogue DIR     DIR/products.csv with `image` and `type` columns
    python -m tests.bench.duplicates --quick
"""

from __future__ import annotations

import csv
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from furnclip.images import open_image
from furnclip.prepare.fingerprint import COLOR_PX, LIGHT_PX, NEAR, SAME, distances, fingerprint
from furnclip.prepare.nearby import near_pairs
from furnclip.prepare.ties import middles
from tests.bench.measure import parse, report

_COLUMNS = ("type", "object_type", "color")
_SEED = 0


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _bordered(image: Image.Image, share: float = 0.15) -> Image.Image:
    margin = round(share * max(image.size))
    wide = Image.new("RGB", (image.width + 2 * margin, image.height + margin), "white")
    wide.paste(image, (margin, margin // 2))
    return wide


def _cropped(image: Image.Image, share: float) -> Image.Image:
    """Without up to a share of each side, a different one each."""
    cut = np.random.default_rng(_SEED + sum(image.size)).random(4) * share
    width, height = image.size
    left, top, right, bottom = cut * [width, height, width, height]
    return image.crop((round(left), round(top), round(width - right), round(height - bottom)))


def _recolored(image: Image.Image) -> Image.Image:
    """Another hue for all that is not white."""
    hue, saturation, value = image.convert("HSV").split()
    saturation = saturation.point(lambda level: min(255, level + 60))
    other = Image.merge("HSV", (hue.point(lambda level: (level + 90) % 256), saturation, value)).convert(
        "RGB"
    )
    return Image.composite(other, image, image.convert("L").point(lambda level: 255 * (level < 235)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg_30": lambda image: _jpeg(image, 30),
    "jpeg_60": lambda image: _jpeg(image, 60),
    "size_0.5": lambda image: _scaled(image, 0.5),
    "size_0.37": lambda image: _scaled(image, 0.37),
    "size_1.7": lambda image: _scaled(image, 1.7),
    "white_border": _bordered,
    "square": lambda image: ImageOps.pad(image, (max(image.size),) * 2, color="white"),
    "crop_2": lambda image: _cropped(image, 0.02),
    "crop_5": lambda image: _cropped(image, 0.05),
    "mirrored": lambda image: _jpeg(ImageOps.mirror(image), 60),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.95),
    "several": lambda image: _jpeg(_scaled(_bordered(_cropped(image, 0.02), 0.1), 0.6), 70),
}


def _prints(images: list[Image.Image]) -> np.ndarray:
    return np.array([np.frombuffer(fingerprint(image), np.uint8) for image in images])


def _interval(hits: int, count: int) -> str:
    """A share with its 95 % interval (Wilson)."""
    share, spread = hits / max(1, count), 1.96**2 / max(1, count)
    middle, half = (
        share + spread / 2,
        1.96 * np.sqrt(share * (1 - share) / max(1, count) + spread**2 / 1.96**2 / 4),
    )
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return f"{share:.3f} [{low:.3f}, {high:.3f}] of {count}"


def missed(images: list[Image.Image]) -> dict[str, object]:
    """Recall of each kind of copy; a recolored one is to be no near-duplicate."""
    originals = _prints(images)
    figures: dict[str, object] = {}
    found: dict[str, int] = {}
    for name, copy in (COPIES | {"recolored": _recolored}).items():
        copies = _prints([copy(image) for image in images])
        ways = [distances(originals, copies, np.full(len(images), way), most=NEAR) for way in (False, True)]
        found[name] = int((np.minimum(*ways) <= NEAR).sum())
        figures[f"recall_{name}"] = _interval(found[name], len(images))
    recolored = found.pop("recolored")
    del figures["recall_recolored"]
    all_found, made = sum(found.values()), len(found) * len(images)
    return figures | {
        "recall": _interval(all_found, made),
        "recolored_called_near": _interval(recolored, len(images)),
    }


def mixed(prints: np.ndarray, rows: list[dict[str, str]]) -> dict[str, object]:
    """Groups of several products by their images, and how many of them mix the values of a column."""
    distinct, inverse = np.unique(prints, axis=0, return_inverse=True)
    pairs, apart = near_pairs(distinct)
    middle = middles(pairs[apart <= SAME], len(distinct))[inverse.ravel()]
    order = np.argsort(middle, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(middle[order])) + 1)
    groups = [group for group in groups if len(group) > 1]
    figures: dict[str, object] = {"products": len(rows), "groups": len(groups)}
    figures["largest_group"] = max(map(len, groups), default=1)
    for column in _COLUMNS:
        if column in rows[0]:
            several = sum(len({rows[row][column] for row in group.tolist()}) > 1 for group in groups)
            figures[f"mixed_{column}"] = _interval(several, len(groups))
    return figures


def on_photos(folder: Path, copied: int) -> dict[str, object]:
    """Both errors on a catalogue of one's own."""
    with (folder / "products.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    prints, kept = [], set(np.random.default_rng(_SEED).permutation(len(rows))[:copied].tolist())
    images: list[Image.Image] = []
    for number, row in enumerate(rows):
        image = open_image((folder / row["image"]).read_bytes(), longest_px=224, name=row["image"])
        prints.append(np.frombuffer(fingerprint(image), np.uint8))
        if number in kept:
            images.append(image)
    return missed(images) | mixed(np.array(prints), rows)


def white_products(count: int, photos: np.ndarray | None = None) -> np.ndarray:
    """Fingerprints of `count` products on white: much the same outlines, each inside and color its own.

    photos: fingerprints to take outlines from; drawn without. Every fiftieth is a near-duplicate.
    """
    chance = np.random.default_rng(_SEED)
    if photos is None:
        shapes = chance.integers(1, 4, (64, 2))
        photos = np.full((64, LIGHT_PX**2 + 2 * COLOR_PX**2 + 1), 128, dtype=np.uint8)
        for photo, (top, left) in zip(photos, shapes.tolist(), strict=True):
            light = np.full((LIGHT_PX, LIGHT_PX), 250)
            light[top : LIGHT_PX - 1, left : LIGHT_PX - left] = chance.integers(30, 180)
            photo[: LIGHT_PX**2] = light.ravel()
    made = np.empty((count, photos.shape[1]), dtype=np.uint8)
    for start in range(0, count, 2**14):
        base = photos[chance.integers(len(photos), size=min(2**14, count - start))].astype(np.float32)
        light = base[:, : LIGHT_PX**2].reshape(-1, LIGHT_PX // 2, 2, LIGHT_PX // 2, 2)
        light += chance.normal(0, 30, light[:, :, :1, :, :1].shape) * (light < 240)
        base[:, LIGHT_PX**2 : -1] += (
            chance.normal(0, 5, (len(base), 2, 1)).repeat(COLOR_PX**2, 2).reshape(len(base), -1)
        )
        made[start : start + len(base)] = base.clip(0, 255)
    again = chance.integers(count, size=count // 50)
    made[-len(again) or count :] = np.clip(
        made[again] + chance.integers(-2, 3, (len(again), made.shape[1])), 0, 255
    )
    return made


def pairs_growth(photos: np.ndarray | None = None) -> dict[str, float]:
    """Seconds of the search at 10,000 and 40,000 products on white, and their ratio."""
    seconds = {}
    for count in (10_000, 40_000):
        prints = np.unique(white_products(count, photos), axis=0)
        start = time.perf_counter()
        near_pairs(prints)
        seconds[count] = time.perf_counter() - start
    return {"pairs_10k_s": seconds[10_000], "pairs_40k_s": seconds[40_000]} | {
        "pairs_growth": seconds[40_000] / seconds[10_000]
    }


def large(count: int, photos: np.ndarray | None) -> dict[str, float]:
    """Seconds and peak memory of the search in this process, and what it found."""
    prints = white_products(count, photos)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    pairs, _ = near_pairs(prints)
    wall_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"large": count, "large_s": wall_s, "large_pairs": len(pairs), "large_before_mb": before_mb} | {
        "large_peak_mb": peak
    }


def main() -> None:
    options = parse("duplicates", catalogue="`products.csv` with `image` and `type` columns")
    figures: dict[str, object] = {}
    photos = None
    if options.catalogue:
        figures |= on_photos(options.catalogue, 100 if options.quick else 600)
        with (options.catalogue / "products.csv").open(newline="", encoding="utf-8") as file:
            named = [options.catalogue / row["image"] for row in csv.DictReader(file)][:2400]
        every = _prints([open_image(path.read_bytes(), longest_px=224, name=path.name) for path in named])
        photos = every[every[:, [0, LIGHT_PX - 1]].min(axis=1) > 235]  # light corners: on white
    figures |= pairs_growth(photos) | large(50_000 if options.quick else 1_000_000, photos)
    report("duplicates", {}, figures, as_json=options.json)


if __name__ == "__main__":
    main()
