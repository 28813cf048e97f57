"""Surface patterns as small tiles of numbers between 0 and 1, made once per process.

A finish mixes two colors by the tile: grain, weave, cane, veins, brick. Tiles repeat seamlessly and
are 256 pixels wide; the constants are what looked right, not what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.float32]
SIDE = 256


@cache
def atlas() -> Tile:
    """All tiles, (number of tiles, SIDE, SIDE), in the order of `NAMES`."""
    generator = np.random.default_rng(20)
    return np.stack([make(generator) for make in _MAKERS.values()])


def tile_index(name: str) -> int:
    return NAMES.index(name)


def _tile(values: NDArray[Any]) -> Tile:
    return np.asarray(values, np.float32)


def _noise(generator: np.random.Generator, across: int, along: int) -> Tile:
    """Smooth repeating noise with that many bumps across (columns) and along (rows)."""
    total = np.zeros((SIDE, SIDE))
    weight = 1.0
    for octave in range(3):
        columns, rows = across * 2**octave, along * 2**octave
        if max(columns, rows) > SIDE:
            break
        total += weight * _stretch(generator.random((rows, columns)))
        weight *= 0.5
    total -= total.min()
    return _tile(total / total.max())


def _stretch(coarse: NDArray[np.float64]) -> NDArray[np.float64]:
    for axis in (0, 1):
        count = coarse.shape[axis]
        position = np.arange(SIDE) * count / SIDE
        left = position.astype(int)
        part = position - left
        part = part * part * (3 - 2 * part)
        shape = (-1, 1) if axis == 0 else (1, -1)
        part = part.reshape(shape)
        coarse = coarse.take(left % count, axis) * (1 - part) + coarse.take((left + 1) % count, axis) * part
    return coarse


def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    return rows, columns


def _plain(_: np.random.Generator) -> Tile:
    return np.zeros((SIDE, SIDE), np.float32)


def _mottled(generator: np.random.Generator) -> Tile:
    return _noise(generator, 8, 8)


def _wood(generator: np.random.Generator) -> Tile:
    rings = _noise(generator, 6, 2) * 9
    fibres = _noise(generator, 96, 4)
    return _tile(0.65 * (0.5 + 0.5 * np.sin(2 * np.pi * rings)) + 0.35 * fibres)


def _planks(generator: np.random.Generator) -> Tile:
    rows, columns = _grid()
    plank = (columns * 6).astype(int)
    tone = generator.random(6)[plank] * 0.5
    seam = ((columns * 6) % 1 < 0.05) | ((rows * 2 + plank * 0.37) % 1 < 0.012)
    return _tile(np.where(seam, 1.0, tone + 0.35 * _noise(generator, 64, 4)))


def _weave(generator: np.random.Generator) -> Tile:
    rows, columns = _grid()
    threads = np.sin(2 * np.pi * 64 * rows) * np.sin(2 * np.pi * 64 * columns)
    return _tile((0.5 + 0.3 * threads + 0.4 * (_noise(generator, 32, 32) - 0.5)).clip(0, 1))


def _velvet(generator: np.random.Generator) -> Tile:
    return _tile(_noise(generator, 5, 5) ** 2)


def _leather(generator: np.random.Generator) -> Tile:
    cells = np.abs(_noise(generator, 40, 40) - 0.5) * 2
    return _tile(0.6 * (1 - cells) ** 3 + 0.4 * _noise(generator, 6, 6))


def _cane(_: np.random.Generator) -> Tile:
    rows, columns = _grid()
    across, along = (columns * 16) % 1, (rows * 16) % 1
    over = ((columns * 16).astype(int) + (rows * 16).astype(int)) % 2 == 0
    strand = np.where(over, np.abs(across - 0.5), np.abs(along - 0.5)) * 2
    return _tile(strand**2)


def _brushed(generator: np.random.Generator) -> Tile:
    return _noise(generator, 128, 2)


def _marble(generator: np.random.Generator) -> Tile:
    veins = 1 - np.abs(_noise(generator, 4, 4) - 0.5) * 2
    fine = 1 - np.abs(_noise(generator, 9, 9) - 0.5) * 2
    return _tile((veins**14 + 0.5 * fine**18).clip(0, 1))


def _streaks(_: np.random.Generator) -> Tile:
    rows, columns = _grid()
    diagonal = (rows + columns * 0.8) % 1
    return _tile(0.5 * (diagonal > 0.62) * (diagonal < 0.8) + 0.5 * (np.abs(diagonal - 0.86) < 0.02))


def _brick(generator: np.random.Generator) -> Tile:
    rows, columns = _grid()
    row = (rows * 8).astype(int)
    shifted = (columns * 4 + 0.5 * (row % 2)) % 4
    tone = generator.random((8, 4))[row, shifted.astype(int)] * 0.45
    mortar = ((rows * 8) % 1 < 0.12) | (shifted % 1 < 0.06)
    return _tile(np.where(mortar, 1.0, tone + 0.15 * _noise(generator, 64, 64)))


def _squares(_: np.random.Generator) -> Tile:
    rows, columns = _grid()
    return _tile((((rows * 4) % 1) < 0.03) | (((columns * 4) % 1) < 0.03))


def _checks(_: np.random.Generator) -> Tile:
    rows, columns = _grid()
    return _tile(((rows * 4).astype(int) + (columns * 4).astype(int)) % 2)


def _stripes(_: np.random.Generator) -> Tile:
    rows, columns = _grid()
    return _tile(((rows * 8 + columns * 0) % 1) < 0.45)


def _border(_: np.random.Generator) -> Tile:
    """A rug with two frames and a medallion."""
    rows, columns = _grid()
    edge = np.minimum(np.minimum(rows, 1 - rows), np.minimum(columns, 1 - columns))
    medallion = np.abs(rows - 0.5) * 1.3 + np.abs(columns - 0.5) * 1.3
    frames = ((edge > 0.05) & (edge < 0.08)) | ((edge > 0.11) & (edge < 0.14))
    rings = (medallion < 0.12) | ((medallion > 0.2) & (medallion < 0.27))
    return _tile(frames | rings)


def _diamonds(_: np.random.Generator) -> Tile:
    rows, columns = _grid()
    distance = np.abs((rows * 4) % 1 - 0.5) + np.abs((columns * 4) % 1 - 0.5)
    return _tile(((distance > 0.32) & (distance < 0.48)) | (distance < 0.1))


def _rings(_: np.random.Generator) -> Tile:
    rows, columns = _grid()
    return _tile((np.hypot(rows - 0.5, columns - 0.5) * 12) % 1 < 0.4)


def _picture(generator: np.random.Generator) -> Tile:
    """A framed abstract print."""
    rows, columns = _grid()
    edge = np.minimum(np.minimum(rows, 1 - rows), np.minimum(columns, 1 - columns))
    shapes = np.hypot(rows - 0.4, columns - 0.45) < 0.2
    hills = rows > 0.66 + 0.08 * np.sin(columns * 9)
    ink = np.where(shapes | hills, 0.85, 0.1) + 0.1 * _noise(generator, 8, 8)
    return _tile(np.where(edge < 0.03, 1.0, np.where(edge < 0.12, 0.0, ink)).clip(0, 1))


_MAKERS: dict[str, Callable[[np.random.Generator], Tile]] = {
    "plain": _plain,
    "mottled": _mottled,
    "wood": _wood,
    "planks": _planks,
    "weave": _weave,
    "velvet": _velvet,
    "leather": _leather,
    "cane": _cane,
    "brushed": _brushed,
    "marble": _marble,
    "streaks": _streaks,
    "brick": _brick,
    "squares": _squares,
    "checks": _checks,
    "stripes": _stripes,
    "border": _border,
    "diamonds": _diamonds,
    "rings": _rings,
    "picture": _picture,
}
NAMES = tuple(_MAKERS)
