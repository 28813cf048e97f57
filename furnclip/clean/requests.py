"""One product -> one request line, always the same bytes.

In: a `Product` and its picture. Out: a line of a part file in the shape of the Batch API. The picture is
upright, on white, at most `image_px` long, and set on the smallest canvas whose sides are multiples of
32: the service bills whole patches, so the few white pixels cost nothing and a square would.

`custom_id` names the product and a hash of everything that decides the answer. A row whose title,
picture, model or prompt changed is a new question; an unchanged one is never asked twice.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from furnclip.catalogue import Product, content_hash
from furnclip.clean.models import VisionModel, effort_of, find_model
from furnclip.clean.prompt import PROMPT_VERSION, Vocabulary, answer_schema, developer_prompt, user_text
from furnclip.config import CleaningConfig
from furnclip.images import WHITE, encode_jpeg, open_image

PATCH_PX = 32
_SCHEMA_NAME = "furniture"
_RESPONSES = "/v1/responses"
CHARACTERS_PER_TOKEN = 4.0  # English prose; the first real answer corrects it


@dataclass(frozen=True)
class Recipe:
    """Everything but the product that decides a request; small enough to hand to another process."""

    model: VisionModel
    effort: str
    endpoint: str
    image_px: int
    jpeg_quality: int
    cap_tokens: int
    vocabulary: Vocabulary

    @classmethod
    def from_config(cls, config: CleaningConfig) -> Recipe:
        model = find_model(config)
        return cls(
            model=model,
            effort=effort_of(config, model),
            endpoint=config.endpoint if config.backend == "openai" else "/v1/chat/completions",
            image_px=config.image_px,
            jpeg_quality=config.jpeg_quality,
            cap_tokens=config.max_completion_tokens,
            vocabulary=Vocabulary.from_config(config),
        )

    @cached_property
    def schema(self) -> dict[str, Any]:
        return answer_schema(self.vocabulary)

    @cached_property
    def identity(self) -> str:
        """Hash of what all requests share; the cap is left out, since a retry may raise it."""
        facts = [self.model.id, self.effort, self.endpoint, self.image_px, self.jpeg_quality]
        text = json.dumps([*facts, PROMPT_VERSION, developer_prompt(), self.schema], sort_keys=True)
        return content_hash(text)

    @cached_property
    def overhead_tokens(self) -> int:
        """Estimated tokens of prompt and schema, the same in every request."""
        return text_tokens(developer_prompt()) + text_tokens(json.dumps(self.schema))

    def custom_id(self, product: Product, picture: bytes) -> str:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", product.product_id)[:40]
        return f"{readable}-{content_hash(self.identity, product.product_id, product.title, picture)}"

    def body(self, title: str, jpeg: bytes) -> dict[str, Any]:
        picture = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
        if self.endpoint == _RESPONSES:
            return self._responses_body(title, picture)
        return self._chat_body(title, picture)

    def _chat_body(self, title: str, picture: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model.id,
            self.model.cap_name: self.cap_tokens,
            "messages": [
                {"role": self.model.instruction_role, "content": developer_prompt()},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": user_text(title)},
                        {"type": "image_url", "image_url": {"url": picture, "detail": "auto"}},
                    ],
                },
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": _SCHEMA_NAME, "strict": True, "schema": self.schema},
            },
        }
        if self.effort:
            body["reasoning_effort"] = self.effort
        if self.model.verbosity:
            body["verbosity"] = self.model.verbosity
        return body

    def _responses_body(self, title: str, picture: str) -> dict[str, Any]:
        form = {"type": "json_schema", "name": _SCHEMA_NAME, "strict": True, "schema": self.schema}
        body: dict[str, Any] = {
            "model": self.model.id,
            "max_output_tokens": self.cap_tokens,
            "instructions": developer_prompt(),
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": user_text(title)},
                        {"type": "input_image", "image_url": picture, "detail": "auto"},
                    ],
                }
            ],
            "text": {"format": form},
            "store": False,
        }
        if self.effort:
            body["reasoning"] = {"effort": self.effort}
        if self.model.verbosity:
            body["text"]["verbosity"] = self.model.verbosity
        return body

    def line(self, custom_id: str, body: dict[str, Any]) -> bytes:
        """One line of a part; pure ASCII, so no separator of Unicode can split it."""
        request = {"custom_id": custom_id, "method": "POST", "url": self.endpoint, "body": body}
        return json.dumps(request, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"


def request_picture(picture: bytes, recipe: Recipe) -> tuple[bytes, int]:
    """The JPEG to send and its estimated tokens. Raises `BrokenImage`."""
    image = on_patches(open_image(picture, longest_px=recipe.image_px))
    return encode_jpeg(image, recipe.jpeg_quality), image_tokens(image.size, recipe.model)


def on_patches(image: Image.Image) -> Image.Image:
    """The picture in the middle of the smallest white canvas made of whole patches."""
    width_px, height_px = (math.ceil(side / PATCH_PX) * PATCH_PX for side in image.size)
    if (width_px, height_px) == image.size:
        return image
    canvas = Image.new("RGB", (width_px, height_px), WHITE)
    canvas.paste(image, ((width_px - image.width) // 2, (height_px - image.height) // 2))
    return canvas


def image_tokens(size_px: tuple[int, int], model: VisionModel) -> int:
    """What the service bills for a picture: patches of 32 x 32 pixels times the model's factor."""
    patches = math.ceil(size_px[0] / PATCH_PX) * math.ceil(size_px[1] / PATCH_PX)
    return math.ceil(min(patches, model.max_patches or patches) * model.image_multiplier)


def text_tokens(text: str) -> int:
    """A rough count that needs no tokenizer; other scripts than Latin take about a token a character."""
    latin = sum(1 for character in text if ord(character) < 0x250)
    return math.ceil(latin / CHARACTERS_PER_TOKEN) + len(text) - latin


def with_cap(line: bytes, factor: int, ceiling_tokens: int) -> bytes:
    """The same request with a cap `factor` times as high, for an answer that was cut."""
    request = json.loads(line)
    body = request["body"]
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if name in body:
            body[name] = max(body[name], min(body[name] * factor, ceiling_tokens))
    return json.dumps(request, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
