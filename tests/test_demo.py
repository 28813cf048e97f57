"""The tour of `furnclip demo`, and the bundled catalogue that it runs on."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.main import get_command

import furnclip
from furnclip.cli.commands import app
from furnclip.config import load_config, write_templates
from furnclip.demo import SETTINGS, STAGES, apply_settings, unpack
from tests.bench.tools.pack_catalogue import ORDER, pack
from tests.conftest import Cli, run_here

BUNDLE = Path(furnclip.__file__).parent / "demo" / "catalogue.zip"
FULL = bool(os.environ.get("FURNCLIP_FULL"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def pixels(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image, dtype=float)


def command_of(*words: str) -> Any:
    """The command that these words lead to."""
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    return command


# --- the catalogue


def test_the_bundle_is_small_and_complete() -> None:
    assert BUNDLE.stat().st_size < 4.2e6
    with zipfile.ZipFile(BUNDLE) as bundle:
        table = rows(bundle.read("products.csv").decode("utf-8"))
        names = set(bundle.namelist()) - {"products.csv"}
        assert names == {f"images/{row['image']}" for row in table}
        for name in names:
            with Image.open(bundle.open(name)) as image:
                assert (image.size, image.mode, image.format) == ((96, 96), "RGB", "JPEG")
    assert len(table) == ORDER.products


def test_the_command_offers_what_is_in_the_bundle(tmp_path: Path) -> None:
    products = next(option for option in command_of("demo").params if option.name == "products")
    assert products.default == ORDER.products
    refused = run_here("demo", "tour", "--products", str(ORDER.products + 1), cwd=tmp_path)
    assert refused.code == 2
    assert str(ORDER.products) in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_renderer_draws_the_bundle(tmp_path: Path) -> None:
    """Its first products: the same words, and images as close as another JPEG encoder comes."""
    pack(replace(ORDER, products=8), tmp_path / "few.zip")
    with zipfile.ZipFile(tmp_path / "few.zip") as few, zipfile.ZipFile(BUNDLE) as bundle:
        drawn = rows(few.read("products.csv").decode("utf-8"))
        assert drawn == rows(bundle.read("products.csv").decode("utf-8"))[:8]
        for row in drawn:
            name = f"images/{row['image']}"
            difference = np.abs(pixels(few.read(name)) - pixels(bundle.read(name)))
            assert difference.mean() < 2, name


def test_a_seed_changes_product_ids_and_nothing_else(tmp_path: Path) -> None:
    for seed in (0, 3):
        unpack(tmp_path / str(seed), products=30, seed=seed)
    first, other = contents(tmp_path / "0"), contents(tmp_path / "3")
    assert len(first) == 31
    assert {name for name in first if first[name] != other[name]} == {"products.csv"}
    plain, seeded = (rows(shop["products.csv"].decode()) for shop in (first, other))
    assert seeded == [{**row, "product_id": f"{row['product_id']}-3"} for row in plain]


# --- the tour


def test_every_command_of_the_tour_exists() -> None:
    """Parsed by the real command line, without running anything."""
    for stage in STAGES:
        command, words = get_command(app), list(stage.words)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        with command.make_context(stage.name, words):
            pass


def test_every_setting_of_the_tour_is_applied(tmp_path: Path) -> None:
    write_templates(tmp_path)
    wanted = {**SETTINGS, "train.seed": 4}
    apply_settings(tmp_path, wanted)
    config = load_config(tmp_path / "furnclip.toml").model_dump()
    found = {name: config[name.split(".")[0]][name.split(".")[1]] for name in wanted}
    assert found == wanted


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    refused = run_here("demo", "mine", cwd=tmp_path)
    assert refused.code == 1
    assert "is not empty" in refused.stderr
    assert "hint: name a new folder: `furnclip demo my-tour`" in refused.stderr
    assert contents(tmp_path / "mine") == {"letter.txt": b"keep me"}


DAMAGED = {
    "another order": '{"order": {"products": 30, "seed": 9}, "seconds": {}, "results": {}}',
    "not JSON": "{",
    "a list": "[]",
    "no order": '{"seconds": {}, "results": {}}',
    "seconds in words": '{"order": {"products": 30, "seed": 0}, "seconds": {"init": "two"}, "results": {}}',
}


@pytest.mark.parametrize("record", DAMAGED.values(), ids=DAMAGED)
def test_a_record_that_does_not_fit_is_refused(tmp_path: Path, record: str) -> None:
    (tmp_path / "tour" / "work").mkdir(parents=True)
    (tmp_path / "tour" / "work" / "tour.json").write_text(record)
    refused = run_here("demo", "tour", "--products", "30", cwd=tmp_path)
    assert refused.code == 1
    assert "Traceback" not in refused.stderr
    assert "hint: name a new folder: `furnclip demo my-tour`" in refused.stderr


def start_until(stage: str, folder: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """`furnclip demo tour`, once `stage` is in its record."""
    command = [sys.executable, "-m", "furnclip", "demo", "tour", "--products", "30", "--json"]
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **variables}, stderr=subprocess.PIPE, start_new_session=True
    )
    record = folder / "tour" / "work" / "tour.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if record.exists() and stage in json.loads(record.read_text())["seconds"]:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[1].decode())


def test_settings_of_the_shell_do_not_reach_the_tour_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    """`openai` here would buy answers; the tour cleans by offline rules whatever is exported."""
    exported = {
        "FURNCLIP_CLEAN__BACKEND": "openai",
        "OPENAI_API_KEY": "sk-test",
        "MODEL_NAME": "somebody/model",
        "FURNCLIP_PREPARE__IMAGE_PX": "32",
    }
    process = start_until("prepare", tmp_path, exported)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process in the foreground
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.decode().splitlines()[-2].startswith("error: interrupted")
    cleaned = rows((tmp_path / "tour/work/clean/cleaned.csv").read_text("utf-8"))
    assert len(cleaned) == 30
    assert all(row["clean_source"].startswith("local:") for row in cleaned)
    manifest = json.loads((tmp_path / "tour/work/shards/manifest.json").read_text())
    assert manifest["settings"]["image_px"] == 96


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_tour_ends_its_command_too(tmp_path: Path, number: signal.Signals) -> None:
    process = start_until("clean", tmp_path, {})
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr.decode()
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.skipif(not FULL, reason="a minute and a half of real commands; set FURNCLIP_FULL=1")
def test_the_tour_from_an_empty_folder(cli: Cli, tmp_path: Path) -> None:
    tour = cli("demo", "tour", "--products", "120", "--json", cwd=tmp_path, timeout_s=900).ok().json
    assert list(tour["seconds"])[:3] == ["init", "clean", "prepare"]
    assert [score["model"] for score in tour["scores"]] == ["zero_shot (base)", "linear_probe", "dual_lora"]
    assert Path(tour["report"]).is_file()
    again = cli("demo", "tour", "--products", "120", "--json", cwd=tmp_path).ok().json
    assert again["already_done"] == list(tour["seconds"])
    record = json.loads((tmp_path / "tour" / "work" / "tour.json").read_text())
    assert record["seconds"] == tour["seconds"]
