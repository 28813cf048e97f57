"""The offline backend: rules over the title, and the dominant colour of the picture. Free, deterministic.

In: a product's title and picture. Out: an answer of the same shape as the model's, as a result line.
It is the baseline that a paid model has to beat, and the fallback for rows that one could not clean.
Style is known only where the title says it; colours are judged on the picture as shot, so warm light makes
white things beige. Pixel counting follows no paper: nearest named colour, background taken off first.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from furnclip.catalogue import content_hash
from furnclip.clean.prompt import UNKNOWN, Answer, Vocabulary
from furnclip.clean.titles import clean_title, first_word, lexicon, object_type, usual_material
from furnclip.images import open_image

SOURCE = "local:rules-2"
_SIDE_PX = 64
_BACKGROUND_DISTANCE = 24  # RGB, 0 to 255 a channel
_PLAIN_BORDER = 0.9  # share of the border that has its usual colour when the background is uniform
_SHADOW_DISTANCE = 14  # between a pixel and the background made darker
_SHADOW_DEPTH = 0.4  # what a shadow leaves of the background's light, at least
_BESIDE_SHADOW = 0.3  # share of the product that must be left when shadow is taken off
_CLEARLY = 0.6  # share of the product's pixels that overrules the title
_WHITE_FROM, _BLACK_TO = 195, 90  # brightness of the lit side, 0 to 255
_HARDLY = 0.04  # share under which a colour named in the title is not on the picture


def local_id(product_id: str, title: str, picture: bytes, vocabulary: Vocabulary) -> str:
    """Like `Recipe.custom_id`: changes with everything that decides the answer."""
    return f"local-{content_hash(rules_identity(vocabulary), product_id, title, picture)}"


@cache
def rules_identity(vocabulary: Vocabulary) -> str:
    """Hash of rules, word lists and vocabulary."""
    return content_hash(json.dumps([SOURCE, asdict(vocabulary), dict(lexicon())], sort_keys=True))


def answer_line(custom_id: str, title: str, picture: bytes, vocabulary: Vocabulary) -> bytes:
    """The answer as one line of a result file, in the shape of the Batch API. Raises `BrokenImage`."""
    answer = local_answer(title, open_image(picture, longest_px=_SIDE_PX), vocabulary)
    message = {"role": "assistant", "content": answer.model_dump_json()}
    body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    line = {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}
    return json.dumps(line, ensure_ascii=True).encode("ascii") + b"\n"


def local_answer(title: str, image: Image.Image | None, vocabulary: Vocabulary) -> Answer:
    """The answer of the rules to a title from `plain_title`; `image` is None where only the title counts."""
    name = clean_title(title)
    kind = object_type(name, vocabulary)
    pixels = _pixels(image) if image is not None else None
    material = first_word(name, "material", vocabulary)
    if material == UNKNOWN:
        material = usual_material(name, kind, vocabulary)
    color = _color(first_word(name, "color", vocabulary), pixels, vocabulary)
    values = {
        "clean_title": name or (kind if kind != UNKNOWN else "product"),
        "style": first_word(name, "style", vocabulary),
        "material": material,
        "color": _wooden(color, vocabulary) if material == "wood" else color,
        "object_type": kind,
    }
    return Answer.model_validate(values, context=vocabulary)


def _color(named: str, pixels: NDArray[np.int16] | None, vocabulary: Vocabulary) -> str:
    """The picture overrules the title only where it can: a cut-out, clearly of quite another colour."""
    shares = color_shares(pixels) if pixels is not None else {}
    ranked = [color for color in shares if color in vocabulary.color]
    if not ranked or pixels is None:
        return named
    if named == UNKNOWN:
        return ranked[0]
    contradicted = shares.get(named, 0.0) < _HARDLY and shares[ranked[0]] > _CLEARLY
    overrules = contradicted and has_plain_border(pixels) and not _is_mixed_up(named, ranked[0])
    return ranked[0] if overrules else named


# Names that light and varnish turn into one another: no contradiction between title and picture.
_MIXED_UP = (
    {"white", "gray", "silver", "beige", "clear"},
    {"black", "gray"},
    {"black", "brown"},
    {"gold", "yellow", "orange", "brown", "beige"},
    {"brown", "red", "orange"},
    {"pink", "red", "purple"},
    {"pink", "beige"},
    {"blue", "purple"},
    {"green", "yellow"},
)


def _is_mixed_up(one: str, other: str) -> bool:
    return any(one in names and other in names for names in _MIXED_UP)


def _wooden(color: str, vocabulary: Vocabulary) -> str:
    """Varnished wood is orange to a camera and brown to people."""
    return "brown" if color == "orange" and "brown" in vocabulary.color else color


def _pixels(image: Image.Image) -> NDArray[np.int16]:
    """(H, W, 3)"""
    return np.asarray(image.convert("RGB").resize((_SIDE_PX, _SIDE_PX)), dtype=np.int16)


def color_shares(pixels: NDArray[np.int16]) -> dict[str, float]:
    """Colour name -> share of the product's pixels, largest first; `multicolor` leads where none does."""
    product = _product(pixels)  # (N, 3)
    counts = Counter(_names(product))
    shares = {name: count / len(product) for name, count in counts.most_common()}
    vivid = [name for name, share in shares.items() if share >= 0.12 and name not in _PLAIN]
    if len(vivid) >= 3 and max(shares.values()) < 0.4:
        return {"multicolor": 1.0, **shares}
    return shares


