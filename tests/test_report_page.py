"""`report.html`: self-contained, escaped, and laid out in a real browser without a sideways scroll."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from furnclip import ArenaApp
from furnclip.config import load_config
from tests.arena_contest import write_contest
from tests.conftest import invoke
from tests.test_evaluate import CONFIG, add_run, drawn_samples, write_shards

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> str:
    """The report of a catalogue whose titles are hostile, with two runs."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "furnclip.toml").write_text(CONFIG.format(model=tiny_clip), encoding="utf-8")
    write_shards(folder / "work" / "shards", drawn_samples(40))
    add_run(folder, "first", seed=1)
    add_run(folder, "a-run-with-quite-a-long-name", seed=2)
    runs = ("--run", "first", "--run", "a-run-with-quite-a-long-name")
    result = invoke("eval", "--config", folder / "furnclip.toml", *runs)
    assert result.exit_code == 0, result.stderr
    return (folder / "work" / "eval" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def arena_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The results of votes on a run and products with long names."""
    word = "Wohnzimmerschrankbefestigungsschraubenabdeckung"
    folder = write_contest(tmp_path_factory.mktemp("arena") / "c", runs=(word,), words=(word, "木製椅子"))
    with ArenaApp(load_config(folder / "furnclip.toml"), rater=word[:40]) as app:
        for choice in "ABTXA":
            app.vote(choice)
    assert invoke("arena", "stats", "--config", folder / "furnclip.toml").exit_code == 0
    return (folder / "work" / "arena" / "report.html").read_text(encoding="utf-8")


def test_kinds_that_begin_alike_have_a_row_each(tmp_path: Path, tiny_clip: Path) -> None:
    kinds = [f"Wohnzimmerschrankwandelement {number}" for number in range(3)] + [
        "木製ダイニングテーブル四人掛け"
    ]
    (tmp_path / "furnclip.toml").write_text(CONFIG.format(model=tiny_clip), encoding="utf-8")
    samples = [
        replace(sample, fields={**sample.fields, "object_type": kinds[number % len(kinds)]})
        for number, sample in enumerate(drawn_samples(40))
    ]
    write_shards(tmp_path / "work" / "shards", samples)
    add_run(tmp_path, "tuned", seed=1)
    assert invoke("eval", "--config", tmp_path / "furnclip.toml").exit_code == 0
    page = (tmp_path / "work" / "eval" / "report.html").read_text(encoding="utf-8")
    plot = page.partition("By type</figcaption>")[2].partition("</svg>\n<details>")[0]
    heights = re.findall(r'y="([\d.]+)" text-anchor="end">(?:wohn|木製)', plot)
    assert len(set(heights)) == len(kinds)
    assert "木製ダイニングテーブル四人掛け</text>" not in page  # twice as wide as Latin letters
    assert "Where tuned is most ahead of base" in page


class Outline(HTMLParser):
    """Tags, attributes and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend((name, value or "") for name, value in attrs)

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


def test_nothing_is_fetched_from_outside(page: str) -> None:
    outline = Outline(page)
    for address in outline.values("href", "src", "xlink:href"):
        assert address.startswith(("#", "data:image/jpeg;base64,"))
    assert not {"script", "link", "iframe", "object", "embed"} & set(outline.tags)
    assert "@import" not in page
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", page))


def test_every_reference_inside_the_page_has_one_target(page: str) -> None:
    outline = Outline(page)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    references = [value[1:] for value in outline.values("href", "xlink:href") if value.startswith("#")]
    references += re.findall(r"url\(#([^)]*)\)", page)
    assert set(references) <= set(ids)


def test_titles_cannot_write_html(page: str) -> None:
    assert "&lt;script&gt;alert(" in page
    assert "<script>" not in page


def test_each_picture_is_in_the_page_once_and_small(page: str) -> None:
    uris = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', page)
    assert uris
    assert len(uris) == len(set(uris))
    for uri in uris:
        with Image.open(io.BytesIO(base64.b64decode(uri))) as picture:
            assert max(picture.size) <= 160


def test_every_part_is_there(page: str) -> None:
    for heading in ("Drawn by lot", "Requests", "Gains", "Regressions", "Hardest", "How it was measured"):
        assert f">{heading}</h2>" in page
    assert page.count('role="img"') > 20
    assert "prefers-color-scheme: dark" in page
    assert "gallery of 40" in page


MEASURE = """<!doctype html><body style="margin:0"><iframe id="frame"
style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const root = document.getElementById("frame").contentDocument.documentElement;
  const small = [...root.querySelectorAll("p, td, h2, h3")].filter(
    (node) => node.checkVisibility() && parseFloat(getComputedStyle(node).fontSize) < 12);
  document.title = root.scrollWidth + " " + root.clientWidth + " " + small.length;
}});
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to lay out the page")
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_a_browser_shows_it_without_sideways_scroll(
    page: str, arena_page: str, width: int, tmp_path: Path
) -> None:
    for name, content in (("eval", page), ("arena", arena_page)):
        check_layout(content, width, tmp_path / name)


def check_layout(page: str, width: int, folder: Path) -> None:
    """Nothing of the page is wider than its window, or too small to read."""
    folder.mkdir()
    outer = folder / "outer.html"
    outer.write_text(MEASURE.format(width=width, page=html.escape(page)), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            f"--user-data-dir={folder / 'profile'}",
            *("--virtual-time-budget=5000", "--dump-dom", f"file://{outer}"),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    scroll_width, client_width, small = map(int, found.groups())
    assert width - 20 <= client_width <= width  # the scroll bar at the side takes its part
    assert scroll_width <= client_width
    assert small == 0
