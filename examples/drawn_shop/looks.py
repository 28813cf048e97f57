"""The vocabulary of the drawn shop: styles, materials, colors, and how each of them looks.

Every value is chosen for images a person can name, and so that the words of a title can be read
back from the image: a "green velvet sofa" is green and shines like velvet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .shading import Finish, Rgb


@dataclass(frozen=True)
class StyleTraits:
    """What a style does to the shape and the choice of materials."""

    legs: tuple[str, ...]
    backs: tuple[str, ...]
    arms: tuple[str, ...]
    handles: tuple[str, ...]
    fronts: tuple[str, ...]
    roundness: float
    woods: tuple[str, ...]
    upholstery: tuple[str, ...]
    colors: tuple[str, ...]
    metal: str
    tufted: float = 0.0


STYLES: dict[str, StyleTraits] = {
    "modern": StyleTraits(
        ("block", "sled"),
        ("solid", "shell"),
        ("track",),
        ("none", "bar"),
        ("plain",),
        0.25,
        ("walnut", "oak", "white", "black"),
        ("fabric", "leather"),
        ("gray", "white", "black", "blue"),
        "black",
    ),
    "mid-century modern": StyleTraits(
        ("tapered",),
        ("solid", "slats"),
        ("open", "track"),
        ("knob", "none"),
        ("plain", "slatted"),
        0.3,
        ("walnut", "walnut", "oak"),
        ("fabric", "leather"),
        ("orange", "green", "yellow", "blue", "gray"),
        "brass",
    ),
    "scandinavian": StyleTraits(
        ("tapered", "round"),
        ("slats", "shell"),
        ("open", "track"),
        ("knob", "none"),
        ("plain",),
        0.35,
        ("ash", "ash", "oak", "white"),
        ("fabric",),
        ("gray", "white", "beige", "blue", "pink"),
        "black",
    ),
    "industrial": StyleTraits(
        ("sled", "cross", "hairpin"),
        ("ladder", "solid"),
        ("metal",),
        ("bar", "cup"),
        ("plain", "mesh"),
        0.12,
        ("weathered oak", "walnut", "black"),
        ("leather", "fabric"),
        ("brown", "black", "gray"),
        "black",
    ),
    "rustic": StyleTraits(
        ("block",),
        ("ladder", "solid"),
        ("open",),
        ("ring", "cup"),
        ("planked", "crossed"),
        0.15,
        ("weathered oak", "pine"),
        ("leather", "fabric"),
        ("brown", "beige", "green", "red"),
        "black",
    ),
    "traditional": StyleTraits(
        ("turned",),
        ("spindles", "splat"),
        ("rolled",),
        ("knob", "ring"),
        ("panelled",),
        0.4,
        ("cherry", "mahogany", "walnut"),
        ("fabric", "leather", "velvet"),
        ("red", "green", "beige", "brown", "blue"),
        "brass",
        0.5,
    ),
    "art deco": StyleTraits(
        ("plinth", "brass"),
        ("fan", "solid"),
        ("barrel",),
        ("bar",),
        ("fluted", "sunburst"),
        0.45,
        ("black", "mahogany", "green", "blue"),
        ("velvet",),
        ("green", "blue", "pink", "purple", "black"),
        "brass",
        0.6,
    ),
    "bohemian": StyleTraits(
        ("hairpin", "round"),
        ("cane",),
        ("barrel", "open"),
        ("ring", "knob"),
        ("cane",),
        0.5,
        ("pine", "rattan", "rattan"),
        ("fabric", "velvet"),
        ("orange", "pink", "purple", "yellow", "green"),
        "brass",
        0.2,
    ),
    "farmhouse": StyleTraits(
        ("turned", "block"),
        ("cross", "spindles"),
        ("rolled",),
        ("cup", "knob"),
        ("crossed", "panelled"),
        0.35,
        ("white", "white", "pine", "green"),
        ("fabric",),
        ("white", "beige", "gray", "blue"),
        "black",
    ),
    "coastal": StyleTraits(
        ("round", "block"),
        ("ladder", "cane"),
        ("track", "rolled"),
        ("ring", "knob"),
        ("slatted", "planked"),
        0.4,
        ("white", "blue", "ash"),
        ("fabric", "rattan"),
        ("blue", "white", "beige", "green"),
        "silver",
    ),
}

# color -> (titles call it, what it looks like)
COLORS: dict[str, tuple[tuple[str, ...], Rgb]] = {
    "black": (("black", "ebony", "jet black"), (0.18, 0.18, 0.19)),
    "white": (("white", "ivory", "off-white"), (0.93, 0.92, 0.89)),
    "gray": (("gray", "grey", "charcoal", "slate"), (0.50, 0.51, 0.53)),
    "beige": (("beige", "cream", "sand", "oatmeal"), (0.83, 0.75, 0.61)),
    "brown": (("brown", "chocolate", "cognac"), (0.45, 0.27, 0.15)),
    "red": (("red", "burgundy", "crimson"), (0.70, 0.13, 0.13)),
    "orange": (("orange", "terracotta", "rust"), (0.87, 0.42, 0.14)),
    "yellow": (("yellow", "mustard"), (0.90, 0.70, 0.16)),
    "green": (("green", "emerald", "sage", "olive"), (0.18, 0.45, 0.27)),
    "blue": (("blue", "navy", "teal"), (0.16, 0.33, 0.60)),
    "purple": (("purple", "plum", "lavender"), (0.44, 0.22, 0.52)),
    "pink": (("pink", "blush", "rose"), (0.90, 0.58, 0.62)),
}

# finish of a wood -> (color in the truth, light tone, dark tone)
WOODS: dict[str, tuple[str, Rgb, Rgb]] = {
    "oak": ("brown", (0.76, 0.58, 0.37), (0.62, 0.44, 0.25)),
    "weathered oak": ("brown", (0.60, 0.42, 0.25), (0.35, 0.22, 0.12)),
    "walnut": ("brown", (0.44, 0.28, 0.18), (0.28, 0.16, 0.10)),
    "cherry": ("brown", (0.56, 0.27, 0.16), (0.42, 0.17, 0.10)),
    "mahogany": ("brown", (0.42, 0.17, 0.12), (0.28, 0.09, 0.07)),
    "ash": ("beige", (0.87, 0.76, 0.60), (0.77, 0.64, 0.46)),
    "pine": ("beige", (0.89, 0.72, 0.47), (0.76, 0.54, 0.29)),
    "rattan": ("beige", (0.80, 0.63, 0.40), (0.60, 0.43, 0.24)),
    "white": ("white", (0.93, 0.92, 0.90), (0.88, 0.87, 0.84)),
    "black": ("black", (0.21, 0.20, 0.20), (0.15, 0.15, 0.15)),
    "green": ("green", (0.26, 0.44, 0.34), (0.22, 0.38, 0.29)),
    "blue": ("blue", (0.24, 0.38, 0.55), (0.20, 0.33, 0.49)),
}
PAINTED_WOODS = ("white", "black", "green", "blue")

METALS: dict[str, Rgb] = {
    "black": (0.19, 0.19, 0.20),
    "brass": (0.80, 0.62, 0.28),
    "silver": (0.72, 0.74, 0.77),
    "white": (0.92, 0.92, 0.92),
    "copper": (0.77, 0.46, 0.32),
}
METAL_COLORS = {"black": "black", "brass": "gold", "silver": "silver", "white": "white", "copper": "orange"}


def tinted(color: Rgb, factor: float, towards: float = 0.0) -> Rgb:
    """`color` made darker or lighter by a factor, then mixed with a gray level."""
    red, green, blue = (min(1.0, max(0.0, channel * factor)) for channel in color)
    keep = 1 - abs(towards)
    add = towards if towards > 0 else 0.0
    return (red * keep + add, green * keep + add, blue * keep + add)


def jitter(color: Rgb, generator: np.random.Generator, amount: float = 0.05) -> Rgb:
    """A neighbor of `color`: two shops' navy are not the same navy."""
    shift = generator.normal(0, amount, 3) * 0.5 + generator.normal(0, amount)
    red, green, blue = (float(np.clip(c + s, 0.02, 0.97)) for c, s in zip(color, shift, strict=True))
    return (red, green, blue)


