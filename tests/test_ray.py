"""The Ray engine on real clusters: the same bytes as without it, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from examples.make_tiny_clip import build_tiny_clip
from furnclip.cli.commands import app
from furnclip.errors import FurnclipError
from furnclip.parallel import Workers
from tests.drawn_shop import captions, write_shop
from tests.prepare_shop import draw, sha256_of

pytest.importorskip("ray")
FULL = os.environ.get("FURNCLIP_FULL") == "1"
PRODUCTS = 2000


def test_without_ray_the_engine_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("furnclip.parallel.find_spec", lambda name: None)
    shop = write_shop(tmp_path / "shop", products=3, model=Path("furnclip-tiny"))
    done = CliRunner().invoke(app, ["prepare", "--engine", "ray", "--config", str(shop / "furnclip.toml")])
    assert (done.exit_code, 'pip install "furnclip[ray]"' in done.output) == (2, True)


def squared(number: int) -> int:
    """A worker's work; one of the numbers is no good."""
    if number == 450:
        raise ValueError("not this one")
    return number * number


def test_a_cluster_of_this_machine_gives_results_in_order_and_names_the_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    found: list[int] = []
    with Workers(squared, 2, engine="ray", here_first=0) as workers:
        with pytest.raises(FurnclipError, match="`item 450` could not be processed: ValueError"):
            found.extend(workers.map(range(1000), name_of=lambda number: f"item {number}"))
        assert signal.getsignal(signal.SIGTERM) is before
    assert found == [number * number for number in range(450)]


# --- a cluster of two nodes on the loopback


class TwoNodes:
    """Two `ray start` processes, each with a core and a process group of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray has sockets in it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {"RAY_ADDRESS": self.address, **token}
        port = self.address.rpartition(":")[2]
        self.head = self.other = self._start("--head", f"--port={port}", "--include-dashboard=false")
        try:
            self.start_other()
        except BaseException:
            self.close()
            raise

    def start_other(self) -> None:
        self.other = self._start(f"--address={self.address}")

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        place = ["--node-ip-address=127.0.0.1", f"--temp-dir={self.folder}"]
        command = ["start", "--block", "--num-cpus=1", "--disable-usage-stats", *place, *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **self.environment, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while not any("raylet" in each.name() for each in family(process)):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        return process

    def workers(self) -> list[psutil.Process]:
        """Processes that do furnclip's work now."""
        both = [*family(self.head), *family(self.other)]
        return [each for each in both if named(each).startswith(("ray::_call", "ray::_Actor"))]

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        for each in [*family(node), psutil.Process(node.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        node.wait()

    def close(self) -> None:
        for node in (self.other, self.head):
            if node.poll() is None:
                self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def named(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    if not FULL:
        pytest.skip("set FURNCLIP_FULL=1: minutes")
    both = TwoNodes()
    with closing(both):
        yield both


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared and embedded without Ray."""
    folder = tmp_path_factory.mktemp("ray")
    shop = write_shop(folder / "shop", products=PRODUCTS, model=build_tiny_clip(folder / "tiny", captions()))
    for number, image in enumerate(sorted((shop / "images").iterdir())):
        draw(image, number)  # near-duplicates would be most of the work
    with (shop / "furnclip.toml").open("a") as file:
        file.write("shard_samples = 300\n\n[embed]\nrow_group_rows = 64\n")
    for command in ("prepare", "embed"):
        assert run(shop, command, {}).wait() == 0
    return shop


def run(shop: Path, command: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "furnclip", command, "--json"]
    words += ["--engine", "ray"] if environment else []
    with (shop / "said").open("ab") as said:
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.Popen(words, cwd=shop, stdout=subprocess.DEVNULL, stderr=said, env=settings)


def hashes(shop: Path, command: str) -> dict[str, str]:
    """Of what a command has written."""
    work = shop / "work"
    written = work / ("embeddings/master_vectors.parquet" if command == "embed" else "shards")
    found = {str(path.relative_to(work)): sha256_of(path) for path in written.rglob("*.*")}
    assert found
    return found


def has_begun(shop: Path, command: str) -> bool:
    """Whether some of its results are on the disk, and not all of them."""
    if command == "embed":
        return any((shop / "work/embeddings/parts").glob("*/part-*"))
    return any((shop / "work/cache/prepare").glob("samples-*.sqlite"))


@pytest.mark.parametrize("command", ["prepare", "embed"])
@pytest.mark.parametrize("lost", ["nothing", "worker", "node", "driver"])
def test_what_is_killed_on_the_way_changes_no_byte(
    nodes: TwoNodes, shop: Path, tmp_path: Path, command: str, lost: str
) -> None:
    other = tmp_path / "shop"
    shutil.copytree(shop, other, ignore=shutil.ignore_patterns("index.lance", "embeddings"))
    if command == "prepare":
        shutil.rmtree(other / "work")
    environment = nodes.environment
    start = time.monotonic()
    process = run(other, command, environment)
    if lost != "nothing":
        deadline = time.monotonic() + 300
        while not (workers := nodes.workers()) or not has_begun(other, command):
            assert process.poll() is None, (other / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if lost == "worker":
            workers[0].kill()
        elif lost == "node":
            nodes.kill(nodes.other)
        else:
            process.kill()
            process.wait()
            process = run(other, command, environment)
    assert process.wait(900) == 0, (other / "said").read_text()
    print(json.dumps({command: lost, "seconds": round(time.monotonic() - start, 1)}))
    assert hashes(other, command) == hashes(shop, command)
    if lost == "node":
        nodes.start_other()
    deadline = time.monotonic() + 60
    while nodes.workers():  # nothing of ours is left at work
        assert time.monotonic() < deadline, nodes.workers()
        time.sleep(0.1)
