"""Convex solids that furniture is put together from.

A `Mesh` collects parts (convex) and their faces (flat polygons). Metres; x to the right, y away from
the viewer, z up, the floor at z = 0. Round parts are polygons with a rule for the normal, so that
they are lit as if they were round. Slots are indices into the scene's list of finishes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Span = tuple[float, float]
Point = tuple[float, float, float]

_BOX_CORNERS = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], dtype=float)
_BOX_FACES = ((0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5))
_FLAT = (0.0, 0.0)  # weights of the two normal rules below: none, the face's own normal counts
_BALL = (1.0, 0.0)  # the normal of an ellipsoid
_PUFF = (0.15, 1.0)  # the normal of a stuffed cushion: flat in the middle, round at the edges


@dataclass
class Mesh:
    """Faces of convex parts, as plain lists that `view` turns into arrays once."""

    faces: list[Array] = field(default_factory=list)
    face_part: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    centers: list[Array] = field(default_factory=list)
    radii: list[Array] = field(default_factory=list)
    rules: list[tuple[float, float]] = field(default_factory=list)
    pinned: list[tuple[Point, Point] | None] = field(default_factory=list)

    def part(
        self,
        slot: int,
        faces: Sequence[Array],
        *,
        rule: tuple[float, float] = _FLAT,
        radii: Point | None = None,
        pinned: tuple[Point, Point] | None = None,
    ) -> None:
        """Add one convex part; `radii` scale the round normals, `pinned` stretches a texture over it."""
        corners = np.concatenate(faces)
        low, high = corners.min(0), corners.max(0)
        number = len(self.slots)
        self.slots.append(slot)
        self.centers.append((low + high) / 2)
        self.radii.append(np.array(radii) if radii else np.maximum((high - low) / 2, 1e-3))
        self.rules.append(rule)
        self.pinned.append(pinned)
        self.faces.extend(faces)
        self.face_part.extend([number] * len(faces))

    def box(self, slot: int, x: Span, y: Span, z: Span, *, pinned: bool = False) -> None:
        """An axis-aligned box; `pinned` stretches the slot's texture once over its top or front."""
        low = np.array([x[0], y[0], z[0]])
        size = np.array([x[1] - x[0], y[1] - y[0], z[1] - z[0]])
        corners = low + _BOX_CORNERS * size
        span = ((x[0], y[0], z[0]), (size[0], size[1], size[2])) if pinned else None
        self.part(slot, [corners[list(face)] for face in _BOX_FACES], pinned=span)

    def loft(
        self,
        slot: int,
        lower: Array,
        upper: Array,
        *,
        rule: tuple[float, float] = _FLAT,
        flat: int = -1,
        pinned: tuple[Point, Point] | None = None,
    ) -> None:
        """The solid between two polygons (K, 3) with the same number of corners.

        `flat` is the axis along which a round solid keeps flat normals (2 for an upright cylinder).
        """
        following = np.roll(np.arange(len(lower)), -1)
        sides = [
            np.array([lower[i], lower[j], upper[j], upper[i]])
            for i, j in zip(range(len(lower)), following, strict=True)
        ]
        faces = [lower[::-1], upper, *sides]
        corners = np.concatenate([lower, upper])
        half = np.maximum((corners.max(0) - corners.min(0)) / 2, 1e-3)
        if flat >= 0:
            half[flat] = 1e6
        self.part(slot, faces, rule=rule, radii=tuple(half.tolist()), pinned=pinned)

    def post(
        self,
        slot: int,
        base: Point,
        top: Point,
        radii: Span,
        *,
        sides: int = 12,
        squash: float = 1.0,
    ) -> None:
        """A round or many-sided upright: circle around `base` to circle around `top`."""
        turn = np.linspace(0, 2 * np.pi, sides, endpoint=False) + np.pi / sides
        circle = np.stack([np.cos(turn), squash * np.sin(turn), np.zeros(sides)], axis=1)
        rule = _BALL if sides > 6 else _FLAT
        self.loft(
            slot, np.array(base) + circle * radii[0], np.array(top) + circle * radii[1], rule=rule, flat=2
        )

    def disc(self, slot: int, center: Point, radii: Span, thickness: float, *, arch: bool = False) -> None:
        """A round or arched plate standing upright, facing the viewer; radii along x and z."""
        turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        x, z = np.cos(turn), np.sin(turn)
        if arch:
            x, z = np.where(z < 0, np.sign(x), x), np.where(z < 0, -1.0, z * 0.6 + 0.4)
            keep = ~((np.roll(x, 1) == x) & (np.roll(z, 1) == z))
            x, z = x[keep], z[keep]
        ring = np.stack([x * radii[0], np.zeros_like(x), z * radii[1]], axis=1) + np.array(center)
        depth = np.array([0.0, thickness, 0.0])
        self.loft(slot, ring, ring + depth)

    def bar(self, slot: int, start: Point, end: Point, thickness: float, *, sides: int = 4) -> None:
        """A straight rod between any two points."""
        a, b = np.array(start), np.array(end)
        along = (b - a) / np.linalg.norm(b - a)
        helper = np.array([0.0, 0.0, 1.0]) if abs(along[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
        first = np.cross(helper, along)
        first /= np.linalg.norm(first)
        second = np.cross(along, first)
        turn = np.linspace(0, 2 * np.pi, sides, endpoint=False) + np.pi / sides
        reach = thickness / 2 / math.cos(math.pi / sides)
        ring = reach * (np.cos(turn)[:, None] * first + np.sin(turn)[:, None] * second)
        self.loft(slot, a + ring, b + ring)

    def slab(self, slot: int, lower: tuple[Span, Span, float], upper: tuple[Span, Span, float]) -> None:
        """A box whose bottom and top rectangles (x, y, z) differ: a leaning back, a splayed side."""
        rings = [
            np.array([[x[0], y[0], z], [x[1], y[0], z], [x[1], y[1], z], [x[0], y[1], z]])
            for x, y, z in (lower, upper)
        ]
        self.loft(slot, rings[0], rings[1])

    def ball(self, slot: int, center: Point, radii: Point) -> None:
        """An ellipsoid."""
        rings = [
            np.array(center) + np.array(radii) * _circle(angle)
            for angle in np.linspace(-np.pi / 2, np.pi / 2, 8)
        ]
        self.part(slot, _ring_faces(rings), rule=_BALL, radii=radii)

    def cushion(self, slot: int, x: Span, y: Span, z: Span, *, roundness: float = 0.35) -> None:
        """A stuffed box: bevelled edges, normals that make it look soft."""
        low, high = np.array([x[0], y[0], z[0]]), np.array([x[1], y[1], z[1]])
        half = (high - low) / 2
        bevel = roundness * half.min()
        shrink = ((1.0, 0.0), (0.35, 0.35), (0.0, 1.0))  # (inset, height above the end), in bevels
        levels = [(inset, -half[2] + rise * bevel) for inset, rise in shrink]
        levels += [(inset, half[2] - rise * bevel) for inset, rise in reversed(shrink)]
        outlines = [
            _rounded_rectangle(half, bevel, inset * bevel, level) + (low + high) / 2
            for inset, level in levels
        ]
        self.part(slot, _ring_faces(outlines, caps=True), rule=_PUFF)


def _circle(angle: float, sides: int = 14) -> Array:
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    flat = math.cos(angle)
    return np.stack([np.cos(turn) * flat, np.sin(turn) * flat, np.full(sides, math.sin(angle))], axis=1)


def _rounded_rectangle(half: Array, bevel: float, inset: float, level: float) -> Array:
    """Eight corners of a rectangle with cut corners, `inset` smaller all around."""
    a, b = half[0] - inset, half[1] - inset
    cut = bevel * 0.6
    ring = [(-a + cut, -b), (a - cut, -b), (a, -b + cut), (a, b - cut)]
    ring += [(a - cut, b), (-a + cut, b), (-a, b - cut), (-a, -b + cut)]
    return np.array([[x, y, level] for x, y in ring])


def _ring_faces(rings: Sequence[Array], *, caps: bool = False) -> list[Array]:
    """Faces between rings stacked from low to high, closed at both ends where asked."""
    faces = [rings[0][::-1], rings[-1]] if caps else []
    for lower, upper in itertools.pairwise(rings):
        following = np.roll(np.arange(len(lower)), -1)
        faces += [np.array([lower[i], lower[j], upper[j], upper[i]]) for i, j in enumerate(following)]
    return faces
