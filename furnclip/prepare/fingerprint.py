"""Near-duplicate images: a fingerprint of what an image shows, and how far two of them are apart.

Input: an opened image. Output: 177 bytes: brightness on a grid of 12 x 12, two color differences on 4 x 4,
and the proportions of the frame. Images are near-duplicates up to a distance of `NEAR`, and show the same
photograph up to `SAME`. Up to `COPIED` one is the other in another quality: products of one design, drawn
or photographed from one place, are further apart.

A shop photographs everything on white, so the frame is what matters: where 96 % of the ink is, not where
the first pixel is, which jumps with every speck. A photograph in a border is framed by the border.

The distance asks what a small shift or stretch does not explain (the tangent distance
of Simard et al., 1993): what is left is measured against noise and, at an edge, against a quarter of a
cell. So a flat place has to agree, while the same outline alone, a dark rectangle, makes no pair. Another
size or quality, a border, a crop of a few percent and a mirror image are near; a recolored variant is not.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

NEAR = 1.35
SAME = 0.8
COPIED = 0.25

LIGHT_PX = 12
COLOR_PX = 4
PRINT_BYTES = LIGHT_PX**2 + 2 * COLOR_PX**2 + 1

_ENOUGH_PX = 72  # for a frame to within a pixel
_PLAIN_LEVELS = 24  # closer to the background than this is background, along the edge of an image
_CONTENT_LEVELS = 20  # further from the background than this is no shadow
_INK_LEVELS = 8  # closer to the background than this is no ink
_PLAIN_SHARE = 0.5  # of the edge, which is of one color where there is a background
_FULL_SHARE = 0.65  # of the content's edge, above which the content is a rectangle
_SPECKS = 0.02  # share of a line of pixels that is not content yet
_LEAST_PX = 4
_OUTER_INK = 0.02  # share of the ink outside the frame on each side
_ASPECT_STEPS = 40  # of the fingerprint's last byte, in one step of the logarithm

_NOISE = 0.4  # of the contrast
_NOISE_LEVELS = (3, 14)  # at least and at most: where there is next to no contrast, little has to agree well
_EDGE_CELLS = 0.2  # by how much of a cell an edge may be off
_STIFFNESS = 0.02  # against explaining everything by shifts
_EXPOSURE_NOISE = 3  # times the noise of a cell
_COLOR_LEVELS, _ASPECT_LOG = 3.2, 0.2  # apart by as much as noise


def fingerprint(image: Image.Image) -> bytes:
    """What an RGB image shows: `PRINT_BYTES` bytes."""
    if min(image.size) >= _ENOUGH_PX:
        image = image.reduce(min(image.size) // _ENOUGH_PX)
    left, top, right, bottom = box = _frame(np.asarray(image, dtype=np.int16))
    small = image.resize((LIGHT_PX, LIGHT_PX), Image.Resampling.BOX, box=box)
    light, blue, red = small.convert("YCbCr").split()
    colors = [band.reduce(LIGHT_PX // COLOR_PX).tobytes() for band in (blue, red)]
    aspect = 128 + _ASPECT_STEPS * np.log((right - left) / (bottom - top))
    return light.tobytes() + b"".join(colors) + bytes([int(np.clip(np.rint(aspect), 0, 255))])


def _frame(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """The box around nearly all ink of an image (H, W, 3), or around the photograph in a border."""
    left = top = 0
    for _ in range(2):  # the photograph in a border may be on white itself
        edge = _edge(pixels)
        background = np.median(edge, axis=0)
        if (np.abs(edge - background).max(axis=1) <= _PLAIN_LEVELS).mean() < _PLAIN_SHARE:
            break
        away = np.zeros(pixels.shape[:2])  # (H, W); by channel, as `max` over an axis of three is slow
        for channel, level in enumerate(background):
            np.maximum(away, np.abs(pixels[..., channel] - level), out=away)
        content = away > _CONTENT_LEVELS
        columns, lines = (np.flatnonzero(content.mean(axis=axis) > _SPECKS) for axis in (0, 1))
        if min(len(columns), len(lines)) < _LEAST_PX:
            break
        inside = slice(lines[0], lines[-1] + 1), slice(columns[0], columns[-1] + 1)
        if _edge(content[inside][1:-1, 1:-1]).mean() <= _FULL_SHARE:
            ink = np.maximum(away - _INK_LEVELS, 0)
            (x, right), (y, bottom) = _range(ink.sum(axis=0)), _range(ink.sum(axis=1))
            return left + x, top + y, left + right, top + bottom
        pixels, left, top = pixels[inside], left + int(columns[0]), top + int(lines[0])
    return left, top, left + pixels.shape[1], top + pixels.shape[0]


def _edge(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of (H, W) or (H, W, 3)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _range(ink: np.ndarray) -> tuple[float, float]:
    """From where to where most of the ink along one side is, in pixels, a little widened."""
    share = np.concatenate([[0.0], np.cumsum(ink)]) / ink.sum()
    first, last = np.interp([_OUTER_INK, 1 - _OUTER_INK], share, np.arange(len(share))).tolist()
    margin = (last - first) * 2 * _OUTER_INK
    first, last = max(0.0, first - margin), min(float(len(ink)), last + margin)
    return (first, last) if last - first >= 1 else (0.0, float(len(ink)))


def parts(prints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light (P, 12, 12), colors (P, 2, 4, 4) and the logarithm of width / height (P,) of (P, 177)."""
    light, colors, aspect = np.split(prints.astype(np.float32), [LIGHT_PX**2, PRINT_BYTES - 1], axis=1)
    shape = len(prints), 2, COLOR_PX, COLOR_PX
    return light.reshape(-1, LIGHT_PX, LIGHT_PX), colors.reshape(shape), (aspect[:, 0] - 128) / _ASPECT_STEPS


