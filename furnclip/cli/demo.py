"""`furnclip demo`: the offline tour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from furnclip.cli.options import JsonOption

if TYPE_CHECKING:
    from furnclip.demo import Tour

_PRODUCTS = 700  # in the bundled catalogue; a test compares it
_EXAMPLE = "Example: furnclip demo    or: furnclip demo my-tour --products 200 --seed 1"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("demo", epilog=_EXAMPLE)(demo)


def demo(
    folder: Annotated[
        Path, typer.Argument(help="an empty or new folder for the tour", resolve_path=True)
    ] = Path("furnclip-demo"),
    products: Annotated[
        int,
        typer.Option("--products", min=20, max=_PRODUCTS, help="number of products of the bundled catalogue"),
    ] = _PRODUCTS,
    seed: Annotated[int, typer.Option("--seed", min=0, help="seed of the splits and of training")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run every command on a bundled catalogue of drawings: offline, on any machine, in minutes."""
    from furnclip import console
    from furnclip.demo import take_tour

    tour = take_tour(folder, products=products, seed=seed, quietly=as_json)
    payload = {
        "folder": str(tour.folder),
        "seconds": dict(tour.seconds),
        "total_seconds": round(sum(tour.seconds.values()), 1),
        "already_done": list(tour.skipped),
        "scores": [vars(score) for score in tour.scores()],
        "report": str(tour.report),
    }
    console.emit(payload, as_json=as_json, human=lambda: _show(tour))


def _show(tour: Tour) -> None:
    from furnclip import console

    if len(tour.skipped) == len(tour.seconds):
        console.say(f"\nthe tour in {tour.folder} is finished already; nothing to do")
    rows = [(score.model, score.recall_at_1, score.recall_at_5, score.mrr) for score in tour.scores()]
    console.show_table(("model", "recall@1", "recall@5", "MRR"), rows, title="text to image, test split")
    console.say(f"{sum(tour.seconds.values()):.0f} seconds of work; pictures and intervals: {tour.report}")
    console.say("next, vote blindly between two models:")
    console.say(f"    cd {tour.folder} && furnclip arena")
    console.say("next, your own products:")
    console.say("    furnclip init my-shop && cd my-shop && furnclip doctor")
