"""Things with doors, drawers and shelves."""

from __future__ import annotations

import itertools

import numpy as np

from ..solids import Mesh, Span
from .design import Design, Slot, books, front, handle, legs, vase

_COUNT_WORDS = {1: "1-drawer", 2: "2-drawer", 3: "3-drawer", 4: "4-drawer", 6: "6-drawer", 8: "8-drawer"}


def nightstand(mesh: Mesh, design: Design) -> None:
    half, deep, high = design.shape.between(0.2, 0.26), 0.4, design.shape.between(0.5, 0.6)
    foot = 0.18 if design.legs != "plinth" else 0.06
    drawers = design.shape.count(1, 2)
    _drawer_case(mesh, design, (-half, half), deep, (foot, high), (1, drawers))
    mesh.post(Slot.PALE, (0.06, 0.2, high), (0.06, 0.2, high + 0.14), (0.06, 0.03), sides=12)
    mesh.post(Slot.SAND, (0.06, 0.2, high + 0.16), (0.06, 0.2, high + 0.32), (0.13, 0.09), sides=16)
    mesh.box(Slot.BLUE, (-half + 0.03, -half + 0.16), (0.08, 0.24), (high, high + 0.03))


def dresser(mesh: Mesh, design: Design) -> None:
    columns = design.shape.count(1, 2)
    rows = design.shape.count(3, 4) if columns == 2 else design.shape.count(4, 5)
    half = 0.62 if columns == 2 else 0.4
    high = 0.14 + rows * 0.22
    foot = 0.12 if design.legs != "plinth" else 0.06
    _drawer_case(mesh, design, (-half, half), 0.46, (foot, high), (columns, rows))
    if columns == 2:
        vase(mesh, half * 0.55, 0.22, high)
        mesh.box(
            Slot.PICTURE, (-half * 0.7, -half * 0.7 + 0.3), (0.33, 0.35), (high, high + 0.36), pinned=True
        )


def _drawer_case(mesh: Mesh, design: Design, x: Span, deep: float, z: Span, grid: tuple[int, int]) -> None:
    columns, rows = grid
    count = columns * rows
    design.add_detail(_COUNT_WORDS.get(count, f"{count}-drawer"))
    legs(mesh, design, x, (0.0, deep), z[0])
    mesh.box(Slot.BODY, x, (0.0, deep), z)
    handles, fronts = design.shape.pick(design.traits.handles), design.shape.pick(design.traits.fronts)
    fronts = "plain" if fronts in ("crossed", "sunburst") else fronts
    across, up = np.linspace(x[0], x[1], columns + 1), np.linspace(z[0] + 0.01, z[1] - 0.02, rows + 1)
    for left, right in itertools.pairwise(across):
        for bottom, top in itertools.pairwise(up):
            front(mesh, fronts, (left, right), 0.0, (bottom, top))
            spots = (0.5,) if right - left < 0.55 else (0.3, 0.7)
            for spot in spots:
                handle(mesh, handles, left + spot * (right - left), -0.03, (bottom + top) / 2)


def wardrobe(mesh: Mesh, design: Design) -> None:
    doors = design.shape.count(2, 3)
    design.add_detail(f"{doors}-door")
    half, deep, high = doors * 0.24, 0.56, design.shape.between(1.8, 2.05)
    foot = 0.1 if design.legs != "plinth" else 0.06
    legs(mesh, design, (-half, half), (0.0, deep), foot)
    mesh.box(Slot.BODY, (-half, half), (0.0, deep), (foot, high))
    if design.shape.chance(0.5):
        mesh.box(Slot.BODY, (-half - 0.03, half + 0.03), (-0.045, deep), (high, high + 0.05))
    low = foot + 0.02
    fronts = design.shape.pick(design.traits.fronts)
    if design.shape.chance(0.45):
        design.add_detail("with drawers")
        edges = np.linspace(-half, half, 3)
        for left, right in itertools.pairwise(edges):
            front(mesh, "plain", (left, right), 0.0, (low, low + 0.28))
            handle(mesh, "knob", (left + right) / 2, -0.02, low + 0.14)
        low += 0.28
    _doors(mesh, design, fronts, (np.linspace(-half, half, doors + 1), (low, high - 0.02)))


