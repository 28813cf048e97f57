"""`furnclip prepare --check`: what `prepare` would make of the catalogue, without writing anything."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnclip import console
from furnclip.catalogue import Rejection, catalogue_path, no_rows, uncleaned_rows
from furnclip.prepare.scan import Scanner, decoders

if TYPE_CHECKING:
    from furnclip.config import Config

EXAMPLES = 3


@dataclass(frozen=True)
class CheckReport:
    """Rows by reason, with the first few of each."""

    catalogue: Path
    rows: int
    usable: int
    reasons: dict[str, int]
    examples: dict[str, list[Rejection]]
    not_cleaned: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        examples = {
            reason: [
                {"row": item.row, "product_id": item.product_id, "detail": item.detail} for item in items
            ]
            for reason, items in self.examples.items()
        }
        return {
            "catalogue": str(self.catalogue),
            "rows": self.rows,
            "usable": self.usable,
            "not_cleaned": self.not_cleaned,
            "reasons": self.reasons,
            "examples": examples,
        }


def check(config: Config) -> CheckReport:
    """Read every row and open every picture. Raises `InputError` where there is no row."""
    reasons: Counter[str] = Counter()
    examples: dict[str, list[Rejection]] = defaultdict(list)
    rows = 0
    with (
        console.progress("checking products", total=None) as meter,
        decoders(config.prepare) as workers,
    ):
        for outcome in Scanner(config, None, workers=workers):
            rows += 1
            meter.advance()
            if isinstance(outcome, Rejection):
                reasons[outcome.reason] += 1
                if len(examples[outcome.reason]) < EXAMPLES:
                    examples[outcome.reason].append(outcome)
    catalogue = catalogue_path(config.paths)
    if not rows:
        raise no_rows(catalogue, config.paths)
    return CheckReport(
        catalogue,
        rows,
        rows - reasons.total(),
        dict(reasons.most_common()),
        dict(examples),
        uncleaned_rows(config.paths),
    )
