"""What is decided about a piece before it is built, and the joinery that pieces share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from ..looks import StyleTraits
from ..solids import Mesh, Span


class Slot(IntEnum):
    """Which finish a part has."""

    BODY = 0  # what the piece's material and color are about
    FRAME = 1  # legs and skeleton
    TRIM = 2  # handles, edges
    SOFT = 3  # pillows, bedding, lamp shade
    DARK = 4
    PALE = 5
    GLASS = 6
    GREEN = 7
    RED = 8
    BLUE = 9
    SAND = 10
    PICTURE = 11
    INNER = 12  # the shaded inside of a cabinet


_HIGHEST_PLINTH_M = 0.2
BOOK_SLOTS = (Slot.RED, Slot.BLUE, Slot.SAND, Slot.GREEN, Slot.PALE, Slot.DARK)


class Dice:
    """Random choices in the words that furniture is described with."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def chance(self, share: float) -> bool:
        return bool(self.generator.random() < share)

    def between(self, low: float, high: float) -> float:
        return float(self.generator.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(self.generator.integers(low, high + 1))

    def sign(self) -> int:
        return 1 if self.chance(0.5) else -1

    def pick(self, options: Sequence[str]) -> str:
        return options[self.count(0, len(options) - 1)]


@dataclass
class Design:
    """One product as it will be drawn and described.

    `shape` decides what variants of a product share, `surface` what they do not: color, room, camera.
    """

    kind: str
    style: str
    traits: StyleTraits
    material: str
    legs: str
    shape: Dice
    surface: Dice
    color: str = ""
    details: list[str] = field(default_factory=list)

    def add_detail(self, detail: str) -> None:
        if detail not in self.details:
            self.details.append(detail)


def legs(mesh: Mesh, design: Design, x: Span, y: Span, height: float) -> None:
    """What the piece stands on: four legs, a sled, a plinth ..., under the rectangle x, y."""
    builders = {
        "plinth": _plinth,
        "sled": _sled,
        "cross": _cross,
        "hairpin": _hairpin,
        "turned": _turned,
        "block": _block,
    }
    kind = "brass" if design.legs == "plinth" and height > _HIGHEST_PLINTH_M else design.legs
    builders.get(kind, _splayed)(mesh, design, x, y, height)


def _corners(x: Span, y: Span, inset: float) -> list[tuple[float, float]]:
    return [(px, py) for px in (x[0] + inset, x[1] - inset) for py in (y[0] + inset, y[1] - inset)]


def _splayed(mesh: Mesh, design: Design, x: Span, y: Span, height: float) -> None:
    """Round legs: leaning outwards for `tapered`, straight for `round`, of metal in art deco."""
    lean = 0.16 * height if design.legs == "tapered" else 0.0
    thick = 0.026 if design.legs != "round" else 0.032
    middle = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2)
    for px, py in _corners(x, y, 0.05 + lean * 0.6):
        foot = (px + lean * np.sign(px - middle[0]), py + lean * np.sign(py - middle[1]), 0.0)
        low = 0.6 * thick if design.legs != "round" else thick
        slot = Slot.TRIM if design.legs in ("brass", "plinth") else Slot.FRAME
        mesh.post(slot, foot, (px, py, height), (low, thick), sides=8)


def _block(mesh: Mesh, design: Design, x: Span, y: Span, height: float) -> None:
    half = 0.028
    for px, py in _corners(x, y, half):
        mesh.box(Slot.FRAME, (px - half, px + half), (py - half, py + half), (0, height))


def _turned(mesh: Mesh, design: Design, x: Span, y: Span, height: float) -> None:
    """A baluster: foot, swell, neck, block."""
    steps = (0.0, 0.08, 0.2, 0.55, 0.72, 0.78, 1.0)
    radii = (0.024, 0.03, 0.018, 0.038, 0.02, 0.036, 0.036)
    for px, py in _corners(x, y, 0.045):
        for low, high, r0, r1 in zip(steps, steps[1:], radii, radii[1:], strict=False):
            mesh.post(Slot.FRAME, (px, py, low * height), (px, py, high * height), (r0, r1), sides=8)


def _hairpin(mesh: Mesh, design: Design, x: Span, y: Span, height: float) -> None:
    for px, py in _corners(x, y, 0.06):
        for shift in (-0.045, 0.045):
            mesh.bar(Slot.TRIM, (px, py, 0.0), (px + shift, py, height), 0.017)


def _sled(mesh: Mesh, design: Design, x: Span, y: Span, height: float) -> None:
    half = 0.016
    for px in (x[0] + 0.05, x[1] - 0.05):
        span = (px - half, px + half)
        for py in (y[0] + 0.03, y[1] - 0.03):
            mesh.box(Slot.TRIM, span, (py - half, py + half), (2 * half, height))
        mesh.box(Slot.TRIM, span, (y[0] + 0.03 - half, y[1] - 0.03 + half), (0, 2 * half))


def _cross(mesh: Mesh, design: Design, x: Span, y: Span, height: float) -> None:
    for px in (x[0] + 0.07, x[1] - 0.07):
        mesh.bar(Slot.TRIM, (px, y[0] + 0.03, 0), (px, y[1] - 0.03, height), 0.036)
        mesh.bar(Slot.TRIM, (px + 0.001, y[1] - 0.03, 0), (px + 0.001, y[0] + 0.03, height), 0.036)


