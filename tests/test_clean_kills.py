"""SIGKILL at every named step and at random moments: nothing lost, nothing bought twice.

The process is real and so is the signal. A kill is triggered from outside: by an HTTP request that the
server has received, before or after it acts on it, or by an event that appears in the journal. Then the same
command is run to its end, and everything must be as if nothing had happened.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from furnclip.journal import read_journal
from tests import clean_child
from tests.batch_server import BatchServer, CutError
from tests.clean_shop import fold, with_parts_of
from tests.drawn_shop import rows, write_shop
from tests.forked import Forked

PRODUCTS = 20
PARTS = 7  # of three requests; the retry of one row makes an eighth
FULL = os.environ.get("FURNCLIP_FULL") == "1"
RANDOM_KILLS = 200 if FULL else 10


@dataclass
class Result:
    """What must not depend on kills."""

    cleaned: bytes
    rejected: bytes
    asked: Counter[str]
    batches: int
    paid: tuple[int, int]


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer() as running:
        prepare_scripts(running)
        yield running


def prepare_scripts(server: BatchServer) -> None:
    titles = [row["title"] for row in rows(PRODUCTS)]
    server.scripts.update({titles[3]: ["http:429"], titles[8]: ["refusal"]})


def shop_folder(folder: Path) -> Path:
    return write_shop(folder, products=PRODUCTS, model=Path("not-used"))


def environment(server: BatchServer) -> dict[str, str]:
    return with_parts_of(server, 3, max_concurrent_batches=2)


def finish(folder: Path, server: BatchServer) -> Result:
    """Run the command to its end and collect what matters."""
    process = clean_child.start(folder, environment(server), "clean", "run")
    assert process.wait(60) == 0, (folder / "talk.txt").read_text(encoding="utf-8")
    work = folder / "work" / "clean"
    assert server.calls.count("POST /chat/completions") <= 1, "a trial request is never sent twice"
    return Result(
        cleaned=(work / "cleaned.csv").read_bytes(),
        rejected=(work / "rejected.csv").read_bytes(),
        asked=Counter(server.asked),
        batches=len(server.batches),
        paid=(server.prompt_tokens, server.completion_tokens),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = shop_folder(tmp_path_factory.mktemp("undisturbed") / "shop")
    with BatchServer() as server:
        prepare_scripts(server)
        result = finish(folder, server)
    assert result.batches == PARTS + 1
    assert result.cleaned.count(b"\n") == PRODUCTS
    return result


def kill_on_call(
    server: BatchServer, process: Callable[[], Forked], call: str, moment: str, *, skip: int
) -> threading.Event:
    """SIGKILL when the server gets the (skip + 1)th such call; `instead`: and never acts on it."""
    done = threading.Event()
    seen = Counter[str]()

    def on_call(name: str, when: str) -> None:
        if done.is_set() or not re.match(call, name) or when != moment.replace("instead", "before"):
            return
        seen[name.split("/")[1]] += 1
        if sum(seen.values()) <= skip:
            return
        done.set()
        process().kill_while_waited_for()
        if moment == "instead":
            raise CutError

    server.on_call = on_call
    return done


CALLS = (
    "GET /models",
    "POST /chat",
    "POST /files",
    "POST /batches$",
    "GET /batches/",
    "GET /files/.*/content",
)


@pytest.mark.parametrize("moment", ["before", "after", "instead"])
@pytest.mark.parametrize("call", CALLS)
def test_killed_around_a_request(
    tmp_path: Path, server: BatchServer, undisturbed: Result, call: str, moment: str
) -> None:
    folder = shop_folder(tmp_path / "shop")
    skips = {"GET /models": 0, "POST /chat": 0}
    running: list[Forked] = []
    skip = skips.get(call, 2)
    killed = kill_on_call(server, lambda: running[0], call, moment, skip=skip)
    running.append(clean_child.start(folder, environment(server), "clean", "run"))
    assert running[0].wait(60) == -9
    assert killed.is_set()
    assert finish(folder, server) == undisturbed


EVENTS = {
    "started": 1,
    "preparing": 1,
    "planned": 4,
    "prepared": 1,
    "canary_asking": 1,
    "canary": 1,
    "uploading": 3,
    "uploaded": 3,
    "creating": 3,
    "created": 3,
    "seen": 5,
    "ended": 2,
    "downloaded": 2,
    "merged": 3,
    "again": 1,
    "finalized": 1,
}


@pytest.mark.parametrize("event", EVENTS)
def test_killed_after_an_event(tmp_path: Path, server: BatchServer, undisturbed: Result, event: str) -> None:
    folder = shop_folder(tmp_path / "shop")
    journal = folder / "work" / "clean" / "journal.jsonl"
    process = clean_child.start(folder, environment(server), "clean", "run")
    wanted = f'{{"event": "{event}"'.encode()
    while process.poll() is None:
        if journal.exists() and journal.read_bytes().count(wanted) >= EVENTS[event]:
            process.kill()
            break
        time.sleep(0.0005)
    process.wait(60)
    assert journal.read_bytes().count(wanted) >= EVENTS[event]
    assert finish(folder, server) == undisturbed


NOTES = ("uploaded", "created", "downloaded")  # of what was done at the service; `canary` has its own test


@pytest.mark.parametrize("event", EVENTS if FULL else NOTES)
def test_killed_between_a_deed_and_its_note(
    tmp_path: Path, server: BatchServer, undisturbed: Result, event: str
) -> None:
    folder = shop_folder(tmp_path / "shop")
    process = clean_child.start(folder, environment(server), "clean", "run", die_before=event)
    assert process.wait(60) == -9
    assert finish(folder, server) == undisturbed


def test_lost_trial_request_stays_on_the_bill(
    tmp_path: Path, server: BatchServer, undisturbed: Result
) -> None:
    """Answered and perhaps billed, but nobody noted it: not sent again, and counted as unconfirmed."""
    folder = shop_folder(tmp_path / "shop")
    process = clean_child.start(folder, environment(server), "clean", "run", die_before="canary")
    assert process.wait(60) == -9
    assert finish(folder, server) == undisturbed
    assert len(server.bodies) == 1
    state = fold(read_journal(folder / "work" / "clean" / "journal.jsonl"))
    paid = (state.paid.prompt_tokens, state.paid.completion_tokens)
    assert paid == (server.prompt_tokens, server.completion_tokens)
    assert 0 < state.unconfirmed_usd < 0.001
    talk = (folder / "talk.txt").read_text(encoding="utf-8")
    assert "it is not sent again, and the first batch goes alone instead" in " ".join(talk.split())
    assert "for a trial request whose reply was lost" in talk


def test_killed_at_random_moments(tmp_path: Path, undisturbed: Result) -> None:
    """Kills spread over one run after the other, several of them in each."""
    chance = random.Random(7)
    kills = shops = 0
    while kills < RANDOM_KILLS:
        shops += 1
        folder = shop_folder(tmp_path / f"shop-{shops}")
        with BatchServer() as server:
            prepare_scripts(server)
            for _ in range(chance.randint(1, 8)):
                process = clean_child.start(folder, environment(server), "clean", "run")
                time.sleep(chance.uniform(0.0, 0.7))
                if (code := process.poll()) is not None:
                    assert code == 0, (folder / "talk.txt").read_text(encoding="utf-8")
                    break
                process.kill()
                kills += 1
            assert finish(folder, server) == undisturbed
    print(f"{kills} kills over {shops} runs")


def test_two_at_once(tmp_path: Path, server: BatchServer, undisturbed: Result) -> None:
    """The second process is refused by the lock and changes nothing."""
    folder = shop_folder(tmp_path / "shop")
    first = clean_child.start(folder, environment(server), "clean", "run")
    while not (folder / "work" / "clean" / "journal.jsonl").exists():
        time.sleep(0.001)
    second = clean_child.start(folder, environment(server), "clean", "run")
    assert second.wait(60) == 1
    assert "is in use by another furnclip process" in (folder / "talk.txt").read_text(encoding="utf-8")
    assert first.wait(60) == 0
    assert finish(folder, server) == undisturbed
