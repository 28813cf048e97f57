"""`ArenaApp`: a contest, a rater and the votes, for the terminal and for code.

    app = ArenaApp(rater="anna")
    while question := app.next_query():
        app.vote("A" if looks_better(question.a, question.b) else "B")
    standings = app.standings()

Nothing in a `Question` tells which model is on which side.
"""

from __future__ import annotations

import getpass
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from filelock import FileLock, Timeout

from furnclip.arena.lineup import Card, Query, make_lineup
from furnclip.arena.state import Judging, Trial
from furnclip.arena.stats import Standings, compute_standings
from furnclip.arena.votes import Vote, VoteBook
from furnclip.catalogue import content_hash
from furnclip.config import Config, load_config
from furnclip.errors import JournalError, UsageError

_LONGEST_NAME = 40


@dataclass(frozen=True)
class Question:
    """What a rater is asked: does row `a` or row `b` answer `query` better?"""

    query: Query
    a: tuple[Card, ...]
    b: tuple[Card, ...]


class ArenaApp:
    """One rater's voting on one contest.

    `config`: None reads `furnclip.toml`. `rater`: the name votes are written under; empty is the
    login name. `runs`: names of the fine-tuned models; empty takes the one in the vector file. `model`:
    the base model that the vectors must have been made with; None takes any. Raises
    `MissingStageError` without vectors, `ModelMismatchError` for another base model and `JournalError`
    when this rater votes elsewhere already.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        rater: str = "",
        runs: Sequence[str] = (),
        model: str | None = None,
    ) -> None:
        self.config = config or load_config()
        self.rater = _rater_name(rater)
        self.lineup = make_lineup(self.config, runs, model=model)
        self.book = VoteBook(self.config.paths.arena / "votes.jsonl")
        self._lock = self._lock_rater()
        arena, votes = self.config.arena, self._votes_so_far()
        self.judging = Judging(
            self.lineup, self.rater, votes, shared_share=arena.shared_share, repeat_every=arena.repeat_every
        )
        self._asked = False
        self._asked_at = time.monotonic()

    def __enter__(self) -> ArenaApp:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let this rater vote elsewhere."""
        self._lock.release()

    def _lock_rater(self) -> FileLock:
        """Held as long as a rater votes, so that no query is shown in two windows."""
        path = self.config.paths.arena / "raters" / f"{content_hash(self.rater)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise JournalError(
                f"rater `{self.rater}` is voting in another window",
                hint="continue there, or choose another name with `--rater`",
            ) from None
        return lock

    def _votes_so_far(self) -> list[Vote]:
        """The votes on this contest. Raises `InputError` for one on something that it does not have."""
        lineup = self.lineup
        numbered = self.book.numbered_votes().items()
        votes = {number: vote for number, vote in numbered if vote.lineup == lineup.key}
        query_ids, duels = {query.query_id for query in lineup.queries}, lineup.duels()
        for number, vote in votes.items():
            is_known = vote.query.query_id in query_ids and vote.duel in duels
            if not is_known or vote.models != lineup.models:
                raise self.book.damaged(number, "its contest has no such query or models")
        return list(votes.values())

    @property
    def trial(self) -> Trial | None:
        """What is to be judged, with its secret sides; for drawing, not for showing."""
        return self.judging.current

    @property
    def votes_cast(self) -> int:
        """This rater's votes in this contest, skipped ones not counted."""
        return sum(vote.choice != "N" for vote in self.judging.own)

    def next_query(self) -> Question | None:
        """The next thing to judge, or None when there is no more.

        Called again before a vote, it skips, as the N key does.
        """
        if self._asked and self.trial is not None:
            self.vote("N")
        self._asked = self.trial is not None
        return self.question()

    def question(self) -> Question | None:
        """What is to be judged now; starts the clock of the vote."""
        self._asked_at = time.monotonic()
        trial = self.trial
        return None if trial is None else Question(trial.query, *trial.results)

    def vote(self, choice: str, *, seconds: float | None = None) -> int:
        """Record A, B, T (tie), X (both bad) or N (skip); the number of votes cast so far.

        When this returns, the vote is on the disk. `seconds`: time taken; None measures it from the
        moment the question was asked.
        """
        taken_s = time.monotonic() - self._asked_at if seconds is None else seconds
        vote_id = uuid.uuid4().hex
        vote = self.judging.cast(choice.upper(), vote_id=vote_id, at=_now(), seconds=round(taken_s, 3))
        if not self.judging.own:
            contest = {"event": "contest", "lineup": self.lineup.key, **self.lineup.agreement()}
            self.book.append({**contest, "models": self.lineup.models, "at": _now()})
        self.book.append(vote.event())
        self.judging.accept(vote)
        self._asked = False
        return self.votes_cast

    def undo(self) -> bool:
        """Take the last vote back, to judge it again; False when there is none."""
        own = self.judging.own
        if not own:
            return False
        self.book.append({"event": "undo", "vote_id": own[-1].vote_id, "rater": self.rater, "at": _now()})
        self.judging.take_back(own[-1])
        self._asked = False
        return True

    def standings(self) -> Standings:
        """The statistics of all raters' votes on this contest."""
        votes = [vote for vote in self.book.votes() if vote.lineup == self.lineup.key]
        return compute_standings(votes, self.book.contests())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _rater_name(rater: str) -> str:
    """The name with single spaces, or the login name; raises `UsageError` for one that cannot be shown."""
    try:
        name = " ".join((rater or getpass.getuser()).split())
    except (ImportError, KeyError, OSError):  # a container's user without a passwd entry
        raise UsageError(
            "this user has no login name", hint="choose a name for your votes with `--rater`"
        ) from None
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise UsageError(
            f"`{name[:_LONGEST_NAME]}` cannot be a rater's name",
            hint=f"use 1 to {_LONGEST_NAME} printable characters",
        )
    return name