def _plinth(mesh: Mesh, design: Design, x: Span, y: Span, height: float) -> None:
    mesh.box(Slot.TRIM, (x[0] + 0.03, x[1] - 0.03), (y[0] + 0.03, y[1] - 0.02), (0, height))


def handle(mesh: Mesh, kind: str, x: float, y: float, z: float, *, upright: bool = False) -> None:
    """A handle in front of the surface at `y`, centered at x, z."""
    if kind == "none":
        return
    if kind == "knob":
        mesh.ball(Slot.TRIM, (x, y - 0.016, z), (0.018, 0.016, 0.018))
    elif kind == "ring":
        mesh.disc(Slot.TRIM, (x, y - 0.012, z), (0.026, 0.03), 0.01)
    elif upright:
        mesh.box(Slot.TRIM, (x - 0.01, x + 0.01), (y - 0.022, y - 0.004), (z - 0.11, z + 0.11))
    else:
        half = 0.09 if kind == "bar" else 0.05
        mesh.box(Slot.TRIM, (x - half, x + half), (y - 0.024, y - 0.004), (z - 0.011, z + 0.011))


def front(mesh: Mesh, kind: str, x: Span, y: float, z: Span) -> None:
    """A door or drawer front on the surface at `y`, with the relief of its style."""
    thick = 0.018
    gap = 0.006
    x, z = (x[0] + gap, x[1] - gap), (z[0] + gap, z[1] - gap)
    mesh.box(Slot.SOFT if kind == "cane" else Slot.BODY, x, (y - thick, y), z)
    relief = (y - thick - 0.012, y - thick)
    width, height = x[1] - x[0], z[1] - z[0]
    if kind in ("panelled", "crossed", "cane"):
        edge = min(0.06, 0.22 * min(width, height))
        for span in ((x[0], x[0] + edge), (x[1] - edge, x[1])):
            mesh.box(Slot.BODY, span, relief, z)
        for span in ((z[0], z[0] + edge), (z[1] - edge, z[1])):
            mesh.box(Slot.BODY, (x[0] + edge, x[1] - edge), relief, span)
        if kind == "crossed" and height > 0.3:
            ends = (x[0] + edge, x[1] - edge)
            mesh.bar(Slot.BODY, (ends[0], relief[0], z[0] + edge), (ends[1], relief[0], z[1] - edge), 0.035)
            mesh.bar(Slot.BODY, (ends[1], relief[0], z[0] + edge), (ends[0], relief[0], z[1] - edge), 0.035)
    elif kind in ("fluted", "slatted", "planked"):
        step = {"fluted": 0.035, "slatted": 0.05, "planked": 0.11}[kind]
        count = max(2, round(width / step))
        for edge in np.linspace(x[0], x[1], count + 1)[:-1]:
            mesh.box(Slot.BODY, (edge + 0.004, edge + width / count - 0.006), relief, z)
    elif kind == "sunburst":
        middle = ((x[0] + x[1]) / 2, z[0])
        for angle in np.linspace(0.15, np.pi - 0.15, 7):
            reach = min(width / 2 / max(abs(np.cos(angle)), 1e-3), height / max(np.sin(angle), 1e-3)) * 0.95
            tip = (middle[0] + reach * np.cos(angle), relief[0], middle[1] + reach * np.sin(angle))
            mesh.bar(Slot.TRIM, (middle[0], relief[0], middle[1]), tip, 0.012)


def pillow(mesh: Mesh, slot: Slot, x: float, y: float, z: float, *, side: float = 0.4) -> None:
    """A throw pillow leaning against something behind it."""
    mesh.cushion(slot, (x - side / 2, x + side / 2), (y - 0.07, y + 0.07), (z, z + side * 0.9), roundness=0.9)


def vase(mesh: Mesh, x: float, y: float, z: float, *, slot: Slot = Slot.PALE) -> None:
    """A vase with some green in it: something for the eye to measure the piece by."""
    mesh.post(slot, (x, y, z), (x, y, z + 0.12), (0.035, 0.06), sides=10)
    mesh.post(slot, (x, y, z + 0.12), (x, y, z + 0.19), (0.06, 0.025), sides=10)
    for shift in (-0.05, 0.0, 0.06):
        mesh.ball(Slot.GREEN, (x + shift, y + shift / 3, z + 0.27 + shift / 2), (0.05, 0.04, 0.075))


def books(mesh: Mesh, design: Design, x: Span, y: Span, z: Span) -> None:
    """A row of standing books that does not quite fill the shelf."""
    at = x[0] + 0.01
    end = x[0] + (x[1] - x[0]) * design.shape.between(0.45, 0.95)
    while at < end - 0.04:
        width = design.shape.between(0.03, 0.06)
        height = (z[1] - z[0]) * design.shape.between(0.62, 0.88)
        slot = BOOK_SLOTS[design.shape.count(0, len(BOOK_SLOTS) - 1)]
        mesh.box(slot, (at, min(at + width, end)), (y[0] + 0.03, y[1]), (z[0], z[0] + height))
        at += width + 0.002
