"""The README's images, made from a finished tour.

    furnclip demo my-tour
    python -m tests.bench.tools.make_pictures my-tour --out docs/pictures

Out: `shop.jpg` (twelve drawn products), `search.svg` and `tour.svg` (what a terminal of 100 columns
shows, recorded through a pseudo-terminal) and, where Chromium is installed, `report.png`.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from examples.drawn_shop.drawing import DRAWING_STYLES, draw, new_design
from examples.drawn_shop.pieces import KINDS
from examples.drawn_shop.titles import true_title
from furnclip.images import contact_sheet

COLUMNS = 100
QUERY = "blue velvet sofa"
SHOWN = (
    *("armchair", "dining table", "bookshelf", "floor lamp", "sofa", "desk"),
    *("chair", "bed", "sideboard", "mirror", "nightstand", "rug"),
)


def main() -> None:
    """Make every image that can be made here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tour", type=Path, help="folder of a finished tour")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="where to write")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    shop_sheet().save(arguments.out / "shop.jpg", quality=82)
    tour = arguments.tour.resolve()
    search = ("search", QUERY, "-k", "5", "--preview")
    save_screen(
        arguments.out / "search.svg",
        recorded(search, tour),
        title=f'furnclip search "{QUERY}" -k 5 --preview',
    )
    save_screen(arguments.out / "tour.svg", recorded(("demo", "."), tour), title="furnclip demo")
    page = tour / "work" / "eval" / "report.html"
    if shutil.which("chromium"):
        photograph(page, arguments.out / "report.png")


def shop_sheet(cell_px: int = 192) -> Image.Image:
    """Twelve products, six a row, each in another kind."""
    images = []
    for index, kind in enumerate(SHOWN):
        number = next(number for number in range(index * 1000, 10**6) if new_design(3, number).kind == kind)
        design = new_design(3, number)
        style = DRAWING_STYLES[index % len(DRAWING_STYLES)]
        image = draw(design, style, image_px=cell_px)
        images.append((image, true_title(design)))
    assert len(images) <= len(KINDS)
    return contact_sheet([images[:6], images[6:]], cell_px=cell_px)


def recorded(words: tuple[str, ...], folder: Path) -> str:
    """What `furnclip WORDS` writes to a color terminal, escape sequences included."""
    reader, writer = pty.openpty()
    environment = {
        **os.environ,
        **{"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS), "LINES": "60"},
        "FURNCLIP_ARENA__VIEWER": "builtin",  # colored half blocks: the only images an SVG can hold
    }
    command = [sys.executable, "-m", "furnclip", *words]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=writer, stdout=writer, stderr=writer
    )
    os.close(writer)
    written = bytearray()
    while True:
        try:
            chunk = os.read(reader, 65536)
        except OSError:  # the terminal is closed once the command has ended
            break
        if not chunk:
            break
        written += chunk
    os.close(reader)
    if process.wait():
        sys.exit(f"`furnclip {' '.join(words)}` failed:\n{written.decode()}")
    text = re.sub(r"\r+\n", "\n", written.decode("utf-8"))
    return text.replace(str(folder), "~/furnclip-demo")


def save_screen(path: Path, output: str, *, title: str) -> None:
    """An SVG that looks like a terminal window with this output."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(f"$ {title}\n{output.strip()}"), overflow="crop", no_wrap=True)
    console.save_svg(str(path), title=title)


def photograph(page: Path, path: Path, *, width_px: int = 1000, height_px: int = 1258) -> None:
    """The top of a page as Chromium shows it, at 0.6 of its size."""
    browser = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
    shot = [
        f"--screenshot={path.resolve()}",
        f"--window-size={width_px},{height_px}",
        page.resolve().as_uri(),
    ]
    subprocess.run([*browser, *shot], check=True, capture_output=True, timeout=120)
    with Image.open(path) as image:
        small = image.convert("RGB").resize((width_px * 3 // 5, height_px * 3 // 5), Image.Resampling.LANCZOS)
    small.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main()
