"""`furnclip demo`: the offline tour, or only its drawn catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from furnclip.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("demo", epilog="Example: furnclip demo    or: furnclip demo --catalogue shop --products 50000")(
        demo
    )


def demo(
    catalogue: Annotated[
        Path | None, typer.Option(help="only draw a catalogue into this folder", resolve_path=True)
    ] = None,
    products: Annotated[int, typer.Option(min=1, help="number of products")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="seed of everything drawn")] = 0,
    drawing_style: Annotated[
        str, typer.Option(help="studio, room, loft, dusk, ink, or several with commas")
    ] = "studio,room,loft,dusk,ink",
    image_px: Annotated[int, typer.Option(min=32, max=1024, help="side of the pictures in pixels")] = 224,
    workers: Annotated[int, typer.Option(min=0, help="drawing processes; 0: one a core")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw a shop and run every command on it, offline."""
    from furnclip.demo import ShopOrder

    order = ShopOrder(products, seed, tuple(drawing_style.split(",")), image_px)
    if catalogue is not None:
        _draw(catalogue, order, workers=workers, as_json=as_json)


def _draw(folder: Path, order: object, *, workers: int, as_json: bool) -> None:
    import time

    from furnclip import console
    from furnclip.demo import ShopOrder, write_shop

    assert isinstance(order, ShopOrder)
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
            console.say(f"{folder} holds these {order.products} products already, nothing to do")

    console.emit(payload, as_json=as_json, human=human)
