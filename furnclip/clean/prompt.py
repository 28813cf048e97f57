"""What the model is asked, and what counts as an answer.

Answers are checked again locally: the service's guarantee does not hold for refusals, cut answers and other
servers. Do not trust their style far: two people looking at one sofa disagree about it as well.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from furnclip.catalogue import ATTRIBUTES, UNKNOWN, Product
from furnclip.config import CleaningConfig
from furnclip.errors import first_problem

PROMPT_VERSION = "1"
FIELDS = ("clean_title", *ATTRIBUTES)
MAX_TITLE_CHARACTERS = 200
MAX_QUERIES = 3
MAX_QUERY_CHARACTERS = 80

PROMPT = Path(__file__).with_name("prompt.txt").read_text(encoding="utf-8")
_ABOUT_QUERIES = """
- queries: {count} short requests that a shopper would type to find this product, in lower case English, each
  of two to six words, none with a brand: {kinds}.
"""
_OF_PARENT = (
    "of another variant: where it and the title disagree on color, material or size, the title is right"
)
_KINDS = ("first a plain one", "then one with its style or what it is used for", "then one in everyday words")


class BadAnswerError(ValueError):
    """An answer that is not what the schema asks for; the text says why."""


@dataclass(frozen=True)
class AllowedWords:
    """The allowed words of the four attributes; `unknown` is the last of each."""

    style: tuple[str, ...]
    material: tuple[str, ...]
    color: tuple[str, ...]
    object_type: tuple[str, ...]

    @classmethod
    def from_config(cls, config: CleaningConfig) -> AllowedWords:
        lists = (config.styles, config.materials, config.colors, config.object_types)
        return cls(*((*(word for word in words if word != UNKNOWN), UNKNOWN) for words in lists))


class CleanAnswer(BaseModel):
    """One cleaned product, checked against a vocabulary passed as validation context."""

    # servers without strict schemas add a `reason` or a `confidence`, which do no harm
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    clean_title: Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_TITLE_CHARACTERS)]
    style: str
    material: str
    color: str
    object_type: str
    queries: tuple[str, ...] = ()  # not worth another payment: what is wrong with them, rules put right

    @field_validator("clean_title")
    @classmethod
    def _one_line(cls, title: str) -> str:
        if not (title := readable(title)):
            raise ValueError("nothing that can be read")
        return title

    @field_validator(*ATTRIBUTES)
    @classmethod
    def _in_vocabulary(cls, word: str, info: ValidationInfo) -> str:
        """The allowed word that is meant; case and blanks do not matter."""
        if allowed := _by_plain(getattr(info.context, info.field_name or "")).get(_plain(word)):
            return allowed
        raise PydanticCustomError("vocabulary", "`{word}` is not in the list", {"word": word[:60]})

    @field_validator("queries", mode="before")
    @classmethod
    def _texts(cls, queries: Any) -> tuple[str, ...]:
        """Those that are text and short, on one line each; the separator of `cleaned.csv` is taken out."""
        texts = queries if isinstance(queries, list | tuple) else ()
        lines = (readable(text.replace("|", " ")).lower() for text in texts if isinstance(text, str))
        return tuple(line for line in lines if 0 < len(line) <= MAX_QUERY_CHARACTERS)

    def values(self) -> tuple[str, ...]:
        return (self.clean_title, self.style, self.material, self.color, self.object_type)


def _plain(word: str) -> str:
    return " ".join(word.split()).casefold()


@cache
def _by_plain(allowed: tuple[str, ...]) -> dict[str, str]:
    """The allowed words as `_plain` has them; of two that are the same the first."""
    return {_plain(word): word for word in reversed(allowed)}


def check_answer(text: str, vocabulary: AllowedWords, *, in_thoughts: bool = True) -> CleanAnswer:
    """The answer in a model's reply, however it is wrapped; of several the last valid one.

    `in_thoughts`: where the reply holds none, one in its train of thought will do. Raises `BadAnswerError`
    saying what is wrong.
    """
    try:
        return CleanAnswer.model_validate_json(_encodable(text), context=vocabulary)
    except ValidationError as error:
        problem = error
    # without byte order marks, zero-width and control characters, and with plain blanks
    kinds = ((c, unicodedata.category(c)[0]) for c in text)
    text = "".join(" " if kind == "Z" else c for c, kind in kinds if kind != "C" or c in "\t\r\n")
    said = _THOUGHT_BEGINS.split(_THOUGHT_ENDS.split(text)[-1])[0]
    for place in (said, text) if in_thoughts else (said,):
        candidates = _candidates(place)
        for candidate in reversed(candidates):
            try:
                return CleanAnswer.model_validate(candidate, context=vocabulary)
            except ValidationError as error:
                problem = error
        if candidates:
            break
    raise BadAnswerError(": ".join(filter(None, first_problem(problem))))


_THOUGHT = r"(?:[\w:]*think\w*|thoughts?|reasoning|reflection|scratchpad|analysis)"
_THOUGHT_BEGINS = re.compile(rf"[<\[◁]{_THOUGHT}[>\]▷]|<\|channel\|>analysis", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"[<\[◁]/{_THOUGHT}[>\]▷]|<\|channel\|>final", re.IGNORECASE)
_LENIENT = json.JSONDecoder(strict=False)  # a raw line break inside a string is no reason to pay again
_OPENING = re.compile(r"[{\[]")
_MAX_MISSES = 200  # braces that open no JSON
_MAX_DEPTH = 6


def _candidates(text: str) -> list[dict[str, Any]]:
    """JSON objects in `text` that look like answers, in the order of the text."""
    plain, unquoted = (map(_with_fields, _json_values(t)) for t in (text, text.replace('\\"', '"')))
    return list(chain.from_iterable(plain)) or list(chain.from_iterable(unquoted))


def _json_values(text: str) -> Iterator[Any]:
    """Everything in `text` that is a JSON object or array, outermost first."""
    place = misses = 0
    while misses < _MAX_MISSES and (opening := _OPENING.search(text, place)):
        try:
            value, place = _LENIENT.raw_decode(text, opening.start())
            yield value
        except (ValueError, RecursionError):
            place = opening.start() + 1
            misses += 1


def _with_fields(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The objects inside a JSON value that look like answers; an array of different ones is none."""
    inside: Iterable[Any] = ()
    if isinstance(value, str) and "{" in value:
        inside = _json_values(value)
    elif isinstance(value, list) and all(item == value[0] for item in value):
        inside = value[:1]
    elif isinstance(value, dict) and FIELDS[0] in value:
        yield value
    elif isinstance(value, dict):
        inside = value.values()
    for inner in inside if depth < _MAX_DEPTH else ():
        yield from _with_fields(inner, depth + 1)


