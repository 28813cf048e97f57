"""A dozen drawn products from raw CSV to search and votes, every stage through the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.conftest import Cli, run_here

STAGES = (
    ("clean", "run"),
    ("prepare",),
    ("train", "--scenario", "dual_lora", "--epochs", "1"),
    ("eval",),
    ("embed",),
)


def test_from_csv_to_search(cli: Cli, shop: Path) -> None:
    for stage in STAGES:
        cli(*stage, "--json", cwd=shop).ok()
    check_every_row_is_accounted_for(shop)
    check_report(cli("eval", "--json", cwd=shop).ok().json)
    hits = cli("search", "red velvet chair", "-k", "3", "--json", cwd=shop).ok().json["hits"]
    assert len(hits) == 3
    assert {"product_id", "title", "score"} <= hits[0].keys()
    check_second_run_does_nothing(cli, shop)


def check_every_row_is_accounted_for(shop: Path) -> None:
    rows = {}
    for name in ("cleaned.csv", "rejected.csv"):
        with (shop / "work" / "clean" / name).open(newline="", encoding="utf-8") as file:
            rows[name] = [row["product_id"] for row in csv.DictReader(file)]
    assert sorted(rows["cleaned.csv"] + rows["rejected.csv"]) == [f"P{n:05d}" for n in range(12)]


def check_report(report: dict[str, object]) -> None:
    models = report["models"]
    assert isinstance(models, dict)
    assert set(models) >= {"base", "finetuned"}
    for scores in models.values():
        assert {"recall@1", "recall@5", "mrr"} <= scores["text_to_image"].keys()
        assert {"recall@1", "recall@5", "mrr"} <= scores["image_to_text"].keys()
    assert isinstance(report["gallery_size"], int)
    assert isinstance(report["queries"], int)


def check_second_run_does_nothing(cli: Cli, shop: Path) -> None:
    before = snapshot(shop / "work")
    for stage in STAGES:
        outcome = cli(*stage, cwd=shop).ok()
        said = (outcome.stdout + outcome.stderr).lower()
        assert "nothing to do" in said, f"{' '.join(stage)} did not say so: {said}"
    assert snapshot(shop / "work") == before


def snapshot(folder: Path) -> dict[str, int]:
    """Every file with its time of last change; locks are touched on every run."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        (("train",), "furnclip prepare"),
        (("eval",), "furnclip prepare"),
        (("embed",), "furnclip prepare"),
        (("search", "chair"), "furnclip embed"),
        (("arena", "stats"), "furnclip arena"),
    ],
)
def test_a_stage_out_of_order_names_the_one_it_needs(shop: Path, stage: tuple[str, ...], needed: str) -> None:
    outcome = run_here(*stage, cwd=shop)
    assert outcome.code == 2
    assert f"hint: run `{needed}`" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("stage", ["prepare", "embed"])
def test_raw_titles_are_never_used_in_silence(shop: Path, stage: str) -> None:
    run_here("prepare", cwd=shop).ok()
    assert "warning: used the raw titles" in run_here(stage, cwd=shop).ok().stderr
    run_here("clean", "prepare", cwd=shop).ok()  # begun, not finished
    outcome = run_here(stage, cwd=shop)
    assert outcome.code == 2
    assert "hint: run `furnclip clean run` first" in outcome.stderr