def distances(first: np.ndarray, second: np.ndarray, mirrored: np.ndarray, *, most: float) -> np.ndarray:
    """How far fingerprints (P, 177) are apart: (P,); infinite beyond `most`. mirrored: (P,) compare so."""
    (light, colors, aspect), (light_2, colors_2, aspect_2) = parts(first), parts(second)
    light_2 = np.where(mirrored[:, None, None], light_2[:, :, ::-1], light_2)
    colors_2 = np.where(mirrored[:, None, None, None], colors_2[..., ::-1], colors_2)
    exposure, exposure_2 = (image.mean(axis=(1, 2)) for image in (light, light_2))
    light -= exposure[:, None, None]
    light_2 -= exposure_2[:, None, None]
    contrast = np.sqrt(((light + light_2) ** 2).mean(axis=(1, 2))) / 2
    noise = np.clip(_NOISE * contrast, *_NOISE_LEVELS)  # (P,)
    total = ((colors - colors_2) ** 2).mean(axis=(1, 2, 3)) / _COLOR_LEVELS**2
    total += ((exposure - exposure_2) / (_EXPOSURE_NOISE * noise)) ** 2
    total += ((aspect - aspect_2) / _ASPECT_LOG) ** 2
    close = total <= most**2
    total[close] += _unexplained(light[close], light_2[close], noise[close])
    return np.where(total <= most**2, np.sqrt(total), np.inf)


def _unexplained(first: np.ndarray, second: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Mean square of what shifting and stretching leave between images (P, 12, 12), over noise: (P,)."""
    middle, apart = (first + second) / 2, (first - second).reshape(len(first), LIGHT_PX**2)
    down, across = np.gradient(middle, axis=(1, 2))
    place = np.linspace(-1, 1, LIGHT_PX, dtype=np.float32)
    ways = [across, across * place, down, down * place[:, None]]
    tangents = np.stack(ways, axis=1).reshape(len(first), len(ways), LIGHT_PX**2)  # (P, 4, 144)
    tangents -= tangents.mean(axis=2, keepdims=True)
    stiffness = 1 + _STIFFNESS * (middle**2).sum(axis=(1, 2))  # (P,)
    products = tangents @ tangents.transpose(0, 2, 1)  # (P, 4, 4)
    products += stiffness[:, None, None] * np.eye(len(ways), dtype=np.float32)
    amounts = np.linalg.solve(products, tangents @ apart[:, :, None])  # (P, 4, 1)
    left = apart - (amounts.transpose(0, 2, 1) @ tangents)[:, 0]  # (P, 144)
    steep = (down**2 + across**2).reshape(len(first), LIGHT_PX**2)
    return np.asarray((left**2 / (noise[:, None] ** 2 + _EDGE_CELLS**2 * steep)).mean(axis=1))