def _encodable(text: str) -> str:
    """`text` with lone surrogates replaced: no file and no terminal takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def user_text(product: Product) -> str:
    """The title as JSON, so that nothing in it can pose as an instruction of ours."""
    facts = {"title": sendable(product.variant or product.title)}
    return json.dumps(facts | ({"picture": _OF_PARENT} if product.variant else {}), ensure_ascii=False)


def sendable(text: str) -> str:
    """`text` in NFC, without lone surrogates, control characters and runs of blanks."""
    valid = unicodedata.normalize("NFC", _encodable(text))
    return " ".join("".join(c if unicodedata.category(c) != "Cc" else " " for c in valid).split())


def readable(text: str) -> str:
    """`text` on one line, without characters that cannot be seen."""
    if not text.isprintable():
        kinds = ((c, unicodedata.category(c)) for c in text)
        text = "".join(" " if kind[0] == "C" else c for c, kind in kinds if kind != "Cf")
    return " ".join(text.split())


def instructions(queries: int) -> str:
    """The prompt that asks for so many shopper queries; for 0 to the letter the one without them."""
    if not queries:
        return PROMPT
    fields, rest = PROMPT.split("\n\nWhen picture", 1)
    about = _ABOUT_QUERIES.format(count=queries, kinds=", ".join(_KINDS[:queries]))
    return f"{fields}{about}\nWhen picture{rest}"


def answer_schema(vocabulary: AllowedWords, *, queries: int = 0) -> dict[str, Any]:
    """The strict JSON schema of an answer: every property required, nothing else allowed."""
    enums = {field: {"type": "string", "enum": list(getattr(vocabulary, field))} for field in ATTRIBUTES}
    properties: dict[str, Any] = {"clean_title": {"type": "string"}, **enums}
    if queries:  # their number stands in the prompt: not every service knows limits of an array
        properties["queries"] = {"type": "array", "items": {"type": "string"}}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
