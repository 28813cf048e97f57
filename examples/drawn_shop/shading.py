"""From face numbers to colors: texture, sun, sky, shadow, gloss and what stands behind the piece.

Deferred shading: for each pixel the line of sight is cut with the plane of the face it shows, which
gives the point in the room, and from that texture, normal and shadow, all pixels at once. Colors are
mixed as they are displayed, without gamma: quick, and good enough for a catalogue. Distances are
taken from the eye; N is the number of pixels that show the piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from . import textures
from .solids import Array, Mesh
from .view import Camera, Geometry, Ids, Sun

Floats = NDArray[np.float32]
Rgb = tuple[float, float, float]
_PIXELS_AT_A_TIME = 16384
_SKIRTING_M = 0.09
_INK: Rgb = (0.13, 0.11, 0.14)


@dataclass(frozen=True)
class Finish:
    """How a surface looks: two colors (0..1) mixed by a tile, and how it throws light back."""

    color: Rgb
    second: Rgb
    tile: str = "plain"
    repeat_m: float = 1.0
    stretch: float = 1.0  # how much longer the pattern is along the grain
    gloss: float = 0.0
    sheen: float = 0.0  # light at grazing angles: velvet
    glow: float = 0.0


@dataclass(frozen=True)
class Room:
    """What stands around the piece."""

    floor: Finish
    wall: Finish
    wall_y: float | None  # where the back wall stands; None: a seamless backdrop
    ambient: Rgb
    sun: Rgb
    shadow: float  # 0: none, 1: black
    ink: bool = False  # drawn with outlines and three tones instead of painted
    cast: Rgb = (1.0, 1.0, 1.0)  # what white looks like to a camera without white balance


@dataclass(frozen=True)
class _Surface:
    """What each of the N pixels of the piece shows."""

    points: Floats  # (3, N) from the eye
    normals: Floats  # (3, N) unit
    sight: Floats  # (3, N) unit, from the point to the eye
    uv: Floats  # (2, N) place in the tile, in tiles
    slot: Ids  # (N,)
    part: Ids  # (N,)


class Painter:
    """Colors the buffers of one scene."""

    def __init__(
        self, mesh: Mesh, geometry: Geometry, finishes: Sequence[Finish], *, camera: Camera, sun: Sun
    ) -> None:
        self._mesh = mesh
        self._geometry = geometry
        self._finishes = finishes
        self._camera = camera
        self._sun = sun
        self._faces = self._face_table()
        self._face_part = geometry.face_part.astype(np.int32)
        self._part_slot = np.array(mesh.slots, np.int32)
        forward = (geometry.corners - camera.eye) @ camera.axes[2]
        self._depths = (np.float32(forward.min()), np.float32(forward.max()))

    def picture(self, ids: Ids, room: Room) -> Image.Image:
        """The finished image, (S, S) RGB, from the face number + 1 of every pixel."""
        side = self._camera.side_px
        shown = ids.ravel()
        here, behind = _pieces(np.flatnonzero(shown)), _pieces(np.flatnonzero(shown == 0))
        lit = np.empty(side * side, np.float32)
        image = np.empty((side * side, 3), np.float32)
        surfaces = [self._surface(self._camera.rays(pixels), shown[pixels] - 1) for pixels in here]
        for pixels, surface in zip(here, surfaces, strict=True):
            lit[pixels] = self._sunlit(surface.points, surface.part + 1)
        for pixels in behind:
            image[pixels], points = self._backdrop(pixels, room)
            lit[pixels] = self._sunlit(points, None)
        lit = _softened(lit.reshape(side, side), side / 180).ravel()
        for pixels in behind:
            image[pixels] *= (1 - room.shadow * (1 - lit[pixels]))[:, None]
        for pixels, surface in zip(here, surfaces, strict=True):
            image[pixels] = self._lighted(surface, lit[pixels], room)
        if room.ink:
            image[self._outlines(ids)] = np.array(_INK, np.float32)
        np.clip(image, 0, 1, out=image)
        image *= np.array(room.cast, np.float32) * 255
        return Image.fromarray(image.astype(np.uint8).reshape(side, side, 3))

    def _surface(self, rays: Floats, faces: Ids) -> _Surface:
        columns = self._faces.take(faces, axis=1)  # (21, N)
        flat_normal, depth, frame = columns[0:3], columns[3], columns[13:21]
        # An edge pixel may lie just outside its face, where the plane can be met anywhere.
        points = rays * (depth / _dot(flat_normal, rays)).clip(*self._depths)
        offset = (points - columns[4:7]) * columns[7:10]
        square = offset * offset
        bulge = offset * (columns[10] + columns[11] * square * square) * columns[7:10]
        normals = flat_normal * columns[12] + bulge
        normals /= np.sqrt(_dot(normals, normals)) + np.float32(1e-9)
        length: Floats = np.sqrt(_dot(rays, rays))
        sight = rays / -length
        uv = np.stack([_dot(frame[0:3], points) + frame[6], _dot(frame[3:6], points) + frame[7]])
        part = self._face_part.take(faces)
        slot = self._part_slot.take(part)
        return _Surface(points, normals, sight, uv, slot, part)

    def _face_table(self) -> Floats:
        geometry, mesh = self._geometry, self._mesh
        part = geometry.face_part
        eye = self._camera.eye
        rules = np.array(mesh.rules)[part]  # (F, 2)
        depth = np.einsum("fi,fi->f", geometry.normals, geometry.anchors - eye)
        centers = np.array(mesh.centers)[part] - eye
        inverse = 1 / np.array(mesh.radii)[part]
        is_flat = (rules.sum(1) == 0).astype(float)
        frames = self._texture_frames()[:, part]
        table = [geometry.normals.T, depth[None], centers.T, inverse.T, rules.T, is_flat[None], frames]
        return np.concatenate(table).astype(np.float32)

    def _texture_frames(self) -> Array:
        """For each part the matrix from points to tile coordinates and the shift, (6 + 2, P)."""
        matrices = np.zeros((len(self._mesh.slots), 2, 3))
        shifts = np.zeros((len(self._mesh.slots), 2))
        size = self._geometry.high - self._geometry.low
        for part, (slot, pinned) in enumerate(zip(self._mesh.slots, self._mesh.pinned, strict=True)):
            if pinned:
                matrices[part], start = _pinned_frame(*pinned)
                shifts[part] = -matrices[part] @ start
            else:
                matrices[part] = _grain_frame(self._finishes[slot], int(np.argmax(size[part])))
                shifts[part] = (part * 0.377 % 1, part * 0.713 % 1)
            shifts[part] += matrices[part] @ self._camera.eye
        return np.concatenate([matrices.reshape(-1, 6), shifts], axis=1).T

    def _sunlit(self, points: Floats, own: Ids | None) -> Floats:
        """How much of the sun reaches each point, 0..1; `own` is the part number + 1, None: the floor."""
        sun = self._sun
        scale = np.float32(sun.scale_px)
        place = [
            (sun.axes[i].astype(np.float32) @ points) * scale
            + np.float32(self._camera.eye @ sun.axes[i] * sun.scale_px + sun.offset_px[i])
            for i in range(2)
        ]
        limit = len(sun.buffer) - 1
        buffer = sun.buffer.ravel()
        total = np.zeros(points.shape[1], np.float32)
        for dx, dy in ((-0.9, -0.4), (0.4, -0.9), (0.9, 0.4), (-0.4, 0.9)):
            column = (place[0] + dx).clip(0, limit).astype(np.int32)
            row = (place[1] + dy).clip(0, limit).astype(np.int32)
            seen = buffer.take(row * np.int32(limit + 1) + column)
            total += (seen == 0) if own is None else (seen == own) | (seen == 0)
        return total / np.float32(4)

    def _lighted(self, surface: _Surface, lit: Floats, room: Room) -> Floats:
        """Colors (N, 3) of the piece."""
        slot, normals = surface.slot, surface.normals
        base = _textured(surface.uv, slot, self._finishes)
        towards = self._sun.direction.astype(np.float32)
        facing = _dot(normals, towards).clip(0, 1) * lit
        height = surface.points[2] + np.float32(self._camera.eye[2])
        corner = 0.7 + 0.3 * (height / 0.3).clip(0, 1)
        sky = (0.72 + 0.28 * normals[2]) * corner
        if room.ink:
            facing = np.floor(facing * 2.2 + 0.4) / 2.2
            sky = np.full_like(sky, 0.85)
        glow = _column(self._finishes, "glow")[slot]
        halfway = surface.sight + towards[:, None]
        shine = (_dot(normals, halfway) / np.sqrt(_dot(halfway, halfway))).clip(0, 1)
        shine = _power16(shine) * _column(self._finishes, "gloss")[slot] * (0.25 + 0.75 * lit)
        grazing = (1 - _dot(normals, surface.sight).clip(0, 1)) ** 2
        grazing *= _column(self._finishes, "sheen")[slot]
        out: Floats = np.empty((base.shape[1], 3), np.float32)
        for channel in range(3):
            light = room.ambient[channel] * sky + room.sun[channel] * facing + glow
            out[:, channel] = base[channel] * (light + grazing) + shine * room.sun[channel]
        return out

    def _backdrop(self, pixels: NDArray[np.int64], room: Room) -> tuple[Floats, Floats]:
        """Colors (N, 3) of wall and floor, and their points (3, N), for the shadows."""
        rays = self._camera.rays(pixels)
        eye = self._camera.eye.astype(np.float32)
        side = self._camera.side_px
        height = (pixels // side).astype(np.float32) / np.float32(side)
        reach = -eye[2] / np.minimum(rays[2], np.float32(-1e-4))
        if room.wall_y is None:
            rise = np.float32(1.04) - np.float32(0.16) * height
            return rise[:, None] * np.array(room.floor.color, np.float32), rays * reach
        wall_reach = (np.float32(room.wall_y) - eye[1]) / np.maximum(rays[1], np.float32(1e-4))
        on_wall = wall_reach < reach
        points = rays * np.minimum(reach, wall_reach)
        there = points + eye[:, None]
        floor, wall = room.floor, room.wall
        scale = np.array([floor.repeat_m, floor.repeat_m * floor.stretch, wall.repeat_m, wall.repeat_m])
        u_floor, v_floor, u_wall, v_wall = (1 / scale).astype(np.float32)
        u = there[0] * np.where(on_wall, u_wall, u_floor)
        v = np.where(on_wall, there[2] * -v_wall, there[1] * v_floor)
        color = _textured(np.stack([u, v]), on_wall.astype(np.int32), (floor, wall))
        skirting = on_wall & (there[2] < _SKIRTING_M)
        color[:, skirting] = color[:, skirting] * np.float32(0.4) + np.float32(0.55)
        light = np.where(on_wall, np.float32(0.86) + np.float32(0.1) * there[2].clip(0, 2), np.float32(1))
        mean = np.array(room.ambient, np.float32) + np.float32(0.55) * np.array(room.sun, np.float32)
        return (color * light * mean[:, None]).T, points

    def _outlines(self, ids: Ids) -> NDArray[np.int64]:
        """Pixels where one flat face or round part ends and another begins."""
        part = self._geometry.face_part
        round_part = np.array(self._mesh.rules).sum(1)[part] > 0
        key = np.where(round_part, -1 - part, np.arange(len(part)) + 1)
        shown = np.concatenate([[0], key])[ids]
        edge = np.zeros(ids.shape, bool)
        edge[:, 1:] |= shown[:, 1:] != shown[:, :-1]
        edge[1:] |= shown[1:] != shown[:-1]
        return np.flatnonzero(edge)


def _pinned_frame(start: tuple[float, ...], size: tuple[float, ...]) -> tuple[Array, Array]:
    """The frame that lays a tile once over the top (thin boxes) or the front of a box."""
    frame = np.zeros((2, 3))
    frame[0, 0] = 0.998 / size[0]
    lying = size[2] < size[1]
    frame[1, 1 if lying else 2] = 0.998 / size[1] if lying else -0.998 / size[2]
    origin = np.array(start) if lying else np.array([start[0], start[1], start[2] + size[2]])
    return frame, origin


def _grain_frame(finish: Finish, longest: int) -> Array:
    frame = np.zeros((2, 3))
    if finish.stretch == 1.0:
        frame[0] = (1, 0.6, 0)
        frame[1] = (0, 0.6, 1)
        return frame / finish.repeat_m
    across = [axis for axis in range(3) if axis != longest]
    frame[0, across] = (1 / finish.repeat_m, 0.7 / finish.repeat_m)
    frame[1, longest] = 1 / (finish.repeat_m * finish.stretch)
    return frame


def _textured(uv: Floats, slot: Ids, finishes: Sequence[Finish]) -> Floats:
    """The mixed color (3, N) at tile coordinates `uv` (2, N) of each pixel's finish."""
    tiles = np.array([textures.tile_index(finish.tile) for finish in finishes], np.int32)
    place = (uv * textures.SIDE).astype(np.int32) & (textures.SIDE - 1)
    index = (tiles.take(slot) * textures.SIDE + place[1]) * textures.SIDE + place[0]
    mix = textures.atlas().ravel().take(index)
    first = np.array([finish.color for finish in finishes], np.float32).T
    change = np.array([finish.second for finish in finishes], np.float32).T - first
    mixed: Floats = first.take(slot, axis=1) + change.take(slot, axis=1) * mix
    return mixed


def _pieces(pixels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The pixels in runs whose working arrays stay in the processor's cache."""
    return np.array_split(pixels, len(pixels) // _PIXELS_AT_A_TIME + 1)


def _dot(left: Floats, right: Floats) -> Floats:
    """Row-wise products of (3, N), summed; quicker than a reduction over the short axis."""
    total: Floats = left[0] * right[0] + left[1] * right[1] + left[2] * right[2]
    return total


def _column(finishes: Sequence[Finish], name: str) -> Floats:
    return np.array([getattr(finish, name) for finish in finishes], np.float32)


def _power16(values: Floats) -> Floats:
    for _ in range(4):
        values = values * values
    return values


def _softened(values: Floats, radius_px: float) -> Floats:
    image = Image.fromarray((values * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius_px))
    return np.asarray(image, dtype=np.float32) / np.float32(255)
