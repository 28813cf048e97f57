"""The standings in words and tables, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from furnclip.arena.stats import Duel, Rater, Standings, WinRate, planner
from furnclip.metrics.standings import Interval

_CATEGORIES_SHOWN = 20
Cell = str | int | float | None


@dataclass(frozen=True)
class StandingsTable:
    """A titled table; `note` explains how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def between(interval: Interval) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def duel_lines(duel: Duel) -> Iterator[str]:
    """The result of two models, in lines that fit on a narrow terminal."""
    score = duel.score
    yield (
        f"{duel.challenger} against {duel.baseline}: {score.wins} won, {score.losses} lost, "
        f"{score.ties} tied, {score.both_bad} both bad"
    )
    yield (
        f"win rate {percent(score.win_rate)} of {score.decisive} decisive queries, 95 % interval "
        f"{between(score.interval)} (Wilson)"
    )
    yield (
        f"sign test p = {score.p_value:.3g}; always valid, however often you look: "
        f"{between(duel.always_valid)}"
    )
    yield _verdict(duel)
    if duel.queries is not None:
        yield (
            f"both models gave the same results for {duel.queries_agreed} of {duel.queries} queries; "
            "those were not shown"
        )


def _verdict(duel: Duel) -> str:
    if duel.decided:
        return f"decided: {duel.decided} is preferred"
    if duel.votes_still_needed is None:
        return "not decided: no preference is in sight yet"
    if duel.votes_still_needed == 0:
        return "not decided: enough votes for one test planned beforehand, not for many looks"
    return f"not decided: about {duel.votes_still_needed} more votes for 80 % power, if this is the true rate"


def tables(standings: Standings) -> Iterator[StandingsTable]:
    """Every table that has something in it."""
    if standings.ranking:
        yield _ranking(standings)
    for duel, scores in standings.categories.items():
        if len(scores) > 1:
            shown = list(scores.items())[:_CATEGORIES_SHOWN]
            yield StandingsTable(
                f"by category: {duel}",
                ("category", "wins", "losses", "ties", "both bad", "win rate", "95 % interval"),
                [
                    (name, *_counts(score), percent(score.win_rate), between(score.interval))
                    for name, score in shown
                ],
                "intervals of small categories are wide; some will leave 50 % out by chance",
            )
    yield _raters(standings)
    yield StandingsTable(
        "votes needed at 80 % power",
        ("true win rate", "decisive votes"),
        [(percent(float(rate)), votes) for rate, votes in planner().items()],
    )


def _counts(score: WinRate) -> tuple[int, int, int, int]:
    return score.wins, score.losses, score.ties, score.both_bad


def _ranking(standings: Standings) -> StandingsTable:
    note = "Bradley-Terry; 0 is the average, +1 beats it in 73 of 100 queries"
    if standings.ranking_is_regularised:
        note += "; half a win each way was added, because some model never won or never lost"
    rows = [
        (each.model, each.rating, f"{each.interval[0]:+.2f} to {each.interval[1]:+.2f}")
        for each in standings.ranking
    ]
    return StandingsTable("ranking", ("model", "log-odds", "95 % interval"), rows, note)


def _raters(standings: Standings) -> StandingsTable:
    side = standings.side
    agreement = (
        f"agreement between raters (Krippendorff's alpha) {standings.alpha:.2f} "
        f"on {standings.queries_judged_by_several} queries"
        if standings.alpha is not None
        else "agreement between raters: unknown until two of them have judged the same queries"
    )
    return StandingsTable(
        "raters",
        ("rater", "votes", "ties", "both bad", "skips", "median s", "chose A", "same on repeat"),
        [_rater_row(rater) for rater in standings.raters],
        f"row A won {percent(side.win_rate)} of decisive votes (p = {side.p_value:.3g} for no favourite "
        f"side)\n{agreement}",
    )


def _rater_row(rater: Rater) -> tuple[Cell, ...]:
    alike = (
        f"{rater.repeats_alike} of {rater.repeats} ({between(rater.consistency)})" if rater.repeats else "-"
    )
    counts = (rater.name, rater.votes, rater.ties, rater.both_bad, rater.skips)
    return (*counts, f"{rater.median_s:.1f}", percent(rater.share_a), alike)