def wood(name: str, generator: np.random.Generator) -> Finish:
    """Planed or painted wood."""
    _, light, dark = WOODS[name]
    if name == "rattan":
        return Finish(jitter(light, generator, 0.03), dark, "cane", 0.55)
    tile_strength = jitter(light, generator, 0.025)
    painted = name in PAINTED_WOODS
    return Finish(tile_strength, dark, "wood", 0.5, 3.0, gloss=0.25 if painted else 0.12)


def cloth(material: str, color: Rgb) -> Finish:
    """Something to sit on: fabric, velvet, leather, rattan, plastic."""
    dark = tinted(color, 0.66)
    light = tinted(color, 1.0, 0.16)
    finishes = {
        "fabric": Finish(light, dark, "weave", 0.9),
        "velvet": Finish(
            tinted(color, 0.78), tinted(color, 1.0, 0.22), "velvet", 0.7, gloss=0.12, sheen=0.55
        ),
        "leather": Finish(color, tinted(color, 0.6), "leather", 0.55, gloss=0.55),
        "rattan": Finish(tinted(color, 1.05), tinted(color, 0.5), "cane", 0.5),
        "plastic": Finish(color, color, "plain", gloss=0.75),
    }
    return finishes[material]


def metal(name: str) -> Finish:
    color = METALS[name]
    return Finish(color, tinted(color, 0.8), "brushed", 0.6, 4.0, gloss=0.95)


def stone(color: Rgb) -> Finish:
    vein = tinted(color, 0.45) if sum(color) > 1.2 else tinted(color, 1.0, 0.6)
    return Finish(color, vein, "marble", 0.9, gloss=0.5)


def glass() -> Finish:
    return Finish((0.74, 0.86, 0.86), (0.95, 0.99, 0.99), "streaks", 0.8, gloss=0.9)


def mirror_glass() -> Finish:
    return Finish((0.76, 0.83, 0.88), (0.96, 0.98, 1.0), "streaks", 1.0, gloss=0.3, glow=0.25)


def glowing(finish: Finish, amount: float) -> Finish:
    return replace(finish, glow=amount)
