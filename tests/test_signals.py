"""Signals that end a command: one line and exit 130 for Ctrl-C at any moment, and nothing left running."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image

from furnclip.clean.offline import reading
from furnclip.images import encode_jpeg, letterbox, open_image
from furnclip.prepare.fingerprint import fingerprint
from tests.forked import Forked

FULL = bool(os.environ.get("FURNCLIP_FULL"))


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="asks Linux which signals a process handles"
)


COMMANDS = [("--help",), ("train",)]
COMMANDS += [("search", "chair"), ("embed",), ("eval",)] * FULL  # whose own tests interrupt what they do


def start(*words: str, cwd: Path, start_new_session: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "furnclip", *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
    )


def wait_for_our_code(process: subprocess.Popen[str] | psutil.Process | Forked) -> None:
    """Until the process has come to our code: before that Python itself answers to Ctrl-C."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        while True:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            # On a busy machine it may end between two looks, and nobody has waited for it yet.
            if "Z" in fields["State"] or int(fields["SigCgt"], 16) & 1 << signal.SIGTERM - 1:
                return
            time.sleep(0.001)


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="asks Linux which signals a process handles"
)
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_ctrl_c_at_any_moment(prepared: Path, words: tuple[str, ...]) -> None:
    """From the first import to the last exit function; a command that is faster than that ends well."""
    for number in range(20 if FULL else 4):
        process = start(*words, cwd=prepared)
        wait_for_our_code(process)
        time.sleep(number * (0.15 if FULL else 0.4))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        lines = [line for line in stderr.splitlines() if not line.startswith("hint: ")]
        if process.returncode == 130:
            assert lines[-1].startswith("error: interrupted"), stderr
        assert process.returncode in ({0, 130} if words == ("--help",) else {0, 1, 2, 130}), stderr
        assert "Traceback" not in stderr
        assert "ignored" not in stderr


def test_ctrl_c_in_a_terminal_while_worker_processes_start(prepared: Path, tmp_path: Path) -> None:
    """A terminal sends it to the process that they are forked from as well, which is importing by then."""
    shop = shutil.copytree(prepared, tmp_path / "shop")
    with (shop / "products.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"none{number},{'no image' * 10}\n" for number in range(600))
    for number in range(20 if FULL else 4):
        process = start("prepare", "--fresh", cwd=shop, start_new_session=True)
        wait_for_our_code(process)
        while process.poll() is None and not psutil.Process(process.pid).children():
            time.sleep(0.001)
        time.sleep(number * (0.03 if FULL else 0.15))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, 130), stderr
        assert "Traceback" not in stderr, stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_a_command_started_ends_with_it(tmp_path: Path, number: signal.Signals) -> None:
    """The tour runs other commands; a kill of it alone must not leave them at work for nobody."""
    tour = start("demo", "tour", cwd=tmp_path)
    family: list[psutil.Process] = []
    while not family:
        assert tour.poll() is None, tour.communicate()
        time.sleep(0.05)
        family = psutil.Process(tour.pid).children(recursive=True)
    wait_for_our_code(family[0])
    for process in [tour, *family] if number == signal.SIGINT else [tour]:
        process.send_signal(number)  # a terminal sends Ctrl-C to all of them
    _, stderr = tour.communicate(timeout=60)
    assert tour.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def test_a_second_sigterm_does_not_wait(tmp_path: Path) -> None:
    tour = start("demo", "tour", cwd=tmp_path)
    while not psutil.Process(tour.pid).children():
        time.sleep(0.05)
    for _ in range(2):
        tour.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    tour.communicate(timeout=60)
    assert tour.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_ctrl_c_that_was_switched_off_stays_off(tmp_path: Path) -> None:
    """`nohup` and background jobs of scripts start a command with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the new process inherits
    try:
        process = start("init", cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert (process.returncode, process.communicate()[1]) == (0, "")


def read_jpeg(jpeg: bytes) -> None:
    open_image(jpeg, longest_px=64)


def name_colors(jpeg: bytes) -> None:
    reading.color_shares(reading.read_pixels(open_image(jpeg, longest_px=64), 64))


def find_fingerprint(jpeg: bytes) -> None:
    fingerprint(open_image(jpeg, longest_px=64))


def make_square(jpeg: bytes) -> None:
    encode_jpeg(letterbox(open_image(jpeg, longest_px=64), 64), 90)


def interrupted(work: Callable[[bytes], None], jpeg: bytes, after_s: float) -> None:
    """Work until the timer's signal ends it."""
    signal.setitimer(signal.ITIMER_REAL, after_s)
    while True:
        work(jpeg)
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            pytest.fail("the signal was lost")


@pytest.mark.parametrize("work", [read_jpeg, name_colors, find_fingerprint, make_square])
def test_no_signal_is_lost_in_what_is_done_for_each_image(work: Callable[[bytes], None]) -> None:
    """If C code of a library clears the exception of a handler, a command runs on."""
    jpeg = encode_jpeg(Image.effect_noise((96, 96), 60).convert("RGB"), 90)
    work(jpeg)
    began = time.perf_counter()
    work(jpeg)
    takes_s = time.perf_counter() - began
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    gc.disable()  # Python ignores what is raised while it collects what earlier tests have left
    try:
        for number in range(1, 61):
            with pytest.raises(KeyboardInterrupt):
                interrupted(work, jpeg, takes_s * number / 60)
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
