"""The bill of live runs: what was sent is on it, whatever becomes of the reply; purchases are counted at the
server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import clean_child
from tests.batch_server import BatchServer, Fault
from tests.clean_shop import CleanShop, with_parts_of
from tests.clean_shop import server as server
from tests.clean_shop import shop as shop
from tests.drawn_shop import write_shop
from tests.small_disk import small_disk

PRODUCTS = 12


def live(server: BatchServer, **more: object) -> dict[str, str]:
    keys = {"backend": "live", "model": "gpt-5-nano", "concurrency": 3, **more}
    return with_parts_of(server, 12, **keys)


def bill(shop: CleanShop, env: dict[str, str]) -> dict[str, Any]:
    return shop.run("status", "--json", env=env).ok().json


def price_usd(server: BatchServer) -> float:
    """What a purchase costs on average, by the server's own count."""
    replies = [server._completion(body, "x" * 120, "stop", None) for body in server.bodies]
    usages = [reply["usage"] for reply in replies]
    return sum(u["prompt_tokens"] * 0.05e-6 + u["completion_tokens"] * 0.4e-6 for u in usages) / len(usages)


def check_bill(shop: CleanShop, server: BatchServer, env: dict[str, str]) -> dict[str, Any]:
    """Every purchase is on the bill, as paid or as unconfirmed."""
    found = bill(shop, env)
    total = found["paid_usd"] + found["unconfirmed_usd"]
    assert total == pytest.approx(len(server.bodies) * price_usd(server), rel=0.4)
    return found


@pytest.mark.parametrize(
    ("name", "concurrency"), [("SIGINT", 1), ("SIGINT", 4), ("SIGTERM", 4), ("SIGHUP", 4)]
)
def test_interrupted_run_keeps_the_replies_in_flight(
    shop: CleanShop, server: BatchServer, name: str, concurrency: int
) -> None:
    server.faults.append(Fault("POST /chat", "delay:0.4", times=99))
    env = live(server, concurrency=concurrency)
    process = clean_child.start(shop.folder, env, "clean", "run")
    while len(server.bodies) < concurrency + 1:
        time.sleep(0.01)
    number = getattr(signal, name)
    process.send_signal(number)
    assert process.wait(60) == (130 if name == "SIGINT" else 128 + number)
    assert len(server.bodies) < PRODUCTS
    check_bill(shop, server, env)
    server.faults.clear()
    shop.run("run", env=env).ok()
    shop.check_all_settled()
    assert len(server.bodies) == PRODUCTS, "nothing is bought twice"
    assert check_bill(shop, server, env)["unconfirmed_usd"] == 0


def test_second_signal_leaves_the_replies_and_bills_them(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("POST /chat", "delay:2", times=99))
    process = clean_child.start(shop.folder, live(server), "clean", "run")
    while len(server.bodies) < 3:
        time.sleep(0.01)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.wait(60) == 130
    found = check_bill(shop, server, live(server))
    assert found["paid_usd"] == 0


def test_killed_run_has_what_was_in_flight_on_its_bill(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("POST /chat", "delay:0.3", times=99))
    process = clean_child.start(shop.folder, live(server), "clean", "run")
    while len(server.bodies) < 5:
        time.sleep(0.01)
    process.kill()
    server.faults.clear()
    shop.run("run", env=live(server)).ok()
    shop.check_all_settled()
    assert PRODUCTS < len(server.bodies) <= PRODUCTS + 3
    assert check_bill(shop, server, live(server))["unconfirmed_usd"] > 0


@pytest.mark.parametrize("rows", [2, 5, 9])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_budget_is_kept_and_no_answer_is_thrown_away(
    shop: CleanShop, server: BatchServer, rows: int, concurrency: int
) -> None:
    shop.run("run", "--limit", "1", env=live(server)).ok()
    limit = bill(shop, live(server))["paid_usd"] * (rows + 0.9)
    server.faults.append(Fault("POST /chat", "delay:0.05", times=99))
    stopped = shop.run("run", env=live(server, max_cost_usd=limit, concurrency=concurrency))
    assert stopped.code == 1
    assert "is reached" in stopped.stderr
    assert check_bill(shop, server, live(server))["paid_usd"] <= limit
    assert 1 < len(server.bodies) <= rows + 1
    shop.run("run", env=live(server)).ok()
    shop.check_all_settled()
    assert len(server.bodies) == PRODUCTS


@pytest.mark.parametrize("concurrency", [1, 3, 12])
def test_server_slower_than_the_timeout_stops_the_run(
    shop: CleanShop, server: BatchServer, concurrency: int
) -> None:
    server.faults.append(Fault("POST /chat", "delay:4", times=99))
    env = live(server, timeout_s=2.0, concurrency=concurrency)
    stopped = shop.run("run", env=env)
    assert stopped.code == 1
    assert "was answered within 2 s" in stopped.stderr
    assert "`clean.timeout_s`" in stopped.stderr
    assert len(server.bodies) <= concurrency, "each is asked once"
    assert check_bill(shop, server, env)["paid_usd"] == 0
    server.faults.clear()
    shop.run("run", env=live(server)).ok()
    shop.check_all_settled()
    assert len(server.bodies) <= PRODUCTS + concurrency
    check_bill(shop, server, env)


