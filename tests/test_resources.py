"""Too little of what a machine has: disk, memory, a home folder, file descriptors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.small_disk import small_disk
from tests.test_bad_input import assert_told_plainly


@pytest.mark.parametrize(
    "command",
    [
        ("clean", "run"),
        ("prepare",),
        ("embed",),
        ("train", "--scenario", "linear_probe", "--epochs", "1"),
        ("init", "work/shop"),
    ],
    ids=" ".join,
)
def test_a_full_disk_is_named(cli: Cli, prepared: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    shop = tmp_path / "shop"
    shutil.copytree(prepared, shop, ignore=shutil.ignore_patterns("work"))
    with small_disk(shop / "work", 40_000) as resize:
        if command[0] in ("embed", "train"):
            shutil.copytree(prepared / "work" / "clean", shop / "work" / "clean")
            shutil.copytree(prepared / "work" / "shards", shop / "work" / "shards")
        used_kb = shutil.disk_usage(shop / "work").used // 1024
        resize(used_kb + 8)
        outcome = cli(*command, cwd=shop)
        assert_told_plainly(outcome, code=1, words=(f"{shop}/work", "free some"))


def test_an_output_on_a_full_disk(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "furnclip", "init", "--json"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_too_little_address_space(shop: Path) -> None:
    command = f'ulimit -v 300000; exec "{sys.executable}" -m furnclip embed'
    done = subprocess.run(["sh", "-c", command], cwd=shop, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    # Below what torch needs, the limit is told before torch is loaded.
    assert re.search("^error: (there is not enough memory|the memory limit of [0-9]+ MB)", done.stderr, re.M)
    assert "Traceback" not in done.stderr


def as_nobody(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command by a container's user: no HOME, and no entry in the list of users to take one from."""
    nobody = ["unshare", "-U", "--map-user=54321", "--map-group=54321"]
    if not shutil.which("unshare") or subprocess.run([*nobody, "true"], check=False).returncode:
        pytest.skip("there are no user namespaces here")
    command = [*nobody, sys.executable, "-m", "furnclip", *words]
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words",
    [("init", "new"), ("doctor",), ("prepare", "--check"), ("embed",), ("arena", "stats")],
    ids=" ".join,
)
def test_a_user_without_home_and_name(shop: Path, words: tuple[str, ...]) -> None:
    done = as_nobody(*words, cwd=shop)
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if words[0] in ("arena", "embed") else 0), done.stderr
    assert not (shop / "~").exists()


def test_permission_without_a_home_is_not_remembered(shop: Path) -> None:
    (shop / "furnclip.toml").write_text('[clean]\nbase_url = "https://stranger.example/v1"\n')
    assert "not remembered" in as_nobody("doctor", "--trust", cwd=shop).stderr
    assert "you have not allowed it" in as_nobody("arena", "stats", cwd=shop).stderr
