"""Things to sit and lie on."""

from __future__ import annotations

import itertools

import numpy as np

from ..solids import Mesh, Span
from .design import Design, Slot, legs, pillow


def chair(mesh: Mesh, design: Design) -> None:
    width, depth, height = design.shape.between(0.42, 0.5), design.shape.between(0.42, 0.48), 0.45
    x, y = (-width / 2, width / 2), (0.0, depth)
    soft = design.material in ("fabric", "velvet", "leather")
    legs(mesh, design, x, y, height)
    if soft:
        mesh.box(Slot.FRAME, x, y, (height, height + 0.025))
        mesh.cushion(Slot.BODY, x, (y[0] - 0.01, y[1]), (height + 0.025, height + 0.095), roundness=0.8)
    else:
        mesh.box(Slot.BODY, x, y, (height, height + 0.035))
    back = "solid" if soft else design.shape.pick(design.traits.backs)
    if design.material == "plastic":
        back = "shell"
    _chair_back(mesh, design, back, (x, depth, height + 0.035, height + design.shape.between(0.42, 0.52)))
    if design.shape.chance(0.18) and not soft:
        design.add_detail("with arms")
        _wooden_arms(mesh, x, y, height)


def _chair_back(mesh: Mesh, design: Design, kind: str, frame: tuple[Span, float, float, float]) -> None:
    x, depth, low, high = frame
    lean = 0.09
    if kind in ("solid", "shell", "cane"):
        slot = Slot.BODY if kind != "cane" else Slot.SOFT
        thick = 0.07 if design.material in ("fabric", "velvet", "leather") else 0.03
        narrow = 0.03 if kind == "shell" else 0.0
        spans = (
            (x, (depth - thick, depth), low),
            ((x[0] + narrow, x[1] - narrow), (depth - thick + lean, depth + lean), high),
        )
        mesh.slab(slot, *spans)
        if kind == "cane":
            design.add_detail("with cane back")
        return
    posts = (x[0] + 0.025, x[1] - 0.025)
    for px in posts:
        mesh.bar(Slot.FRAME, (px, depth - 0.02, low), (px, depth + lean - 0.02, high), 0.035)
    names = {
        "slats": "slat back",
        "spindles": "spindle back",
        "ladder": "ladder back",
        "cross": "cross back",
        "fan": "fan back",
        "splat": "splat back",
    }
    design.add_detail(f"with {names[kind]}")
    _back_filling(mesh, kind, posts, (depth - 0.02, low, high, lean))


def _back_filling(mesh: Mesh, kind: str, posts: Span, frame: tuple[float, float, float, float]) -> None:
    depth, low, high, lean = frame

    def at(share: float) -> tuple[float, float]:
        return depth + lean * share, low + (high - low) * share

    def across(share: float, thickness: float) -> None:
        y, z = at(share)
        mesh.bar(Slot.BODY, (posts[0], y, z), (posts[1], y, z), thickness)

    across(0.97, 0.05)
    inner = (posts[0] + 0.03, posts[1] - 0.03)
    (low_y, low_z), (high_y, high_z) = at(0.02), at(0.93)
    if kind == "ladder":
        for share in (0.3, 0.52, 0.74):
            across(share, 0.045)
    elif kind == "cross":
        mesh.bar(Slot.BODY, (posts[0], low_y, low_z), (posts[1], high_y, high_z), 0.03)
        mesh.bar(Slot.BODY, (posts[1], low_y, low_z), (posts[0], high_y, high_z), 0.03)
    else:
        count, thick = {"slats": (4, 0.03), "spindles": (7, 0.014), "fan": (5, 0.02), "splat": (1, 0.11)}[
            kind
        ]
        tops = np.linspace(*inner, count + 2)[1:-1]
        squeeze = 0.35 if kind == "fan" else 1.0
        middle = (posts[0] + posts[1]) / 2
        for top in tops:
            bottom = middle + (top - middle) * squeeze
            mesh.bar(Slot.BODY, (bottom, low_y, low_z), (top, high_y, high_z), thick)


def _wooden_arms(mesh: Mesh, x: Span, y: Span, seat: float) -> None:
    for px in (x[0] - 0.02, x[1] + 0.02):
        mesh.bar(Slot.FRAME, (px, y[0] + 0.05, seat), (px, y[0] + 0.05, seat + 0.2), 0.03)
        mesh.box(Slot.FRAME, (px - 0.022, px + 0.022), (y[0] + 0.02, y[1]), (seat + 0.2, seat + 0.23))


