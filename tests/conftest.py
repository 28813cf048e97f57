"""What all tests share: no network but loopback, a clean environment, a small shop, a tiny CLIP."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
import typer.main
from click.testing import CliRunner, Result
from hypothesis import settings
from xdist import is_xdist_controller

from furnclip.cli.imports import quick_imports
from tests.drawn_shop import write_shop
from tests.forked import Forked, can_fork, of_the_server
from tests.s3_server import CREDENTIALS, make_bucket, s3_server

_LOOPBACK = ("127.", "::1", "localhost")
_CLEARED = ("OPENAI_", "AWS_", "FURNCLIP_", "MODEL_NAME", "WANDB_", "NO_COLOR", "FORCE_COLOR", "CI", "TMUX")

# Set before any library looks: child processes inherit it.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "AWS_EC2_METADATA_DISABLED": "true",
        # Tiny models are slower on two threads than on one, and tests run beside each other.
        "OMP_NUM_THREADS": "1",
    }
)
of_the_server()
# How long an example takes says how busy the machine is.
EXAMPLES = 100 if os.environ.get("FURNCLIP_FULL") else 40
settings.register_profile("busy", deadline=None, max_examples=EXAMPLES)
settings.load_profile("busy")


# A shell starts background jobs with SIGINT ignored and `nohup` them with SIGHUP ignored; commands under
# test would inherit that, and never hear Ctrl-C or that their terminal closed.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Few tests that take long. Begun last, where xdist would put them, one of them leaves the other cores idle.
_LONG = ("arena_terminal", "clean_kills", "demo", "examples_pages", "fuzz_catalogues", "fuzz_files", "light")
_LONG += ("pipeline", "prepare_kills", "ray", "real_catalogue", "serve_page", "shards_bucket", "signals")
_LONG += ("storage_faults", "train", "train_exact", "train_faults", "update", "upsert")


def pytest_collection(session: pytest.Session) -> None:
    """Import LanceDB as the commands do: as usual it takes a quarter of what all imports of tests take."""
    if not is_xdist_controller(session):
        with quick_imports():
            pass


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those with many tests."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.stem.removeprefix("test_") not in _LONG, -tests[item.path]))


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection has to look at its half a million objects again."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Seconds by file: what makes the suite long."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.location[0]] += round(report.duration, 1)
    if len(seconds) > 1:
        longest = (f"{name} {spent:.0f}" for name, spent in seconds.most_common(30))
        terminalreporter.write_line(f"seconds by file: {', '.join(longest)}")


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Connections to anything but this machine fail the test that makes them."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if isinstance(host, str) and host and not host.startswith(_LOOPBACK):
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no bucket and no personal settings of whoever runs the tests.

    What a test takes over from a `.env` file is taken back: with it no later command could be forked.
    """
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(_CLEARED) and name != "AWS_EC2_METADATA_DISABLED":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    yield
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Outcome:
    """What a `furnclip` process left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    def ok(self) -> Outcome:
        """Itself, after checking that the command succeeded."""
        assert self.code == 0, f"exit {self.code}\n{self.stdout}\n{self.stderr}"
        return self


Cli = Callable[..., Outcome]


@cache
def _command_line() -> Any:
    from furnclip.cli.commands import app

    return typer.main.get_command(app)


def invoke(*words: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> Result:
    """`furnclip WORDS` in this process, which saves seconds of starting one.

    The command line is built once: typer would build it again for each call, which takes as long as many a
    command.
    """
    return CliRunner().invoke(_command_line(), [*map(str, words)], env=env, **options)


def run_here(*words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """`furnclip WORDS` in this process and that folder; what no command may raise it raises."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = invoke(*words, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def cli() -> Cli:
    """Runs `furnclip ARGS` as a process in a folder: `cli("prepare", "--json", cwd=shop)`."""
    return run_cli


def run_cli(
    *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 300
) -> Outcome:
    """A real `furnclip` process in `cwd`; never raises for a failing command."""
    words = list(map(str, args))
    variables = {**os.environ, **(env or {})}
    if words and can_fork(words[0], variables):
        return _forked(words, cwd, variables, timeout_s)
    done = subprocess.run(
        [sys.executable, "-m", "furnclip", *words],
        cwd=cwd,
        env=variables,
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def _forked(words: list[str], cwd: Path, env: Mapping[str, str], timeout_s: float) -> Outcome:
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        process = Forked(words, cwd, env, stdout, stderr)
        try:
            code = process.wait(timeout_s)
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            raise
        said = []
        for file in (stdout, stderr):
            file.seek(0)
            said.append(file.read().decode())
    return Outcome(code, *said)


@pytest.fixture
def shop(tmp_path: Path, tiny_clip: Path) -> Path:
    """A folder with a dozen drawn products and a `furnclip.toml` that uses the tiny CLIP."""
    return write_shop(tmp_path / "shop", products=12, model=tiny_clip)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights and its own tokenizer, small enough for a test."""
    from examples.make_tiny_clip import build_tiny_clip
    from tests.drawn_shop import captions

    folder = tmp_path_factory.mktemp("model") / "tiny-clip"
    return build_tiny_clip(folder, captions(), seed=0, image_px=32, width=32, layers=2)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A shop whose shards are made, with settings for short runs; tests train on copies of it."""
    from tests.training import prepare_shop

    return prepare_shop(tmp_path_factory.mktemp("prepared") / "shop", tiny_clip)


@pytest.fixture
def ready(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared shop."""
    return Path(shutil.copytree(prepared, tmp_path / "ready"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A new bucket on `server`, and credentials for it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return make_bucket(server, request.node.name)
