"""Lamps, mirrors and rugs."""

from __future__ import annotations

import itertools

import numpy as np

from ..solids import Mesh
from .design import Design, Slot


def floor_lamp(mesh: Mesh, design: Design) -> None:
    high = design.shape.between(1.35, 1.55)
    kind = design.shape.pick(("tripod", "column", "arc")) if design.style != "art deco" else "column"
    if kind == "tripod":
        design.add_detail("tripod")
        for angle in np.arange(3) * 2 * np.pi / 3 - np.pi / 2:
            mesh.bar(Slot.BODY, (0.26 * np.cos(angle), 0.26 * np.sin(angle), 0), (0, 0, high - 0.1), 0.035)
        _shade(mesh, design, 0.0, high, 0.24)
    elif kind == "arc":
        design.add_detail("arc")
        mesh.post(Slot.BODY, (0, 0, 0), (0, 0, 0.05), (0.18, 0.18), sides=16)
        curve = [(0.75 * (1 - np.cos(t)) * 0.62, high * 1.08 * np.sin(t)) for t in np.linspace(0, 1.75, 9)]
        for (x0, z0), (x1, z1) in itertools.pairwise(curve):
            mesh.bar(Slot.BODY, (x0, 0, z0 + 0.05), (x1, 0, z1 + 0.05), 0.03)
        _shade(mesh, design, curve[-1][0], curve[-1][1] - 0.16, 0.2, hanging=True)
    else:
        mesh.post(Slot.BODY, (0, 0, 0), (0, 0, 0.04), (0.16, 0.15), sides=16)
        mesh.post(Slot.BODY, (0, 0, 0.04), (0, 0, high), (0.018, 0.018), sides=8)
        _shade(mesh, design, 0.0, high, 0.22)


def table_lamp(mesh: Mesh, design: Design) -> None:
    base = design.shape.between(0.2, 0.3)
    kind = design.shape.pick(("gourd", "cone", "stack"))
    mesh.post(Slot.BODY, (0, 0, 0), (0, 0, 0.025), (0.09, 0.085), sides=16)
    if kind == "gourd":
        mesh.ball(Slot.BODY, (0, 0, 0.025 + base * 0.35), (0.11, 0.11, base * 0.35))
        mesh.post(Slot.BODY, (0, 0, base * 0.68), (0, 0, base + 0.03), (0.05, 0.025), sides=12)
    elif kind == "cone":
        mesh.post(Slot.BODY, (0, 0, 0.025), (0, 0, base + 0.03), (0.1, 0.03), sides=16)
    else:
        for level in range(3):
            z = 0.025 + base * level / 3
            mesh.ball(Slot.BODY, (0, 0, z + base / 6), (0.075, 0.075, base / 6))
    _shade(mesh, design, 0.0, base + 0.04, 0.17)


def _shade(mesh: Mesh, design: Design, x: float, z: float, radius: float, *, hanging: bool = False) -> None:
    kind = design.shape.pick(("drum", "cone", "globe"))
    design.add_detail(f"with {kind} shade")
    high = radius * 1.15
    if not hanging:
        mesh.post(Slot.TRIM, (x, 0, z - 0.11), (x, 0, z + radius * 0.1), (0.012, 0.012), sides=8)
    if kind == "globe":
        mesh.ball(Slot.SOFT, (x, 0, z + radius * 0.7), (radius * 0.75, radius * 0.75, radius * 0.75))
    else:
        top = radius * (0.95 if kind == "drum" else 0.5)
        mesh.post(Slot.SOFT, (x, 0, z), (x, 0, z + high), (radius, top), sides=24)


def mirror(mesh: Mesh, design: Design) -> None:
    kind = design.shape.pick(
        ("round", "arched", "rectangular", "sunburst" if design.style == "art deco" else "round")
    )
    design.add_detail(kind)
    edge = design.shape.between(0.04, 0.07)
    if kind in ("round", "sunburst"):
        radius = design.shape.between(0.36, 0.46)
        z = radius + 0.35
        if kind == "sunburst":
            for angle in np.arange(24) * 2 * np.pi / 24:
                reach = radius * (1.45 if int(angle * 24 / (2 * np.pi) + 0.5) % 2 else 1.25)
                tip = (reach * np.cos(angle), 0.03, z + reach * np.sin(angle))
                mesh.bar(
                    Slot.BODY,
                    (radius * 0.9 * np.cos(angle), 0.03, z + radius * 0.9 * np.sin(angle)),
                    tip,
                    0.02,
                )
        mesh.disc(Slot.BODY, (0, 0, z), (radius, radius), 0.03)
        mesh.disc(Slot.GLASS, (0, -0.006, z), (radius - edge, radius - edge), 0.005)
        return
    half, tall = design.shape.between(0.3, 0.42), design.shape.between(0.7, 0.9)
    arch = kind == "arched"
    if arch:
        mesh.disc(Slot.BODY, (0, 0, tall), (half, tall), 0.03, arch=True)
        mesh.disc(Slot.GLASS, (0, -0.006, tall), (half - edge, tall - edge), 0.005, arch=True)
    else:
        mesh.box(Slot.BODY, (-half, half), (0, 0.03), (0.02, 2 * tall))
        mesh.box(Slot.GLASS, (-half + edge, half - edge), (-0.006, 0), (0.02 + edge, 2 * tall - edge))


def rug(mesh: Mesh, design: Design) -> None:
    if design.shape.chance(0.3):
        design.add_detail("round")
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        ring = np.stack([np.cos(turn), np.sin(turn), np.zeros(40)], axis=1) * 0.9
        upper = ring + np.array([0, 0, 0.02])
        mesh.loft(Slot.BODY, ring, upper, pinned=((-0.9, -0.9, 0.0), (1.8, 1.8, 0.02)))
        return
    half, deep = design.shape.between(0.9, 1.2), design.shape.between(0.6, 0.75)
    mesh.box(Slot.BODY, (-half, half), (-deep, deep), (0, 0.02), pinned=True)
    if design.shape.chance(0.5):
        design.add_detail("with fringe")
        for side in (-1, 1):
            for y in np.linspace(-deep + 0.02, deep - 0.02, 22):
                ends = sorted((side * half, side * (half + 0.09)))
                mesh.box(Slot.PALE, (ends[0], ends[1]), (y - 0.012, y + 0.012), (0, 0.008))
