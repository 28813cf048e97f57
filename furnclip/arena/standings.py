"""`furnclip arena stats`: the results of the votes with their uncertainty.

In: the standing votes of `votes.jsonl`. Out: `Standings`, printed as tables, as JSON or as
`work/arena/report.html`, which names the models and has their images inside it, as thumbnails.

Every query counts once for each two models: of several raters the majority decides, and a draw is a tie.
Repeats measure raters and never models; skips count for nothing. Win rates are over decisive queries.

Not to be trusted: a win rate tells that people preferred one row, not that it was good, and only for queries
on which the models differ. With several raters a later vote can turn an earlier majority, which the
always-valid interval does not know.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from furnclip.arena.votes import JudgedLineup, Vote
from furnclip.catalogue import UNKNOWN, content_hash
from furnclip.images import BrokenImage, encode_jpeg, load_square
from furnclip.journal import write_text
from furnclip.metrics.standings import (
    Interval,
    Strengths,
    bradley_terry,
    confidence_sequence,
    krippendorff_alpha,
    sign_test,
    votes_needed,
    wilson_interval,
)

_PLANNING_RATES = (0.55, 0.60, 0.65, 0.70)
_CATEGORIES_SHOWN = 20
_THUMBNAIL_PX = 96
_JPEG_QUALITY = 75
_VOTES_SHOWN = 300  # about 10 MB of thumbnails at most


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
    """Two models; the rate is the challenger's.

    votes_still_needed: for a decision at 80 % power if the rate seen is the true one; None: cannot be told.
    """

    baseline: str
    challenger: str
    score: WinRate
    always_valid: Interval  # 95 %, holds however often one looks
    decided: str  # the better model once the always-valid interval leaves 50 % out, else empty
    votes_still_needed: int | None
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
    """A model's place among three or more."""

    model: str
    rating: float  # in log-odds, 0 the average
    interval: Interval


@dataclass(frozen=True)
class Standings:
    """All statistics of a set of votes."""

    votes: int
    raters: tuple[Rater, ...]
    duels: tuple[Duel, ...]
    categories: Mapping[str, Mapping[str, WinRate]]  # `challenger against baseline` -> category -> score
    side: WinRate  # wins and losses of row A, whichever model was on it
    alpha: float | None  # agreement between raters, Krippendorff's; None without queries judged twice
    queries_judged_by_several: int
    ranking: tuple[ModelRating, ...]
    ranking_is_regularised: bool

    def payload(self) -> dict[str, Any]:
        """As JSON, with the planner's table."""
        return {**asdict(self), "planner": planner()}


def planner() -> dict[str, int | None]:
    """Decisive votes needed at 80 % power for some true win rates."""
    return {f"{rate:.2f}": votes_needed(rate) for rate in _PLANNING_RATES}


def compute_standings(votes: Sequence[Vote], contests: Mapping[str, JudgedLineup]) -> Standings:
    """The statistics of votes that stand; `contests` as `VoteBook.contests` gives them."""
    votes, contests = _distinguish_retrained(votes, contests)
    fresh = [vote for vote in votes if vote.counts]
    by_query = _grouped(fresh, lambda vote: vote.subject)
    verdicts = {subject: majority([vote.verdict for vote in group]) for subject, group in by_query.items()}
    duels, categories = [], {}
    by_duel = _grouped([group[0] for group in by_query.values()], lambda vote: vote.duel)
    for (first, second), judged in by_duel.items():
        duels.append(_duel(first, second, judged, verdicts, contests))
        by_category = _grouped(judged, lambda vote: vote.query.category or UNKNOWN)
        categories[f"{second} against {first}"] = {
            name: _score([verdicts[vote.subject] for vote in group])
            for name, group in sorted(by_category.items(), key=lambda item: (-len(item[1]), item[0]))
        }
    models = list(dict.fromkeys(model for vote in fresh for model in vote.models))
    results = [(duel, verdict) for (_, duel, _), verdict in verdicts.items()]
    fit = fit_strengths(results, models) if len(models) > 2 else None
    ranking = [] if fit is None else map(ModelRating, fit.models, fit.scores, fit.intervals)
    shared = [group for group in by_query.values() if len({vote.rater for vote in group}) > 1]
    return Standings(
        votes=len([vote for vote in votes if vote.choice != "N"]),
        raters=tuple(_rater(name, group) for name, group in _grouped(votes, lambda v: v.rater).items()),
        duels=tuple(duels),
        categories=categories,
        side=_score([vote.outcome for vote in fresh], first="A", second="B"),
        alpha=krippendorff_alpha([{vote.rater: vote.verdict for vote in group} for group in shared]),
        queries_judged_by_several=len(shared),
        ranking=tuple(sorted(ranking, key=lambda each: -each.rating)),
        ranking_is_regularised=fit is not None and fit.regularized,
    )


