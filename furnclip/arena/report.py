"""The standings in words and tables, for the terminal and for `work/arena/report.html`.

The page has the images behind the votes in the same file, shrunk to thumbnails and each stored once, however
many votes it appears in. It names the models: it is for after the voting.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from furnclip.arena.stats import Duel, Standings, WinRate, planner
from furnclip.arena.votes import Vote
from furnclip.catalogue import content_hash
from furnclip.images import BrokenImage, encode_jpeg, load_square
from furnclip.journal import write_text
from furnclip.metrics.standings import Interval

_CATEGORIES_SHOWN = 20
_THUMBNAIL_PX = 96
_JPEG_QUALITY = 75
_VOTES_SHOWN = 300  # about 10 MB of thumbnails at most


@dataclass(frozen=True)
class StandingsTable:
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
    score = duel.score
    yield (
        f"{duel.challenger} against {duel.baseline}: {score.wins} won, {score.losses} lost, "
        f"{score.ties} tied, {score.both_bad} both bad"
    )
    yield (
        f"win rate {_percent(score.win_rate)} of {score.decisive} decisive queries, 95 % interval "
        f"{_between(score.interval)} (Wilson)"
    )
    yield (
        f"sign test p = {score.p_value:.3g}; always valid, however often you look: "
        f"{_between(duel.always_valid)}"
    )
    needed = duel.votes_still_needed
    if duel.decided:
        yield f"decided: {duel.decided} is preferred"
    elif needed is None:
        yield "not decided: no preference is in sight yet"
    elif needed == 0:
        yield "not decided: enough votes for one test planned beforehand, not for many looks"
    else:
        yield f"not decided: about {needed} more votes for 80 % power, if this is the true rate"
    if duel.queries is not None:
        yield (
            f"both models gave the same results for {duel.queries_agreed} of {duel.queries} queries; "
            "those were not shown"
        )


def tables(standings: Standings) -> Iterator[StandingsTable]:
    """Every table that has something in it."""
    if standings.ranking:
        note = "Bradley-Terry; 0 is the average, +1 beats it in 73 of 100 queries"
        if standings.ranking_is_regularised:
            note += "; half a win each way was added, because some model never won or never lost"
        rows = [
            (each.model, each.rating, f"{each.interval[0]:+.2f} to {each.interval[1]:+.2f}")
            for each in standings.ranking
        ]
        yield StandingsTable("ranking", ("model", "log-odds", "95 % interval"), rows, note)
    for duel, scores in standings.categories.items():
        if len(scores) > 1:
            yield StandingsTable(
                f"by category: {duel}",
                ("category", "wins", "losses", "ties", "both bad", "win rate", "95 % interval"),
                [
                    (name, *_counts(score), _percent(score.win_rate), _between(score.interval))
                    for name, score in list(scores.items())[:_CATEGORIES_SHOWN]
                ],
                "intervals of small categories are wide; some will leave 50 % out by chance",
            )
    yield _raters(standings)
    yield StandingsTable(
        "votes needed at 80 % power",
        ("true win rate", "decisive votes"),
        [(_percent(float(rate)), votes) for rate, votes in planner().items()],
    )


def _counts(score: WinRate) -> tuple[int, int, int, int]:
    return score.wins, score.losses, score.ties, score.both_bad


def _raters(standings: Standings) -> StandingsTable:
    agreement = "agreement between raters: unknown until two of them have judged the same queries"
    if standings.alpha is not None:
        agreement = (
            f"agreement between raters (Krippendorff's alpha) {standings.alpha:.2f} "
            f"on {standings.queries_judged_by_several} queries"
        )
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
        f"(p = {standings.side.p_value:.3g} for no favorite side)\n{agreement}",
    )


def write_page(path: Path, standings: Standings, votes: Sequence[Vote]) -> None:
    """Write the page with the latest votes first."""
    shown = list(reversed(votes))[:_VOTES_SHOWN]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("furnclip.arena", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("page.html").render(
        duels=[list(duel_lines(duel)) for duel in standings.duels],
        tables=list(tables(standings)),
        votes=shown,
        hidden=len(votes) - len(shown),
        thumbnails=dict(_thumbnails(shown)),
        css_class=_css_class,
        votes_total=standings.votes,
    )
    write_text(path, text)


def _css_class(image: str) -> str:
    """The class that shows an image as its background."""
    return f"p{content_hash(image)}"


def _thumbnails(votes: Sequence[Vote]) -> Iterator[tuple[str, str]]:
    """CSS class and data URI of every image that can be read; others show their title alone."""
    images: list[str] = []
    for vote in votes:
        images += [vote.query.image, *(card.image for row in vote.results for card in row)]
    for image in filter(None, dict.fromkeys(images)):
        try:
            data = encode_jpeg(load_square(Path(image), _THUMBNAIL_PX), _JPEG_QUALITY)
        except BrokenImage:
            continue
        yield _css_class(image), f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