def stool(mesh: Mesh, design: Design) -> None:
    _stool(mesh, design, 0.45)


def bar_stool(mesh: Mesh, design: Design) -> None:
    seat = design.shape.between(0.7, 0.78)
    _stool(mesh, design, seat)
    if design.shape.chance(0.4):
        design.add_detail("with low back")
        mesh.slab(
            Slot.BODY, ((-0.19, 0.19), (0.16, 0.2), seat + 0.06), ((-0.17, 0.17), (0.21, 0.25), seat + 0.32)
        )


def _stool(mesh: Mesh, design: Design, seat: float) -> None:
    half = 0.19
    round_seat = design.shape.chance(0.55)
    legs(mesh, design, (-half, half), (-half, half), seat)
    if design.legs not in ("plinth", "hairpin"):
        rail = seat * 0.32
        reach = half - 0.05
        for sign in (-1, 1):
            slot = Slot.TRIM if design.legs in ("sled", "cross", "brass") else Slot.FRAME
            mesh.bar(slot, (-reach, sign * reach, rail), (reach, sign * reach, rail), 0.02)
            mesh.bar(slot, (sign * reach, -reach, rail + 0.03), (sign * reach, reach, rail + 0.03), 0.02)
    soft = design.material in ("fabric", "velvet", "leather")
    if round_seat:
        design.add_detail("round")
        mesh.post(Slot.BODY, (0, 0, seat), (0, 0, seat + (0.075 if soft else 0.04)), (0.205, 0.19), sides=20)
    elif soft:
        mesh.cushion(Slot.BODY, (-half, half), (-half, half), (seat, seat + 0.08), roundness=0.8)
    else:
        mesh.box(Slot.BODY, (-half, half), (-half, half), (seat, seat + 0.04))


def ottoman(mesh: Mesh, design: Design) -> None:
    high = design.shape.between(0.36, 0.44)
    if design.shape.chance(0.45):
        design.add_detail("round")
        mesh.post(Slot.FRAME, (0, 0, 0), (0, 0, 0.05), (0.3, 0.3), sides=20)
        mesh.post(Slot.BODY, (0, 0, 0.05), (0, 0, high - 0.06), (0.36, 0.36), sides=24)
        mesh.post(Slot.BODY, (0, 0, high - 0.06), (0, 0, high), (0.36, 0.28), sides=24)
        return
    wide = design.shape.between(0.5, 0.95) / 2
    x, y = (-wide, wide), (-0.28, 0.28)
    legs(mesh, design, x, y, 0.13)
    mesh.cushion(Slot.BODY, x, y, (0.13, high - 0.1), roundness=0.25)
    mesh.cushion(Slot.BODY, x, y, (high - 0.1, high + 0.03), roundness=0.7)
    if design.shape.chance(design.traits.tufted):
        design.add_detail("tufted")
        _buttons_on_top(mesh, x, y, high + 0.03)


def _buttons_on_top(mesh: Mesh, x: Span, y: Span, z: float) -> None:
    for px in np.linspace(*x, 5)[1:-1]:
        for py in np.linspace(*y, 4)[1:-1]:
            mesh.ball(Slot.DARK, (float(px), float(py), z), (0.015, 0.015, 0.008))


def armchair(mesh: Mesh, design: Design) -> None:
    width = design.shape.between(0.72, 0.86)
    _upholstered(mesh, design, width=width, seats=1)


def sofa(mesh: Mesh, design: Design) -> None:
    seats = design.shape.count(2, 3)
    design.add_detail("loveseat" if seats == 2 else "3-seater")
    width = seats * 0.62 + 0.34
    x_end = _upholstered(mesh, design, width=width, seats=seats)
    if seats == 3 and design.shape.chance(0.3):
        design.add_detail("with chaise")
        inner = x_end - 0.62
        mesh.box(Slot.BODY, (inner, x_end), (-0.55, -0.0), (0.12, 0.3))
        mesh.cushion(Slot.BODY, (inner, x_end), (-0.58, 0.0), (0.3, 0.45), roundness=0.5)
    for index in range(design.shape.count(0, 2)):
        side = -1 if index == 0 else 1
        pillow(mesh, Slot.SOFT, side * (width / 2 - 0.4), 0.44, 0.46)


