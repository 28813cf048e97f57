"""`work/arena/votes.jsonl`: one vote a line, on the disk before it is acknowledged.

A line holds everything needed to check the vote later: the query, both rows of results, which model
was on which side, seed, fingerprints, seconds taken, rater. Undoing adds a line that takes the
earlier one back; nothing is ever rewritten. The file is held only while a line is written, so
several raters can vote at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from furnclip.arena.lineup import Card, Query
from furnclip.catalogue import sheet_text
from furnclip.errors import JournalError
from furnclip.journal import Journal, read_journal, write_text

OUTCOMES = {"A": "A", "B": "B", "T": "tie", "X": "both bad", "N": "skip"}
"""Key -> what it means."""
_WAIT_S = 5.0
_SEED_COLUMNS = (
    "timestamp",
    "query_image",
    "baseline_method",
    "challenger_method",
    "user_choice",
    "baseline_is_row_a",
)
_MORE_COLUMNS = (
    *("rater", "outcome", "winner", "query_text", "category", "results_a", "results_b"),
    *("seconds", "repeat", "vote_id", "lineup"),
)


@dataclass(frozen=True)
class Vote:
    """One judgement; `sides` are the models of rows A and B, `duel` the same two, baseline first."""

    vote_id: str
    at: str
    rater: str
    choice: str
    query: Query
    duel: tuple[str, str]
    sides: tuple[str, str]
    results: tuple[tuple[Card, ...], tuple[Card, ...]]
    models: Mapping[str, str]
    lineup: str
    k: int
    seed: int
    seconds: float
    repeat: bool

    @property
    def outcome(self) -> str:
        """`A`, `B`, `tie`, `both bad` or `skip`."""
        return OUTCOMES[self.choice]

    @property
    def winner(self) -> str:
        """The preferred model, or `tie`, `both bad` or `skip`."""
        return self.sides["AB".index(self.choice)] if self.choice in ("A", "B") else self.outcome

    @property
    def counts(self) -> bool:
        """Whether it says something about the models: repeats measure the rater, skips nothing."""
        return not self.repeat and self.choice != "N"

    @property
    def trial_id(self) -> str:
        """What was judged, in the words of one lineup; the same for every rater."""
        return "|".join((self.lineup, self.query.query_id, *self.duel, "again" if self.repeat else "first"))

    def event(self) -> dict[str, Any]:
        """As a line of the journal."""
        return {"event": "vote", **asdict(self), "outcome": self.outcome, "winner": self.winner}

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Vote:
        """Raises KeyError or TypeError for a line that is not a vote."""
        values = {name: event[name] for name in cls.__dataclass_fields__}
        first, second = values["results"]
        values["query"] = Query(**values["query"])
        values["results"] = (tuple(Card(**card) for card in first), tuple(Card(**card) for card in second))
        values["duel"], values["sides"] = tuple(values["duel"]), tuple(values["sides"])
        return cls(**values)


class VoteBook:
    """The votes file: `append` returns when the line is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one line, waiting a little for other raters."""
        give_up = time.monotonic() + _WAIT_S
        while True:
            try:
                with Journal(self.path) as journal:
                    journal.append(event)
                return
            except JournalError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def votes(self) -> list[Vote]:
        """Every vote that stands, oldest first."""
        return standing_votes(read_journal(self.path), self.path)

    def agreements(self) -> dict[str, dict[str, Any]]:
        """For each lineup that was judged: how many queries it has and on how many models agreed."""
        return {
            event["lineup"]: event for event in read_journal(self.path) if event.get("event") == "contest"
        }


def standing_votes(events: Iterable[Mapping[str, Any]], path: Path) -> list[Vote]:
    """Votes less those that were taken back; a rater's second vote on the same thing does not count."""
    votes: dict[tuple[str, str], Vote] = {}
    for number, event in enumerate(events, start=1):
        if event.get("event") == "undo":
            votes = {key: vote for key, vote in votes.items() if vote.vote_id != event["vote_id"]}
        if event.get("event") != "vote":
            continue
        try:
            vote = Vote.from_event(event)
        except (KeyError, TypeError, ValueError):
            raise JournalError(
                f"line {number} of `{path}` is not a vote",
                hint="restore the file from a backup, or move it away to start again",
            ) from None
        votes.setdefault((vote.rater, vote.trial_id), vote)
    return list(votes.values())


def export_csv(votes: Sequence[Vote], path: Path) -> None:
    """All standing votes as a table: six columns that say who won, then the rest."""
    columns = [*_SEED_COLUMNS, *_MORE_COLUMNS]
    rows = ([row[name] for name in columns] for row in _csv_rows(votes))
    write_text(path, sheet_text([columns, *rows]))


def _csv_rows(votes: Sequence[Vote]) -> Iterator[dict[str, object]]:
    for vote in votes:
        baseline, challenger = vote.duel
        first, second = (" ".join(card.product_id for card in row) for row in vote.results)
        yield {
            "timestamp": vote.at,
            "query_image": vote.query.image,
            "baseline_method": baseline,
            "challenger_method": challenger,
            "user_choice": vote.choice,
            "baseline_is_row_a": vote.sides[0] == baseline,
            "rater": vote.rater,
            "outcome": vote.outcome,
            "winner": vote.winner,
            "query_text": vote.query.text,
            "category": vote.query.category,
            "results_a": first,
            "results_b": second,
            "seconds": vote.seconds,
            "repeat": vote.repeat,
            "vote_id": vote.vote_id,
            "lineup": vote.lineup,
        }
