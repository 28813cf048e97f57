"""The offline backend: rules over the title, and the dominant color of the image. Free, deterministic.

In: a product's title and image. Out: an answer of the same shape as the model's, as a result line.
It is the baseline that a paid model has to beat, and the fallback for rows that one could not clean.
Style is known only where the title says it; colors are judged on the image as shot, so warm light makes
white things beige.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache

from PIL import Image

from furnclip.catalogue import content_hash
from furnclip.clean.offline.titles import clean_title, first_word, lexicon, object_type, usual_material
from furnclip.clean.prompt import UNKNOWN, Answer, Vocabulary
from furnclip.images import open_image
from furnclip.journal import encode_event

SOURCE = "local:rules-2"
IMAGE_PX = 64  # enough to judge a color
_CLEARLY = 0.6  # share of the product's pixels that overrules the title
_HARDLY = 0.04  # share under which a color named in the title is not on the image


def local_id(product_id: str, title: str, image: bytes, vocabulary: Vocabulary) -> str:
    """Like `Recipe.custom_id`: changes with everything that decides the answer."""
    return f"local-{content_hash(rules_identity(vocabulary), product_id, title, image)}"


@cache
def rules_identity(vocabulary: Vocabulary) -> str:
    """Hash of rules, word lists and vocabulary."""
    return content_hash(json.dumps([SOURCE, asdict(vocabulary), dict(lexicon())], sort_keys=True))


def answer_line(custom_id: str, title: str, image: bytes, vocabulary: Vocabulary) -> bytes:
    """The answer as one line of a result file, in the shape of the Batch API. Raises `BrokenImage`."""
    answer = local_answer(title, open_image(image, longest_px=IMAGE_PX), vocabulary)
    message = {"role": "assistant", "content": answer.model_dump_json()}
    body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    response = {"status_code": 200, "body": body}
    return encode_event({"custom_id": custom_id, "response": response, "error": None})


def local_answer(title: str, image: Image.Image | None, vocabulary: Vocabulary) -> Answer:
    """The answer of the rules to a title from `plain_title`; `image` is None where only the title counts."""
    name = clean_title(title)
    kind = object_type(name, vocabulary)
    material = first_word(name, "material", vocabulary)
    if material == UNKNOWN:
        material = usual_material(name, kind, vocabulary)
    color = _color(first_word(name, "color", vocabulary), image, vocabulary)
    if material == "wood" and color == "orange" and "brown" in vocabulary.color:
        color = "brown"  # varnished wood is orange to a camera and brown to people
    values = {
        "clean_title": name or (kind if kind != UNKNOWN else "product"),
        "style": first_word(name, "style", vocabulary),
        "material": material,
        "color": color,
        "object_type": kind,
    }
    return Answer.model_validate(values, context=vocabulary)


def _color(named: str, image: Image.Image | None, vocabulary: Vocabulary) -> str:
    """The image overrules the title only where it can: a cut-out, clearly of quite another color."""
    if image is None:
        return named
    from furnclip.clean.offline import colors  # it needs numpy, which takes longer to load than all the rest

    pixels = colors.read_pixels(image, IMAGE_PX)
    shares = colors.color_shares(pixels)
    ranked = [color for color in shares if color in vocabulary.color]
    if not ranked:
        return named
    if named == UNKNOWN:
        return ranked[0]
    is_contradicted = shares.get(named, 0.0) < _HARDLY and shares[ranked[0]] > _CLEARLY
    is_mixed_up = any({named, ranked[0]}.issubset(names) for names in lexicon()["colors"]["mixed_up"])
    if is_mixed_up or not is_contradicted:
        return named
    return ranked[0] if colors.has_plain_border(pixels) else named
