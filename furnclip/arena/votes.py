"""`work/arena/votes.jsonl`: one vote a line, on the disk before it is acknowledged.

A line holds everything needed to check the vote later. Undoing adds a line that takes the earlier one back;
nothing is ever rewritten. The file is held only while a line is written, so that several raters can vote at
the same time.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from furnclip.arena.lineup import Card, JudgedQuery
from furnclip.catalogue import sheet_text
from furnclip.console import warn
from furnclip.errors import InputError
from furnclip.journal import Journal, journal_lines, parse_json, write_text

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]

OUTCOMES = {"A": "A", "B": "B", "T": "tie", "X": "both bad", "N": "skip"}  # key -> what it means
_WAIT_S = 5.0
_HINT = "correct that line, restore the file from a backup, or move it away to start again"


@dataclass(frozen=True)
class Vote:
    """One judgment; `sides` are the models of rows A and B, `duel` the same two, baseline first."""

    vote_id: Annotated[str, Field(min_length=1)]
    at: str
    rater: Annotated[str, Field(min_length=1)]
    choice: Annotated[str, Field(pattern=f"^[{''.join(OUTCOMES)}]$")]
    query: JudgedQuery
    duel: tuple[str, str]
    sides: tuple[str, str]
    results: tuple[tuple[Card, ...], tuple[Card, ...]]
    models: Mapping[str, str]
    lineup: str
    k: int
    seed: int
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    repeat: bool

    @property
    def outcome(self) -> str:
        return OUTCOMES[self.choice]

    @property
    def winner(self) -> str:
        """The preferred model, empty where none is."""
        return self.sides["AB".index(self.choice)] if self.choice in ("A", "B") else ""

    @property
    def verdict(self) -> str:
        """`baseline`, `challenger`, `tie`, `both bad` or `skip`; no model's name, which may be any word."""
        return ("baseline", "challenger")[self.duel.index(self.winner)] if self.winner else self.outcome

    @property
    def counts(self) -> bool:
        """Whether it counts for the models: repeats measure the rater, skips nothing."""
        return not self.repeat and self.choice != "N"

    @property
    def subject(self) -> tuple[str, tuple[str, str], str]:
        """What was judged: lineup, duel and query id; the same for every rater."""
        return self.lineup, self.duel, self.query.query_id

    def event(self) -> dict[str, Any]:
        return {"event": "vote", **asdict(self), "outcome": self.outcome, "winner": self.winner}


@dataclass(frozen=True)
class Agreed:
    """Two models, and the number of queries with the same results from both."""

    models: tuple[str, str]
    queries: Count


@dataclass(frozen=True)
class JudgedLineup:
    """A line with the number of queries of a lineup, and on how many its models agreed."""

    lineup: str
    models: dict[str, str]
    queries: Count
    agreed: tuple[Agreed, ...]


@dataclass(frozen=True)
class _VoteLine:
    """What every line has; one with `undo` takes an earlier vote back."""

    event: Literal["vote", "undo", "contest"]
    vote_id: str = ""


class VoteBook:
    """The votes file: `append` returns when the line is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one line, waiting a little for other raters."""
        with Journal(self.path, keep_whole_tail=True, wait_s=_WAIT_S) as journal:
            journal.append(event)

    def votes(self) -> list[Vote]:
        """Every vote that counts, oldest first."""
        return list(self.numbered_votes().values())

    def numbered_votes(self) -> dict[int, Vote]:
        """Every vote that counts by its line: not taken back, nor a rater's second one on the same trial.

        Raises `InputError` naming the line that cannot be one of this file.
        """
        lines: dict[str, int] = {}
        votes: dict[int, Vote] = {}
        for number, line, content in self._lines():
            if line.event == "vote":
                vote = self._parse(number, content, Vote)
                if vote.vote_id in lines:
                    raise self.damaged(number, f"it has the `vote_id` of line {lines[vote.vote_id]}")
                is_duel = {*vote.sides} == {*vote.duel} and len({*vote.duel}) == 2
                if not is_duel or not {*vote.duel} <= {*vote.models}:
                    raise self.damaged(number, "`sides`, `duel` and `models` do not fit together")
                lines[vote.vote_id] = number
                votes[number] = vote
            elif line.event == "undo":
                if line.vote_id not in lines:
                    raise self.damaged(number, f"no line above it has the vote `{line.vote_id}`")
                votes.pop(lines[line.vote_id], None)
        counted: dict[object, int] = {}
        for number, vote in votes.items():
            counted.setdefault((vote.rater, vote.subject, vote.repeat), number)
        if ignored := sorted(set(votes).difference(counted.values())):
            shown = ", ".join(map(str, ignored[:10])) + (" ..." if len(ignored) > 10 else "")
            why = f"because the rater had judged the same query before (line {shown})"
            warn(f"votes in `{self.path}` that do not count: {len(ignored)}, {why}")
        return {number: votes[number] for number in counted.values()}

    def contests(self) -> dict[str, JudgedLineup]:
        """For each lineup that was judged: how many queries it has and on how many models agreed."""
        contests: dict[str, JudgedLineup] = {}
        for number, line, content in self._lines():
            if line.event == "contest":
                contest = self._parse(number, content, JudgedLineup)
                if not {model for pair in contest.agreed for model in pair.models} <= {*contest.models}:
                    raise self.damaged(number, "`agreed` names a model that `models` does not have")
                contests[contest.lineup] = contest
        return contests

    def _lines(self) -> Iterator[tuple[int, _VoteLine, bytes]]:
        for number, line in journal_lines(self.path, keep_whole_tail=True):
            content = line.removeprefix(BOM_UTF8).strip()
            if content:  # an editor may have left an empty line
                yield number, self._parse(number, content, _VoteLine), content

    def _parse(self, number: int, line: bytes, shape: type[T]) -> T:
        return parse_json(line, shape, what=f"line {number} of `{self.path}`", hint=_HINT)

    def damaged(self, number: int, reason: str) -> InputError:
        """The error for a line that cannot be right."""
        return InputError(f"line {number} of `{self.path}` is damaged: {reason}", hint=_HINT)


# Of `votes.csv`: the choice and the models first, then the rest.
_COLUMNS: Mapping[str, Callable[[Vote], object]] = {
    "timestamp": lambda vote: vote.at,
    "query_image": lambda vote: vote.query.image,
    "baseline_method": lambda vote: vote.duel[0],
    "challenger_method": lambda vote: vote.duel[1],
    "user_choice": lambda vote: vote.choice,
    "baseline_is_row_a": lambda vote: vote.sides[0] == vote.duel[0],
    "rater": lambda vote: vote.rater,
    "outcome": lambda vote: vote.outcome,
    "winner": lambda vote: vote.winner,
    "query_text": lambda vote: vote.query.text,
    "category": lambda vote: vote.query.category,
    "results_a": lambda vote: " ".join(card.product_id for card in vote.results[0]),
    "results_b": lambda vote: " ".join(card.product_id for card in vote.results[1]),
    "seconds": lambda vote: vote.seconds,
    "repeat": lambda vote: vote.repeat,
    "vote_id": lambda vote: vote.vote_id,
    "lineup": lambda vote: vote.lineup,
}


def export_csv(votes: Sequence[Vote], path: Path) -> None:
    """All votes that count as a table."""
    rows = ([cell(vote) for cell in _COLUMNS.values()] for vote in votes)
    write_text(path, sheet_text([list(_COLUMNS), *rows]))
