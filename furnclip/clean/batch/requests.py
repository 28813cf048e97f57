"""One product -> one request line, always the same bytes; and the table of models that decides its shape.

The image is upright, on white, at most `image_px` long, and set on the smallest canvas whose sides are
multiples of 32: the service bills whole patches, so the few white pixels cost nothing and a square would.
`custom_id` names the product and a hash of everything that decides the answer, so that an unchanged row is
never asked twice. Models are data: `models.toml` beside this file and `[clean.models]` of `furnclip.toml`.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

import tomli
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from furnclip.catalogue import Product, content_hash
from furnclip.clean.batch.state import Usage
from furnclip.clean.prompt import PROMPT_VERSION, AllowedWords, answer_schema, instructions, user_text
from furnclip.config import CleaningConfig
from furnclip.errors import ConfigError, first_problem, nearest
from furnclip.images import WHITE, encode_jpeg, open_image
from furnclip.journal import encode_event

PATCH_PX = 32
QUERY_TOKENS = 5  # more in an answer for each shopper query; the table is generous to the rest
CHARACTERS_PER_TOKEN = 4.0  # English prose; the first real answer corrects it
_ANY = "*"
_Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class VisionModel(BaseModel):
    """One row of the table; the keys are explained at the top of `models.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    id: str
    family: str = ""  # whose row it has, where it has none of its own
    input_usd: _Price
    output_usd: _Price
    batch_discount: Annotated[float, Field(gt=0, le=1)] = 0.5
    efforts: tuple[str, ...] = ()
    verbosity: str = ""
    image_multiplier: Annotated[float, Field(gt=0)] = 1.0
    max_patches: Annotated[int, Field(ge=0)] = 0
    queue_tokens: Annotated[tuple[PositiveInt, ...], Field(max_length=5)] = ()
    answer_tokens: Annotated[int, Field(gt=0)] = 100
    instruction_role: str = "developer"
    cap_name: str = "max_completion_tokens"
    successor: str = ""

    def queue_limit(self, tier: int) -> int:
        """Input tokens that may wait at once; 0 where that is not known."""
        return self.queue_tokens[:tier][-1] if self.queue_tokens else 0

    def cost_usd(self, prompt_tokens: float, completion_tokens: float, *, batch: bool) -> float:
        """Price of these tokens; hidden reasoning counts as completion."""
        full = (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6
        return full * self.batch_discount if batch else full

    def usage(self, tokens: tuple[int, int], *, batch: bool) -> Usage:
        """Billed (prompt, completion) tokens with their price."""
        return Usage(*tokens, self.cost_usd(*tokens, batch=batch))


def find_model(config: CleaningConfig) -> VisionModel:
    """The row of `clean.model` or of its family, with the user's changes.

    Raises `ConfigError` when the Batch API is asked for a model without a row, since its price would be a
    guess, and when the effort is none of the model's.
    """
    name, shipped, own = config.model, _shipped(), config.models
    family = _family(name, shipped.keys() | own.keys() - {name})
    known = [rows[family] for rows in (shipped, own) if family in rows]
    if not known and name not in own and config.backend == "openai":
        close = nearest(name, (*shipped, *own))
        hint = f"did you mean `{close}`?" if close else f'add a `[clean.models."{name}"]` table'
        raise ConfigError(f"no price or limits are known for the model `{name}`", hint=hint)
    base = {"input_usd": 0.0, "output_usd": 0.0} if is_openai(config) else shipped[_ANY]
    rows = (*([] if family in shipped else [base]), *known, own.get(name, {}))
    row: dict[str, Any] = {key: value for facts in rows for key, value in facts.items()}
    if not row.keys().isdisjoint(("id", "family")):
        raise ConfigError("`id` and `family` of a model cannot be set", hint="they follow from its name")
    try:
        model = VisionModel(id=name, family="" if name in shipped else family, **row)
    except ValidationError as error:
        key, problem = first_problem(error)
        hint = f"keys of the table: {', '.join(VisionModel.model_fields)}"
        raise ConfigError(f'`clean.models."{name}".{key}`: {problem.lower()}', hint=hint) from None
    if config.effort and config.effort not in model.efforts:
        efforts = ", ".join(model.efforts) or "none: it takes no such parameter"
        raise ConfigError(
            f"`clean.effort` cannot be `{config.effort}` for `{name}`", hint=f"this model knows {efforts}"
        )
    return model


# openai/NAME, ft:NAME:org::id, NAME@date, vendor.NAME
_SEPARATORS = re.compile(r"[/:@]|(?<=[a-z])\.(?=[a-z])")
_VERSION = re.compile(r"(?:-(?:20\d\d-?\d\d-?\d\d|\d{4}|latest|preview|v\d+))+$")
_OPENAI_URLS = re.compile(r"\w+://(?:[\w-]+\.)*(?:openai\.com|openai\.azure\.com|ai\.azure\.com)(?:[:/]|$)")


def _family(name: str, known: Collection[str]) -> str:
    """The known model that `name` is a version of; empty where there is none.

    Only marks that change neither parameters nor price are taken off: `gpt-5-pro` is no `gpt-5`.
    """
    if name in known:
        return name
    for piece in _SEPARATORS.split(name.lower()):
        piece = _VERSION.sub("", piece)
        # every ending, the longest first, as in `shop-gpt-5-nano`
        for start in (0, *(match.end() for match in re.finditer("[-_]", piece))):
            if piece[start:] in known and piece[start:] != _ANY:
                return piece[start:]
    return ""


def is_openai(config: CleaningConfig) -> bool:
    """Whether the service speaks OpenAI's own dialect, and costs money."""
    is_theirs = not config.base_url or bool(_OPENAI_URLS.match(config.base_url))
    return config.backend == "openai" or (config.backend == "live" and is_theirs)


@cache
def _shipped() -> Mapping[str, dict[str, Any]]:
    return tomli.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Recipe:
    """Everything but the product that decides a request; small enough to hand to another process."""

    config: CleaningConfig
    model: VisionModel
    vocabulary: AllowedWords
    queries: int  # shopper queries that are asked for

    @classmethod
    def from_config(cls, config: CleaningConfig) -> Recipe:
        return cls(config, find_model(config), AllowedWords.from_config(config), config.queries)

    @property
    def effort(self) -> str:
        """Of reasoning; empty when the model takes none."""
        return self.config.effort or (self.model.efforts[0] if self.model.efforts else "")

    @property
    def endpoint(self) -> str:
        return self.config.endpoint if self.config.backend == "openai" else "/v1/chat/completions"

    @cached_property
    def prompt(self) -> str:
        return instructions(self.queries)

    @cached_property
    def schema(self) -> dict[str, Any]:
        return answer_schema(self.vocabulary, queries=self.queries)

    @cached_property
    def identity(self) -> str:
        """Hash of what all requests share; the cap is left out, since a retry may raise it."""
        image = (self.config.image_px, self.config.jpeg_quality)
        facts = [self.model.id, self.effort, self.endpoint, *image]
        return content_hash(json.dumps([*facts, PROMPT_VERSION, self.prompt, self.schema], sort_keys=True))

    @cached_property
    def overhead_tokens(self) -> int:
        """Estimated tokens of prompt and schema, the same in every request."""
        return text_tokens(self.prompt) + text_tokens(json.dumps(self.schema))

    @property
    def answer_tokens(self) -> int:
        """Estimated tokens of an answer, hidden reasoning included."""
        return self.model.answer_tokens + QUERY_TOKENS * self.queries

    def custom_id(self, product: Product, image: bytes) -> str:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", product.product_id)[:40]
        texts = (product.title, product.variant) if product.variant else (product.title,)
        return f"{readable}-{content_hash(self.identity, product.product_id, *texts, image)}"

    def body(self, product: Product, jpeg: bytes) -> dict[str, Any]:
        """The request with the image from `request_image`, empty for a product without one."""
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii") if jpeg else ""
        schema = {"name": "furniture", "strict": True, "schema": self.schema}
        if self.endpoint == "/v1/responses":
            return self._responses_body(user_text(product), url, {"type": "json_schema", **schema})
        content = [
            {"type": "text", "text": user_text(product)},
            {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        ]
        body: dict[str, Any] = {
            "model": self.model.id,
            self.model.cap_name: self.config.max_completion_tokens,
            "messages": [
                {"role": self.model.instruction_role, "content": self.prompt},
                {"role": "user", "content": content if url else content[:1]},
            ],
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        if self.effort:
            body["reasoning_effort"] = self.effort
        if self.model.verbosity:
            body["verbosity"] = self.model.verbosity
        return body

    def _responses_body(self, text: str, url: str, form: dict[str, Any]) -> dict[str, Any]:
        content = [
            {"type": "input_text", "text": text},
            {"type": "input_image", "image_url": url, "detail": "auto"},
        ]
        body: dict[str, Any] = {
            "model": self.model.id,
            "max_output_tokens": self.config.max_completion_tokens,
            "instructions": self.prompt,
            "input": [{"role": "user", "content": content if url else content[:1]}],
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
        return encode_event({"custom_id": custom_id, "method": "POST", "url": self.endpoint, "body": body})


def request_image(content: bytes, recipe: Recipe) -> tuple[bytes, int]:
    """The JPEG to send and its estimated tokens. Raises `BrokenImage`."""
    image = open_image(content, longest_px=recipe.config.image_px)
    width_px, height_px = (math.ceil(side / PATCH_PX) * PATCH_PX for side in image.size)
    if (width_px, height_px) != image.size:
        canvas = Image.new("RGB", (width_px, height_px), WHITE)
        canvas.paste(image, ((width_px - image.width) // 2, (height_px - image.height) // 2))
        image = canvas
    return encode_jpeg(image, recipe.config.jpeg_quality), image_tokens(image.size, recipe.model)


def image_tokens(size_px: tuple[int, int], model: VisionModel) -> int:
    """What the service bills for an image: patches of 32 x 32 pixels times the model's factor."""
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
    for name in body.keys() & {"max_completion_tokens", "max_tokens", "max_output_tokens"}:
        body[name] = max(body[name], min(body[name] * factor, ceiling_tokens))
    return encode_event(request)
