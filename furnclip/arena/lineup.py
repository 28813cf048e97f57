"""What is judged: the queries, and what each model answered to them, fixed before the first vote.

A lineup is worked out once from the vectors and kept in `work/arena/lineups/KEY.json`, so that a
later session starts at once and shows exactly the same contest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from furnclip.errors import InputError
from furnclip.journal import read_json


@dataclass(frozen=True)
class Card:
    """A product as a rater sees it."""

    product_id: str
    title: str
    image: str
    detail: str = ""


@dataclass(frozen=True)
class Query:
    """What was asked: an image or a text; `category` groups the statistics."""

    query_id: str
    kind: str
    text: str
    image: str = ""
    category: str = ""


@dataclass(frozen=True)
class Lineup:
    """Q queries and each model's answers, as rows of `cards`.

    `models`: name -> fingerprint, baseline first. `answers`: name -> Q lists of at most k rows.
    """

    key: str
    models: Mapping[str, str]
    k: int
    seed: int
    queries: Sequence[Query]
    answers: Mapping[str, Sequence[Sequence[str]]]
    cards: Mapping[str, Card]

    def duels(self) -> list[tuple[str, str]]:
        """Every two models, the earlier one first."""
        return list(combinations(self.models, 2))

    def differing(self, duel: tuple[str, str]) -> list[int]:
        """Queries to which two models gave different answers, or the same in another order."""
        first, second = (self.answers[model] for model in duel)
        return [index for index in range(len(self.queries)) if list(first[index]) != list(second[index])]

    def agreement(self) -> dict[str, Any]:
        """How many queries there were, and for each duel how many got the same answers from both models."""
        return {
            "queries": len(self.queries),
            "agreed": [
                {"models": list(duel), "queries": len(self.queries) - len(self.differing(duel))}
                for duel in self.duels()
            ],
        }

    def shown(self, model: str, query: int) -> tuple[Card, ...]:
        """The row of results of one model."""
        return tuple(self.cards[product_id] for product_id in self.answers[model][query])

    def as_json(self) -> dict[str, Any]:
        return {
            **{"key": self.key, "models": dict(self.models), "k": self.k, "seed": self.seed},
            "queries": [asdict(query) for query in self.queries],
            "answers": {model: [list(row) for row in rows] for model, rows in self.answers.items()},
            "cards": [asdict(card) for card in self.cards.values()],
            "order": list(self.models),  # the file sorts its keys
        }

    def has(self, query_id: str, duel: tuple[str, str], models: Mapping[str, str]) -> bool:
        """Whether this query can be judged here, and between these models."""
        return query_id in self._query_ids and duel in self.duels() and models == self.models

    @cached_property
    def _query_ids(self) -> frozenset[str]:
        return frozenset(query.query_id for query in self.queries)


@dataclass(frozen=True)
class _Stored:
    """How `Lineup.as_json` writes it."""

    key: str
    models: dict[str, str]
    k: int
    seed: int
    queries: list[Query]
    answers: dict[str, list[list[str]]]
    cards: list[Card]
    order: list[str]

    def is_consistent(self, key: str) -> bool:
        """Whether everything that is named is there, once."""
        known = {card.product_id for card in self.cards}
        ids = {query.query_id for query in self.queries}
        return (
            self.key == key
            and len(ids) == len(self.queries) > 0
            and sorted(self.order) == sorted(self.models) == sorted(self.answers)
            and all(len(rows) == len(ids) for rows in self.answers.values())
            and all(known.issuperset(row) for rows in self.answers.values() for row in rows)
        )


def read_lineup(path: Path, key: str) -> Lineup | None:
    """The lineup kept in `path`; None where there is none, or it is damaged: it can be worked out again."""
    try:
        stored = read_json(path, _Stored, what="the lineup", hint="remove it")
    except (FileNotFoundError, InputError):
        return None
    if not stored.is_consistent(key):
        return None
    return Lineup(
        key=key,
        models={model: stored.models[model] for model in stored.order},
        k=stored.k,
        seed=stored.seed,
        queries=stored.queries,
        answers=stored.answers,
        cards={card.product_id: card for card in stored.cards},
    )
