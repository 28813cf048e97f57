"""The table of models: prices, parameter names and limits as data.

In: `models.toml` beside this file and `[clean.models]` of `furnclip.toml`. Prices change without notice;
the bill at the end uses them too, so compare it with the provider's own page now and then.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from furnclip.config import CleaningConfig
from furnclip.errors import ConfigError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


def find_model(config: CleaningConfig) -> VisionModel:
    """The row of `clean.model`, or of the family that a dated, prefixed or fine-tuned name belongs to, with
    the user's changes.

    Raises `ConfigError` when the Batch API is asked for a model without a row, since its price would be a
    guess, and when the effort is none of the model's.
    """
    name = config.model
    shipped, own = _shipped(), config.models
    family = _family(name, shipped.keys() | own.keys() - {name})
    known = [rows[family] for rows in (shipped, own) if family in rows]
    if not known and name not in own and config.backend == "openai":
        close = nearest(name, (*shipped, *own))
        raise ConfigError(
            f"no price or limits are known for the model `{name}`",
            hint=f"did you mean `{close}`?" if close else f'add a `[clean.models."{name}"]` table',
        )
    base = {"input_usd": 0.0, "output_usd": 0.0} if is_openai(config) else shipped[_ANY]
    rows = (*([] if family in shipped else [base]), *known, own.get(name, {}))
    row: dict[str, Any] = {key: value for facts in rows for key, value in facts.items()}
    model = _parse(name, row, family="" if name in shipped else family)
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
        endings = (piece[start:] for start in range(len(piece)) if not start or piece[start - 1] in "-_")
        for ending in endings:  # the longest first, as in `shop-gpt-5-nano`
            if ending in known and ending != _ANY:
                return ending
    return ""


def is_openai(config: CleaningConfig) -> bool:
    """Whether the service speaks OpenAI's own dialect, and costs money."""
    is_theirs = not config.base_url or bool(_OPENAI_URLS.match(config.base_url))
    return config.backend == "openai" or (config.backend == "live" and is_theirs)


def effort_of(config: CleaningConfig, model: VisionModel) -> str:
    """The reasoning effort to send; empty when the model takes none."""
    return config.effort or (model.efforts[0] if model.efforts else "")


@cache
def _shipped() -> Mapping[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))


def _parse(name: str, row: Mapping[str, Any], *, family: str) -> VisionModel:
    try:
        if not row.keys().isdisjoint(("id", "family")):
            raise ConfigError("`id` and `family` of a model cannot be set", hint="they follow from its name")
        return VisionModel(id=name, family=family, **row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f'`clean.models."{name}".{key}`: {first["msg"].lower()}',
            hint=f"keys of the table: {', '.join(VisionModel.model_fields)}",
        ) from None
