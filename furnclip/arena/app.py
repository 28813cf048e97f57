"""Voting without a terminal: which trial is next, and what a vote means.

    with ArenaApp(rater="anna") as app:
        while question := app.next_query():
            app.vote("A" if looks_better(question.a, question.b) else "B")
        standings = app.standings()

Nothing in a `Question` tells which model is on which side. What comes next is a function of the lineup, the
seed, the rater and the votes that stand, so a session that was killed continues with the trial that was on
the screen. For each rater and each two models, two of every four queries have the baseline as A. Every so
often an earlier query comes back with sides swapped: it measures the rater and does not count for the models.
With more than two models, the two with the largest information gain from one more vote are next.
"""

from __future__ import annotations

import getpass
import hashlib
import random
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from furnclip.arena.lineup import Card, JudgedQuery, Lineup, make_lineup
from furnclip.arena.sheet import thumbnail
from furnclip.arena.standings import Standings, compute_standings, fit_strengths
from furnclip.arena.votes import OUTCOMES, Agreed, JudgedLineup, Vote, VoteBook
from furnclip.catalogue import content_hash
from furnclip.config import Config, load_config
from furnclip.errors import InputError, JournalError, UsageError
from furnclip.images import encode_jpeg
from furnclip.journal import utc_now
from furnclip.metrics.standings import information_gain

_BLOCK = 4  # queries within which sides are balanced
_REPEAT_DISTANCE = 4  # votes after which a repeated query is no longer fresh in mind
_LONGEST_NAME = 40
_THUMBNAIL_PX, _JPEG_QUALITY = 320, 88  # of a page
_IDLE_S = 600.0
_MOST_RATERS = 100  # at a time in browsers: each has a file open


@dataclass(frozen=True)
class Trial:
    """One thing to judge. `sides` tell the models apart: nothing of them may reach a rater."""

    query: JudgedQuery
    duel: tuple[str, str]
    sides: tuple[str, str]
    results: tuple[tuple[Card, ...], tuple[Card, ...]]
    repeat: bool


