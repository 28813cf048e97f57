"""Draw a shop: `python -m examples.drawn_shop OUT --products 50000 --seed 3`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from furnclip import console
from furnclip.errors import FurnclipError, Interrupted

from .drawing import DRAWING_STYLES
from .shop import ShopOrder, write_shop


def main() -> int:
    """Read the command line and draw; the exit code."""
    arguments = _parser().parse_args()
    styles = tuple(arguments.drawing_style.split(","))
    try:
        order = ShopOrder(
            arguments.products, arguments.seed, styles, arguments.image_px, own_words=arguments.own_words
        )
        _draw(arguments.out, order, workers=arguments.workers)
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except FurnclipError as error:
        console.print_error(error)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.drawn_shop", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for products.csv, truth.csv and images/")
    parser.add_argument("--products", type=_at_least(1), default=700, help="number of products (700)")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="seed of designs and titles (0)")
    parser.add_argument(
        "--drawing-style",
        default=",".join(DRAWING_STYLES),
        help="one style, or several with commas (%(default)s)",
    )
    parser.add_argument("--image-px", type=_at_least(32), default=224, help="image side in pixels (224)")
    parser.add_argument("--own-words", action="store_true", help="the shop's own names for three colors")
    parser.add_argument("--workers", type=_at_least(0), default=0, help="processes; 0: one per core (0)")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number


def _draw(folder: Path, order: ShopOrder, *, workers: int) -> None:
    start = time.perf_counter()
    with console.progress("drawing", total=order.products) as meter:
        drawn = write_shop(folder, order, workers=workers, on_progress=meter.advance)
    if drawn:
        console.say(f"drew {order.products} products into {folder} in {time.perf_counter() - start:.1f} s")
    else:
        console.say(f"{folder} already contains these {order.products} products; nothing to do")


if __name__ == "__main__":
    sys.exit(main())
