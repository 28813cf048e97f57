"""`furnclip` in a process forked from one that has imported its libraries: torch takes six seconds of a core.

Such a process has its own command line, folder, environment and output, and can be killed; what it shares is
the libraries. Where their import is what a test is about (memory limits, Ctrl-C while they load), it starts
`python -m furnclip`; so does `conftest.run_cli` by itself where variables differ that they read then.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

ROOT = Path(__file__).parents[1]
# `serve` names its process; `demo` and `update` start others.
_STARTED = ("serve", "demo", "update")
# The first letters of variables that Python and the libraries read while they are imported; not those that
# torch sets then, in a test's process too, or that it reads when ranks meet.
_READ_AT_IMPORT = re.compile(
    "PYTHON|HF_|TRANSFORMERS_|TOKENIZERS_|OMP_|MKL_|TORCH(?!INDUCTOR_|ELASTIC_)|CUDA_|LANG|LC_|LD_"
)
# Of LanceDB what it imports: itself it starts threads, which a fork would lose.
_LIBRARIES = (
    *("boto3", "httpx", "lance_namespace", "numpy", "onnx", "openai", "pandas", "peft", "pyarrow.dataset"),
    *("pyarrow.parquet", "pydantic", "rapidfuzz", "rich.console", "safetensors.torch", "snowballstemmer"),
    *("typer", "furnclip.clean.batch.monitor", "furnclip.clean.live", "furnclip.evaluate.measure"),
    *("furnclip.fetch", "furnclip.prepare.run", "furnclip.train"),
)
_OF_CLIP = ("configuration_clip", "modeling_clip", "tokenization_clip", "image_processing_clip")


class Forked:
    """A running command: the part of `subprocess.Popen` that the tests need."""

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes],
        *,
        module: str = "furnclip",
    ) -> None:
        # Of packets: a number and an end that come together must not be read as one number.
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps([module, list(words), str(cwd), dict(env)]).encode()
            files = [stdout.fileno(), stderr.fileno(), theirs.fileno()]
            socket.send_fds(_server(), [request], files)
        self.pid = int(self._line.recv(16))
        self._code: int | None = None

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code, negative after a signal. Raises TimeoutError."""
        if self._code is None:
            self._line.settimeout(timeout_s)
            self._code = int(self._line.recv(16))
            self._line.close()
        return self._code

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except (BlockingIOError, TimeoutError):
            return None

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended in this moment
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def kill_while_waited_for(self) -> None:
        """SIGKILL until it is gone, while another thread is in `wait`."""
        with suppress(ProcessLookupError):
            while True:
                os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.001)


def run_ranks(
    count: int, words: Sequence[str], cwd: Path, *, module: str = "furnclip", env: Mapping[str, str] = {}
) -> str:
    """What so many processes print that find the variables of torchrun, without its seconds of starting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared = {**os.environ, **env, **address, "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": str(count)}
    with TemporaryFile() as said, TemporaryFile() as messages:
        ranks = []
        for rank in map(str, range(count)):
            variables = {**shared, "RANK": rank, "LOCAL_RANK": rank}
            ranks.append(Forked(words, cwd, variables, said, messages, module=module))
        codes = [process.wait(120) for process in ranks]
        for file in (said, messages):
            file.seek(0)
        assert not any(codes), messages.read().decode()
        return said.read().decode()


def can_fork(command: str, env: Mapping[str, str]) -> bool:
    """Whether the libraries would read the same variables as those that are imported."""
    return command not in _STARTED and _read_at_import(env) == _read_at_import(of_the_server())


def _read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if _READ_AT_IMPORT.match(name)}


@cache
def of_the_server() -> dict[str, str]:
    """The variables that the server gets: those when this was called first, before any test changes them."""
    return dict(os.environ)


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        words = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
        env = {**of_the_server(), "HOME": "/nonexistent"}  # no model of whoever runs the tests
        process = subprocess.Popen(words, cwd=ROOT, env=env, pass_fds=[theirs.fileno()])
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    atexit.register(lambda: (ours.close(), process.wait(10)))
    return ours


# --- in the server


def _serve(line: socket.socket) -> str:
    """Fork for each request; returns in the child, as the process that was asked for, the module to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    gc.freeze()
    while True:
        request, files, *_ = socket.recv_fds(line, 2**20, 3)
        if not request:
            os._exit(0)
        if not os.fork():
            line.close()
            return _keep(json.loads(request), *files)
        for file in files:
            os.close(file)


def _keep(request: tuple[str, list[str], str, dict[str, str]], stdout: int, stderr: int, answer: int) -> str:
    """Fork the command, and tell its number and its end; returns in the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.write(answer, b"%d" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(answer, b"%d" % code)
        os._exit(0)
    module, words, folder, environment = request
    for place, file in enumerate((os.open(os.devnull, os.O_RDONLY), stdout, stderr)):
        os.dup2(file, place)
    os.close(answer)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *words]
    sys.path[0] = folder
    return module


if __name__ == "__main__":
    for name in (*_LIBRARIES, *(f"transformers.models.clip.{part}" for part in _OF_CLIP)):
        importlib.import_module(name)
    module = _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