@pytest.mark.parametrize("what", ["delay:1.5", "drop-reply", "lost:500", "lost:502"])
def test_lost_reply_is_on_the_bill_and_asked_once_more(
    shop: CleanShop, server: BatchServer, what: str
) -> None:
    server.faults.append(Fault("POST /chat", what, times=2, skip=3))
    shop.run("run", env=live(server, timeout_s=0.7)).ok()
    shop.check_all_settled()
    assert len(server.bodies) == PRODUCTS + 2
    assert check_bill(shop, server, live(server))["unconfirmed_usd"] > 0


@pytest.mark.parametrize("what", ["status:429:rate_limit_exceeded", "status:503"])
def test_request_that_surely_did_nothing_is_not_on_the_bill(
    shop: CleanShop, server: BatchServer, what: str
) -> None:
    server.faults.append(Fault("POST /chat", what, times=2, skip=3))
    shop.run("run", env=live(server)).ok()
    shop.check_all_settled()
    assert len(server.bodies) == PRODUCTS
    assert check_bill(shop, server, live(server))["unconfirmed_usd"] == 0


@pytest.mark.parametrize("free_kb", [0, 8, 300])
def test_full_disk_loses_no_paid_answer(
    shop: CleanShop, server: BatchServer, tmp_path: Path, free_kb: int
) -> None:
    """The disk fills up while replies are in flight: they are kept, and nothing more is sent."""
    work = tmp_path / "disk"
    env = {**live(server), "FURNCLIP_PATHS__WORK": str(work)}
    with small_disk(work, 4_000):
        shop.run("prepare", env=env).ok()
        filler = work / "filler"

        def fill(call: str, moment: str) -> None:
            if call == "POST /chat/completions" and moment == "before" and not filler.exists():
                free = os.statvfs(work).f_bavail * os.statvfs(work).f_frsize
                filler.write_bytes(b"x" * max(1, free - free_kb * 1024))

        server.on_call = fill
        stopped = shop.run("run", env=env)
        server.on_call = lambda call, moment: None
        if stopped.code:
            assert stopped.code == 1
            assert f"the disk `{work}` is full" in stopped.stderr
        filler.unlink()
        shop.run("run", env=env).ok()
        assert len(server.bodies) == PRODUCTS


@pytest.fixture(scope="module")
def long_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue that takes workers some time."""
    folder = write_shop(tmp_path_factory.mktemp("long") / "shop", products=100, model=Path("not-used"))
    header, *rows = (folder / "products.csv").read_text(encoding="utf-8").splitlines()
    # the images of a hundred products, and so many rows that the signal comes long before the end
    many = [f"{copy}-{row}" for copy in range(30) for row in rows]
    (folder / "products.csv").write_text("\n".join([header, *many]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"])
def test_workers_end_with_their_parent(long_shop: Path, tmp_path: Path, name: str) -> None:
    env = {**os.environ, "FURNCLIP_CLEAN__WORKERS": "2", "FURNCLIP_PATHS__WORK": str(tmp_path / "work")}
    command = [sys.executable, "-m", "furnclip", "clean", "prepare", "--backend", "local"]
    process = subprocess.Popen(
        command, cwd=long_shop, env=env, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(group_of(process.pid)) < 3 and process.poll() is None:
        time.sleep(0.01)
    number = getattr(signal, name)
    process.send_signal(number)
    assert process.wait(60) == (-number if name == "SIGKILL" else 128 + number)
    deadline = time.monotonic() + 30
    while group_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group_of(process.pid)


def group_of(leader: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(folder.name))
    return found


def test_odd_replies_are_no_traceback(shop: CleanShop, server: BatchServer) -> None:
    """Half a surrogate pair wherever text can stand, also in the shop's own columns."""
    rows = [
        {"product_id": f"P{i}", "title": f"chair {i}", "image": f"0000{i}.jpg", "note": "half \ud83d"}
        for i in range(5)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (shop.folder / "products.jsonl").write_text(text, encoding="utf-8")
    lone = "\ud83d"
    server.texts = {
        "chair 0": {"content": lone},
        "chair 1": {"content": None, "refusal": f"no {lone}"},
        "chair 2": {"content": json.dumps({"clean_title": lone})},
        "chair 3": {"content": '{"clean_title": "' + lone + ' chair"}'},
    }
    env = {**live(server, max_attempts=1), "FURNCLIP_PATHS__PRODUCTS": "products.jsonl"}
    done = shop.run("run", env=env)
    assert done.code in (0, 1)
    assert len(shop.table("cleaned.csv")) + len(shop.table("rejected.csv")) == 5
    assert threading.active_count() < 30