def _distinguish_retrained(
    votes: Sequence[Vote], contests: Mapping[str, JudgedLineup]
) -> tuple[list[Vote], Mapping[str, JudgedLineup]]:
    """With a piece of its fingerprint in the name of a run that was trained again under that name."""
    known: dict[str, set[str]] = defaultdict(set)
    for vote in votes:
        for name, fingerprint in vote.models.items():
            known[name].add(fingerprint)

    def named(names: Iterable[str], models: Mapping[str, str]) -> Any:
        return tuple(f"{name} ({models[name][:6]})" if len(known[name]) > 1 else name for name in names)

    renamed = []
    for vote in votes:
        duel, sides = named(vote.duel, vote.models), named(vote.sides, vote.models)
        models = dict(zip(named(vote.models, vote.models), vote.models.values(), strict=True))
        renamed.append(replace(vote, duel=duel, sides=sides, models=models))
    relabeled = {}
    for lineup, contest in contests.items():
        agreed = (replace(each, models=named(each.models, contest.models)) for each in contest.agreed)
        relabeled[lineup] = replace(contest, agreed=tuple(agreed))
    return renamed, relabeled


def majority(verdicts: Sequence[str]) -> str:
    """The most frequent verdict, or `tie` where none has more votes than every other."""
    (first, count), *others = Counter(verdicts).most_common()
    return "tie" if others and others[0][1] == count else first


def _duel(
    baseline: str,
    challenger: str,
    judged: Sequence[Vote],
    verdicts: Mapping[Any, str],
    contests: Mapping[str, JudgedLineup],
) -> Duel:
    """The result of two models; `judged` has one vote for each of their queries."""
    score = _score([verdicts[vote.subject] for vote in judged])
    always_valid = confidence_sequence(score.wins, score.decisive)
    decided = challenger if always_valid[0] > 0.5 else baseline if always_valid[1] < 0.5 else ""
    needed = votes_needed(score.win_rate) if score.win_rate is not None else None
    if decided:
        needed = 0
    elif needed is not None:
        needed = math.ceil(max(0, needed - score.decisive) * len(judged) / score.decisive)
    known = [contests[lineup] for lineup in {vote.lineup for vote in judged} if lineup in contests]
    agreed = [each for contest in known for each in contest.agreed if each.models == (baseline, challenger)]
    queries_agreed = sum(each.queries for each in agreed) if known else None
    queries = sum(contest.queries for contest in known) if known else None
    return Duel(baseline, challenger, score, always_valid, decided, needed, queries_agreed, queries)


def _score(outcomes: Sequence[str], *, first: str = "challenger", second: str = "baseline") -> WinRate:
    counts = Counter(outcomes)
    wins, losses = counts[first], counts[second]
    decisive = wins + losses
    rate = wins / decisive if decisive else None
    interval, p_value = wilson_interval(wins, decisive), sign_test(wins, losses)
    return WinRate(wins, losses, counts["tie"], counts["both bad"], rate, interval, p_value)


