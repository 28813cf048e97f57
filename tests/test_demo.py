"""The drawn shop through its command: the same for a seed, whole after a kill, honest about the truth."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from furnclip.catalogue import CLEAN_COLUMNS
from furnclip.config.vocabulary import COLORS, MATERIALS, OBJECT_TYPES, STYLES
from furnclip.demo.drawing import DRAWING_STYLES, build, draw, family_of, new_design
from furnclip.demo.pieces import KINDS
from furnclip.demo.solids import Mesh
from furnclip.demo.view import Geometry, drawing_order
from tests.conftest import Cli

FULL = bool(os.environ.get("FURNCLIP_FULL"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import run_cli

    folder = tmp_path_factory.mktemp("drawn")
    run_cli("demo", "--catalogue", "shop", "--products", "16", "--image-px", "64", cwd=folder).ok()
    return folder / "shop"


def test_same_seed_same_bytes_whatever_the_number_of_products(drawn: Path, cli: Cli, tmp_path: Path) -> None:
    cli("demo", "--catalogue", "few", "--products", "5", "--image-px", "64", cwd=tmp_path).ok()
    first, few = contents(drawn), contents(tmp_path / "few")
    pictures = [name for name in few if name.startswith("images")]
    assert len(pictures) == 5
    assert all(first[name] == few[name] for name in pictures)
    assert rows(drawn / "products.csv")[:5] == rows(tmp_path / "few" / "products.csv")


def test_another_seed_is_another_shop(drawn: Path, cli: Cli, tmp_path: Path) -> None:
    cli("demo", "--catalogue", "b", "--products", "5", "--seed", "1", "--image-px", "64", cwd=tmp_path).ok()
    assert rows(drawn / "truth.csv")[:5] != rows(tmp_path / "b" / "truth.csv")


def test_a_shops_own_words_change_titles_and_nothing_else(drawn: Path, cli: Cli, tmp_path: Path) -> None:
    cli(
        *("demo", "--catalogue", "own", "--products", "16", "--image-px", "64", "--own-words"), cwd=tmp_path
    ).ok()
    own, plain = contents(tmp_path / "own"), contents(drawn)
    assert {name for name in plain if own[name] != plain[name]} == {"products.csv", "shop.json"}
    pairs = zip(rows(tmp_path / "own" / "products.csv"), rows(drawn / "products.csv"), strict=True)
    changed = [(new["title"], old["title"]) for new, old in pairs if new != old]
    assert changed
    assert all(len(new.split()) == len(old.split()) for new, old in changed)


def test_processes_draw_what_one_process_draws(cli: Cli, tmp_path: Path) -> None:
    order = ("--products", "120", "--image-px", "32")
    cli("demo", "--catalogue", "one", *order, "--workers", "1", cwd=tmp_path).ok()
    cli("demo", "--catalogue", "two", *order, "--workers", "2", cwd=tmp_path).ok()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_second_run_does_nothing_and_says_so(drawn: Path, cli: Cli) -> None:
    before = contents(drawn)
    again = cli(
        "demo", "--catalogue", "shop", "--products", "16", "--image-px", "64", "--json", cwd=drawn.parent
    )
    assert again.ok().json["drawn"] == 0
    assert contents(drawn) == before


def test_another_shop_in_the_folder_is_refused(drawn: Path, cli: Cli) -> None:
    refused = cli("demo", "--catalogue", "shop", "--products", "17", cwd=drawn.parent)
    assert refused.code == 1
    assert "holds a shop drawn with other settings" in refused.stderr
    assert "hint: choose a new folder, or remove this one" in refused.stderr


def test_a_catalogue_of_ones_own_is_never_written_over(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("mine")
    refused = cli("demo", "--catalogue", ".", "--products", "5", cwd=tmp_path)
    assert refused.code == 1
    assert "products.csv` was not drawn by furnclip" in refused.stderr
    assert "hint: choose a new folder for the catalogue" in refused.stderr
    assert contents(tmp_path) == {"products.csv": b"mine"}


def test_unknown_drawing_style_is_refused(cli: Cli, tmp_path: Path) -> None:
    refused = cli("demo", "--catalogue", "shop", "--drawing-style", "cubist", cwd=tmp_path)
    assert refused.code == 2
    assert "error: there is no drawing style `cubist`" in refused.stderr
    assert f"hint: choose from {', '.join(DRAWING_STYLES)}" in refused.stderr


def test_killed_while_drawing_goes_on_to_the_same_shop(cli: Cli, tmp_path: Path) -> None:
    order = ["--products", "120", "--image-px", "32", "--workers", "1"]
    cli("demo", "--catalogue", "whole", *order, cwd=tmp_path).ok()
    generator = random.Random(4)
    for _ in range(20 if FULL else 2):
        command = [sys.executable, "-m", "furnclip", "demo", "--catalogue", "killed", *order]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(generator.uniform(0.3, 2.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    cli("demo", "--catalogue", "killed", *order, cwd=tmp_path).ok()
    left_over = {name for name in contents(tmp_path / "killed") if name.endswith(".part")}
    killed = {name: data for name, data in contents(tmp_path / "killed").items() if name not in left_over}
    assert killed == contents(tmp_path / "whole")


def test_cleaning_cannot_read_the_truth(drawn: Path) -> None:
    assert not set(rows(drawn / "products.csv")[0]) & set(CLEAN_COLUMNS)
    assert not set(rows(drawn / "truth.csv")[0]) & set(CLEAN_COLUMNS)


def test_truth_speaks_the_cleaners_vocabulary(drawn: Path) -> None:
    for row in rows(drawn / "truth.csv"):
        assert row["true_style"] in STYLES
        assert row["true_material"] in MATERIALS
        assert row["true_color"] in COLORS
        assert row["true_object_type"] in OBJECT_TYPES


def test_rows_and_pictures_belong_together(drawn: Path) -> None:
    shop, truth = rows(drawn / "products.csv"), rows(drawn / "truth.csv")
    assert [row["product_id"] for row in shop] == [row["product_id"] for row in truth]
    for row in shop:
        with Image.open(drawn / "images" / row["image"]) as picture:
            assert (picture.size, picture.mode, picture.format) == ((64, 64), "RGB", "JPEG")


def test_variants_share_their_model_and_shape_but_not_their_picture(drawn: Path) -> None:
    shop, truth = rows(drawn / "products.csv"), rows(drawn / "truth.csv")
    assert shop[6]["model"] == shop[7]["model"] != shop[5]["model"]
    assert truth[6]["kind"] == truth[7]["kind"]
    pictures = [(drawn / "images" / shop[index]["image"]).read_bytes() for index in (6, 7)]
    assert pictures[0] != pictures[1]


def test_every_kind_is_drawn_in_every_drawing_style() -> None:
    """No piece is empty, and the piece is in the picture: the middle differs from the corner."""
    seen: set[tuple[str, str]] = set()
    number = 0
    while len(seen) < len(KINDS) * len(DRAWING_STYLES) and number < 5000:
        design = new_design(11, number)
        style = DRAWING_STYLES[number % len(DRAWING_STYLES)]
        number += 1
        if (design.kind, style) in seen:
            continue
        seen.add((design.kind, style))
        pixels = np.asarray(draw(design, style, image_px=32), dtype=float)
        assert pixels.std() > 4, (design.kind, style)
    assert len(seen) == len(KINDS) * len(DRAWING_STYLES)


def test_every_face_is_flat_and_looks_outwards() -> None:
    """What the painter relies on: convex parts, faces that lie in one plane."""
    for number in range(120):
        mesh, _ = build(new_design(5, number))
        geometry = Geometry.of(mesh)
        for face, corners in enumerate(mesh.faces):
            normal, part = geometry.normals[face], geometry.face_part[face]
            if not np.linalg.norm(normal):
                continue  # the collapsed faces at a ball's poles
            off_plane = np.abs((corners - geometry.anchors[face]) @ normal).max()
            assert off_plane < 0.02, (number, face)
            assert (geometry.anchors[face] - mesh.centres[part]) @ normal >= 0


def test_the_nearer_of_two_boxes_is_painted_last() -> None:
    mesh = Mesh()
    mesh.box(0, (0, 1), (0, 1), (0, 1))
    mesh.box(0, (0.2, 0.8), (-3, -1), (0, 1))  # nearer to a viewer in front
    mesh.box(0, (0, 1), (2, 9), (0, 1))  # behind, and larger
    front, behind = np.array([0.5, -9.0, 0.5]), np.array([0.5, 19.0, 0.5])
    assert drawing_order(Geometry.of(mesh), front) == [2, 0, 1]
    assert drawing_order(Geometry.of(mesh), behind) == [1, 0, 2]


def test_families_are_pairs_at_every_eighth_product() -> None:
    families = [family_of(number) for number in range(24)]
    shared = {family for family in families if families.count(family) > 1}
    assert shared == {6, 14, 22}


def test_the_tour_refuses_a_folder_that_is_in_use(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    refused = cli("demo", "mine", cwd=tmp_path)
    assert refused.code == 1
    assert "is not empty" in refused.stderr
    assert "hint: name a new folder: `furnclip demo my-tour`" in refused.stderr
    assert contents(tmp_path / "mine") == {"letter.txt": b"keep me"}


def test_every_command_of_the_tour_is_one_that_furnclip_has() -> None:
    """Parsed by the real command line, without running anything."""
    from typer.main import get_command

    from furnclip.cli import app
    from furnclip.demo.tour import stages

    for stage in stages(700, 0):
        command, words = get_command(app), list(stage.words)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        with command.make_context(stage.name, words):
            pass


@pytest.mark.skipif(not FULL, reason="a minute and a half of real commands; set FURNCLIP_FULL=1")
def test_the_tour_from_an_empty_folder(cli: Cli, tmp_path: Path) -> None:
    tour = cli("demo", "tour", "--products", "120", "--json", cwd=tmp_path, timeout_s=900).ok().json
    assert list(tour["seconds"])[:4] == ["draw", "init", "clean", "prepare"]
    assert [score["model"] for score in tour["scores"]] == ["zero_shot (base)", "linear_probe", "dual_lora"]
    assert Path(tour["report"]).is_file()
    again = cli("demo", "tour", "--products", "120", "--json", cwd=tmp_path).ok().json
    assert again["already_done"] == list(tour["seconds"])
    record = json.loads((tmp_path / "tour" / "work" / "tour.json").read_text())
    assert record["seconds"] == tour["seconds"]
