"""Tables and desks."""

from __future__ import annotations

import itertools

import numpy as np

from ..solids import Mesh, Span
from .design import Design, Slot, front, handle, legs, vase


def dining_table(mesh: Mesh, design: Design) -> None:
    round_top = design.shape.chance(0.35)
    wide = design.shape.between(0.5, 0.6) if round_top else design.shape.between(0.75, 1.0)
    half_depth = wide if round_top else 0.44
    _table(mesh, design, wide, half_depth, height=0.75, round_top=round_top)
    place = 0.3 if round_top else 0.45
    for x, y in ((-place, -0.18), (place, -0.18), (-place, 0.2), (place, 0.2)):
        mesh.post(Slot.PALE, (x, y, 0.755), (x, y, 0.77), (0.07, 0.11), sides=14)
    vase(mesh, 0.0, 0.05, 0.755, slot=Slot.BLUE)


def coffee_table(mesh: Mesh, design: Design) -> None:
    round_top = design.shape.chance(0.4)
    wide = design.shape.between(0.38, 0.46) if round_top else design.shape.between(0.5, 0.62)
    half_depth = wide if round_top else 0.3
    high = design.shape.between(0.34, 0.42)
    _table(mesh, design, wide, half_depth, height=high, round_top=round_top)
    if not round_top and design.shape.chance(0.45):
        design.add_detail("with shelf")
        mesh.box(
            Slot.BODY, (-wide + 0.09, wide - 0.09), (-half_depth + 0.08, half_depth - 0.08), (0.13, 0.155)
        )
    mesh.box(Slot.RED, (-0.2, 0.02), (-0.1, 0.08), (high + 0.005, high + 0.03))
    mesh.box(Slot.PALE, (-0.18, 0.01), (-0.09, 0.07), (high + 0.03, high + 0.05))
    mesh.post(Slot.PALE, (0.17, 0.02, high + 0.005), (0.17, 0.02, high + 0.075), (0.03, 0.036), sides=12)


def side_table(mesh: Mesh, design: Design) -> None:
    high = design.shape.between(0.5, 0.6)
    round_top = design.shape.chance(0.7)
    _table(mesh, design, 0.23, 0.23, height=high, round_top=round_top)
    vase(mesh, 0.04, 0.0, high + 0.005)


def _table(
    mesh: Mesh, design: Design, half_width: float, half_depth: float, *, height: float, round_top: bool
) -> None:
    x, y = (-half_width, half_width), (-half_depth, half_depth)
    thick = 0.03 if design.material in ("glass", "marble") else 0.042
    if round_top:
        design.add_detail("round")
        mesh.post(Slot.BODY, (0, 0, height - thick), (0, 0, height), (half_width, half_width), sides=28)
        _round_base(mesh, design, half_width, height - thick)
        return
    mesh.box(Slot.BODY, x, y, (height - thick, height))
    if design.legs == "plinth" or (design.style in ("traditional", "farmhouse") and design.shape.chance(0.3)):
        design.add_detail("with trestle base")
        for px in (-half_width * 0.55, half_width * 0.55):
            mesh.box(Slot.FRAME, (px - 0.05, px + 0.05), (-half_depth * 0.75, half_depth * 0.75), (0, 0.06))
            mesh.box(Slot.FRAME, (px - 0.05, px + 0.05), (-0.09, 0.09), (0.06, height - thick))
        return
    inset = 0.04
    legs(mesh, design, (x[0] + inset, x[1] - inset), (y[0] + inset, y[1] - inset), height - thick)
    if design.legs in ("block", "turned"):
        _apron(mesh, (x[0] + 0.07, x[1] - 0.07), (y[0] + 0.06, y[1] - 0.06), height - thick)


def _apron(mesh: Mesh, x: Span, y: Span, top: float) -> None:
    for py in y:
        mesh.box(Slot.FRAME, (x[0] + 0.03, x[1] - 0.03), (py - 0.01, py + 0.01), (top - 0.08, top))


def _round_base(mesh: Mesh, design: Design, radius: float, height: float) -> None:
    if design.style in ("traditional", "art deco", "modern") or design.legs == "plinth":
        design.add_detail("pedestal")
        mesh.post(Slot.FRAME, (0, 0, 0), (0, 0, 0.04), (radius * 0.55, radius * 0.5), sides=20)
        mesh.post(Slot.FRAME, (0, 0, 0.04), (0, 0, height), (radius * 0.2, radius * 0.1), sides=12)
        return
    reach = radius * 0.68
    legs(mesh, design, (-reach, reach), (-reach, reach), height)


def desk(mesh: Mesh, design: Design) -> None:
    wide, deep = design.shape.between(0.55, 0.7), 0.6
    x, y = (-wide, wide), (0.0, deep)
    top = 0.74
    mesh.box(Slot.BODY, x, y, (top - 0.035, top))
    side = 1 if design.shape.chance(0.5) else -1
    drawers = design.shape.count(0, 3)
    if drawers:
        design.add_detail(f"with {drawers} drawer{'s' if drawers > 1 else ''}")
        _pedestal(mesh, design, (0.22, wide - 0.01) if side > 0 else (-wide + 0.01, -0.22), deep, drawers)
    legs(mesh, design, (x[0] + 0.01, x[1] - 0.01), (0.01, deep - 0.01), top - 0.035)
    at = -side * 0.15
    mesh.box(Slot.DARK, (at - 0.18, at + 0.18), (0.12, 0.36), (top, top + 0.018))
    mesh.slab(
        Slot.DARK,
        ((at - 0.18, at + 0.18), (0.36, 0.375), top + 0.018),
        ((at - 0.18, at + 0.18), (0.42, 0.435), top + 0.25),
    )
    mesh.slab(
        Slot.PALE,
        ((at - 0.165, at + 0.165), (0.357, 0.359), top + 0.032),
        ((at - 0.165, at + 0.165), (0.412, 0.418), top + 0.236),
    )
    if design.shape.chance(0.6):
        _reading_lamp(mesh, side * 0.42, 0.42, top)


def _pedestal(mesh: Mesh, design: Design, x: Span, deep: float, drawers: int) -> None:
    handles, fronts = design.shape.pick(design.traits.handles), design.shape.pick(design.traits.fronts)
    low = 0.705 - drawers * 0.165
    mesh.box(Slot.BODY, x, (0.03, deep - 0.02), (low, 0.705))
    edges = np.linspace(low, 0.705, drawers + 1)
    for bottom, top in itertools.pairwise(edges):
        front(mesh, "plain" if fronts in ("crossed", "sunburst") else fronts, x, 0.03, (bottom, top))
        handle(mesh, handles, (x[0] + x[1]) / 2, 0.0, (bottom + top) / 2)


def _reading_lamp(mesh: Mesh, x: float, y: float, z: float) -> None:
    mesh.post(Slot.TRIM, (x, y, z), (x, y, z + 0.02), (0.07, 0.06), sides=12)
    mesh.bar(Slot.TRIM, (x, y, z + 0.02), (x + 0.05, y, z + 0.3), 0.018)
    mesh.bar(Slot.TRIM, (x + 0.05, y, z + 0.3), (x - 0.07, y - 0.06, z + 0.42), 0.018)
    mesh.post(
        Slot.TRIM, (x - 0.09, y - 0.08, z + 0.36), (x - 0.07, y - 0.06, z + 0.44), (0.07, 0.025), sides=12
    )
