"""What the pages say to type, typed: every block marked `<!-- run -->`, in the order of its page.

`furnclip` lines run in this process, `export` and `toml` blocks are obeyed, and Python blocks are executed.
A drawn shop, a tiny model and one epoch stand in for a catalogue, a real model and an hour.
"""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from furnclip import ArenaApp
from furnclip.catalogue import read_records
from furnclip.cli.commands import app
from tests.arena_contest import write_contest
from tests.batch_server import BatchServer
from tests.drawn_shop import draw, rows, write_shop
from tests.pages import PAGES, ROOT, Block, blocks
from tests.s3_server import CREDENTIALS, s3_server

PRODUCTS = 12
SMALL = {
    "FURNCLIP_CLEAN__BACKEND": "local",
    "FURNCLIP_PREPARE__TRAIN_FRACTION": "0.5",
    "FURNCLIP_PREPARE__VALIDATION_FRACTION": "0.25",
    "FURNCLIP_TRAIN__EPOCHS": "1",
    "FURNCLIP_EVAL__LATENCY_S": "0",
    "FURNCLIP_EVAL__BOOTSTRAP_SAMPLES": "100",
}
BUCKET = "furniture"


class Typist:
    """Types the marked blocks of a page in a folder; `names` is what its Python blocks find defined."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.environment = environment
        self.typed: list[str] = []
        environment.chdir(folder)

    def page(self, name: str, names: Callable[[], Mapping[str, Any]] = dict) -> Typist:
        for block in blocks(ROOT / name):
            if block.mark == "run":
                self._block(block, names)
        return self

    def _block(self, block: Block, names: Callable[[], Mapping[str, Any]]) -> None:
        if block.language == "toml":
            (self.folder / "furnclip.toml").write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, block.page.name, "exec"), dict(names()))
        else:
            for words in block.lines():
                self._command(words)

    def _command(self, words: list[str]) -> None:
        line = shlex.join(words)
        self.typed.append(line)
        if words[0] == "export":
            self.environment.setenv(*words[1].split("=", 1))
        elif words[0] == "furnclip":
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, f"{line}\n{done.output}"
        else:
            subprocess.run(words, cwd=self.folder, check=True, timeout=120, capture_output=True)


@pytest.fixture
def typist(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Typist:
    for name, value in {**SMALL, "MODEL_NAME": str(tiny_clip)}.items():
        monkeypatch.setenv(name, value)
    return Typist(write_shop(tmp_path / "shop", products=PRODUCTS, model=tiny_clip), monkeypatch)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as address:
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
        monkeypatch.setenv("FURNCLIP_STORAGE__BUCKET", BUCKET)
        monkeypatch.setenv("FURNCLIP_STORAGE__ENDPOINT_URL", address)
        yield


def write_photo_shop(folder: Path) -> None:
    """The made-up catalogue of `own_data.md`: its columns, its folders, its first picture."""
    with (folder / "catalogue.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("sku", "name", "photo", "family"))
        for number, row in enumerate(rows(PRODUCTS)):
            photo = folder / "photos" / "chairs" / f"a{1001 + number}.jpg"
            photo.parent.mkdir(parents=True, exist_ok=True)
            draw(row).save(photo)
            sku = f"A-{1001 + number}"
            table.writerow((sku, row["title"], f"chairs/{photo.name}", f"{sku}-family"))


STAGES = ("fetch", "clean", "prepare", "train", "eval", "search")


def test_readme_and_the_pages_of_the_stages(typist: Typist, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the pipeline, in one folder: each page continues where the one before stopped."""
    (typist.folder / "furnclip.toml").unlink()  # `furnclip init` writes it
    typist.page("README.md")
    assert typist.typed[0] == "furnclip init products.csv"
    for stage in STAGES:
        typist.page(f"docs/{stage}.md")
    assert (typist.folder / "work" / "eval" / "report.html").is_file()


def test_own_data(typist: Typist) -> None:
    (typist.folder / "furnclip.toml").unlink()
    write_photo_shop(typist.folder)
    typist.page("examples/own_data.md")
    assert (typist.folder / "work" / "index.lance").is_dir()


def test_minio(typist: Typist, bucket: None) -> None:
    typist.page("examples/minio.md")
    assert "furnclip train --upload" in typist.typed


def test_local_vision_model(typist: Typist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FURNCLIP_CLEAN__BACKEND")
    with BatchServer() as server:
        server.models = {"qwen2.5vl:7b"}
        server.keys.add("local")
        monkeypatch.setenv("FURNCLIP_CLEAN__BASE_URL", server.url)
        typist.page("examples/local_vision_model.md")
    cleaned = [row.fields for row in read_records(typist.folder / "work/clean/cleaned.csv")[1]]
    assert len(cleaned) == PRODUCTS
    assert {row["clean_source"] for row in cleaned} == {"live:qwen2.5vl:7b"}


def test_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_contest(tmp_path / "contest")
    typist = Typist(folder, monkeypatch)
    with ArenaApp(rater="ben") as app:
        app.vote("A")
    typist.page("docs/arena.md", lambda: {"ask_somebody": lambda query, a, b: "A"})
    assert (folder / "votes.csv").is_file()
    assert "furnclip arena stats" in typist.typed


def test_no_page_is_forgotten() -> None:
    """Every page with a marked block is typed by a test of this file."""
    source = Path(__file__).read_text(encoding="utf-8")
    marked = [page for page in PAGES if any(block.mark == "run" for block in blocks(page))]
    typed = {f"{stage}.md" for stage in STAGES} | set(re.findall(r"[\w./]+\.md", source))
    assert [page.name for page in marked if not any(name.endswith(page.name) for name in typed)] == []