def _doors(
    mesh: Mesh, design: Design, kind: str, layout: tuple[np.ndarray[tuple[int], np.dtype[np.float64]], Span]
) -> None:
    edges, z = layout
    style = design.shape.pick(design.traits.handles)
    for index, (left, right) in enumerate(itertools.pairwise(edges)):
        front(mesh, kind, (left, right), 0.0, z)
        at = right - 0.05 if index % 2 == 0 else left + 0.05
        handle(mesh, style, at, -0.03, (z[0] + z[1]) / 2, upright=True)


def bookshelf(mesh: Mesh, design: Design) -> None:
    half, deep, high = design.shape.between(0.35, 0.5), 0.3, design.shape.between(1.5, 1.95)
    shelves = design.shape.count(4, 5)
    design.add_detail(f"{shelves}-shelf")
    open_frame = design.style in ("industrial", "bohemian") or design.shape.chance(0.2)
    side_slot = Slot.TRIM if open_frame else Slot.BODY
    if open_frame:
        design.add_detail("open frame")
        for px in (-half, half - 0.025):
            for py in (0.0, deep - 0.025):
                mesh.box(side_slot, (px, px + 0.025), (py, py + 0.025), (0, high + 0.04))
    else:
        mesh.box(Slot.INNER, (-half + 0.025, half - 0.025), (deep - 0.015, deep), (0.05, high))
        for px in (-half, half - 0.025):
            mesh.box(side_slot, (px, px + 0.025), (0.0, deep), (0, high))
    levels = np.linspace(0.08, high, shelves + 1)
    for level in levels:
        mesh.box(Slot.BODY, (-half + 0.026, half - 0.026), (0.0, deep - 0.016), (level - 0.025, level))
    for low, top in itertools.pairwise(levels):
        inner = (-half + 0.05, half - 0.05)
        if design.shape.chance(0.8):
            books(mesh, design, inner, (0.04, deep - 0.05), (low, top - 0.025))
        else:
            vase(mesh, 0.0, deep / 2, low)


def sideboard(mesh: Mesh, design: Design) -> None:
    half, deep, high = design.shape.between(0.7, 0.9), 0.42, design.shape.between(0.72, 0.82)
    foot = 0.2 if design.legs != "plinth" else 0.07
    legs(mesh, design, (-half, half), (0.0, deep), foot)
    mesh.box(Slot.BODY, (-half, half), (0.0, deep), (foot, high))
    fronts = design.shape.pick(design.traits.fronts)
    doors = 2 if design.shape.chance(0.5) else 4
    z = (foot + 0.01, high - 0.02)
    if doors == 4:
        design.add_detail("4-door")
        _doors(mesh, design, fronts, (np.linspace(-half, half, 5), z))
    else:
        design.add_detail("with drawers")
        third = half / 3
        _doors(mesh, design, fronts, (np.array([-half, -third]), z))
        _doors(mesh, design, fronts, (np.array([third, half]), z))
        edges = np.linspace(*z, 4)
        for bottom, top in itertools.pairwise(edges):
            front(mesh, "plain", (-third, third), 0.0, (bottom, top))
            handle(mesh, "knob", 0.0, -0.02, (bottom + top) / 2)
    vase(mesh, -half * 0.6, 0.2, high)
    mesh.post(Slot.TRIM, (half * 0.5, 0.2, high), (half * 0.5, 0.2, high + 0.05), (0.05, 0.12), sides=14)


def tv_stand(mesh: Mesh, design: Design) -> None:
    half, deep, high = design.shape.between(0.7, 0.9), 0.38, design.shape.between(0.42, 0.52)
    foot = 0.12 if design.legs != "plinth" else 0.05
    legs(mesh, design, (-half, half), (0.0, deep), foot)
    mesh.box(Slot.BODY, (-half, half), (0.0, deep), (foot, high))
    third = half * 0.38
    z = (foot + 0.02, high - 0.03)
    fronts = design.shape.pick(design.traits.fronts)
    for span in ((-half, -third), (third, half)):
        _doors(mesh, design, fronts, (np.array(span), z))
    mesh.box(Slot.INNER, (-third + 0.01, third - 0.01), (-0.012, 0.0), z)
    mesh.box(Slot.DARK, (-0.18, 0.18), (0.12, 0.26), (high, high + 0.02))
    mesh.box(Slot.DARK, (-0.03, 0.03), (0.18, 0.2), (high + 0.02, high + 0.07))
    mesh.box(Slot.DARK, (-0.55, 0.55), (0.17, 0.2), (high + 0.07, high + 0.7))
    mesh.box(Slot.GLASS, (-0.53, 0.53), (0.165, 0.17), (high + 0.09, high + 0.68), pinned=True)
