"""`furnclip arena stats`: the results of the votes with their uncertainty.

In: the standing votes of `votes.jsonl`. Out: `Standings`, printed, as JSON or as an HTML page.

What counts: every query once for each two models. Where several raters judged it, the majority
decides and a draw is a tie; repeats measure raters and never models; skips count for nothing. Win
rates are over decisive queries, ties and both-bad apart.

Not to be trusted: a win rate tells that people preferred one row, not that it was good (see both
bad), and only for queries on which the models differ; the share on which they agreed stands beside
it. With several raters a later vote can turn an earlier majority, which the always-valid interval
does not know.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from furnclip.arena.state import fit_strengths
from furnclip.arena.votes import Agreed, Contest, Vote
from furnclip.metrics.standings import (
    Interval,
    confidence_sequence,
    krippendorff_alpha,
    sign_test,
    votes_needed,
    wilson_interval,
)

POWER = 0.8
PLANNING_RATES = (0.55, 0.60, 0.65, 0.70)


@dataclass(frozen=True)
class WinRate:
    """Wins, losses, ties of a challenger, and how sure its win rate is."""

    wins: int
    losses: int
    ties: int
    both_bad: int
    win_rate: float | None
    interval: Interval
    p_value: float

    @property
    def decisive(self) -> int:
        return self.wins + self.losses


@dataclass(frozen=True)
class Duel:
    """Two models; the rate is the challenger's."""

    baseline: str
    challenger: str
    score: WinRate
    always_valid: Interval
    """95 % interval that holds however often one looks"""
    decided: str
    """the better model once the always-valid interval leaves 50 % out, else empty"""
    votes_still_needed: int | None
    """more votes for a decision at 80 % power if the rate seen is the true one; None: cannot be told"""
    queries_agreed: int | None
    queries: int | None


@dataclass(frozen=True)
class Rater:
    """One rater's habits. A careful rater repeats themselves and has no favourite side."""

    name: str
    votes: int
    ties: int
    both_bad: int
    skips: int
    median_s: float
    share_a: float | None
    share_a_p_value: float
    repeats: int
    repeats_alike: int
    consistency: Interval


@dataclass(frozen=True)
class ModelRating:
    """A model's place among three or more; `rating` is in log-odds, 0 the average."""

    model: str
    rating: float
    interval: Interval


@dataclass(frozen=True)
class Standings:
    """All statistics of a set of votes."""

    votes: int
    raters: tuple[Rater, ...]
    duels: tuple[Duel, ...]
    categories: Mapping[str, Mapping[str, WinRate]]
    """`baseline vs challenger` -> category -> score"""
    side: WinRate
    """wins and losses of row A, whichever model was on it"""
    alpha: float | None
    """agreement between raters, Krippendorff's alpha; None without queries judged twice"""
    queries_judged_by_several: int
    ranking: tuple[ModelRating, ...]
    ranking_is_regularised: bool

    def payload(self) -> dict[str, Any]:
        """As JSON, with the planner's table."""
        return {**asdict(self), "planner": planner()}


def planner() -> dict[str, int | None]:
    """Decisive votes needed at 80 % power for some true win rates."""
    return {f"{rate:.2f}": votes_needed(rate, power=POWER) for rate in PLANNING_RATES}


def compute_standings(votes: Sequence[Vote], contests: Mapping[str, Contest]) -> Standings:
    """The statistics of votes that stand; `contests` as `VoteBook.contests` gives them."""
    votes, contests = _distinguish_retrained(votes, contests)
    fresh = [vote for vote in votes if vote.counts]
    by_query = _grouped(fresh, lambda vote: (vote.lineup, vote.duel, vote.query.query_id))
    outcomes = {key: majority([vote.winner for vote in group]) for key, group in by_query.items()}
    duels = list(dict.fromkeys(vote.duel for vote in fresh))
    models = list(dict.fromkeys(model for vote in fresh for model in vote.models))
    collapsed = [group[0] for group in by_query.values()]
    results = [(duel, winner) for (_, duel, _), winner in outcomes.items()]
    fit = fit_strengths(results, models) if len(models) > 2 else None
    shared = [group for group in by_query.values() if len({vote.rater for vote in group}) > 1]
    return Standings(
        votes=len([vote for vote in votes if vote.choice != "N"]),
        raters=tuple(_rater(name, group) for name, group in _grouped(votes, lambda v: v.rater).items()),
        duels=tuple(_duel(duel, outcomes, contests) for duel in duels),
        categories={f"{duel[1]} against {duel[0]}": _categories(duel, collapsed, outcomes) for duel in duels},
        side=_score([vote.choice for vote in fresh], first="A", second="B"),
        alpha=krippendorff_alpha([{vote.rater: vote.winner for vote in group} for group in shared]),
        queries_judged_by_several=len(shared),
        ranking=() if fit is None else _ranking(fit.models, fit.scores, fit.intervals),
        ranking_is_regularised=fit is not None and fit.regularized,
    )