def _rater(name: str, votes: Sequence[Vote]) -> Rater:
    side = _score([vote.outcome for vote in votes], first="A", second="B")
    first_answers = {vote.subject: vote.verdict for vote in votes if not vote.repeat}
    repeats = [vote for vote in votes if vote.repeat and vote.choice != "N"]
    alike = sum(first_answers.get(vote.subject) == vote.verdict for vote in repeats)
    skips = sum(vote.choice == "N" for vote in votes)
    median_s = sorted(vote.seconds for vote in votes)[len(votes) // 2]
    counts = (len(votes) - skips, side.ties, side.both_bad, skips)
    consistency = wilson_interval(alike, len(repeats))
    return Rater(name, *counts, median_s, side.win_rate, side.p_value, len(repeats), alike, consistency)


def _grouped(votes: Iterable[Vote], key: Callable[[Vote], Any]) -> dict[Any, list[Vote]]:
    groups: dict[Any, list[Vote]] = {}
    for vote in votes:
        groups.setdefault(key(vote), []).append(vote)
    return groups


def fit_strengths(results: Iterable[tuple[tuple[str, str], str]], models: Sequence[str]) -> Strengths:
    """Bradley-Terry strengths from duels and their verdicts; no winner is half a win each."""
    place = {model: number for number, model in enumerate(models)}
    wins = np.zeros((len(models), len(models)))
    for duel, verdict in results:
        first, second = (place[model] for model in duel)
        share = {"baseline": 1.0, "challenger": 0.0}.get(verdict, 0.5)
        wins[first, second] += share
        wins[second, first] += 1 - share
    return bradley_terry(wins, models)


class StandingsTable(NamedTuple):
    """A titled table; `note` explains how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    note: str = ""


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _between(interval: Interval) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def duel_lines(duel: Duel) -> Iterator[str]:
    """The result of two models, in lines that fit on a narrow terminal."""
    score, needed = duel.score, duel.votes_still_needed
    counts = f"{score.wins} won, {score.losses} lost, {score.ties} tied, {score.both_bad} both bad"
    yield f"{duel.challenger} against {duel.baseline}: {counts}"
    rate, interval = _percent(score.win_rate), _between(score.interval)
    yield f"win rate {rate} of {score.decisive} decisive queries, 95 % interval {interval} (Wilson)"
    always = _between(duel.always_valid)
    yield f"sign test p = {score.p_value:.3g}; always valid, however often you look: {always}"
    if duel.decided:
        yield f"decided: {duel.decided} is preferred"
    elif needed is None:
        yield "not decided: no preference is in sight yet"
    elif needed == 0:
        yield "not decided: enough votes for one test planned beforehand, not for many looks"
    else:
        yield f"not decided: about {needed} more votes for 80 % power, if this is the true rate"
    if duel.queries is not None:
        agreed = f"{duel.queries_agreed} of {duel.queries} queries"
        yield f"both models gave the same results for {agreed}; those were not shown"


def tables(standings: Standings) -> Iterator[StandingsTable]:
    """Every table that has something in it."""
    if standings.ranking:
        note = "Bradley-Terry; 0 is the average, +1 beats it in 73 of 100 queries"
        if standings.ranking_is_regularised:
            note += "; half a win each way was added, because some model never won or never lost"
        ranks = [(r.model, r.rating, "{:+.2f} to {:+.2f}".format(*r.interval)) for r in standings.ranking]
        yield StandingsTable("ranking", ("model", "log-odds", "95 % interval"), ranks, note)
    for duel, scores in standings.categories.items():
        if len(scores) > 1:
            rows = [
                (name, s.wins, s.losses, s.ties, s.both_bad, _percent(s.win_rate), _between(s.interval))
                for name, s in list(scores.items())[:_CATEGORIES_SHOWN]
            ]
            columns = ("category", "wins", "losses", "ties", "both bad", "win rate", "95 % interval")
            note = "intervals of small categories are wide; some will leave 50 % out by chance"
            yield StandingsTable(f"by category: {duel}", columns, rows, note)
    yield _raters(standings)
    yield StandingsTable(
        "votes needed at 80 % power",
        ("true win rate", "decisive votes"),
        [(_percent(float(rate)), votes) for rate, votes in planner().items()],
    )


def _raters(standings: Standings) -> StandingsTable:
    agreement = ": unknown until two of them have judged the same queries"
    if standings.alpha is not None:
        queries = standings.queries_judged_by_several
        agreement = f" (Krippendorff's alpha) {standings.alpha:.2f} on {queries} queries"
    rows = []
    for each in standings.raters:
        counts = (each.name, each.votes, each.ties, each.both_bad, each.skips)
        alike = f"{each.repeats_alike} of {each.repeats} ({_between(each.consistency)})"
        rows.append((*counts, f"{each.median_s:.1f}", _percent(each.share_a), alike if each.repeats else "-"))
    return StandingsTable(
        "raters",
        ("rater", "votes", "ties", "both bad", "skips", "median s", "chose A", "same on repeat"),
        rows,
        f"row A won {_percent(standings.side.win_rate)} of decisive votes "
        f"(p = {standings.side.p_value:.3g} for no favorite side)\nagreement between raters{agreement}",
    )


def write_page(path: Path, standings: Standings, votes: Sequence[Vote]) -> None:
    """Write the page with the latest votes first; an image that cannot be read shows its title alone."""
    shown = list(reversed(votes))[:_VOTES_SHOWN]
    images = {card.image: None for vote in shown for row in vote.results for card in row}
    images |= {vote.query.image: None for vote in shown}
    thumbnails = {}
    for image in filter(None, images):
        with suppress(BrokenImage):
            data = encode_jpeg(load_square(Path(image), _THUMBNAIL_PX), _JPEG_QUALITY)
            thumbnails[content_hash(image)] = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("furnclip.arena", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("page.html").render(
        standings=standings,
        duels=[list(duel_lines(duel)) for duel in standings.duels],
        tables=list(tables(standings)),
        votes=shown,
        hidden=len(votes) - len(shown),
        thumbnails=thumbnails,
        content_hash=content_hash,
    )
    write_text(path, text)
