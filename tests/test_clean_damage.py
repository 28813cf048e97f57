"""What users and disks do to `work/clean/`: files deleted, cut, garbled, or of another shape.

What was paid for is never bought again in silence; what costs nothing is made again; the rest is an error
about the very file. Purchases are counted where they are made, at the server.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from furnclip.journal import aside_name
from tests.batch_server import BatchServer
from tests.clean_shop import CleanShop, with_parts_of
from tests.clean_shop import server as server
from tests.clean_shop import shop as shop


def cut(path: Path) -> None:
    """Leave the first third of the lines."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 3]))


def garble(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40] + b"?" * 40)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rename_a_row(path: Path) -> None:
    """Every line still parses."""
    path.write_bytes(path.read_bytes().replace(b"P00002", b"P00009").replace(b'"told"', b'"gold"'))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "cut": cut,
    "emptied": empty,
    "garbled": garble,
    "changed": rename_a_row,
}
damaged = pytest.mark.parametrize("damage", DAMAGE)


def outputs(shop: CleanShop) -> list[bytes]:
    return [(shop.work / name).read_bytes() for name in ("cleaned.csv", "rejected.csv")]


# --- result files


@damaged
@pytest.mark.parametrize("name", ["part-0001.output.jsonl", "part-0001.errors.jsonl"])
def test_damaged_result_file_is_fetched_again(
    shop: CleanShop, server: BatchServer, damage: str, name: str
) -> None:
    server.scripts[shop.title(3)] = ["http:400"]
    shop.run("run", env=server.env).ok()
    asked, before = dict(server.asked), outputs(shop)
    DAMAGE[damage](shop.work / "results" / name)
    (shop.work / "cleaned.csv").unlink()
    stopped = shop.run("finalize", env=server.env)
    assert stopped.code == 1
    assert f"{name}` is missing or damaged" in stopped.stderr
    again = shop.run("run", env=server.env).ok()
    assert f"{name}` was missing or damaged; fetched it again" in again.stderr
    assert (dict(server.asked), outputs(shop)) == (asked, before), "nothing is bought twice"
    assert len(server.batches) == 1


@damaged
def test_damaged_result_file_that_is_gone_stops_the_run(
    shop: CleanShop, server: BatchServer, damage: str
) -> None:
    shop.run("run", env=with_parts_of(server, 3)).ok()
    DAMAGE[damage](shop.work / "results" / "part-0001.output.jsonl")
    server.files = {key: file for key, file in server.files.items() if file.purpose == "batch"}
    for _ in range(2):
        stopped = shop.run("run", env=with_parts_of(server, 3))
        assert stopped.code == 1
        assert "is missing or damaged, and the service does not keep it any more" in stopped.stderr
        assert "--ignore-errors" in stopped.stderr
        assert sum(server.asked.values()) == 6, "buying again is the user's decision"
    shop.run("run", "--ignore-errors", env=with_parts_of(server, 3)).ok()
    shop.check_all_settled()
    assert sum(server.asked.values()) <= 9


@damaged
def test_damaged_live_answers_stop_the_run(shop: CleanShop, server: BatchServer, damage: str) -> None:
    env = with_parts_of(server, 4, backend="live", model="tiny-vision")
    shop.run("run", env=env).ok()
    DAMAGE[damage](shop.work / "results" / "part-0001.live.jsonl")
    (shop.work / "cleaned.csv").unlink()
    stopped = shop.run("run", env=env)
    assert stopped.code == 1
    assert "part-0001.live.jsonl` is missing or damaged, and no service keeps a copy" in stopped.stderr
    assert len(server.bodies) == 6
    shop.run("run", "--ignore-errors", env=env).ok()
    assert len(server.bodies) <= 10


@damaged
def test_damaged_offline_answers_are_made_again(shop: CleanShop, server: BatchServer, damage: str) -> None:
    env = with_parts_of(server, 4, backend="local")
    shop.run("run", env=env).ok()
    before = outputs(shop)
    DAMAGE[damage](shop.work / "results" / "part-0001.output.jsonl")
    shop.run("run", env=env).ok()
    assert outputs(shop) == before


# --- indexes and parts


@damaged
@pytest.mark.parametrize("sent", [False, True])
def test_damaged_rows_are_counted_again(
    shop: CleanShop, server: BatchServer, damage: str, sent: bool
) -> None:
    shop.run("run" if sent else "prepare", env=server.env).ok()
    DAMAGE[damage](shop.work / "rows.jsonl")
    if sent:
        (shop.work / "cleaned.csv").unlink()
    for command in ("finalize", "dispatch"):
        stopped = shop.run(command, env=server.env)
        assert stopped.code in (1, 2)
        assert "rows.jsonl`" in stopped.stderr
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == 6


@damaged
@pytest.mark.parametrize("name", ["part-0001.index.jsonl", "part-0001.jsonl"])
def test_damaged_part_that_was_not_sent_is_made_again(
    shop: CleanShop, server: BatchServer, damage: str, name: str
) -> None:
    shop.run("prepare", env=with_parts_of(server, 3)).ok()
    DAMAGE[damage](shop.work / "parts" / name)
    shop.run("run", env=with_parts_of(server, 3)).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == 6


