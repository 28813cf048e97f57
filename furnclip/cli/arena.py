"""`furnclip arena`: vote; `arena stats`: the results; `arena export`: the votes as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from furnclip import console
from furnclip.cli.options import CONTEXT_SETTINGS, Call, takes

if TYPE_CHECKING:
    from furnclip.arena import Standings, VoteBook


group = typer.Typer(context_settings=CONTEXT_SETTINGS, rich_markup_mode="rich")


@group.callback(invoke_without_command=True)
@takes("arena.queries", "arena.k", "arena.seed", "arena.viewer")
def arena(
    call: Call,
    context: typer.Context,
    rater: Annotated[
        str, typer.Option("--rater", help="name your votes are kept under; default: login")
    ] = "",
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="fine-tuned run to judge, repeatable; default: the one embedded"),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="base model that the vectors must have been made with")
    ] = None,
    votes: Annotated[int | None, typer.Option("--votes", min=1, help="stop after N votes")] = None,
) -> None:
    """Judge two models blind: A, B, T tie, X both bad, N next, U undo, Q quit with statistics."""
    if context.invoked_subcommand is not None:
        return
    from furnclip.arena import ArenaApp, vote_in_terminal

    chosen = call.settings()
    with ArenaApp(chosen, rater=rater, runs=run or (), model=model) as app:
        vote_in_terminal(app, viewer=chosen.arena.viewer, max_votes=votes)
        _emit(call, app.book, app.standings(), finished=app.trial is None)


@group.command(epilog="Example: furnclip arena stats --json")
@takes()
def stats(
    call: Call,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="where to write the page; default: arena/report.html", resolve_path=True),
    ] = None,
) -> None:
    """Show the results of all votes with their uncertainty; writes an HTML page with the images."""
    from furnclip.arena import compute_standings, write_page

    book = _book(call.settings().paths.votes)
    votes = book.votes()
    standings = compute_standings(votes, book.contests())
    page = html or book.path.with_name("report.html")
    write_page(page, standings, votes)
    _emit(call, book, standings, page=page)


@group.command(epilog="Example: furnclip arena export votes.csv")
@takes()
def export(
    call: Call,
    path: Annotated[
        Path | None, typer.Argument(help="where to write; default: arena/votes.csv", resolve_path=True)
    ] = None,
) -> None:
    """Write every vote that stands to a CSV file."""
    from furnclip.arena import export_csv

    book = _book(call.settings().paths.votes)
    votes = book.votes()
    target = path or book.path.with_name("votes.csv")
    export_csv(votes, target)
    payload = {"written": str(target), "votes": len(votes)}
    call.emit(payload, lambda: console.say(f"wrote {len(votes)} votes to {target}"))


def _book(votes: Path) -> VoteBook:
    from furnclip.arena import VoteBook
    from furnclip.errors import MissingStageError

    book = VoteBook(votes)
    if not book.path.exists():
        raise MissingStageError(book.path, command="furnclip arena")
    return book


def _emit(
    call: Call, book: VoteBook, standings: Standings, *, page: Path | None = None, finished: bool = False
) -> None:
    from furnclip.arena import duel_lines, tables

    def human() -> None:
        if finished:
            console.say("everything has been judged")
        if not standings.votes:
            console.say("no votes yet")
        for table in tables(standings) if standings.votes else ():
            console.show_table(table.columns, table.rows, title=table.title)
            if table.note:
                console.say(table.note, wrap=True)
        for duel in standings.duels:  # last, so that it is still on the screen
            console.say("\n".join(("", *duel_lines(duel))), wrap=True)
        console.say(f"votes: {book.path}")
        if page:
            console.say(f"page: {page}")

    payload = {**standings.payload(), "votes_file": str(book.path), "page": str(page) if page else None}
    call.emit(payload, human)
