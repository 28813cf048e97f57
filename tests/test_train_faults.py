"""What happens to `furnclip train` on a real machine: two at once, signals, full disks, damaged files."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from furnclip.config import torchrun_launch
from furnclip.journal import aside_name, read_journal
from tests.conftest import Cli
from tests.small_disk import small_disk
from tests.training import SAID, command, end_train, losses, run_train, start_train, wait_for_events

DEAD = 2**22 + 1  # no process has this number
HERE = "0" * 8  # no machine has this name's checksum


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "ready"))
    run_train(folder, run="whole")
    return folder / "work" / "runs" / "whole"


def model_bytes(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_training_changes_nothing_of_the_first(ready: Path, whole: Path) -> None:
    first = start_train(ready, "--run", "one")
    run = ready / "work" / "runs" / "one"
    wait_for_events(first, run, 5)
    first.send_signal(signal.SIGSTOP)
    try:
        before = contents(run)
        for flags in ((), ("--no-resume",), ("--lr", "0.5"), ("--scenario", "linear_probe", "--no-resume")):
            refused = command(ready, "train", "--run", "one", *flags)
            assert contents(run) == before
            assert refused.code == 1
            assert "runs/one` is in use by another furnclip process" in refused.stderr.replace("\n", "")
            assert "nothing was changed" in refused.stderr
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 0
    assert losses(run) == losses(whole)


def test_starting_over_keeps_the_old_run_until_the_new_one_can_begin(ready: Path) -> None:
    run_train(ready, scenario="linear_probe", run="kept", epochs=1)
    run = ready / "work" / "runs" / "kept"
    before = contents(run)
    outcome = command(ready, "train", "--run", "kept", "--no-resume", "--model", str(ready / "images"))
    assert outcome.code == 1
    assert contents(run) == before


@pytest.mark.parametrize(
    ("number", "moments"), [(signal.SIGTERM, (1, 3)), (signal.SIGHUP, (3, 9)), (signal.SIGINT, (9, 1))]
)
def test_a_signal_ends_a_run_that_goes_on_bit_for_bit(
    ready: Path, whole: Path, number: signal.Signals, moments: tuple[int, ...]
) -> None:
    run = ready / "work" / "runs" / "one"
    chance = random.Random(int(number))
    for events in moments:  # from the first on the command handles signals
        process = start_train(ready, "--run", "one")
        wait_for_events(process, run, events)
        time.sleep(chance.random() * 0.05)
        process.send_signal(number)
        assert process.wait(60) in (128 + number, 0)
    said = (ready / SAID).read_text()
    assert "interrupted" in said
    assert "Traceback" not in said
    assert end_train(ready, "--run", "one")[0] == 0
    assert losses(run) == losses(whole)
    assert model_bytes(run) == model_bytes(whole)


def interrupted(ready: Path, name: str, *flags: str) -> Path:
    """The folder of a run that was killed after some checkpoints."""
    run = ready / "work" / "runs" / name
    process = start_train(ready, "--run", name, *flags)
    wait_for_events(process, run, 8)
    process.kill()
    return run


@pytest.mark.parametrize(
    "writer",
    [f"{HERE}-{DEAD}", f"{HERE}-1", "ffffffff-1", f"{HERE}-{os.getpid()}"],
    ids=["dead", "number in use", "other machine", "number of this process"],
)
def test_killed_between_the_two_renames_of_a_checkpoint_nothing_is_lost(
    torn: Path, tmp_path: Path, whole: Path, writer: str
) -> None:
    """`last` was moved away and its successor not yet in its place; the writer's name says nothing."""
    ready = Path(shutil.copytree(torn, tmp_path / "ready"))
    run = ready / "work" / "runs" / "one"
    last = run / "checkpoints" / "last"
    steps = json.loads((last / "position.json").read_text())["step"]
    lines = (run / "metrics.jsonl").read_bytes().splitlines()[:steps]
    shutil.copytree(last, last.with_name(f".last.{writer}.part"))
    last.replace(last.with_name(f".last.{writer}.old"))
    assert end_train(ready, "--run", "one")[0] == 0
    assert (run / "metrics.jsonl").read_bytes().splitlines()[:steps] == lines, "steps were taken again"
    assert losses(run) == losses(whole)
    assert not [path for path in run.rglob(".*") if path.name.endswith((".part", ".old"))]


