"""`furnclip demo`: the offline tour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from furnclip import console
from furnclip.cli.options import JsonOption

_PRODUCTS = 700  # in the bundled catalogue; a test compares it
_EXAMPLE = "Example: furnclip demo    or: furnclip demo my-tour --products 200 --seed 1"


def register(app: typer.Typer) -> None:
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
    from furnclip.demo import take_tour

    tour = take_tour(folder, products=products, seed=seed, quietly=as_json)
    total_seconds = sum(tour.seconds.values())
    payload = {
        "folder": str(tour.folder),
        "seconds": dict(tour.seconds),
        "total_seconds": round(total_seconds, 1),
        "already_done": list(tour.skipped),
        "scores": tour.scores(),
        "report": str(tour.report),
    }

    def show() -> None:
        if len(tour.skipped) == len(tour.seconds):
            console.say(f"\nthe tour in {tour.folder} is finished already; nothing to do")
        rows = [tuple(score.values()) for score in tour.scores()]
        console.show_table(("model", "recall@1", "recall@5", "MRR"), rows, title="text to image, test split")
        console.say(f"{total_seconds:.0f} seconds of work; images and intervals: {tour.report}")
        console.say("next, vote blindly between two models:")
        console.say(f"    cd {tour.folder} && furnclip arena")
        console.say("next, your own products:")
        console.say("    furnclip init my-shop && cd my-shop && furnclip doctor")

    console.emit(payload, as_json=as_json, human=show)
