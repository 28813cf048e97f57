"""From solids to buffers of face numbers: camera, order of drawing, sun.

Parts are convex, so painting them from back to front is exact as long as the order is. Two parts are
ordered by a plane between their bounding boxes, the way a binary space partition would, and by
distance where their boxes overlap. Pillow fills the polygons with face numbers; `shading` colors
the pixels afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .solids import Array, Mesh

Ids = NDArray[np.int32]
_TOUCHING_M = 2e-3
_SUN_DISTANCE_M = 500.0


@dataclass(frozen=True)
class Geometry:
    """A mesh as arrays: F faces, P parts, V corners."""

    corners: Array  # (V, 3)
    starts: NDArray[np.int64]  # (F + 1,) where each face's corners begin
    normals: Array  # (F, 3) unit, outwards
    anchors: Array  # (F, 3) a point on the face
    face_part: NDArray[np.int64]  # (F,)
    low: Array  # (P, 3)
    high: Array  # (P, 3)

    @classmethod
    def of(cls, mesh: Mesh) -> Geometry:
        lengths = np.array([len(face) for face in mesh.faces])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        corners = np.concatenate(mesh.faces)
        face_part = np.array(mesh.face_part)
        anchors = np.add.reduceat(corners, starts[:-1]) / lengths[:, None]
        # Newell's normal: right for any flat polygon, zero for a collapsed one
        following = np.arange(len(corners)) + 1
        following[starts[1:] - 1] = starts[:-1]
        normals = np.add.reduceat(np.cross(corners, corners[following]), starts[:-1])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        outward = np.einsum("fi,fi->f", normals, anchors - np.array(mesh.centers)[face_part])
        normals *= np.where(outward < 0, -1.0, 1.0)[:, None]
        part_starts = starts[np.searchsorted(face_part, np.arange(len(mesh.slots)))]
        low = np.minimum.reduceat(corners, part_starts)
        high = np.maximum.reduceat(corners, part_starts)
        return cls(corners, starts, normals, anchors, face_part, low, high)


@dataclass(frozen=True)
class Camera:
    """A pinhole: pixel = focal * (right, up) / forward + center."""

    eye: Array  # (3,)
    axes: Array  # (3, 3) rows: right, up, forward
    focal_px: float
    center_px: tuple[float, float]
    side_px: int

    @classmethod
    def framing(
        cls, geometry: Geometry, *, azimuth: float, elevation: float, side_px: int, fill: float, shift: Array
    ) -> Camera:
        """The camera that sees the whole piece: `fill` of the image, off center by `shift` (2,)."""
        middle = (geometry.low.min(0) + geometry.high.max(0)) / 2
        reach = float(np.linalg.norm(geometry.high.max(0) - geometry.low.min(0)))
        away = np.array(
            [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        axes = _axes(-away)
        eye = middle + away * reach * 2.4
        flat = _project(geometry.corners - eye, axes)
        low, high = flat.min(0), flat.max(0)
        focal = side_px * fill / float((high - low).max())
        center = (side_px * (0.5 + shift)) - focal * np.array([1.0, -1.0]) * (low + high) / 2
        return cls(eye, axes, focal, (float(center[0]), float(center[1])), side_px)

    def pixels(self, points: Array) -> Array:
        """Where points (V, 3) lie in the image, (V, 2)."""
        flat = _project(points - self.eye, self.axes)
        placed: Array = np.array(self.center_px) + self.focal_px * flat * np.array([1.0, -1.0])
        return placed

    def rays(self, pixels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Direction of sight of these pixels (row by row numbers), (3, N), one metre deep."""
        steps = np.arange(self.side_px) + 0.5
        across = ((steps - self.center_px[0]) / self.focal_px).astype(np.float32).take(pixels % self.side_px)
        upwards = (
            ((self.center_px[1] - steps) / self.focal_px).astype(np.float32).take(pixels // self.side_px)
        )
        right, up, forward = self.axes.astype(np.float32)
        return np.stack([forward[i] + right[i] * across + up[i] * upwards for i in range(3)])


@dataclass(frozen=True)
class Sun:
    """Parallel light, and the buffer of what it sees: 0 for nothing, else part number + 1."""

    direction: Array  # (3,) towards the light
    axes: Array  # (3, 3)
    scale_px: float
    offset_px: Array  # (2,)
    buffer: Ids  # (M, M)


def paint(geometry: Geometry, camera: Camera) -> Ids:
    """The face number + 1 that each pixel shows, 0 where there is none; (S, S)."""
    facing = np.einsum("fi,fi->f", geometry.normals, camera.eye - geometry.anchors) > 1e-9
    order = drawing_order(geometry, camera.eye)
    fills = np.arange(len(geometry.normals), dtype=np.int64) + 1
    return _fill(geometry, camera.pixels(geometry.corners), (facing, order, fills), camera.side_px)


def sunlight(geometry: Geometry, direction: Array, *, side_px: int) -> Sun:
    """What the sun sees of the piece, for shadows."""
    axes = _axes(-direction)
    flat = (geometry.corners @ axes.T)[:, :2]
    low, high = flat.min(0), flat.max(0)
    scale = (side_px - 6) / float((high - low).max())
    offset = 3 - low * scale
    facing = geometry.normals @ direction > 1e-9
    order = drawing_order(geometry, direction * _SUN_DISTANCE_M)
    buffer = _fill(geometry, flat * scale + offset, (facing, order, geometry.face_part + 1), side_px)
    return Sun(direction, axes, scale, offset, buffer)


def drawing_order(geometry: Geometry, eye: Array) -> list[int]:
    """Part numbers from back to front, as seen from `eye`."""
    low, high = geometry.low, geometry.high
    apart = high[:, None] <= low[None, :] + _TOUCHING_M  # (P, P, 3) the first lies wholly below the second
    beyond_high = (eye >= high - _TOUCHING_M)[:, None]  # the eye is on the far side of the first
    beyond_low = (eye <= low + _TOUCHING_M)[:, None]
    cannot_hide = (apart & beyond_high).any(2) | (apart.transpose(1, 0, 2) & beyond_low).any(2)
    distance = np.linalg.norm((low + high) / 2 - eye, axis=1)
    farther = distance[:, None] >= distance[None, :]
    undecided = ~cannot_hide & ~cannot_hide.T
    before = (cannot_hide & ~cannot_hide.T) | (undecided & farther)
    np.fill_diagonal(before, False)
    return _sorted(before, distance)


def _sorted(before: NDArray[np.bool_], distance: Array) -> list[int]:
    """Topological order, farthest first among the free ones and where there is a cycle."""
    waiting = before.sum(0).astype(float)
    order: list[int] = []
    rank = -distance
    for _ in range(len(distance)):
        free = waiting <= 0
        pick = int(np.argmin(np.where(free, rank, np.inf) if free.any() else waiting * 1e3 + rank))
        order.append(pick)
        waiting = waiting - before[pick]
        waiting[pick] = np.inf
    return order


def _fill(
    geometry: Geometry,
    pixels: Array,
    what: tuple[NDArray[np.bool_], list[int], NDArray[np.int64]],
    side_px: int,
) -> Ids:
    facing, order, fills = what
    image = Image.new("I", (side_px, side_px))
    draw = ImageDraw.Draw(image)
    by_part = np.searchsorted(geometry.face_part, np.arange(len(geometry.low) + 1))
    flat = pixels.ravel().tolist()
    starts = (2 * geometry.starts).tolist()
    for part in order:
        for face in range(by_part[part], by_part[part + 1]):
            if facing[face]:
                draw.polygon(flat[starts[face] : starts[face + 1]], fill=int(fills[face]))
    return np.asarray(image, dtype=np.int32)


def _axes(forward: Array) -> Array:
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), forward / np.linalg.norm(forward)])


def _project(relative: Array, axes: Array) -> Array:
    flat = relative @ axes.T
    projected: Array = flat[:, :2] / flat[:, 2:]
    return projected
