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

_POWER = 0.8
_PLANNING_RATES = (0.55, 0.60, 0.65, 0.70)


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
    """One rater's habits. A careful rater repeats themselves and has no favorite side."""

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
    """`challenger against baseline` -> category, the most judged first -> score"""
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
    return {f"{rate:.2f}": votes_needed(rate, power=_POWER) for rate in _PLANNING_RATES}


def compute_standings(votes: Sequence[Vote], contests: Mapping[str, Contest]) -> Standings:
    """The statistics of votes that stand; `contests` as `VoteBook.contests` gives them."""
    votes, contests = _distinguish_retrained(votes, contests)
    fresh = [vote for vote in votes if vote.counts]
    by_query = _grouped(fresh, lambda vote: vote.subject)
    winners = {subject: majority([vote.winner for vote in group]) for subject, group in by_query.items()}
    by_duel = _grouped([group[0] for group in by_query.values()], lambda vote: vote.duel)
    duels, categories = [], {}
    for (first, second), judged in by_duel.items():
        duels.append(_duel(first, second, judged, winners, contests))
        by_category = _grouped(judged, lambda vote: vote.query.category or "unknown")
        categories[f"{second} against {first}"] = {
            name: _score([winners[vote.subject] for vote in group], first=second, second=first)
            for name, group in sorted(by_category.items(), key=lambda item: (-len(item[1]), item[0]))
        }
    models = list(dict.fromkeys(model for vote in fresh for model in vote.models))
    results = [(duel, winner) for (_, duel, _), winner in winners.items()]
    fit = fit_strengths(results, models) if len(models) > 2 else None
    ranking = [] if fit is None else map(ModelRating, fit.models, fit.scores, fit.intervals)
    shared = [group for group in by_query.values() if len({vote.rater for vote in group}) > 1]
    return Standings(
        votes=len([vote for vote in votes if vote.choice != "N"]),
        raters=tuple(_rater(name, group) for name, group in _grouped(votes, lambda v: v.rater).items()),
        duels=tuple(duels),
        categories=categories,
        side=_score([vote.choice for vote in fresh], first="A", second="B"),
        alpha=krippendorff_alpha([{vote.rater: vote.winner for vote in group} for group in shared]),
        queries_judged_by_several=len(shared),
        ranking=tuple(sorted(ranking, key=lambda each: -each.rating)),
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
        agreed = []
        for each in contest.agreed:
            first, second = (label(name, contest.models) for name in each.models)
            agreed.append(Agreed((first, second), each.queries))
        return replace(contest, agreed=tuple(agreed))

    relabeled_contests = {lineup: relabeled(contest) for lineup, contest in contests.items()}
    return [renamed(vote) for vote in votes], relabeled_contests


def majority(winners: Sequence[str]) -> str:
    """The most frequent answer, or `tie` where no answer has more votes than every other."""
    (first, count), *others = Counter(winners).most_common()
    return "tie" if others and others[0][1] == count else first


def _duel(
    baseline: str,
    challenger: str,
    judged: Sequence[Vote],
    winners: Mapping[tuple[str, tuple[str, str], str], str],
    contests: Mapping[str, Contest],
) -> Duel:
    """The result of two models; `judged` has one vote for each of their queries."""
    score = _score([winners[vote.subject] for vote in judged], first=challenger, second=baseline)
    always_valid = confidence_sequence(score.wins, score.decisive)
    decided = challenger if always_valid[0] > 0.5 else baseline if always_valid[1] < 0.5 else ""
    needed = votes_needed(score.win_rate, power=_POWER) if score.win_rate is not None else None
    if decided:
        needed = 0
    elif needed is not None:
        needed = math.ceil(max(0, needed - score.decisive) * len(judged) / score.decisive)
    known = [contests[lineup] for lineup in {vote.lineup for vote in judged} if lineup in contests]
    agreed = [each for contest in known for each in contest.agreed if each.models == (baseline, challenger)]
    return Duel(
        baseline=baseline,
        challenger=challenger,
        score=score,
        always_valid=always_valid,
        decided=decided,
        votes_still_needed=needed,
        queries_agreed=sum(each.queries for each in agreed) if known else None,
        queries=sum(contest.queries for contest in known) if known else None,
    )


def _score(outcomes: Sequence[str], *, first: str, second: str) -> WinRate:
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


def _rater(name: str, votes: Sequence[Vote]) -> Rater:
    side = _score([vote.choice for vote in votes], first="A", second="B")
    first_answers = {vote.subject: vote.winner for vote in votes if not vote.repeat}
    repeats = [vote for vote in votes if vote.repeat and vote.choice != "N"]
    alike = sum(first_answers.get(vote.subject) == vote.winner for vote in repeats)
    skips = sum(vote.choice == "N" for vote in votes)
    return Rater(
        name=name,
        votes=len(votes) - skips,
        ties=side.ties,
        both_bad=side.both_bad,
        skips=skips,
        median_s=sorted(vote.seconds for vote in votes)[len(votes) // 2],
        share_a=side.win_rate,
        share_a_p_value=side.p_value,
        repeats=len(repeats),
        repeats_alike=alike,
        consistency=wilson_interval(alike, len(repeats)),
    )


def _grouped(votes: Iterable[Vote], key: Callable[[Vote], Any]) -> dict[Any, list[Vote]]:
    groups: dict[Any, list[Vote]] = defaultdict(list)
    for vote in votes:
        groups[key(vote)].append(vote)
    return dict(groups)