def _product(pixels: NDArray[np.int16]) -> NDArray[np.int16]:
    """(N, 3): the pixels without background and, where enough is left, without the shadow cast on it."""
    product = pixels[~_background(pixels)]
    if len(product) < _SIDE_PX:  # nearly all of it looks like background: a white thing on white
        return pixels.reshape(-1, 3)
    usual = np.median(_border(pixels), axis=0)
    light = product @ usual / max(1.0, usual @ usual)  # (N,), 1 where a pixel is as bright as the background
    off = np.abs(product - light[:, None] * usual).max(axis=1)
    kept = product[(off > _SHADOW_DISTANCE) | (light >= 1) | (light <= _SHADOW_DEPTH)]
    return kept if len(kept) >= _BESIDE_SHADOW * len(product) else product


def has_plain_border(pixels: NDArray[np.int16]) -> bool:
    """Whether the product is cut out: the border has one colour all around."""
    border = _border(pixels)
    alike = np.abs(border - np.median(border, axis=0)).max(axis=1) <= _BACKGROUND_DISTANCE
    return bool(alike.mean() >= _PLAIN_BORDER)


def _border(pixels: NDArray[np.int16]) -> NDArray[np.int16]:
    """(4 * side, 3)"""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _background(pixels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """(H, W): pixels like the border's usual colour that hang together with the border."""
    usual = np.median(_border(pixels), axis=0)
    alike: NDArray[np.bool_] = np.abs(pixels - usual).max(axis=2) <= _BACKGROUND_DISTANCE  # (H, W)
    reached = np.zeros_like(alike)
    reached[[0, -1]], reached[:, [0, -1]] = alike[[0, -1]], alike[:, [0, -1]]
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= alike
        if (grown == reached).all():
            return reached
        reached = grown


_PLAIN = frozenset({"white", "black", "gray", "beige", "brown"})
_HUES = (
    (15, "red"),
    (42, "orange"),
    (68, "yellow"),
    (165, "green"),
    (255, "blue"),
    (290, "purple"),
    (345, "pink"),
    (361, "red"),
)


def _names(pixels: NDArray[np.int16]) -> list[str]:
    """The colour name of each pixel, by hue, saturation and brightness."""
    high, low = pixels.max(axis=1), pixels.min(axis=1)
    spread = np.maximum(high - low, 1)
    saturation = (high - low) / np.maximum(high, 1)
    red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    hue = np.where(
        high == red,
        (60 * (green - blue) / spread) % 360,
        np.where(high == green, 60 * (blue - red) / spread + 120, 60 * (red - green) / spread + 240),
    )
    names = np.array([name for _, name in _HUES], dtype="<U10")[
        np.searchsorted([limit for limit, _ in _HUES], hue, side="right")
    ]
    warm = (hue >= 8) & (hue < 60)
    names[((hue >= 330) | (hue < 15)) & (saturation < 0.45) & (high > 170)] = "pink"
    names[warm & (saturation < 0.45) & (high >= 150)] = "beige"
    names[warm & (saturation >= 0.18) & (high < 185) & ~((saturation > 0.75) & (high > 150))] = "brown"
    names[(hue >= 42) & (hue < 60) & (saturation > 0.6) & (high > 140)] = "yellow"
    plain = (saturation < 0.14) | (high < 50) | ((saturation < 0.25) & (high < 65))
    if plain.any():
        names[plain] = _plain_name(high[plain])
    return [str(name) for name in names]


def _plain_name(brightness: NDArray[np.int16]) -> str:
    """White, gray or black: all of it gets one name, since shade darkens half of a white thing."""
    lit = float(np.quantile(brightness, 0.6))
    return "white" if lit >= _WHITE_FROM else "black" if lit < _BLACK_TO else "gray"
