"""`furnclip prepare` killed at any moment, and on a disk that is full: the same command goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from furnclip.shards import read_manifest
from tests.forked import Forked
from tests.prepare_shop import Shop, read_assignments, sha256_of
from tests.small_disk import small_disk

FULL = os.environ.get("FURNCLIP_FULL") == "1"


def _start(store: Shop) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "furnclip", "prepare", "--workers", "2"],
        cwd=store.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes], deadline_s: float = 60) -> None:
    process.kill()
    process.wait()
    deadline = time.monotonic() + deadline_s
    while _alive(process.pid):
        assert time.monotonic() < deadline, "worker processes outlived their parent"
        time.sleep(0.05)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("times", [50 if FULL else 3])
def test_killed_at_any_moment_the_next_run_goes_on(tmp_path: Path, times: int) -> None:
    store = Shop(tmp_path / "killed", settings={"image_px": 64, "shard_samples": 20})
    wanted = Shop(tmp_path / "whole", settings=store.settings)
    for shop in (store, wanted):
        shop.add(range(120))
        shop.write()
    start = time.monotonic()
    assert wanted.run().exit_code == 0
    whole_s = time.monotonic() - start
    chance = random.Random(time.time_ns())
    for round_number in range(times):
        if round_number % 5 == 0:  # start over, else the runs would soon have nothing left to do
            subprocess.run(["rm", "-rf", str(store.folder / "work")], check=True)
        process = _start(store)
        with suppress(subprocess.TimeoutExpired):  # it may be at its end sooner
            process.wait(chance.uniform(0.3, 0.5 + 1.5 * whole_s))
        _end(process)
        _assert_complete_or_absent(store)
    assert store.run().exit_code == 0
    assert store.hashes() == wanted.hashes()
    left = {path.name for path in (store.folder / "work/cache/prepare").iterdir()}
    assert sorted(name.partition("-")[0] for name in left) == ["kept", "kept.npz", "samples"]


def _assert_complete_or_absent(store: Shop) -> None:
    """A manifest that is there is true, whatever was killed."""
    if (store.shards / "manifest.json").is_file():
        for split in read_manifest(store.shards).splits.values():
            for shard in split.shards:
                assert sha256_of(store.shards / shard.name) == shard.sha256


def test_ctrl_c_stops_in_two_lines_and_the_next_run_goes_on(tmp_path: Path) -> None:
    store = Shop(tmp_path, settings={"image_px": 64, "workers": 2})
    store.add(range(300))
    store.write()
    process = subprocess.Popen(
        [sys.executable, "-m", "furnclip", "prepare"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not any((tmp_path / "work/cache/prepare").glob("samples-*.sqlite")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    # In the middle of an import there is the first line only.
    lines = ["error: interrupted", "hint: run the same command again to continue from here"]
    assert process.returncode == 130
    assert talk.splitlines() in (lines, lines[:1])
    assert store.prepared()["products"] == 300


@pytest.mark.parametrize("step", ["furnclip.prepare.run.assign", "furnclip.prepare.pack.read_index"])
def test_killed_at_a_step_with_other_rows_afterwards_nothing_moves(tmp_path: Path, step: str) -> None:
    """Whatever an unfinished run had decided, a product is in one split ever after."""
    store = Shop(tmp_path, settings={"image_px": 32, "workers": 1})
    store.add(range(60))
    store.prepared()
    before = read_assignments(store.shards)
    store.add(range(200, 260))
    store.write()
    module, name = step.rsplit(".", 1)
    script = (
        f"import os, signal, {module} as module\n"
        f"module.{name} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from furnclip.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script, "prepare"], cwd=store.folder, check=False)
    assert done.returncode == -signal.SIGKILL
    store.rows = store.rows[:90]
    assert store.prepared()["products"] == 90
    assert before.items() <= read_assignments(store.shards).items()


# --- killed before an operation on files, counted: what the moments above hit only by chance


def operations_of(shop: Shop, kill_before: int = 0) -> int:
    """How many operations on files a run made; 0 where it was killed."""
    count = shop.folder / "count"
    count.write_text("0")
    words = [str(shop.folder), str(kill_before), str(count)]
    with (shop.folder / "said").open("ab") as said:
        process = Forked(words, shop.folder, os.environ, said, said, module="tests.prepare_child")
    code = process.wait(60)
    assert code == (-signal.SIGKILL if kill_before else 0) or count.read_text() != "0"
    return int(count.read_text())


def test_killed_before_operations_on_files_one_run_after_the_other(tmp_path: Path) -> None:
    """Up to three kills in a row, so that a run which goes on is killed too."""
    wanted, store = (
        Shop(tmp_path / name, settings={"image_px": 32, "shard_samples": 12}) for name in ("whole", "killed")
    )
    for shop in (wanted, store):
        shop.add(range(30))
        shop.write()
    total = operations_of(wanted)
    chance = random.Random(0)
    singles = [[number] for number in range(1, total + 1)]
    several = [[chance.randint(1, total) for _ in range(chance.randint(2, 3))] for _ in range(total)]
    for moments in [*singles, *several] if FULL else [*chance.sample(singles, 3), several[0]]:
        shutil.rmtree(store.folder / "work", ignore_errors=True)
        for moment in moments:
            operations_of(store, moment)
            _assert_complete_or_absent(store)
        operations_of(store)
        assert store.hashes() == wanted.hashes(), f"after kills before operations {moments} of {total}"
        left = {path.name for path in (store.folder / "work/cache/prepare").iterdir()}
        assert {name.partition("-")[0] for name in left} == {"samples", "kept.npz", "kept"}
        assert len(left) == 3  # nothing of killed runs


# --- on a disk that is full


def test_a_full_disk_is_two_lines_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """A disk that grows from too small for anything until everything fits."""
    settings: dict[str, object] = {"image_px": 64, "workers": 1}
    wanted, store = (Shop(tmp_path / name, settings=settings) for name in ("whole", "tight"))
    for shop in (wanted, store):
        shop.add(range(60))
        shop.write()
    assert wanted.run().exit_code == 0
    refused, size_kb = 0, 16
    with small_disk(store.folder / "work", size_kb) as resize:
        while (result := store.run()).exit_code:
            error, hint = result.stderr.splitlines()
            assert error.startswith(f"error: the disk `{store.folder / 'work'}` is full: no room in `")
            assert hint.startswith("hint: free some space")
            _assert_complete_or_absent(store)
            refused, size_kb = refused + 1, size_kb * 5 // 4
            resize(size_kb)
        assert store.hashes() == wanted.hashes()
    assert refused > 3


def test_a_disk_that_is_full_for_the_workers_too(tmp_path: Path) -> None:
    store = Shop(tmp_path, settings={"image_px": 64, "workers": 2})
    store.add(range(100))
    store.write()
    with small_disk(store.folder / "work", 10_000) as resize:
        store.prepared()
        shards_kb = sum(path.stat().st_size for path in store.shards.rglob("*.tar")) // 1000
        shutil.rmtree(store.folder / "work/shards")
        shutil.rmtree(store.folder / "work/cache")
        resize(shards_kb * 3 // 4)  # enough for the store, but not for the shards beside it
        result = store.run()
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 2)
        assert result.stderr.startswith("error: the disk `")
        resize(10_000)
        store.prepared()
