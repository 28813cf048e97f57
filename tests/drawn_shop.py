"""A handful of products drawn with a few rectangles: enough to tell a red chair from a blue bed."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {"red": (190, 40, 40), "blue": (40, 70, 180), "green": (40, 140, 60), "black": (30, 30, 30)}
MATERIALS = ("oak", "metal", "velvet")
# Boxes on a 100 x 100 grid: (left, top, right, bottom).
TYPES = {
    "chair": ((30, 20, 40, 90), (30, 55, 70, 65), (62, 55, 70, 90)),
    "table": ((15, 40, 85, 50), (20, 50, 28, 90), (72, 50, 80, 90)),
    "bed": ((10, 55, 90, 75), (10, 30, 18, 90), (82, 55, 90, 85)),
    "lamp": ((35, 10, 65, 35), (48, 35, 52, 85), (38, 85, 62, 90)),
}


def rows(products: int) -> list[dict[str, str]]:
    """Catalogue rows that walk through types, colours and materials, with shop-like titles."""
    colors, types = list(COLORS), list(TYPES)
    result = []
    for index in range(products):
        kind = types[index % len(types)]
        color = colors[(index // len(types)) % len(colors)]
        material = MATERIALS[(index // (len(types) * len(colors))) % len(MATERIALS)]
        result.append(
            {
                "product_id": f"P{index:05d}",
                "title": f"ACME {color} {material} {kind}, model {index} - FREE SHIPPING",
                "image": f"{index:05d}.jpg",
                "price": f"{99 + index}.00",
            }
        )
    return result


def captions() -> list[str]:
    """Every phrase the drawn shop can produce, for the tiny tokenizer."""
    return [f"a {color} {material} {kind}" for color in COLORS for material in MATERIALS for kind in TYPES]


def draw(row: dict[str, str], side_px: int = 100) -> Image.Image:
    """The picture of one row; position and background differ from row to row."""
    words = row["title"].split()
    color = next(COLORS[word] for word in words if word in COLORS)
    kind = next(word.strip(",") for word in words if word.strip(",") in TYPES)
    index = int(row["product_id"][1:])
    shade = 235 - (index * 7) % 40
    image = Image.new("RGB", (side_px, side_px + index % 5), (shade, shade, 255 - index % 30))
    pen = ImageDraw.Draw(image)
    shift, scale = (index * 13) % 11 - 5, side_px / 100
    for left, top, right, bottom in TYPES[kind]:
        box = [(left + shift) * scale, top * scale, (right + shift) * scale, bottom * scale]
        pen.rectangle(box, fill=color, outline=(20, 20, 20))
    pen.ellipse([5 + index % 80, 3, 9 + index % 80, 7], fill=(index * 5 % 255, 90, 90))
    return image


def write_shop(folder: Path, *, products: int, model: Path) -> Path:
    """`products.csv`, `images/` and `furnclip.toml` in `folder`; the folder."""
    images = folder / "images"
    images.mkdir(parents=True)
    table = rows(products)
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        draw(row).save(images / row["image"], quality=90)
    (folder / "furnclip.toml").write_text(
        f'[model]\nname = "{model}"\ndevice = "cpu"\nprecision = "fp32"\n\n[clean]\nbackend = "local"\n\n'
        "[eval]\nlatency_s = 0\n\n[prepare]\ntrain_fraction = 0.5\nvalidation_fraction = 0.25\n",
        encoding="utf-8",
    )
    return folder
