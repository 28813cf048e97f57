"""`furnclip demo`: the offline tour, or only its drawn catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from furnclip.cli.options import JsonOption

if TYPE_CHECKING:
    from furnclip.demo import ShopOrder, Tour

_ALL_STYLES = "studio,room,loft,dusk,ink"
_EXAMPLE = "Example: furnclip demo    or: furnclip demo --catalogue my-shop --products 50000"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("demo", epilog=_EXAMPLE)(demo)


def demo(
    folder: Annotated[Path, typer.Argument(help="where the tour takes place", resolve_path=True)] = Path(
        "furnclip-demo"
    ),
    catalogue: Annotated[
        Path | None,
        typer.Option("--catalogue", help="only draw a catalogue into this folder", resolve_path=True),
    ] = None,
    products: Annotated[int, typer.Option("--products", min=1, help="number of products")] = 700,
    seed: Annotated[int, typer.Option("--seed", min=0, help="seed of everything that is drawn")] = 0,
    drawing_style: Annotated[
        str, typer.Option("--drawing-style", help="of a catalogue: one of these, or several with commas")
    ] = _ALL_STYLES,
    image_px: Annotated[
        int, typer.Option("--image-px", min=32, max=2048, help="of a catalogue: side of a picture in pixels")
    ] = 224,
    own_words: Annotated[
        bool, typer.Option("--own-words", help="of a catalogue: colours under names of the shop's own")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="drawing processes; 0: one a core")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw a shop and run every command on it: offline, on any machine, in minutes."""
    from furnclip.demo import ShopOrder

    if catalogue is None:
        _take_tour(folder, products=products, seed=seed, as_json=as_json)
    else:
        order = ShopOrder(products, seed, tuple(drawing_style.split(",")), image_px, own_words)
        _draw(catalogue, order, workers=workers, as_json=as_json)


def _draw(folder: Path, order: ShopOrder, *, workers: int, as_json: bool) -> None:
    import time

    from furnclip import console
    from furnclip.demo import write_shop

    start = time.perf_counter()
    with console.progress("drawing", total=order.products) as meter:
        drawn = write_shop(folder, order, workers=workers, on_progress=meter.advance)
    seconds = time.perf_counter() - start
    payload = {
        "folder": str(folder),
        "products": order.products,
        "drawn": order.products if drawn else 0,
        "seconds": round(seconds, 2),
    }

    def human() -> None:
        if drawn:
            console.say(f"drew {order.products} products into {folder} in {seconds:.1f} s")
        else:
            console.say(f"{folder} holds these {order.products} products already; nothing to do")

    console.emit(payload, as_json=as_json, human=human)


def _take_tour(folder: Path, *, products: int, seed: int, as_json: bool) -> None:
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
