"""The renderer of `examples/drawn_shop`: same seed, same bytes; complete after a kill; true attributes."""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.drawn_shop.drawing import DRAWING_STYLES, build, draw, family_of, new_design
from examples.drawn_shop.pieces import KINDS
from examples.drawn_shop.solids import Mesh
from examples.drawn_shop.view import Geometry, drawing_order
from furnclip.catalogue import CLEAN_COLUMNS
from furnclip.config import CleaningConfig
from tests.pages import ROOT, blocks

COMMAND = [sys.executable, "-m", "examples.drawn_shop"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
FULL = bool(os.environ.get("FURNCLIP_FULL"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


def draw_shop(out: Path, *words: str) -> None:
    done = run(out, *words, cwd=out.parent)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_shop(folder / "shop", "--products", "16", "--image-px", "64")
    return folder / "shop"


def test_same_seed_same_bytes_whatever_the_number_of_products(drawn: Path, tmp_path: Path) -> None:
    draw_shop(tmp_path / "few", "--products", "5", "--image-px", "64")
    first, few = contents(drawn), contents(tmp_path / "few")
    images = [name for name in few if name.startswith("images")]
    assert len(images) == 5
    assert all(first[name] == few[name] for name in images)
    assert rows(drawn / "products.csv")[:5] == rows(tmp_path / "few" / "products.csv")


def test_another_seed_is_another_shop(drawn: Path, tmp_path: Path) -> None:
    draw_shop(tmp_path / "b", "--products", "5", "--seed", "1", "--image-px", "64")
    assert rows(drawn / "truth.csv")[:5] != rows(tmp_path / "b" / "truth.csv")


def test_a_shops_own_words_change_titles_and_nothing_else(drawn: Path, tmp_path: Path) -> None:
    draw_shop(tmp_path / "own", "--products", "16", "--image-px", "64", "--own-words")
    own, plain = contents(tmp_path / "own"), contents(drawn)
    assert {name for name in plain if own[name] != plain[name]} == {"products.csv", "shop.json"}
    pairs = zip(rows(tmp_path / "own" / "products.csv"), rows(drawn / "products.csv"), strict=True)
    changed = [(new["title"], old["title"]) for new, old in pairs if new != old]
    assert changed
    assert all(len(new.split()) == len(old.split()) for new, old in changed)


def test_processes_draw_what_one_process_draws(tmp_path: Path) -> None:
    order = ("--products", "120", "--image-px", "32")
    draw_shop(tmp_path / "one", *order, "--workers", "1")
    draw_shop(tmp_path / "two", *order, "--workers", "2")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_second_run_does_nothing_and_says_so(drawn: Path) -> None:
    before = contents(drawn)
    again = run("shop", "--products", "16", "--image-px", "64", cwd=drawn.parent)
    assert again.returncode == 0
    assert "already contains these 16 products; nothing to do" in again.stdout
    assert contents(drawn) == before


def test_another_shop_in_the_folder_is_refused(drawn: Path) -> None:
    refused = run("shop", "--products", "17", cwd=drawn.parent)
    assert refused.returncode == 1
    assert "holds a shop drawn with other settings" in refused.stderr
    assert "hint: choose a new folder, or remove this one" in refused.stderr


def test_a_catalogue_of_ones_own_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("mine")
    refused = run(".", "--products", "5", cwd=tmp_path)
    assert refused.returncode == 1
    assert "products.csv` was not drawn by this program" in refused.stderr
    assert "hint: choose a new folder for the catalogue" in refused.stderr
    assert contents(tmp_path) == {"products.csv": b"mine"}


def test_unknown_drawing_style_is_refused(tmp_path: Path) -> None:
    refused = run("shop", "--drawing-style", "cubist", cwd=tmp_path)
    assert refused.returncode == 2
    assert "error: there is no drawing style `cubist`" in refused.stderr
    assert f"hint: choose from {', '.join(DRAWING_STYLES)}" in refused.stderr


def test_the_page_shows_a_command_that_works_and_every_option(tmp_path: Path) -> None:
    page = ROOT / "examples" / "drawn_shop" / "README.md"
    (words,) = next(iter(blocks(page))).lines()
    assert words[:3] == ["python", *COMMAND[1:]]
    done = run(*words[3:], "--products", "4", "--image-px", "32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / words[3] / "products.csv")) == 4
    options = set(re.findall(r"--[a-z-]+", run("--help", cwd=tmp_path).stdout)) - {"--help"}
    assert options == set(re.findall(r"^\| `(--[a-z-]+)`", page.read_text(encoding="utf-8"), re.MULTILINE))


def test_killed_while_drawing_goes_on_to_the_same_shop(tmp_path: Path) -> None:
    order = ["--products", "120", "--image-px", "32", "--workers", "1"]
    draw_shop(tmp_path / "whole", *order)
    generator = random.Random(4)
    for _ in range(20 if FULL else 2):
        process = subprocess.Popen(
            [*COMMAND, "killed", *order],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(generator.uniform(0.3, 2.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    draw_shop(tmp_path / "killed", *order)
    left_over = {name for name in contents(tmp_path / "killed") if name.endswith(".part")}
    killed = {name: data for name, data in contents(tmp_path / "killed").items() if name not in left_over}
    assert killed == contents(tmp_path / "whole")


def test_cleaning_cannot_read_the_truth(drawn: Path) -> None:
    assert not set(rows(drawn / "products.csv")[0]) & set(CLEAN_COLUMNS)
    assert not set(rows(drawn / "truth.csv")[0]) & set(CLEAN_COLUMNS)


def test_truth_speaks_the_cleaners_vocabulary(drawn: Path) -> None:
    known = CleaningConfig()
    for row in rows(drawn / "truth.csv"):
        assert row["true_style"] in known.styles
        assert row["true_material"] in known.materials
        assert row["true_color"] in known.colors
        assert row["true_object_type"] in known.object_types


def test_rows_and_images_belong_together(drawn: Path) -> None:
    shop, truth = rows(drawn / "products.csv"), rows(drawn / "truth.csv")
    assert [row["product_id"] for row in shop] == [row["product_id"] for row in truth]
    for row in shop:
        with Image.open(drawn / "images" / row["image"]) as image:
            assert (image.size, image.mode, image.format) == ((64, 64), "RGB", "JPEG")


def test_variants_share_their_model_and_shape_but_not_their_image(drawn: Path) -> None:
    shop, truth = rows(drawn / "products.csv"), rows(drawn / "truth.csv")
    assert shop[6]["model"] == shop[7]["model"] != shop[5]["model"]
    assert truth[6]["kind"] == truth[7]["kind"]
    images = [(drawn / "images" / shop[index]["image"]).read_bytes() for index in (6, 7)]
    assert images[0] != images[1]


def test_every_kind_is_drawn_in_every_drawing_style() -> None:
    """No piece is empty, and the piece is in the image: the middle differs from the corner."""
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
            assert (geometry.anchors[face] - mesh.centers[part]) @ normal >= 0


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
