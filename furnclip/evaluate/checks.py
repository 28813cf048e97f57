"""What could make a comparison unfair: refused where it is certain, said aloud where it is possible."""

from __future__ import annotations

from collections.abc import Sequence

from furnclip.config import Config
from furnclip.errors import ModelMismatchError
from furnclip.evaluate.encode import Encoded
from furnclip.evaluate.split import Split
from furnclip.runs import read_card
from furnclip.shards import read_manifest

_FEW_PRODUCTS = 30


def check_comparison(models: Sequence[Encoded], split: Split, config: Config) -> list[str]:
    """Warnings for the report.

    Raises `ModelMismatchError` when a run was trained from another base than the one measured.
    """
    base, *runs = models
    warnings = _about_size(split)
    shards_hash = read_manifest(config.paths.shards).data_hash
    for run in runs:
        card = read_card(config.paths.runs / run.name)
        if card is None:
            continue
        if card.base.get("fingerprint", base.fingerprint) != base.fingerprint:
            trained_from = card.base.get("name", "another model")
            raise ModelMismatchError(
                f"the run `{run.name}` was trained from `{trained_from}`, not from `{base.name}`",
                hint=f"measure it against its own base with `--model {trained_from}`",
            )
        if (card.data_hash or shards_hash) != shards_hash:
            warnings.append(
                f"the run `{run.name}` was trained on other shards than these: if the splits were drawn "
                "anew in between, it has seen some of the products it is measured on"
            )
    if split.name != "test":
        warnings.append(f"training chooses its settings on the {split.name} split, so these numbers flatter")
    return warnings


def _about_size(split: Split) -> list[str]:
    if len(split) >= _FEW_PRODUCTS:
        return []
    return [f"the {split.name} split holds {len(split)} products: differences between models mean little"]