class Judging:
    """One rater going through one lineup; `current` is what is to be judged, None at the end."""

    def __init__(
        self,
        lineup: Lineup,
        rater: str,
        votes: Sequence[Vote],
        *,
        shared_share: float = 0.25,
        repeat_every: int = 10,
    ) -> None:
        self._lineup, self._rater, self._repeat_every = lineup, rater, repeat_every
        self._votes = list(votes)
        about = {"models": lineup.models, "lineup": lineup.key, "k": lineup.k, "seed": lineup.seed}
        self._contest: dict[str, Any] = {"rater": rater, **about}
        self._places = {query.query_id: place for place, query in enumerate(lineup.queries)}
        self._order = query_order(len(lineup.queries), lineup.seed, rater, shared_share=shared_share)
        self._differing = {duel: set(lineup.differing(duel)) for duel in lineup.duels()}
        self.current = self._next(self._votes)

    @property
    def own(self) -> list[Vote]:
        """This rater's votes that stand, oldest first."""
        return [vote for vote in self._votes if vote.rater == self._rater]

    @property
    def left(self) -> int:
        """Queries that this rater has not seen yet."""
        return sum(map(len, self._differing.values())) - len({vote.subject for vote in self.own})

    def cast(self, choice: str, *, vote_id: str, at: str, seconds: float) -> Vote:
        """The vote for the current trial, not yet counted: `accept` it when it is safe on the disk."""
        if self.current is None:
            raise UsageError("everything has been judged", hint="see `furnclip arena stats`")
        if choice not in OUTCOMES:
            raise UsageError(f"`{choice}` is not a valid vote", hint=f"valid votes: {', '.join(OUTCOMES)}")
        facts = vars(self.current) | self._contest
        return Vote(**facts, choice=choice, vote_id=vote_id, at=at, seconds=seconds)

    def accept(self, vote: Vote) -> None:
        """Count a vote that was written, and continue with the next trial."""
        self._votes.append(vote)
        self.current = self._next(self._votes)

    def take_back(self, vote: Vote) -> None:
        """Forget a vote whose undoing was written; its trial is to be judged again."""
        self._votes.remove(vote)
        self.current = Trial(vote.query, vote.duel, vote.sides, vote.results, vote.repeat)

    def expected(self, ahead: int) -> Iterator[Trial]:
        """The next `ahead` trials if all votes are ties: a guess to draw images by, right with two models."""
        votes, trial = list(self._votes), self.current
        for _ in range(ahead):
            if trial is None:
                return
            votes.append(Vote(**vars(trial), **self._contest, choice="T", vote_id="", at="", seconds=0))
            trial = self._next(votes)
            if trial is not None:
                yield trial

    def _next(self, votes: Sequence[Vote]) -> Trial | None:
        own = [vote for vote in votes if vote.rater == self._rater]
        if again := self._repeat_due(own):
            return self._trial(again.query, again.duel, again.sides[::-1], repeat=True)
        for duel in self._duels_by_information(votes):
            seen = {self._places[vote.query.query_id] for vote in own if vote.duel == duel}
            for place in self._order:
                if place in self._differing[duel] and place not in seen:
                    query = self._lineup.queries[place]
                    return self._trial(query, duel, self._sides(own, duel), repeat=False)
        return None

    def _trial(
        self, query: JudgedQuery, duel: tuple[str, str], sides: tuple[str, str], *, repeat: bool
    ) -> Trial:
        first, second = (self._lineup.shown(model, self._places[query.query_id]) for model in sides)
        return Trial(query, duel, sides, (first, second), repeat)

    def _repeat_due(self, own: Sequence[Vote]) -> Vote | None:
        """The earlier vote whose query comes back now, if it is time for one."""
        if not self._repeat_every or (len(own) + 1) % self._repeat_every:
            return None
        done = {vote.subject for vote in own if vote.repeat}
        candidates = [vote for vote in own[:-_REPEAT_DISTANCE] if vote.counts and vote.subject not in done]
        dice = _seeded(self._lineup.seed, self._rater, "repeat", len(own))
        return dice.choice(candidates) if candidates else None

    def _sides(self, own: Sequence[Vote], duel: tuple[str, str]) -> tuple[str, str]:
        """A and B for the next fresh query of this duel, from a shuffled block of four."""
        block, place = divmod(sum(vote.duel == duel and not vote.repeat for vote in own), _BLOCK)
        swaps = [False, True] * (_BLOCK // 2)
        _seeded(self._lineup.seed, self._rater, "sides", *duel, block).shuffle(swaps)
        return duel[::-1] if swaps[place] else duel

    def _duels_by_information(self, votes: Sequence[Vote]) -> list[tuple[str, str]]:
        """Every duel, the one with the largest information gain first."""
        duels = self._lineup.duels()
        if len(duels) == 1:
            return duels
        models, shown = self._lineup.order, Counter(vote.duel for vote in votes)
        fit = fit_strengths([(vote.duel, vote.verdict) for vote in votes if vote.counts], models)

        def worth(duel: tuple[str, str]) -> tuple[float, int]:
            gain = information_gain(fit, models.index(duel[0]), models.index(duel[1]))
            return -round(gain, 9), shown[duel]

        return sorted(duels, key=worth)


def _seeded(*words: object) -> random.Random:
    """Random numbers that depend on the words and nothing else, on any machine."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def query_order(queries: int, seed: int, rater: str, *, shared_share: float) -> list[int]:
    """All query numbers in a rater's order: those shared by all, spread evenly over the rater's own."""
    everyone = list(range(queries))
    _seeded(seed, "shared").shuffle(everyone)
    shared_count = round(queries * shared_share)
    shared, own = everyone[:shared_count], everyone[shared_count:]
    _seeded(seed, rater, "order").shuffle(own)
    for number, query in enumerate(shared):
        own.insert(-(-number * queries // len(shared)), query)
    return own


class Question(NamedTuple):
    """What a rater is asked: does row `a` or row `b` answer `query` better?"""

    query: JudgedQuery
    a: tuple[Card, ...]
    b: tuple[Card, ...]


class ArenaApp(AbstractContextManager["ArenaApp"]):
    """One rater's voting on one contest.

    `config`: None reads `furnclip.toml`. `rater`: empty is the login name. `runs`: names of the fine-tuned
    models; empty takes the one in the vector file. `model`: the base model that the vectors must have been
    made with; None takes any. Raises `MissingStageError` without vectors, `ModelMismatchError` for another
    base model and `JournalError` when this rater votes elsewhere already.
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
        self.book = VoteBook(self.config.paths.votes)
        lock = self.config.paths.arena / "raters" / f"{content_hash(self.rater)}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(lock)  # as long as a rater votes, so that no query is shown in two windows
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            hint = "continue there, or vote under another name (in a terminal `--rater`)"
            raise JournalError(f"rater `{self.rater}` is voting in another window", hint=hint) from None
        arena, votes = self.config.arena, self._votes_so_far()
        self.judging = Judging(
            self.lineup, self.rater, votes, shared_share=arena.shared_share, repeat_every=arena.repeat_every
        )
        self._asked: Trial | None = None
        self._asked_at = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let this rater vote elsewhere."""
        self._lock.release()

    def _votes_so_far(self) -> list[Vote]:
        """The votes on this contest. Raises `InputError` for one on something that it does not have."""
        lineup, votes = self.lineup, []
        query_ids, duels = {query.query_id for query in lineup.queries}, lineup.duels()
        for number, vote in self.book.numbered_votes().items():
            if vote.lineup == lineup.key:
                is_known = vote.query.query_id in query_ids and vote.duel in duels
                if not is_known or vote.models != lineup.models:
                    raise self.book.damaged(number, "its contest has no such query or models")
                votes.append(vote)
        return votes

    @property
    def trial(self) -> Trial | None:
        """What is to be judged, with its secret sides; for drawing, not for showing."""
        return self.judging.current

    @property
    def votes_cast(self) -> int:
        """This rater's votes in this contest, skipped ones not counted."""
        return sum(vote.choice != "N" for vote in self.judging.own)

    def next_query(self) -> Question | None:
        """The next thing to judge, None when there is no more; called again before a vote, it skips."""
        if self._asked is not None:
            self.vote("N")
        return self.question()

    def question(self) -> Question | None:
        """What is to be judged now; starts the clock of its vote, unless that runs."""
        if self.trial != self._asked:
            self._asked, self._asked_at = self.trial, time.monotonic()
        return Question(self.trial.query, *self.trial.results) if self.trial else None

    def vote(self, choice: str) -> int:
        """Record A, B, T (tie), X (both bad) or N (skip), on the disk; the number of votes cast so far."""
        taken_s = round(time.monotonic() - self._asked_at, 3)
        vote = self.judging.cast(choice.upper(), vote_id=uuid.uuid4().hex, at=utc_now(), seconds=taken_s)
        if not self.judging.own:
            lineup, queries = self.lineup, len(self.lineup.queries)
            agreed = [Agreed(duel, queries - len(lineup.differing(duel))) for duel in lineup.duels()]
            contest = JudgedLineup(lineup.key, lineup.models, queries, tuple(agreed))
            self.book.append({"event": "contest", **asdict(contest), "at": utc_now()})
        self.book.append(vote.event())
        self.judging.accept(vote)
        self._asked = None
        return self.votes_cast

    def undo(self) -> bool:
        """Take the last vote back, to judge it again; False when there is none."""
        if not self.judging.own:
            return False
        last = self.judging.own[-1]
        self.book.append({"event": "undo", "vote_id": last.vote_id, "rater": self.rater, "at": utc_now()})
        self.judging.take_back(last)
        self._asked = None
        return True

    def standings(self) -> Standings:
        """The statistics of all raters' votes on this contest."""
        votes = [vote for vote in self.book.votes() if vote.lineup == self.lineup.key]
        return compute_standings(votes, self.book.contests())


def _rater_name(rater: str) -> str:
    """The name with single spaces, or the login name; raises `UsageError` for one that cannot be shown."""
    try:
        name = " ".join((rater or getpass.getuser()).split())
    except (ImportError, KeyError, OSError):  # a container's user without a passwd entry
        hint = "choose a name for your votes with `--rater`"
        raise UsageError("this user has no login name", hint=hint) from None
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        hint = f"use 1 to {_LONGEST_NAME} printable characters"
        raise UsageError(f"`{name[:_LONGEST_NAME]}` cannot be a rater's name", hint=hint)
    return name


class BrowserContest:
    """The same contest for raters in a browser; safe to share between threads.

    A ballot has titles, and names of images that are the same whichever model showed them. A rater's lock is
    held until they quit, have been idle for some time, or too many others came since.
    """

    def __init__(self, config: Config, *, runs: Sequence[str] = (), model: str | None = None) -> None:
        self._config, self._runs, self._model = config, runs, model
        self._salt = secrets.token_hex()  # names of images and ballots say nothing, and end with the process
        self._images: dict[str, str] = {}
        self._sessions: dict[str, tuple[ArenaApp, float]] = {}
        self._lock = threading.Lock()
        make_lineup(config, runs, model=model).require_difference()

    def ballot(self, rater: str) -> dict[str, Any]:
        """What is to be judged now; `rows` is empty where everything has been."""
        with self._lock:
            app = self._session(rater)
            shown: dict[str, Any] = {"rater": app.rater, "votes": app.votes_cast, "left": app.judging.left}
            if (trial := app.trial) is None:
                return {**shown, "rows": (), "ballot": ""}
            app.question()
            asked = trial.query
            query = {"text": asked.text, "image": self._name(asked.image), "kind": asked.kind}
            rows = [[self._card(card) for card in row] for row in trial.results]
            return {**shown, "rows": rows, "query": query, "ballot": self._ballot(app, trial)}

    def press(self, rater: str, key: str, ballot: str) -> None:
        """A key: a vote, U or Q. A vote for another ballot than that shown now came twice and is dropped."""
        with self._lock:
            if key == "Q":
                self._close(rater)
                return
            app = self._session(rater)
            if key == "U":
                app.undo()
            elif app.trial is None or ballot == self._ballot(app, app.trial):
                app.vote(key)

    def image(self, name: str) -> bytes:
        """The JPEG of an image that a ballot has shown. Raises `InputError` for any other name."""
        if name not in self._images:
            raise InputError("there is no such image", hint="it stands on no ballot")
        return encode_jpeg(thumbnail(self._images[name], _THUMBNAIL_PX), _JPEG_QUALITY)

    def close(self) -> None:
        """Let every rater vote elsewhere."""
        with self._lock:
            for rater in list(self._sessions):
                self._close(rater)

    def _session(self, rater: str) -> ArenaApp:
        now = time.monotonic()
        idle = sorted((now - used, name) for name, (_, used) in self._sessions.items())
        for place, (idle_s, name) in enumerate(idle, start=1):
            if name != rater and (idle_s > _IDLE_S or place >= _MOST_RATERS):
                self._close(name)
        if not rater.strip():  # which elsewhere means whoever started this
            raise UsageError("a rater needs a name", hint="type it where the contest begins")
        known = self._sessions.get(rater)
        app = known[0] if known else ArenaApp(self._config, rater=rater, runs=self._runs, model=self._model)
        self._sessions[rater] = app, now
        return app

    def _close(self, rater: str) -> None:
        if session := self._sessions.pop(rater, None):
            session[0].close()

    def _ballot(self, app: ArenaApp, trial: Trial) -> str:
        return content_hash(self._salt, app.rater, trial.query.query_id, *trial.duel, str(trial.repeat))

    def _card(self, card: Card) -> dict[str, str]:
        return {"title": card.title, "detail": card.detail, "image": self._name(card.image)}

    def _name(self, image: str) -> str:
        if not image:
            return ""
        name = content_hash(self._salt, image)
        self._images[name] = image
        return name
