"""The walk-through in `examples/sweethome3d.md`, command by command, on the real catalogue.

The commands are taken from the page itself. By default one epoch is trained, which shows that the path
works; with FURNCLIP_FULL=1 training is as long as the page says, and the numbers have to be as good.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from furnclip.cli.commands import app

EXAMPLES = Path(__file__).parent.parent / "examples"
PACKAGE = Path("/usr/share/sweethome3d/furniture")
FULL = os.environ.get("FURNCLIP_FULL") == "1"
SHORTER = {"TRAIN__EPOCHS": "1", "EVAL__LATENCY_S": "0", "EVAL__BOOTSTRAP_SAMPLES": "100"}

pytestmark = pytest.mark.skipif(
    not any(PACKAGE.glob("*.sh3f")), reason="the Debian package `sweethome3d-furniture` is not installed"
)


def page_commands() -> list[list[str]]:
    """Every `python` and `furnclip` line of the page's shell blocks."""
    page = (EXAMPLES / "sweethome3d.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("python ", "furnclip "))]


def run_script(words: list[str], shop: Path) -> None:
    paths = {"my-shop": str(shop), ".": str(shop)}
    script = EXAMPLES / Path(words[1]).name
    arguments = [paths.get(word, word) for word in words[2:]]
    subprocess.run([sys.executable, script, *arguments], check=True, timeout=120)


def run_command(words: list[str]) -> Result:
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}"
    return done


def test_the_walk_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = tmp_path / "my-shop"
    for name, value in {} if FULL else SHORTER.items():
        monkeypatch.setenv(f"FURNCLIP_{name}", value)
    outputs: dict[str, Result] = {}
    for words in page_commands():
        if words[0] == "python":
            run_script(words, shop)
            monkeypatch.chdir(shop)
        else:
            outputs[" ".join(words[1:])] = run_command(words)
    check_rows(shop)
    check_evaluation(json.loads(outputs["eval --json"].stdout))
    check_search(json.loads(outputs["search armchair -k 5 --json"].stdout))


def check_rows(shop: Path) -> None:
    """Every model of the package is cleaned, and in one split, with no ties between splits."""
    with (shop / "work/clean/cleaned.csv").open(encoding="utf-8", newline="") as file:
        cleaned = list(csv.DictReader(file))
    manifest = json.loads((shop / "work/shards/manifest.json").read_text())
    assert len(cleaned) > 800
    assert sum(manifest["splits"][name]["samples"] for name in ("train", "validation", "test")) == len(
        cleaned
    )
    assert manifest["leaks"]["left_across_splits"] == 0
    assert sum(row["object_type"] != "unknown" for row in cleaned) > len(cleaned) / 2


def check_evaluation(report: dict[str, object]) -> None:
    base, tuned = (report["models"][name]["text_to_image"] for name in ("base", "finetuned"))  # type: ignore[index]
    assert report["queries"] == report["gallery_size"]
    assert isinstance(report["gallery_size"], int)
    assert report["gallery_size"] > 50
    if FULL:
        assert tuned["recall@5"] > 3 * base["recall@5"]
        assert tuned["mrr"] > 2 * base["mrr"]


def check_search(answer: dict[str, object]) -> None:
    hits = answer["hits"]
    assert isinstance(hits, list)
    assert len(hits) == 5
    assert {"product_id", "title", "score"} <= hits[0].keys()
    if FULL:
        assert sum("chair" in hit["title"].lower() for hit in hits) >= 3
