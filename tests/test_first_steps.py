"""What a newcomer is told: which step comes first, and what is wrong with the settings or the folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from furnclip.config import config_template
from furnclip.vectors import ModelProvenance
from tests.arena_contest import product, write_vectors
from tests.conftest import Outcome, run_here
from tests.test_bad_input import assert_told_plainly

# Every command that needs a catalogue or what an earlier stage made of it.
STAGES = (
    *("fetch", "clean prepare", "clean dispatch", "clean monitor", "clean finalize", "clean run"),
    *("clean run --backend local", "clean status", "clean estimate", "clean review", "prepare"),
    *("prepare --check", "train", "eval", "embed", "search chair", "serve", "arena", "arena stats"),
    "arena export",
)


def said(words: str, folder: Path) -> Outcome:
    return run_here(*words.split(), cwd=folder)


@pytest.mark.parametrize("words", STAGES)
@pytest.mark.parametrize("begun", [False, True], ids=["an empty folder", "only furnclip.toml"])
def test_without_a_catalogue_every_command_names_the_first_step(
    tmp_path: Path, words: str, begun: bool
) -> None:
    if begun:
        (tmp_path / "furnclip.toml").write_text(config_template())
    outcome = said(words, tmp_path)
    assert outcome.code in (1, 2)
    assert_told_plainly(outcome, code=outcome.code, words=("furnclip init YOUR-FILE", "paths.products"))
    again = said("prepare", tmp_path)  # what the first command left behind changes nothing
    assert_told_plainly(again, code=again.code, words=("furnclip init YOUR-FILE",))


def test_nothing_is_open_where_nothing_was_begun(tmp_path: Path) -> None:
    assert "none was open" in said("clean cancel", tmp_path).ok().stdout


def test_where_an_earlier_stage_is_missing_the_hints_lead_to_one_that_runs(ready: Path) -> None:
    for words, hint in (
        ("arena export", "furnclip arena"),
        ("arena", "furnclip embed"),
        ("search chair", "furnclip embed"),
        ("serve", "furnclip embed"),
        ("clean review", ""),
        ("clean status", ""),
        ("eval", ""),
    ):
        outcome = said(words, ready)
        if not hint:
            outcome.ok()
            continue
        assert_told_plainly(outcome, code=2, words=(f"hint: run `{hint}` first",))
    shutil.rmtree(ready / "work" / "shards")
    for words in ("train", "eval", "embed"):
        assert_told_plainly(said(words, ready), code=2, words=("hint: run `furnclip prepare` first",))


def test_an_arena_without_a_trained_run_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product_id,title,image\n")
    master = tmp_path / "work" / "embeddings" / "master_vectors.parquet"
    model = ModelProvenance(name="base", fingerprint="b" * 16, dimension=2, image_px=32, precision="fp32")
    write_vectors(master, [product(0)], {"base": np.ones((1, 2), np.float32)}, {"base": model})
    assert_told_plainly(said("arena", tmp_path), code=2, words=("hint: run `furnclip train` first",))


def test_init_leaves_its_own_files_alone_and_refuses_those_that_differ(tmp_path: Path) -> None:
    catalogue = tmp_path / "products.csv"
    catalogue.write_text("product_id,title,image\n1,red chair,a.jpg\n")
    said("init products.csv", tmp_path).ok()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert "nothing to do" in said("init products.csv", tmp_path).ok().stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / "furnclip.toml").unlink()
    again = said("init products.csv --json", tmp_path).ok()
    assert [Path(path).name for path in again.json["written"]] == ["furnclip.toml"]
    for name in ("furnclip.toml", ".env.example"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(f"{text}# mine\n")
        refused = said("init products.csv", tmp_path)
        assert_told_plainly(refused, code=2, words=(f"`{name}` exists already", "--force"))
        assert (tmp_path / name).read_text().endswith("# mine\n")
        (tmp_path / name).write_text(text)


BROKEN_SETTINGS = {
    "binary": (bytes(range(256)), "is not"),
    "NUL": (b"[paths]\nwork = 3\0", "NUL"),
    "half a table": (b"[train\nepo", "is not valid TOML"),
    "a wrong type": (b'[train]\nepochs = "many"\n', "`train.epochs` cannot be"),
    "a number for a path": (
        b"[paths]\nproducts = 3\n",
        "`paths.products` cannot be 3: input is not a valid path",
    ),
    "a value for a section": (b"train = 3\n", "`train` cannot be 3: it is a section"),
    "a list for a section": (b"paths = [1]\n", "`paths` cannot be [1]: it is a section"),
    "an unknown section": (b"[trian]\nepochs = 3\n", "did you mean `train`?"),
    "an unknown key": (b"[train]\nepoch = 3\n", "did you mean `train.epochs`?"),
    "a key of no section": (b"epochs = 3\n", "unknown setting `epochs`"),
    "a NUL in a path": (b'[paths]\nwork = "a\\u0000b"\n', "`paths.work` cannot be"),
    "a NUL in a name": (b'[model]\nname = "a\\u0000b"\n', "`model.name` cannot be"),
}
COMMANDS = (
    *(*STAGES, "update", "doctor", "export --onnx there"),
    *("clean cancel", "search chair --image x.jpg"),
)


@pytest.mark.parametrize("settings", BROKEN_SETTINGS)
def test_settings_that_cannot_be_used_end_every_command_alike(tmp_path: Path, settings: str) -> None:
    content, words = BROKEN_SETTINGS[settings]
    (tmp_path / "furnclip.toml").write_bytes(content)
    for command in COMMANDS:
        outcome = said(command, tmp_path)
        assert_told_plainly(outcome, code=2, words=(words,))
        assert "class" not in outcome.stderr
        assert "instance" not in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["furnclip.toml"]


# Root may write anywhere, unless it gives that up.
_NO_OVERRIDE = "-dac_override,-dac_read_search,-fowner"
AS_A_USER = ("setpriv", f"--bounding-set={_NO_OVERRIDE}", f"--inh-caps={_NO_OVERRIDE}")


@pytest.mark.skipif(os.name == "nt" or not shutil.which("setpriv"), reason="needs setpriv")
def test_a_folder_that_cannot_be_written_is_named(shop: Path) -> None:
    shop.chmod(0o555)
    try:
        if (
            subprocess.run([*AS_A_USER, "touch", shop / "x"], capture_output=True, check=False).returncode
            == 0
        ):
            pytest.skip("this user may write everywhere")
        for words, missing in (
            ("init new", "permission denied"),
            ("clean run --backend local", "permission denied"),
            ("prepare", "permission denied"),
            ("search chair", "does not exist yet"),
        ):
            done = subprocess.run(
                [*AS_A_USER, sys.executable, "-m", "furnclip", *words.split()],
                cwd=shop,
                capture_output=True,
                text=True,
                check=False,
            )
            outcome = Outcome(done.returncode, done.stdout, done.stderr)
            assert_told_plainly(outcome, code=1 + (words == "search chair"), words=(missing, str(shop)))
    finally:
        shop.chmod(0o755)