def test_what_dead_processes_left_is_removed(ready: Path) -> None:
    run_train(ready, scenario="zero_shot", run="one")
    host = aside_name(ready / "x").name.split(".")[2].split("-")[0]
    places = ("one/checkpoints/.last", "one/.model", "one/.run.json", ".one")
    left = [ready / "work" / "runs" / f"{place}.{host}-{DEAD}.part" for place in places]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "state.safetensors").write_bytes(b"half")
    assert command(ready, "train", "--scenario", "zero_shot", "--run", "one").ok()
    assert not [folder for folder in left if folder.exists()]


@pytest.fixture(scope="module")
def probed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    """The losses of an uninterrupted linear probe."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("probed") / "ready"))
    run_train(folder, scenario="linear_probe", run="one")
    return losses(folder / "work" / "runs" / "one")


@pytest.mark.parametrize(
    ("disk", "size_kb"), [("work/runs", 4), ("work/runs", 160), ("work/runs", 420), ("work/cache", 4)]
)
def test_a_full_disk_is_named_and_the_run_goes_on(
    ready: Path, probed: list[tuple[int, float]], disk: str, size_kb: int
) -> None:
    folder = ready / disk
    shutil.rmtree(folder, ignore_errors=True)
    flags = ("--scenario", "linear_probe", "--run", "one")
    with small_disk(folder, size_kb) as resize:
        code, said = end_train(ready, *flags)
        assert code == 1, said
        assert "Traceback" not in said
        assert f"error: the disk `{folder}` is full" in said.replace("\n", "")
        resize(20_000)
        assert end_train(ready, *flags)[0] == 0
        assert losses(ready / "work" / "runs" / "one") == probed


@pytest.mark.parametrize(
    ("name", "limit_mb"), [("train", 400), ("train", 1200), ("embed", 400), ("embed", 800), ("eval", 1200)]
)
def test_too_little_address_space_is_told_at_once(ready: Path, name: str, limit_mb: int) -> None:
    done = within(limit_mb, ready, name)
    assert done.returncode == 1
    assert f"error: the memory limit of {limit_mb:,} MB is too low for torch" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_search_needs_less_address_space(ready: Path) -> None:
    for limit_mb in (200, 400, 700):
        done = within(limit_mb, ready, "search", "chair")
        assert done.returncode == 1
        assert f"error: the memory limit of {limit_mb} MB is too low for LanceDB" in done.stderr
    done = within(1200, ready, "search", "chair")
    assert done.returncode == 2  # there is no table yet
    assert "furnclip embed" in done.stderr


def within(limit_mb: int, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command that may address no more memory than that."""
    limit = limit_mb * 2**20
    return subprocess.run(
        [sys.executable, "-m", "furnclip", *command],
        cwd=folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def changed(**values: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def written(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGED = {
    "card: status": ("run.json", changed(status="done")),
    "card: identity": ("run.json", changed(identity=[1])),
    "card: batch": ("run.json", changed(batch={"micro": "4"})),
    "card: precision": ("run.json", changed(precision={"precision": "fp8", "reason": ""})),
    "card: a list": ("run.json", written(b"[]")),
    "card: cut": ("run.json", written(b'{"run": "one", ')),
    "card: Latin-1": ("run.json", written(b'{"run": "caf\xe9"}')),
    "card: FIFO": ("run.json", fifo),
    "position: text": ("checkpoints/last/position.json", changed(step="3")),
    "position: negative": ("checkpoints/last/position.json", changed(epoch=-1)),
    "position: null": ("checkpoints/last/position.json", changed(step_in_epoch=None)),
    "position: empty": ("checkpoints/last/position.json", written(b"")),
    "position: gone": ("checkpoints/last/position.json", Path.unlink),
    "position: FIFO": ("checkpoints/last/position.json", fifo),
    "weights: cut": ("checkpoints/last/state.safetensors", written(b"\x10\0\0\0\0\0\0\0{}")),
    "weights: gone": ("checkpoints/last/state.safetensors", Path.unlink),
    "weights: FIFO": ("checkpoints/last/state.safetensors", fifo),
    "metrics: no step": ("metrics.jsonl", written(b'{"event": "step"}\n')),
    "metrics: a list": ("metrics.jsonl", written(b"[1]\n")),
    "metrics: FIFO": ("metrics.jsonl", fifo),
}


@pytest.fixture(scope="module")
def torn(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with a run that was killed after some checkpoints."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("torn") / "ready"))
    interrupted(folder, "one")
    return folder


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_is_named(torn: Path, tmp_path: Path, name: str) -> None:
    ready = Path(shutil.copytree(torn, tmp_path / "ready"))
    path, spoil = DAMAGED[name]
    spoil(ready / "work" / "runs" / "one" / path)
    outcome = command(ready, "train", "--run", "one")
    said = outcome.stderr.replace("\n", "")
    assert outcome.code == 1, said
    assert "error: " in said
    assert Path(path).name in said or "checkpoints/last`" in said
    assert "Traceback" not in said


def test_weights_of_another_shape_in_a_checkpoint_are_named(ready: Path) -> None:
    adapters = ("--scenario", "dual_lora")
    card = interrupted(ready, "one", *adapters) / "run.json"
    value = json.loads(card.read_text())
    value["identity"]["train.lora_r"] = 2
    card.write_text(json.dumps(value))
    outcome = command(ready, "train", "--run", "one", *adapters, "--lora-r", "2")
    assert outcome.code == 1
    assert "checkpoints/last` cannot be read" in outcome.stderr.replace("\n", "")


TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}


@pytest.mark.parametrize(
    ("change", "ignored"),
    [
        ({}, ""),
        (dict.fromkeys(TORCHRUN), ""),
        (dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE")), ""),
        (dict.fromkeys(("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")), "RANK=1"),
        (dict.fromkeys(set(TORCHRUN) - {"WORLD_SIZE"}), "WORLD_SIZE=2"),
        ({"TORCHELASTIC_RUN_ID": None}, "without TORCHELASTIC_RUN_ID"),
        ({"MASTER_PORT": ""}, "without MASTER_PORT"),
        ({"RANK": "two"}, "contradict each other"),
        ({"RANK": "2"}, "contradict each other"),
        ({"WORLD_SIZE": "-1"}, "contradict each other"),
        ({"LOCAL_RANK": "7"}, "contradict each other"),
    ],
)
def test_only_a_complete_set_of_torchruns_variables_counts(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], ignored: str
) -> None:
    for name, value in {**TORCHRUN, **change}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    launch = torchrun_launch()
    assert ignored in launch.ignored
    assert bool(ignored) == bool(launch.ignored)
    assert launch.count == (2 if not change else 1)


@pytest.mark.parametrize("name", ["train", "embed"])
def test_left_over_variables_do_not_make_a_command_wait(cli: Cli, ready: Path, name: str) -> None:
    flags = ["--scenario", "zero_shot"] if name == "train" else []
    outcome = cli(name, *flags, cwd=ready, env={"RANK": "1", "WORLD_SIZE": "4"}, timeout_s=200)
    assert outcome.ok()
    assert "warning: ignored RANK=1, WORLD_SIZE=4 without" in outcome.stderr


def test_runs_shops_and_repeats_are_apart_in_the_tracker(ready: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    other = Path(shutil.copytree(ready, tmp_path / "other"))
    flags = {"scenario": "linear_probe", "epochs": 1, "wandb": "offline"}

    def ids(folder: Path, run: str = "linear_probe") -> list[str]:
        return [path.name.rpartition("-")[2] for path in folder.glob(f"work/runs/{run}/wandb/offline-run-*")]

    os.environ["WANDB_SILENT"] = "true"
    first = run_train(ready, **flags)
    found = ids(ready)
    run_train(ready, **flags, run="named")
    found += ids(ready, "named")
    run_train(ready, **flags, resume=False)
    found += ids(ready)
    run_train(other, **flags)
    found += ids(other)
    assert len(found) == len(set(found)) == 4
    assert first["tracker_id"] == found[0]


def test_a_resumed_run_keeps_its_place_in_the_tracker(torn: Path, tmp_path: Path) -> None:
    ready = Path(shutil.copytree(torn, tmp_path / "ready"))
    card = ready / "work" / "runs" / "one" / "run.json"
    before = json.loads(card.read_text())["tracker_id"]
    assert len(before) == 16
    assert run_train(ready, run="one")["tracker_id"] == before
    assert list(read_journal(card.with_name("metrics.jsonl")))