def test_killed_after_a_damaged_part_was_given_up(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", env=with_parts_of(server, 3)).ok()
    write_journal(shop, [*shop.events(), {"event": "dropped", "part": 1}])
    shop.run("run", env=with_parts_of(server, 3)).ok()
    shop.check_all_settled()


@damaged
@pytest.mark.parametrize("moment", ["open", "answered"])
def test_damaged_index_of_a_sent_part_is_read_off_the_part(
    shop: CleanShop, server: BatchServer, damage: str, moment: str
) -> None:
    server.scripts[shop.title(1)] = ["http:429"]  # one row has to be found again in its part
    shop.run("prepare", env=server.env).ok()
    shop.run("dispatch" if moment == "open" else "run", env=server.env).ok()
    DAMAGE[damage](shop.work / "parts" / "part-0001.index.jsonl")
    (shop.work / "cleaned.csv").unlink(missing_ok=True)
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert sum(server.asked.values()) == 7


def test_both_files_of_a_sent_part_are_gone(shop: CleanShop, server: BatchServer) -> None:
    shop.run("run", env=server.env).ok()
    for name in ("part-0001.jsonl", "part-0001.index.jsonl"):
        (shop.work / "parts" / name).unlink()
    (shop.work / "cleaned.csv").unlink()
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 1
    assert "part-0001.index.jsonl` are missing or damaged" in stopped.stderr
    assert sum(server.asked.values()) == 6


@pytest.mark.parametrize(
    "name", ["journal.jsonl", "rows.jsonl", "parts/part-0001.index.jsonl", "results/part-0001.output.jsonl"]
)
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_other_things_in_place_of_files(shop: CleanShop, server: BatchServer, name: str, kind: str) -> None:
    """No hang, no traceback, and an error that names the file."""
    shop.run("run", env=server.env).ok()
    path = shop.work / name
    path.unlink()
    (shop.work / "cleaned.csv").unlink()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    stopped = shop.run("run", env=server.env)
    if stopped.code:  # a FIFO is replaced where the file can be made again
        assert stopped.code == 1
        assert path.name in stopped.stderr
    assert sum(server.asked.values()) == 6


# --- the journal


def journal_of_a_rich_run(shop: CleanShop, server: BatchServer) -> list[dict[str, Any]]:
    """A run with nearly every event."""
    server.scripts[shop.title(0)] = ["http:429"]
    server.scripts[shop.title(1)] = ["invalid-line"]
    server.plans += ["", "expire:1", "fail:token_limit_exceeded"]
    shop.run("run", env=with_parts_of(server, 2)).ok()
    return shop.events()


def write_journal(shop: CleanShop, events: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(event) + "\n" for event in events)
    (shop.work / "journal.jsonl").write_text(text, encoding="utf-8")


FULL = os.environ.get("FURNCLIP_FULL") == "1"
WRONG = (None, -1, 1.5, [], {}, True, float("nan"), [None], 10**400)


def test_wrong_field_of_any_event_is_named(shop: CleanShop, server: BatchServer) -> None:
    """Each field of each kind of event, missing and wrong: exit 1, file, line and field; no traceback."""
    events = journal_of_a_rich_run(shop, server)
    calls = len(server.calls)
    chance, refused = random.Random(5), 0
    for name in sorted({event["event"] for event in events}):
        place = next(i for i, event in enumerate(events) if event["event"] == name)
        for field in events[place].keys() - {"event"}:
            changed = copy.deepcopy(events)
            del changed[place][field]
            if FULL or chance.random() < 0.7:
                changed[place][field] = chance.choice(WRONG)
            write_journal(shop, changed)
            outcome = shop.run("status", env=server.env)
            refused += outcome.code
            assert outcome.code == 0 or "journal.jsonl` is damaged: " in outcome.stderr
    assert refused > 60
    assert len(server.calls) == calls


DAMAGED_JOURNALS: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "a part that was never planned": lambda events: [e for e in events if e["event"] != "planned"],
    "no beginning": lambda events: events[1:],
    "planned twice": lambda events: [*events, next(e for e in events if e["event"] == "planned")],
    "a number in words": lambda events: [*events, {"event": "downloaded", "part": "one"}],
    "a number in a list": lambda events: [*events, {"event": "downloaded", "part": [1]}],
    "no name": lambda events: [*events, {"part": 1}],
    "a name in a list": lambda events: [*events, {"event": ["merged"], "part": 1}],
    "two counts": lambda events: [*events, {"event": "seen", "part": 1, "status": "x", "counts": [1, 2]}],
    "no price": lambda events: [{**e, "cost_usd": float("inf")} if "cost_usd" in e else e for e in events],
    "an unknown status": lambda events: [
        {**e, "status": "flying"} if e["event"] == "planned" else e for e in events
    ],
}


@pytest.mark.parametrize("kind", DAMAGED_JOURNALS)
@pytest.mark.parametrize("command", ["run", "status"])
def test_damaged_journal_is_an_error_about_it(
    shop: CleanShop, server: BatchServer, kind: str, command: str
) -> None:
    shop.run("run", env=server.env).ok()
    asked = dict(server.asked)
    write_journal(shop, DAMAGED_JOURNALS[kind](shop.events()))
    stopped = shop.run(command, env=server.env)
    assert stopped.code == 1
    assert "journal.jsonl` is damaged: " in stopped.stderr
    assert "restore" in stopped.stderr
    assert dict(server.asked) == asked


# --- leftovers


@pytest.mark.parametrize("folder", [".", "parts", "results"])
def test_leftovers_of_killed_processes_are_removed(shop: CleanShop, server: BatchServer, folder: str) -> None:
    shop.run("prepare", env=server.env).ok()
    (shop.work / "results").mkdir(exist_ok=True)
    process = os.fork()
    if process == 0:
        aside_name(shop.work / folder / "part-0009.jsonl").write_bytes(b"half")
        os._exit(0)
    os.waitpid(process, 0)
    assert list((shop.work / folder).glob(".*.part"))
    shop.run("run", env=server.env).ok()
    assert not list(shop.work.rglob(".*.part"))
