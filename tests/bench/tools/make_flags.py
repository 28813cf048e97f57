"""Writes `furnclip/cli/flags.json`: `python -m tests.bench.tools.make_flags`.

A flag's help is the docstring of its setting. The settings are pydantic models, which take longer to import
than the rest of `furnclip --help`, so the command line reads this generated copy. A test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from furnclip.config import sections

FLAGS = Path(__file__).parents[3] / "furnclip" / "cli" / "flags.json"
# Settings that are flags of a command, under another name than their own where one is given.
SETTINGS = {
    "model.name": "--model",
    "model.precision": "",
    **dict.fromkeys(("fetch.concurrency", "fetch.per_host"), ""),
    **dict.fromkeys(
        ("clean.backend", "clean.model", "clean.max_cost_usd", "clean.fallback", "prepare.workers"), ""
    ),
    "prepare.engine": "",
    "embed.engine": "",
    "eval.queries": "",
    **dict.fromkeys(("train.scenario", "train.epochs", "train.lr", "train.effective_batch_size"), ""),
    **dict.fromkeys(("train.micro_batch_size", "train.lora_r", "train.lora_alpha", "train.lora_dropout"), ""),
    **dict.fromkeys(("train.loss", "train.augment", "train.seed", "train.patience", "train.mini_train"), ""),
    **dict.fromkeys(("train.teacher", "train.gradient_checkpointing", "train.upload", "train.wandb"), ""),
    **dict.fromkeys(
        ("embed.batch_size", "embed.dtype", "eval.split", "search.mode", "search.image_weight"), ""
    ),
    "search.k": "-k --k",
    **dict.fromkeys(("serve.host", "serve.port", "serve.query_log"), ""),
    "arena.queries": "",
    "arena.k": "-k --k",
    "arena.seed": "",
    "arena.viewer": "",
    "storage.bucket": "--s3-bucket",
    "storage.prefix": "--s3-prefix",
}


def flags_source() -> str:
    """The generated file: of each setting type, names and help."""
    flags = {}
    for name, declared in SETTINGS.items():
        section, key = name.split(".")
        model = sections()[section]
        kind, option = _plain_type(model.model_fields[key].annotation), f"--{key.replace('_', '-')}"
        flags[name] = [kind, declared or option, model.meanings()[key]]
    return json.dumps(flags, indent=1, ensure_ascii=False) + "\n"


def _plain_type(annotation: Any) -> str:
    """What the command line parses; ranges and choices are checked with all other settings."""
    return annotation.__name__ if annotation in (bool, int, float) else "str"


if __name__ == "__main__":
    FLAGS.write_text(flags_source(), encoding="utf-8")
