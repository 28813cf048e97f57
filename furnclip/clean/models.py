"""The table of models: prices, parameter names and limits as data.

In: `models.toml` beside this file and `[clean.models]` of `furnclip.toml`. Prices change without notice;
the bill at the end uses them too, so compare it with the provider's own page now and then.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
        """Input tokens that may wait at once; 0 where nobody knows."""
        return self.queue_tokens[:tier][-1] if self.queue_tokens else 0

    def cost_usd(self, prompt_tokens: float, completion_tokens: float, *, batch: bool) -> float:
        """Price of so many tokens; hidden reasoning counts as completion."""
        full = (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6
        return full * self.batch_discount if batch else full


def find_model(config: CleaningConfig) -> VisionModel:
    """The row of `clean.model`, with the user's changes.

    Raises `ConfigError` when the Batch API is asked for a model without a row, since its price and
    parameters would be guesses, and when the effort is none of the model's.
    """
    table = {**_shipped(), **_merged(config.models)}
    name = config.model
    if name not in table and config.backend == "openai":
        close = nearest(name, table)
        raise ConfigError(
            f"no price or limits are known for the model `{name}`",
            hint=f"did you mean `{close}`?" if close else f'add a `[clean.models."{name}"]` table',
        )
    row = table.get(name, table[_ANY])
    model = _parse(name, row)
    if config.effort and config.effort not in model.efforts:
        known = ", ".join(model.efforts) or "none: it takes no such parameter"
        raise ConfigError(
            f"`clean.effort` cannot be `{config.effort}` for `{name}`", hint=f"this model knows {known}"
        )
    return model


def effort_of(config: CleaningConfig, model: VisionModel) -> str:
    """The reasoning effort to send; empty when the model takes none."""
    return config.effort or (model.efforts[0] if model.efforts else "")


@cache
def _shipped() -> Mapping[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))


def _merged(extra: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    shipped = _shipped()
    return {name: {**shipped.get(name, shipped[_ANY]), **row} for name, row in extra.items()}


def _parse(name: str, row: Mapping[str, Any]) -> VisionModel:
    try:
        return VisionModel(id=name, **row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f'`clean.models."{name}".{key}`: {first["msg"].lower()}',
            hint=f"keys of the table: {', '.join(VisionModel.model_fields)}",
        ) from None