def _upholstered(mesh: Mesh, design: Design, *, width: float, seats: int) -> float:
    """Base, arms, back and cushions; the x where the right arm begins."""
    arm_style = design.shape.pick(design.traits.arms)
    depth = design.shape.between(0.8, 0.9)
    arm = {"track": 0.12, "rolled": 0.17, "barrel": 0.15, "open": 0.05, "metal": 0.04}[arm_style]
    x, inner = (-width / 2, width / 2), (-width / 2 + arm, width / 2 - arm)
    foot = 0.14 if design.legs != "plinth" else 0.07
    legs(mesh, design, x, (0.02, depth), foot)
    mesh.box(Slot.BODY, inner, (0.03, depth), (foot, 0.29))
    back_high = design.shape.between(0.78, 0.92)
    for low, high in zip(np.linspace(*inner, seats + 1), np.linspace(*inner, seats + 1)[1:], strict=False):
        mesh.cushion(
            Slot.BODY,
            (low + 0.004, high - 0.004),
            (0.0, depth - 0.2),
            (0.29, 0.46),
            roundness=0.4 + 0.4 * design.traits.roundness,
        )
        _back_cushion(mesh, design, (low + 0.004, high - 0.004), depth, back_high)
    mesh.box(Slot.BODY, inner, (depth - 0.06, depth + 0.02), (0.29, back_high - 0.06))
    for side, span in ((-1, (x[0], inner[0])), (1, (inner[1], x[1]))):
        _arm(mesh, arm_style, span, side, (depth, foot, back_high))
    if arm_style == "open":
        design.add_detail("with wooden arms")
    return inner[1]


def _back_cushion(mesh: Mesh, design: Design, x: Span, depth: float, high: float) -> None:
    y = (depth - 0.22, depth - 0.06)
    if design.shape.chance(design.traits.tufted):
        design.add_detail("tufted")
        mesh.box(Slot.BODY, x, y, (0.46, high))
        for row, z in enumerate((0.56, 0.66, 0.76)):
            shift = 0.5 * (row % 2)
            for share in np.arange(0.15 + shift * 0.2, 1.0, 0.23):
                mesh.ball(Slot.DARK, (x[0] + share * (x[1] - x[0]), y[0], z), (0.014, 0.01, 0.014))
    elif design.style == "art deco":
        design.add_detail("channel back")
        edges = np.linspace(*x, max(3, round((x[1] - x[0]) / 0.11)) + 1)
        for low, top in itertools.pairwise(edges):
            mesh.cushion(Slot.BODY, (low, top), y, (0.46, high), roundness=0.9)
    else:
        mesh.cushion(Slot.BODY, x, y, (0.46, high), roundness=0.6)


def _arm(mesh: Mesh, style: str, x: Span, side: int, sizes: tuple[float, float, float]) -> None:
    depth, foot, back = sizes
    if style in ("open", "metal"):
        slot = Slot.FRAME if style == "open" else Slot.TRIM
        mesh.box(slot, x, (0.0, depth), (0.6, 0.635))
        for y in (0.02, depth - 0.06):
            mesh.box(slot, x, (y, y + 0.045), (0.0, 0.6))
    elif style == "track":
        mesh.cushion(Slot.BODY, x, (0.0, depth + 0.02), (foot, 0.62), roundness=0.15)
    elif style == "rolled":
        middle = (x[0] + x[1]) / 2
        mesh.box(Slot.BODY, (x[0] + 0.02, x[1] - 0.02), (0.02, depth), (foot, 0.52))
        mesh.bar(Slot.BODY, (middle, 0.0, 0.58), (middle, depth, 0.58), 0.19, sides=12)
    else:
        mesh.cushion(Slot.BODY, x, (0.05, depth + 0.02), (foot, back * 0.86), roundness=0.6)


def bench(mesh: Mesh, design: Design) -> None:
    wide = design.shape.between(1.0, 1.4) / 2
    x, y = (-wide, wide), (0.0, 0.38)
    soft = design.material in ("fabric", "velvet", "leather")
    legs(mesh, design, x, y, 0.42)
    mesh.box(Slot.FRAME if soft else Slot.BODY, x, y, (0.42, 0.46))
    if soft:
        mesh.cushion(Slot.BODY, x, y, (0.46, 0.55), roundness=0.7)
    elif design.shape.chance(0.5):
        design.add_detail("with backrest")
        for px in (x[0] + 0.03, 0.0, x[1] - 0.03):
            mesh.bar(Slot.FRAME, (px, 0.36, 0.46), (px, 0.43, 0.88), 0.04)
        for share in (0.45, 0.7, 0.95):
            mesh.bar(
                Slot.BODY,
                (x[0], 0.34 + 0.07 * share, 0.46 + 0.42 * share),
                (x[1], 0.34 + 0.07 * share, 0.46 + 0.42 * share),
                0.055,
            )
    elif design.shape.chance(0.5):
        design.add_detail("with shelf")
        mesh.box(Slot.BODY, (x[0] + 0.06, x[1] - 0.06), (0.05, 0.33), (0.12, 0.145))


