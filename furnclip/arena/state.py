"""The voting itself, without a terminal, a file or a clock: which trial is next, what a vote means.

Everything is a function of the lineup, the seed, the rater and the votes that stand, so a session
that was killed continues with the trial that was on the screen.

    order     of queries: every so often one that all raters are shown, else the rater's own order
    sides     for each rater and each two models, two of every four queries have the baseline as A
    repeats   every so often an earlier query comes back with sides swapped; it measures the rater
              and does not count for the models
    duels     with more than two models, the two with the largest information gain from one more vote
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from furnclip.arena.lineup import Card, Lineup, Query
from furnclip.arena.votes import OUTCOMES, Vote
from furnclip.errors import UsageError
from furnclip.metrics.standings import Strengths, bradley_terry, information_gain

_BLOCK = 4  # queries within which sides are balanced
_REPEAT_DISTANCE = 4  # votes after which a repeated query is no longer fresh in mind


@dataclass(frozen=True)
class Trial:
    """One thing to judge. `sides` tell the models apart: nothing of them may reach a rater."""

    query: Query
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
        self._lineup = lineup
        self._rater = rater
        self._repeat_every = repeat_every
        self._votes = [vote for vote in votes if vote.lineup == lineup.key]
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
        return self._vote(self.current, choice, vote_id=vote_id, at=at, seconds=seconds)

    def _vote(self, trial: Trial, choice: str, *, vote_id: str, at: str, seconds: float) -> Vote:
        lineup = self._lineup
        return Vote(
            **vars(trial),
            vote_id=vote_id,
            at=at,
            rater=self._rater,
            choice=choice,
            models=lineup.models,
            lineup=lineup.key,
            k=lineup.k,
            seed=lineup.seed,
            seconds=seconds,
        )

    def accept(self, vote: Vote) -> None:
        """Count a vote that was written, and continue with the next trial."""
        self._votes.append(vote)
        self.current = self._next(self._votes)

    def take_back(self, vote: Vote) -> None:
        """Forget a vote whose undoing was written; its trial is to be judged again."""
        self._votes.remove(vote)
        self.current = Trial(vote.query, vote.duel, vote.sides, vote.results, vote.repeat)

    def expected(self, ahead: int) -> Iterator[Trial]:
        """The next `ahead` trials, if every vote until then is a tie: a guess, to prepare images by.

        With two models it is right whatever is voted.
        """
        votes, trial = list(self._votes), self.current
        for _ in range(ahead):
            if trial is None:
                return
            votes.append(self._vote(trial, "T", vote_id="", at="", seconds=0))
            trial = self._next(votes)
            if trial is not None:
                yield trial

    def _next(self, votes: Sequence[Vote]) -> Trial | None:
        own = [vote for vote in votes if vote.rater == self._rater]
        again = self._repeat_due(own)
        if again is not None:
            return self._trial(again.query, again.duel, (again.sides[1], again.sides[0]), repeat=True)
        for duel in self._duels_by_information(votes):
            seen = {self._places[vote.query.query_id] for vote in own if vote.duel == duel}
            for place in self._order:
                if place in self._differing[duel] and place not in seen:
                    query = self._lineup.queries[place]
                    return self._trial(query, duel, self._sides(own, duel), repeat=False)
        return None

    def _trial(self, query: Query, duel: tuple[str, str], sides: tuple[str, str], *, repeat: bool) -> Trial:
        first, second = (self._lineup.shown(model, self._places[query.query_id]) for model in sides)
        return Trial(query, duel, sides, (first, second), repeat)

    def _repeat_due(self, own: Sequence[Vote]) -> Vote | None:
        """The earlier vote whose query comes back now, if it is time for one."""
        if not self._repeat_every or (len(own) + 1) % self._repeat_every:
            return None
        done = {vote.subject for vote in own if vote.repeat}
        candidates = [
            vote
            for vote in own[:-_REPEAT_DISTANCE]
            if not vote.repeat and vote.choice != "N" and vote.subject not in done
        ]
        dice = _seeded(self._lineup.seed, self._rater, "repeat", len(own))
        return dice.choice(candidates) if candidates else None

    def _sides(self, own: Sequence[Vote], duel: tuple[str, str]) -> tuple[str, str]:
        """A and B for the next fresh query of this duel, from a shuffled block of four."""
        block, place = divmod(sum(vote.duel == duel and not vote.repeat for vote in own), _BLOCK)
        swaps = [False, True] * (_BLOCK // 2)
        _seeded(self._lineup.seed, self._rater, "sides", *duel, block).shuffle(swaps)
        return (duel[1], duel[0]) if swaps[place] else duel

    def _duels_by_information(self, votes: Sequence[Vote]) -> list[tuple[str, str]]:
        """Every duel, the one with the largest information gain first."""
        duels = self._lineup.duels()
        if len(duels) == 1:
            return duels
        models = self._lineup.order
        fit = fit_strengths([(vote.duel, vote.winner) for vote in votes if vote.counts], models)
        shown = Counter(vote.duel for vote in votes)

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
    order: list[int] = []
    taken = 0
    for place in range(queries):
        if taken < len(shared) and taken * queries <= place * len(shared):
            order.append(shared[taken])
            taken += 1
        else:
            order.append(own[place - taken])
    return order


def fit_strengths(results: Iterable[tuple[tuple[str, str], str]], models: Sequence[str]) -> Strengths:
    """Bradley-Terry strengths from duels and their winners; no winner is half a win each."""
    place = {model: number for number, model in enumerate(models)}
    wins = np.zeros((len(models), len(models)))
    for (first, second), winner in results:
        if winner in (first, second):
            loser = second if winner == first else first
            wins[place[winner], place[loser]] += 1
        else:
            wins[place[first], place[second]] += 0.5
            wins[place[second], place[first]] += 0.5
    return bradley_terry(wins, models)
