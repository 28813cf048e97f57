"""`run.json` and the model card `README.md` of a run: what was trained on what, and how good it is."""

from __future__ import annotations

import json
import platform
import secrets
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from furnclip.config import Config
from furnclip.errors import ConfigError
from furnclip.runs import RunCard

_PACKAGES = ("furnclip", "torch", "transformers", "peft", "numpy", "pillow")

# Settings that change how a run is watched or kept, not what comes out of it.
_HARMLESS = frozenset(
    {
        "kept_activations_mb",
        "gradient_checkpointing",
        "checkpoint_interval_s",
        "image_cache_mb",
        "feature_cache",
        "wandb",
        "wandb_project",
        "wandb_artifacts",
        "upload",
    }
)


def identity(config: Config, *, scenario: str, data_hash: str, fingerprint: str) -> dict[str, Any]:
    """Everything that decides what a run gives; two runs with the same one are the same run."""
    settings = {
        name: value
        for name, value in json.loads(config.train.model_dump_json()).items()
        if name not in _HARMLESS
    }
    return {
        **{f"train.{name}": value for name, value in settings.items()},
        "train.scenario": scenario,
        "model.precision": config.model.precision,
        "base model": fingerprint,
        "data": data_hash,
    }


def new_card(config: Config, run: str, same: Mapping[str, Any]) -> RunCard:
    """The card of a run that begins now."""
    return RunCard(
        run=run,
        scenario=config.train.scenario,
        identity=dict(same),
        tracker_id=secrets.token_hex(8),
        config=json.loads(config.train.model_dump_json()),
        base={"name": config.model.name, "fingerprint": same["base model"]},
        data_hash=same["data"],
        started_at=now(),
        machine=f"{platform.system()} {platform.machine()}",
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        git=_commit(config.paths.work.parent),
    )


def check_same(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """`ConfigError` that says what changed since the run was started."""
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if not changed:
        return
    shown = ", ".join(f"`{key}` was {_brief(before.get(key))}, is {_brief(now.get(key))}" for key in changed)
    raise ConfigError(
        f"the run `{name}` was started differently: {shown}",
        hint="undo that, give the new run its own name with `--run NAME`, or start over with `--no-resume`",
    )


def now() -> str:
    """The time in UTC, to the millisecond, so that finished runs can be ordered."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _commit(folder: Path) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _brief(value: object) -> str:
    return "not set" if value is None else json.dumps(value)


def model_card(card: RunCard) -> str:
    """The model card as Markdown."""
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = jinja.from_string(_TEMPLATE)
    return template.render(card=card, rows=_rows(card), share=_share(card)) + "\n"


def _share(card: RunCard) -> str:
    return f"{card.trainable_parameters:,} of {card.parameters:,}"


def _rows(card: RunCard) -> list[tuple[str, str, str]]:
    base, tuned = card.validation["base"], card.validation["finetuned"]
    return [(name.replace("_", " "), f"{base[name]:.3f}", f"{tuned[name]:.3f}") for name in base]


_TEMPLATE = """\
---
library_name: transformers
base_model: {{ card.base.name }}
tags: [clip, furniture, furnclip]
---
# {{ card.run }}

{{ card.base.name }} fine-tuned on a furniture catalogue with furnclip, scenario `{{ card.scenario }}`.
`model/` is a plain Hugging Face folder: `CLIPModel.from_pretrained` loads it, no extra code runs.

## Validation

{{ card.samples.validation }} products, each searched among all of them; products with the same caption or
group count as positives of each other. These figures chose the checkpoint and the share, so they
flatter; `furnclip eval` measures the test split.

| figure | base | this model |
| --- | --- | --- |
{% for name, base, tuned in rows %}
| {{ name }} | {{ base }} | {{ tuned }} |
{% endfor %}

## Training

| | |
| --- | --- |
| base | {{ card.base.name }} (fingerprint {{ card.base.fingerprint }}) |
| data hash | {{ card.data_hash }} |
| samples | {{ card.samples.train }} train, {{ card.samples.validation }} validation |
| trainable parameters | {{ share }} |
| effective batch | {{ card.batch.effective }} in micro-batches of {{ card.batch.micro }} |
| epochs | {{ card.epochs_done }} of {{ card.config.epochs }}, best after {{ card.best_epoch }} |
| learning rate | {{ card.config.lr }} |
| share of the trained change (WiSE-FT) | {{ card.share }} |
| precision | {{ card.precision.precision }} ({{ card.precision.reason }}) |
| seed | {{ card.config.seed }} |
| furnclip | {{ card.versions.furnclip }} |

## Intended use

Searching a furniture catalogue like the one it was trained on, by text or by picture. Other products,
other languages and pictures of people or rooms were not looked at; what the base model gets wrong about
them it still does.

## Licence

The weights derive from {{ card.base.name }} and stay under its licence; read it before you pass them on.
The catalogue's own licence decides whether weights trained on it may be shared.
"""