def _distinguish_retrained(
    votes: Sequence[Vote], contests: Mapping[str, Contest]
) -> tuple[list[Vote], Mapping[str, Contest]]:
    """With a piece of its fingerprint in the name of a run that was trained again under that name."""
    known: dict[str, set[str]] = defaultdict(set)
    for vote in votes:
        for name, fingerprint in vote.models.items():
            known[name].add(fingerprint)

    def label(name: str, models: Mapping[str, str]) -> str:
        return f"{name} ({models[name][:6]})" if len(known[name]) > 1 else name

    def renamed(vote: Vote) -> Vote:
        first, second = (label(name, vote.models) for name in vote.duel)
        sides = (first, second) if vote.sides == vote.duel else (second, first)
        models = {label(name, vote.models): fingerprint for name, fingerprint in vote.models.items()}
        return replace(vote, duel=(first, second), sides=sides, models=models)

    def relabeled(contest: Contest) -> Contest:
        agreed = [
            Agreed((label(first, contest.models), label(second, contest.models)), each.queries)
            for each in contest.agreed
            for first, second in [each.models]
        ]
        return replace(contest, agreed=tuple(agreed))

    return [renamed(vote) for vote in votes], {
        lineup: relabeled(contest) for lineup, contest in contests.items()
    }


Outcomes = Mapping[tuple[str, tuple[str, str], str], str]


def majority(winners: Sequence[str]) -> str:
    """The most frequent answer, or `tie` where no answer has more votes than every other."""
    (first, count), *others = Counter(winners).most_common()
    return "tie" if others and others[0][1] == count else first


def _duel(duel: tuple[str, str], outcomes: Outcomes, contests: Mapping[str, Contest]) -> Duel:
    score = _score(
        [winner for (_, of_duel, _), winner in outcomes.items() if of_duel == duel],
        first=duel[1],
        second=duel[0],
    )
    always_valid = confidence_sequence(score.wins, score.decisive)
    decided = duel[1] if always_valid[0] > 0.5 else duel[0] if always_valid[1] < 0.5 else ""
    lineups = {lineup for lineup, of_duel, _ in outcomes if of_duel == duel}
    judged = [contests[lineup] for lineup in lineups if lineup in contests]
    return Duel(
        baseline=duel[0],
        challenger=duel[1],
        score=score,
        always_valid=always_valid,
        decided=decided,
        votes_still_needed=0 if decided else _still_needed(score),
        queries_agreed=sum(_agreed(contest, duel) for contest in judged) if judged else None,
        queries=sum(contest.queries for contest in judged) if judged else None,
    )


def _agreed(contest: Contest, duel: tuple[str, str]) -> int:
    return sum(each.queries for each in contest.agreed if each.models == duel)


def _still_needed(score: WinRate) -> int | None:
    needed = votes_needed(score.win_rate, power=POWER) if score.win_rate is not None else None
    if needed is None:
        return None
    judged = score.decisive + score.ties + score.both_bad
    return math.ceil(max(0, needed - score.decisive) * judged / score.decisive)


def _score(outcomes: Iterable[str], *, first: str, second: str) -> WinRate:
    counts = Counter(outcomes)
    wins, losses = counts[first], counts[second]
    decisive = wins + losses
    return WinRate(
        wins=wins,
        losses=losses,
        ties=counts["tie"] + counts["T"],
        both_bad=counts["both bad"] + counts["X"],
        win_rate=wins / decisive if decisive else None,
        interval=wilson_interval(wins, decisive),
        p_value=sign_test(wins, losses),
    )


def _categories(duel: tuple[str, str], votes: Sequence[Vote], outcomes: Outcomes) -> dict[str, WinRate]:
    """Scores by the query's category, the most judged first."""
    winners: dict[str, list[str]] = defaultdict(list)
    for vote in votes:
        if vote.duel == duel:
            winners[vote.query.category or "unknown"].append(
                outcomes[(vote.lineup, vote.duel, vote.query.query_id)]
            )
    ordered = sorted(winners.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: _score(found, first=duel[1], second=duel[0]) for name, found in ordered}


def _rater(name: str, votes: Sequence[Vote]) -> Rater:
    counts = Counter(vote.choice for vote in votes)
    side = _score([vote.choice for vote in votes], first="A", second="B")
    first_answers = {
        (vote.lineup, vote.duel, vote.query.query_id): vote.winner for vote in votes if not vote.repeat
    }
    repeats = [vote for vote in votes if vote.repeat and vote.choice != "N"]
    alike = sum(
        first_answers.get((vote.lineup, vote.duel, vote.query.query_id)) == vote.winner for vote in repeats
    )
    seconds = sorted(vote.seconds for vote in votes)
    return Rater(
        name=name,
        votes=len(votes) - counts["N"],
        ties=counts["T"],
        both_bad=counts["X"],
        skips=counts["N"],
        median_s=seconds[len(seconds) // 2],
        share_a=side.win_rate,
        share_a_p_value=side.p_value,
        repeats=len(repeats),
        repeats_alike=alike,
        consistency=wilson_interval(alike, len(repeats)),
    )


def _ranking(
    models: Sequence[str], scores: Sequence[float], intervals: Sequence[Interval]
) -> tuple[ModelRating, ...]:
    places = sorted(range(len(models)), key=lambda place: -scores[place])
    return tuple(ModelRating(models[place], scores[place], intervals[place]) for place in places)


def _grouped(votes: Iterable[Vote], key: Callable[[Vote], Any]) -> dict[Any, list[Vote]]:
    groups: dict[Any, list[Vote]] = defaultdict(list)
    for vote in votes:
        groups[key(vote)].append(vote)
    return dict(groups)
