"""`furnclip arena` on 50,000 products: from the key press to the next query with its images.

    python -m tests.bench.arena [--quick] [--json]

A process in a pseudo-terminal of 120 x 40 cells, photographs of 800 pixels (20 different ones behind
the 50,000 names, so the disk's cache is warm; no two names share a decoded image), the viewer that
`auto` finds. Measured from the key until the last byte of the next screen has arrived, for a rater
who looks for one second and for one who presses as fast as the arena allows (0.3 s: the next image
is perhaps not drawn yet). `cold` is the same work one after the other without drawing ahead: vote
flushed to the disk, next trial, sheet drawn and encoded, viewer run.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from furnclip import ArenaApp
from furnclip.arena.sheet import draw_sheet
from furnclip.config import load_config
from furnclip.viewers import Box, TerminalEnvironment, Viewer, detect
from tests.arena_contest import write_contest
from tests.arena_person import Person
from tests.bench.measure import parse, report

PRODUCTS = 50_000
DIMENSION = 512
PHOTO_PX = 800
_SILENCE_S = 0.03


def main() -> None:
    options = parse("arena")
    votes = 15 if options.quick else 150
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        folder = write_contest(
            Path(name) / "contest", products=PRODUCTS, dimension=DIMENSION, picture=_photo, pictures=20
        )
        prepared_s = time.perf_counter() - start
        start = time.perf_counter()
        person = Person(folder, "--rater", "first", cols=120, rows=40, NO_COLOR="")
        person.wait("0 votes", timeout_s=300)
        first_start_s = time.perf_counter() - start
        looking = [_press(person, number, look_s=1.0) for number in range(votes)]
        hasty = [_press(person, votes + number, look_s=0.3) for number in range(votes)]
        person.press("q").rest()
        start = time.perf_counter()
        person = Person(folder, "--rater", "first", cols=120, rows=40, NO_COLOR="")
        person.wait(f"{2 * votes} votes")
        resumed_s = time.perf_counter() - start
        person.press("q").rest()
        cold = _cold(folder, votes)
    figures: dict[str, object] = {
        "next_query_p50_ms": _percentile(looking, 50),
        "next_query_p95_ms": _percentile(looking, 95),
        "hasty_p95_ms": _percentile(hasty, 95),
        "cold_p50_ms": _percentile(cold, 50),
        "cold_p95_ms": _percentile(cold, 95),
        "first_start_s": first_start_s,
        "resumed_start_s": resumed_s,
        "data_prepared_s": prepared_s,
        "votes_timed": votes,
        "viewer": "chafa" if shutil.which("chafa") else "half blocks",
    }
    report("arena", {}, figures, as_json=options.json)


def _percentile(seconds: list[float], share: int) -> float:
    return round(1000 * float(np.percentile(seconds, share)), 1)


def _press(person: Person, number: int, *, look_s: float) -> float:
    """Seconds from a key to the last byte of the screen that follows it."""
    until = time.monotonic() + look_s
    while (left_s := until - time.monotonic()) > 0:
        person.read(left_s)
    descriptor = person.child.child_fd
    start = last = time.perf_counter()
    os.write(descriptor, b"ab"[number % 2 : number % 2 + 1])  # pexpect's own `send` waits 50 ms first
    seen = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], _SILENCE_S)
        if ready:
            seen += os.read(descriptor, 65536)
            last = time.perf_counter()
        elif re.search(rb"vote %d saved" % (number + 1), seen):
            return last - start
        elif time.perf_counter() - start > 20:
            raise SystemExit(f"no answer to vote {number + 1}: {seen[-300:]!r}")


def _cold(folder: Path, votes: int) -> list[float]:
    around = TerminalEnvironment(
        variables={"TERM": "xterm-256color", "COLORTERM": "truecolor"},
        which=shutil.which,
        isatty=True,
        platform="linux",
    )
    viewer = Viewer(detect("auto", around))
    sheet = Path(tempfile.mkdtemp(dir=folder)) / "sheet.jpg"
    box = Box(cols=120, rows=28, left=0, top=2)
    seconds = []
    with ArenaApp(load_config(folder / "furnclip.toml"), rater="second") as app:
        app.next_query()
        for _ in range(votes):
            start = time.perf_counter()
            app.vote("A")
            app.next_query()
            if app.trial is None:
                break
            width_px, height_px = box.size_px
            draw_sheet(app.trial, sheet, width_px=width_px, height_px=height_px)
            viewer.draw(sheet, box)
            seconds.append(time.perf_counter() - start)
    return seconds


def _photo(index: int) -> Image.Image:
    """Smooth light and fine grain, which is what makes a photograph slow to decode."""
    random = np.random.default_rng(index)
    coarse = Image.fromarray(random.integers(90, 255, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((PHOTO_PX, PHOTO_PX), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = random.integers(-12, 12, smooth.shape, dtype=np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