def bed(mesh: Mesh, design: Design) -> None:
    wide = 0.5 if design.shape.chance(0.3) else 0.82
    design.add_detail("single" if wide == 0.5 else "double")
    x, y = (-wide, wide), (0.0, 2.0)
    legs(mesh, design, x, y, 0.16)
    mesh.box(Slot.BODY, (x[0] - 0.04, x[1] + 0.04), (-0.04, 2.0), (0.16, 0.32))
    mesh.cushion(Slot.PALE, x, (0.0, 1.98), (0.32, 0.5), roundness=0.3)
    mesh.cushion(Slot.SOFT, (x[0] - 0.03, x[1] + 0.03), (-0.03, 1.32), (0.36, 0.53), roundness=0.25)
    mesh.cushion(Slot.PALE, (x[0] - 0.032, x[1] + 0.032), (1.18, 1.4), (0.40, 0.545), roundness=0.3)
    pillows = (0.0,) if wide == 0.5 else (-0.4, 0.4)
    for px in pillows:
        mesh.cushion(Slot.PALE, (px - 0.32, px + 0.32), (1.52, 1.93), (0.5, 0.64), roundness=0.9)
    _headboard(mesh, design, (x[0] - 0.04, x[1] + 0.04), design.shape.between(0.95, 1.25))


def _headboard(mesh: Mesh, design: Design, x: Span, high: float) -> None:
    soft = design.material in ("fabric", "velvet", "leather")
    if soft:
        edges = np.linspace(*x, 5 if design.shape.chance(0.5) else 2)
        if len(edges) > 2:
            design.add_detail("channel headboard")
        for low, top in itertools.pairwise(edges):
            mesh.cushion(Slot.BODY, (low, top), (2.0, 2.11), (0.2, high), roundness=0.5)
    elif design.shape.pick(design.traits.backs) in ("slats", "spindles", "ladder", "fan"):
        design.add_detail("slatted headboard")
        mesh.box(Slot.BODY, x, (2.0, 2.06), (high - 0.08, high))
        for px in np.linspace(x[0] + 0.03, x[1] - 0.03, 9):
            mesh.box(Slot.BODY, (px - 0.025, px + 0.025), (2.01, 2.05), (0.2, high - 0.08))
    else:
        mesh.box(Slot.BODY, x, (2.0, 2.07), (0.0, high))


def office_chair(mesh: Mesh, design: Design) -> None:
    for angle in np.arange(5) * 2 * np.pi / 5 - np.pi / 2:
        tip = (0.3 * np.cos(angle), 0.3 * np.sin(angle))
        mesh.bar(Slot.DARK, (0, 0, 0.11), (tip[0], tip[1], 0.08), 0.045)
        mesh.ball(Slot.DARK, (tip[0], tip[1], 0.035), (0.035, 0.035, 0.035))
    mesh.post(Slot.DARK, (0, 0, 0.12), (0, 0, 0.43), (0.03, 0.03), sides=10)
    mesh.cushion(Slot.BODY, (-0.25, 0.25), (-0.25, 0.23), (0.43, 0.53), roundness=0.8)
    mesh.bar(Slot.DARK, (0, 0.2, 0.46), (0, 0.29, 0.7), 0.05)
    high = design.shape.between(0.98, 1.2)
    if high > 1.1:
        design.add_detail("high back")
    mesh.slab(Slot.BODY, ((-0.21, 0.21), (0.22, 0.28), 0.58), ((-0.23, 0.23), (0.3, 0.36), high))
    if design.shape.chance(0.7):
        design.add_detail("with armrests")
        for px in (-0.28, 0.28):
            mesh.bar(Slot.DARK, (px, 0.05, 0.47), (px, 0.05, 0.66), 0.03)
            mesh.box(Slot.DARK, (px - 0.035, px + 0.035), (-0.12, 0.18), (0.66, 0.69))
