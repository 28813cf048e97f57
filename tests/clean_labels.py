"""How often the offline rules are right, on products labelled by eye.

    python -m tests.clean_labels SHOP

SHOP: a folder made by `examples/sweethome3d.py` and cleaned with `--backend local`. The labels in
`data/sweethome3d_labels.csv` were given to the pictures before the rules' answers were looked at: 60 products
of the rooms' categories, chosen by the hash of their ids; a field that a person could not tell is empty and
does not count. Style was not labelled. Half of the products (by order) may be used to improve the rules, the
other half only to report: the table shows both.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

LABELS = Path(__file__).parent / "data" / "sweethome3d_labels.csv"
FIELDS = ("object_type", "material", "color")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def accuracy(cleaned: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """half -> field -> (right, labelled)"""
    answers = {row["product_id"]: row for row in read(cleaned)}
    labels = read(LABELS)
    halves = {"seen": labels[::2], "unseen": labels[1::2]}
    return {half: {field: _score(rows, answers, field) for field in FIELDS} for half, rows in halves.items()}


def _score(rows: list[dict[str, str]], answers: dict[str, dict[str, str]], field: str) -> tuple[int, int]:
    labelled = [row for row in rows if row[field]]
    right = sum(answers[row["product_id"]][field] == row[field] for row in labelled)
    return right, len(labelled)


def mistakes(cleaned: Path, half: int) -> list[tuple[str, str, str, str]]:
    """(title, field, label, answer) of every wrong answer of one half."""
    answers = {row["product_id"]: row for row in read(cleaned)}
    return [
        (row["title"], field, row[field], answers[row["product_id"]][field])
        for row in read(LABELS)[half::2]
        for field in FIELDS
        if row[field] and answers[row["product_id"]][field] != row[field]
    ]


def main() -> None:
    cleaned = Path(sys.argv[1]) / "work" / "clean" / "cleaned.csv"
    for half, fields in accuracy(cleaned).items():
        for field, (right, labelled) in fields.items():
            print(f"{half:<8} {field:<12} {right:>3} of {labelled:>3}  {right / labelled:.2f}")


if __name__ == "__main__":
    main()
