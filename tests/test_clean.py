"""`furnclip clean` as a user meets it: steps, money, repeats, changes, output files, other backends."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import sys
from pathlib import Path

import pexpect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Batch, BatchRequestCounts

from furnclip.clean.batch.monitor import rows_answered
from furnclip.clean.batch.state import State, apply
from furnclip.clean.offline import SOURCE
from furnclip.clean.workspace import open_ledger
from furnclip.config import load_config
from furnclip.errors import JournalError
from tests import clean_child
from tests.batch_server import KEY, BatchServer, Fault
from tests.clean_shop import CleanShop, fold, make_shop, with_parts_of
from tests.clean_shop import server as server
from tests.clean_shop import shop as shop

FULL = os.environ.get("FURNCLIP_FULL") == "1"


# --- the steps


@pytest.mark.parametrize("name", ["gpt-5-nano-2025-08-07", "openai/gpt-5-nano", "ft:gpt-5-nano:s::1"])
def test_model_name_of_a_family_is_said_and_sent_as_it_is(
    shop: CleanShop, server: BatchServer, name: str
) -> None:
    server.models |= {name}
    done = shop.run("run", "--model", name, env=server.env).ok()
    shop.check_all_settled()
    assert f"the model `{name}` has the parameters and the price of `gpt-5-nano`" in done.stderr
    assert ("fine-tuned models usually cost more" in done.stderr) == name.startswith("ft:")
    assert server.bodies[0]["model"] == name
    assert server.bodies[0]["reasoning_effort"] == "minimal"
    assert 0 < shop.run("status", "--json", env=server.env).ok().json["paid_usd"] < 0.01


def test_four_steps(shop: CleanShop, server: BatchServer) -> None:
    env = with_parts_of(server, 2, max_concurrent_batches=2)
    prepared = shop.run("prepare", "--json", env=env).ok().json
    assert prepared == {"rows": 6, "requests": 6, "rejected": 0, "parts": 3, "was_done": False}
    assert not server.calls, "preparing is offline"
    dispatched = shop.run("dispatch", "--json", env=env).ok()
    assert dispatched.json["statuses"] == {"open": 2, "planned": 1}
    assert "1 part waiting (queue full)" in dispatched.stderr
    watched = shop.run("monitor", "--json", env=env).ok().json
    assert watched["statuses"] == {"merged": 3}
    assert server.max_open <= 2
    summary = shop.run("finalize", "--json", env=env).ok().json
    assert (summary["rows"], summary["cleaned"], summary["pending"]) == (6, 6, 0)
    assert summary["prompt_tokens"] > server.prompt_tokens, "the trial request is on the bill too"
    assert "answers so far: 6 cleaned" in shop.run("status", env=env).ok().stdout
    assert "nothing to send" in shop.run("estimate", env=env).ok().stdout
    status = shop.run("status", "--json", env=env).ok().json
    assert status["outcomes"] == {"cleaned": 6, "rejected": 0, "again": 0}


def test_second_run_does_nothing(shop: CleanShop, server: BatchServer) -> None:
    shop.run("run", env=server.env).ok()
    before = {path: path.stat().st_mtime_ns for path in shop.work.rglob("*") if path.is_file()}
    calls = len(server.calls)
    again = shop.run("run", env=server.env).ok()
    assert "nothing to do" in again.stdout
    assert len(server.calls) == calls
    after = {path: path.stat().st_mtime_ns for path in shop.work.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after[path]} <= {"journal.jsonl.lock"}


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        ("dispatch", "furnclip clean prepare"),
        ("finalize", "furnclip clean prepare"),
        ("status", "furnclip clean prepare"),
        ("review", "furnclip clean run"),
    ],
)
def test_steps_say_which_comes_first(shop: CleanShop, server: BatchServer, command: str, needs: str) -> None:
    early = shop.run(command, env=server.env)
    assert early.code == 2
    assert f"run `{needs}` first" in early.stderr


def test_monitor_needs_a_batch(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", env=server.env).ok()
    early = shop.run("monitor", env=server.env)
    assert early.code == 2
    assert "run `furnclip clean dispatch` first" in early.stderr


def test_no_key(shop: CleanShop) -> None:
    stopped = shop.run("run", "--backend", "openai")
    assert stopped.code == 2
    assert "error: there is no OPENAI_API_KEY" in stopped.stderr
    assert "`--backend local`" in stopped.stderr
    assert not (shop.work / "parts").exists(), "said before an hour of reading pictures"


def test_empty_catalogue(shop: CleanShop) -> None:
    (shop.folder / "products.csv").write_text("product_id,title,image\n", encoding="utf-8")
    stopped = shop.run("run")
    assert stopped.code == 1
    assert "has no rows" in stopped.stderr


NOTHING_USABLE = {
    "picture-not-fetched": lambda cells: {**cells, "image": "https://example.org/a.jpg"},
    "picture-missing": lambda cells: {**cells, "image": "none.jpg"},
    "no-id": lambda cells: {**cells, "product_id": ""},
    "picture-not-a-picture": lambda cells: {**cells, "image": "products.csv"},
}


@pytest.mark.parametrize(
    ("backend", "reason"), [*(("local", reason) for reason in NOTHING_USABLE), ("openai", "picture-missing")]
)
def test_nothing_cleaned_is_a_failure(
    shop: CleanShop, server: BatchServer, reason: str, backend: str
) -> None:
    """Exit 1, the reason with its count, the file to open; and the next commands tell the same."""
    products = shop.folder / "products.csv"
    with products.open(encoding="utf-8", newline="") as file:
        rows = [NOTHING_USABLE[reason](row) for row in csv.DictReader(file)]
    with products.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    shutil.copy(products, shop.folder / "images" / "products.csv")
    for _ in range(2):  # also when there is nothing to do
        stopped = shop.run("run", "--json", "--backend", backend, env=server.env)
        assert stopped.code == 1
        assert stopped.json["reasons"] == {reason: 6}
        assert f"error: not one row could be cleaned (6 rejected: 6 {reason})" in stopped.stderr
        assert "rejected.csv` has the reason of each row" in stopped.stderr
    assert not server.calls
    # they read the same files, whatever the reason or the backend
    commands = (["prepare"], ["prepare", "--check"], ["clean", "review"]) if backend == "local" else ()
    for command in commands:
        following = shop.furnclip(*command)
        assert following.code == 1
        assert "rejected.csv` has the reason of each row" in following.stderr
        assert "export the catalogue" not in following.stderr


def test_nothing_to_send_is_a_failure(shop: CleanShop, server: BatchServer) -> None:
    shutil.rmtree(shop.folder / "images")
    stopped = shop.run("prepare", env=server.env)
    assert stopped.code == 1
    assert "not one row can be sent (6 rejected: 6 picture-missing)" in stopped.stderr
    assert "`furnclip clean finalize` writes `" in stopped.stderr


def test_every_row_refused_is_a_failure(shop: CleanShop, server: BatchServer) -> None:
    server.scripts = {shop.title(index): ["refusal"] for index in range(6)}
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 1
    assert "not one row could be cleaned (6 rejected: 6 refused)" in stopped.stderr


def test_progress_and_ctrl_c(shop: CleanShop, server: BatchServer) -> None:
    """In a terminal: the progress is drawn, Ctrl-C ends with 130, and the same command goes on."""
    server.plans.append("stuck:100000")
    env = {**os.environ, **server.env, "FURNCLIP_CLEAN__POLL_INTERVAL_S": "0.05", "TERM": "xterm-256color"}
    child = pexpect.spawn(
        sys.executable,
        ["-m", "furnclip", "clean", "run"],
        cwd=str(shop.folder),
        env=env,
        dimensions=(30, 100),
        timeout=30,
    )
    child.expect_exact("part 1: validating, 0 of 0 done")
    child.expect(r"rows answered .*0/6")
    child.sendintr()
    child.expect_exact("interrupted")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    next(iter(server.batches.values())).plan = ""
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


def test_progress_counts_answered_rows(shop: CleanShop, server: BatchServer) -> None:
    env = with_parts_of(server, 2, max_concurrent_batches=1)
    shop.run("prepare", env=env).ok()
    shop.run("dispatch", env=env).ok()
    config = load_config(shop.folder / "furnclip.toml", {"clean": {"backend": "openai"}})
    with open_ledger(config) as ledger:
        before = rows_answered(ledger, {})
        counts = BatchRequestCounts(total=2, completed=1, failed=1)
        batch = Batch.model_construct(id="b", status="in_progress", request_counts=counts)
        after = rows_answered(ledger, {1: batch})
    assert before[0] == 0
    assert after == (2, before[1])


# --- rows that change


def test_limit_then_all_buys_no_row_twice(shop: CleanShop, server: BatchServer) -> None:
    small = shop.run("run", "--limit", "2", "--json", env=server.env).ok().json
    assert small["rows"] == 2
    assert list(shop.cleaned) == ["P00000", "P00001"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}


def test_sample_is_always_the_same(shop: CleanShop, server: BatchServer) -> None:
    shop.run("run", "--sample", "3", env=server.env).ok()
    chosen = set(shop.cleaned)
    assert len(chosen) == 3
    products = shop.folder / "products.csv"
    lines = products.read_text(encoding="utf-8").splitlines()
    products.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    shop.run("run", "--sample", "3", env=server.env).ok()
    assert set(shop.cleaned) == chosen
    assert sum(server.asked.values()) == 3


def test_only_changed_rows_are_asked(shop: CleanShop, server: BatchServer) -> None:
    shop.run("run", env=server.env).ok()
    products = shop.folder / "products.csv"
    text = products.read_text(encoding="utf-8")
    products.write_text(text.replace(shop.title(2), "Plain new title"), encoding="utf-8")
    (shop.folder / "images" / "00004.jpg").write_bytes((shop.folder / "images" / "00005.jpg").read_bytes())
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert sum(server.asked.values()) == 8
    assert shop.cleaned["P00002"]["clean_title"] == "plain new title"


def test_local_and_back_again_buys_nothing(shop: CleanShop, server: BatchServer) -> None:
    shop.run("run", env=server.env).ok()
    paid = shop.table("cleaned.csv")
    shop.run("run", "--backend", "local", env=server.env).ok()
    assert {row["clean_source"] for row in shop.table("cleaned.csv")} == {SOURCE}
    shop.run("run", env=server.env).ok()
    assert shop.table("cleaned.csv") == paid
    assert len(server.batches) == 1


def test_changed_settings_drop_what_was_not_sent(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", env=with_parts_of(server, 2)).ok()
    shop.run("run", env=with_parts_of(server, 3)).ok()
    shop.check_all_settled()
    assert [len(batch.requests) for batch in server.ran] == [3, 3]


def test_picture_that_appears_later(shop: CleanShop, server: BatchServer) -> None:
    picture = shop.folder / "images" / "00001.jpg"
    content = picture.read_bytes()
    picture.unlink()
    shop.run("run", env=server.env).ok()
    shop.check_all_settled(rejected={"P00001": "picture-missing"})
    picture.write_bytes(content)
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}


def test_parts_are_the_same_bytes_on_any_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: BatchServer
) -> None:
    contents = []
    for workers in (1, 2):
        shop = make_shop(tmp_path / f"shop-{workers}", monkeypatch, products=300)
        shop.run("prepare", env=with_parts_of(server, 100, workers=workers)).ok()
        contents.append([path.read_bytes() for path in sorted((shop.work / "parts").iterdir())])
    assert len(contents[0]) == 6
    assert contents[0] == contents[1]


def test_catalogue_changed_between_the_steps(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", "--backend", "local").ok()
    products = shop.folder / "products.csv"
    products.write_text(products.read_text(encoding="utf-8").replace("red", "blue"), encoding="utf-8")
    stopped = shop.run("finalize")
    assert stopped.code == 1
    assert "was changed after it was prepared" in stopped.stderr


def test_settings_changed_between_the_steps(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", env=server.env).ok()
    stopped = shop.run("dispatch", "--model", "gpt-6-luna", env=server.env)
    assert stopped.code == 2
    assert "prepared for another backend, model or vocabulary" in stopped.stderr
    assert not server.calls


def test_model_changed_while_a_batch_is_open(shop: CleanShop, server: BatchServer) -> None:
    """The open batch is still fetched and paid at its own price; its answers are not mixed in."""
    shop.run("prepare", env=server.env).ok()
    shop.run("dispatch", env=server.env).ok()
    shop.run("run", "--model", "gpt-6-luna", env=server.env).ok()
    shop.check_all_settled()
    assert {row["clean_source"] for row in shop.table("cleaned.csv")} == {"openai:gpt-6-luna"}
    first, second = shop.events("merged")
    assert second["cost_usd"] > first["cost_usd"]


def test_part_that_was_tampered_with_is_not_sent(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", env=server.env).ok()
    part = shop.work / "parts" / "part-0001.jsonl"
    part.write_bytes(part.read_bytes().replace(b"gpt-5-nano", b"gpt-5-huge"))
    stopped = shop.run("dispatch", env={**server.env})
    assert stopped.code == 1
    assert not server.batches


# --- money


def test_estimate_costs_nothing_and_is_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: BatchServer
) -> None:
    shop = make_shop(tmp_path / "large", monkeypatch, products=40)
    rough = shop.run("estimate", "--json", env=server.env).ok().json
    assert rough["basis"] == "table"
    assert not server.calls
    close = shop.run("estimate", "--calibrate", "--json", env=server.env).ok().json
    assert close["basis"] == "canary"
    assert len(server.bodies) == 1
    assert not server.batches
    shop.run("run", env=server.env).ok()
    billed = server.prompt_tokens + server.completion_tokens
    assert close["prompt_tokens"] + close["completion_tokens"] == pytest.approx(billed, rel=0.1)
    usd = server.prompt_tokens * 0.025e-6 + server.completion_tokens * 0.2e-6
    assert close["cost_usd"] == pytest.approx(usd, rel=0.1)


def test_bill_comes_from_real_usage(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("no-usage")  # then the lines are added up
    summary = shop.run("run", "--json", env=with_parts_of(server, 3)).ok().json
    canary = shop.events("canary")[0]
    assert summary["prompt_tokens"] == server.prompt_tokens + canary["prompt_tokens"]
    assert summary["completion_tokens"] == server.completion_tokens + canary["completion_tokens"]
    batch_usd = server.prompt_tokens * 0.025e-6 + server.completion_tokens * 0.2e-6
    assert summary["paid_usd"] == pytest.approx(batch_usd + canary["cost_usd"], abs=1e-8)


@pytest.mark.parametrize("what", ["drop-reply", "lost:503", "drop-request"])
def test_trial_request_is_not_sent_twice(shop: CleanShop, server: BatchServer, what: str) -> None:
    """Its reply is lost: counted as unconfirmed, the first batch goes alone, and only a user asks again."""
    env = with_parts_of(server, 2, max_concurrent_batches=3)
    server.faults.append(Fault("POST /chat", what))
    shop.run("prepare", env=env).ok()
    sent = shop.run("dispatch", "--json", env=env).ok()
    assert sent.json["statuses"] == {"open": 1, "planned": 2}
    assert 0 < sent.json["unconfirmed_usd"] < 0.001
    assert "it is not sent again" in " ".join(sent.stderr.split())
    assert shop.run("estimate", "--json", env=env).ok().json["basis"] == "table"
    assert server.calls.count("POST /chat/completions") == 1
    assert shop.run("estimate", "--calibrate", "--json", env=env).ok().json["basis"] == "canary"
    summary = shop.run("run", "--json", env=env).ok().json
    assert server.calls.count("POST /chat/completions") == 2
    assert summary["unconfirmed_usd"] == sent.json["unconfirmed_usd"], "both are on the bill"
    assert set(server.asked.values()) == {1}


def test_budget_stops_sending_and_loses_nothing(shop: CleanShop, server: BatchServer) -> None:
    env = with_parts_of(server, 2, max_concurrent_batches=1)
    stopped = shop.run("run", "--max-cost-usd", "0.00016", env=env)
    assert stopped.code == 1
    assert "the limit of $0.00016 is reached" in stopped.stderr
    assert 0 < len(server.batches) < 3
    bought = len(server.asked)
    partial = shop.run("finalize", "--partial", "--json", env=env).ok().json
    assert (partial["cleaned"], partial["pending"]) == (bought, 6 - bought)
    shop.run("run", env=env).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}


# --- output files


def test_columns_formulas_and_names_that_clash(shop: CleanShop, server: BatchServer) -> None:
    rows = [
        "sku,color,title,image,price",
        '=1+1,@blue,"=HYPERLINK(""http://x"")",00000.jpg,-5.00',
        'A2,-dark,"+bold, ""quoted""",00001.jpg,"1,5"',
    ]
    (shop.folder / "products.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shop.run("run", env={**server.env, "FURNCLIP_PATHS__ID_COLUMN": "sku"}).ok()
    lines = (shop.work / "cleaned.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == (
        "sku,raw_color,title,image,price,clean_title,style,material,color,object_type,queries,clean_source"
    )
    first, second = shop.table("cleaned.csv")
    assert (first["sku"], first["raw_color"], first["price"]) == ("'=1+1", "'@blue", "-5.00")
    assert first["title"].startswith("'=HYPERLINK")
    assert first["clean_title"].startswith("'=hyperlink")
    assert second["title"] == '\'+bold, "quoted"'


def test_rejected_rows_keep_their_columns(shop: CleanShop, server: BatchServer) -> None:
    (shop.folder / "images" / "00003.jpg").write_bytes(b"not a picture")
    shop.run("run", env=server.env).ok()
    (row,) = shop.table("rejected.csv")
    assert list(row) == ["product_id", "title", "image", "price", "rejected_reason", "rejected_detail"]
    assert row["rejected_reason"] == "picture-not-a-picture"


def test_fallback_for_rejected_rows(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(2)] = ["refusal"]
    (shop.folder / "images" / "00003.jpg").unlink()
    shop.run("run", env=server.env).ok()
    assert set(shop.rejected) == {"P00002", "P00003"}
    shop.run("finalize", "--fallback", "local", env=server.env).ok()
    assert set(shop.rejected) == {"P00003"}
    assert shop.cleaned["P00002"]["clean_source"] == SOURCE
    assert shop.cleaned["P00001"]["clean_source"] == "openai:gpt-5-nano"


def test_review(shop: CleanShop) -> None:
    shop.run("run", "--backend", "local").ok()
    shown = shop.run("review", "--rows", "4", "--json").ok().json
    assert len(shown["rows"]) == 4
    assert shown["rows"][0]["clean_title"] in shown["rows"][0]["title"].lower()
    assert Path(shown["sheet"]).read_bytes().startswith(b"\xff\xd8")


def test_no_secret_anywhere(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("POST /batches", "status:500"))
    server.scripts[shop.title(0)] = ["http:400"]
    talk = []
    for command in (["run"], ["status"], ["run"], ["estimate"], ["cancel"]):
        outcome = shop.run(*command, env=server.env)
        talk += [outcome.stdout, outcome.stderr]
    server.keys.clear()  # now the service quotes the key in its refusal
    products = shop.folder / "products.csv"
    products.write_text(products.read_text(encoding="utf-8").replace("red", "scarlet"), encoding="utf-8")
    refused = shop.run("run", env=server.env)
    assert refused.code == 1
    talk += [refused.stdout, refused.stderr]
    written = [path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in written)
    assert not any(KEY in text for text in talk)


# --- live


def live(server: BatchServer, **more: object) -> dict[str, str]:
    return with_parts_of(server, 4, backend="live", model="tiny-vision", concurrency=3, **more)


def test_live_backend(shop: CleanShop, server: BatchServer) -> None:
    server.scripts_single_requests = True
    server.scripts[shop.title(1)] = ["bad-json"]
    server.scripts[shop.title(2)] = ["refusal"]
    server.scripts[shop.title(3)] = ["http:400"]
    server.scripts[shop.title(4)] = ["http:429", "http:500"]  # retried by the client itself
    shop.run("run", env=live(server)).ok()
    shop.check_all_settled(rejected={"P00002": "refused", "P00003": "request-refused"})
    assert shop.cleaned["P00000"]["clean_source"] == "live:tiny-vision"
    assert not server.batches
    assert {"max_tokens", "messages", "model", "response_format"} == set(server.bodies[0])
    assert server.bodies[0]["messages"][0]["role"] == "system"
    calls = len(server.calls)
    assert "nothing to do" in shop.run("run", env=live(server)).ok().stdout
    assert len(server.calls) == calls


def test_live_server_that_is_not_there(shop: CleanShop, server: BatchServer) -> None:
    env = {**live(server), "FURNCLIP_CLEAN__BASE_URL": "http://127.0.0.1:9/v1"}
    stopped = shop.run("run", env=env)
    assert stopped.code == 1
    assert "cannot be reached" in stopped.stderr
    assert "`clean.base_url`" in stopped.stderr


def test_live_stops_when_nothing_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: BatchServer
) -> None:
    shop = make_shop(tmp_path / "large", monkeypatch, products=24)
    env = {**live(server), "FURNCLIP_CLEAN__MODEL": "no-such-model"}
    stopped = shop.run("run", env=env)
    assert stopped.code == 1
    assert "the first 10 requests were refused" in stopped.stderr
    assert len(server.bodies) < 20


@pytest.mark.parametrize("changed", [False, True])
def test_live_answers_survive_a_kill(shop: CleanShop, server: BatchServer, changed: bool) -> None:
    answered = 0

    def count(call: str, moment: str) -> None:
        nonlocal answered
        if call == "POST /chat/completions" and moment == "before":
            answered += 1
            if answered == 5:
                process.kill_while_waited_for()

    server.on_call = count
    env = {**live(server), "FURNCLIP_CLEAN__CONCURRENCY": "1"}
    process = clean_child.start(shop.folder, env, "clean", "run")
    assert process.wait(60) == -9
    if changed:  # other settings: parts are cut again, but what was answered stays
        env = {**live(server), "FURNCLIP_CLEAN__PART_REQUESTS": "5"}
        shop.run("run", env=env).ok()
    else:
        shop.run("run", env=live(server)).ok()
    shop.check_all_settled()
    assert len(server.bodies) == 7, "six rows, and the one that was on its way"


# --- the state machine


def journalled_run(shop: CleanShop, server: BatchServer) -> list[bytes]:
    server.scripts[shop.title(0)] = ["http:429"]
    server.scripts[shop.title(1)] = ["invalid-line"]
    server.plans += ["", "expire:1"]
    shop.run("run", env=with_parts_of(server, 2)).ok()
    return (shop.work / "journal.jsonl").read_bytes().splitlines(keepends=True)


def test_state_is_a_fold(shop: CleanShop, server: BatchServer) -> None:
    events = [json.loads(line) for line in journalled_run(shop, server)]
    whole = fold(events)
    state = State()
    for place, event in enumerate(events):
        assert fold(events[:place]) == state
        assert fold(events[place:], state) == whole
        state = apply(state, event)
    assert {part.status for part in whole.parts.values()} <= {"merged", "replaced"}
    with pytest.raises(JournalError, match="an event `teleported`"):
        apply(whole, {"event": "teleported"})


def test_journal_cut_anywhere_buys_nothing_twice(shop: CleanShop, server: BatchServer) -> None:
    """The service is further on than the journal knows, by any number of events."""
    shop.run("run", env=with_parts_of(server, 2)).ok()
    lines = (shop.work / "journal.jsonl").read_bytes().splitlines(keepends=True)
    outputs = [(shop.work / name).read_bytes() for name in ("cleaned.csv", "rejected.csv")]
    batches, asked = len(server.batches), dict(server.asked)
    places = range(1, len(lines))
    for place in places if FULL else random.Random(3).sample(places, 10):
        (shop.work / "journal.jsonl").write_bytes(b"".join(lines[:place]))
        for name in ("cleaned.csv", "rejected.csv"):
            (shop.work / name).unlink(missing_ok=True)
        shop.run("run", env=with_parts_of(server, 2)).ok()
        assert [(shop.work / name).read_bytes() for name in ("cleaned.csv", "rejected.csv")] == outputs
        assert (len(server.batches), dict(server.asked)) == (batches, asked), f"cut after {place} events"


SCRIPTS = (
    "refusal", "length", "length-under:4000", "content-filter", "empty", "bad-json", "wrong-word", "u2028",
    "http:400", "http:429", "http:500", "http:0", "http:404", "missing", "doubled", "error-in-output",
    "server-error-line", "invalid-line",
)  # fmt: skip
PLANS = (
    "", "stuck:3", "stuck-finalizing:4", "expire:1", "expire:0", "cancel:1", "late-ids", "empty-ids",
    "wrong-counts", "no-usage", "odd-status", "fail:invalid_request", "fail:unheard_of",
)  # fmt: skip
FAULTS = st.builds(
    Fault,
    st.sampled_from(
        [
            "GET /models",
            "POST /chat",
            "POST /files",
            "POST /batches$",
            "GET /batches",
            "GET /files/.*/content",
        ]
    ),
    st.sampled_from(
        ["drop-reply", "drop-request", "status:500", "status:429:rate_limit_exceeded", "lost:503"]
    ),
    times=st.integers(1, 2),
    skip=st.integers(0, 3),
)


@given(
    scripts=st.dictionaries(
        st.integers(0, 5), st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=3), max_size=5
    ),
    plans=st.lists(st.sampled_from(PLANS), max_size=4),
    faults=st.lists(FAULTS, max_size=4),
    stops=st.integers(1, 3),
)
@settings(
    max_examples=150 if FULL else 5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_every_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory,
    scripts: dict[int, list[str]],
    plans: list[str],
    faults: list[Fault],
    stops: int,
) -> None:
    """cleaned + rejected + pending == rows in, whatever goes wrong; and in the end nothing is pending."""
    with pytest.MonkeyPatch.context() as patch, BatchServer() as server:
        shop = make_shop(tmp_path_factory.mktemp("any") / "shop", patch, products=6)
        server.scripts = {shop.title(index): steps for index, steps in scripts.items()}
        server.plans, server.faults = list(plans), list(faults)
        env = with_parts_of(server, 2)
        shop.run("prepare", env=env).ok()
        for _ in range(stops):
            shop.run("run", env=env)
            summary = shop.run("finalize", "--partial", "--json", env=env).ok().json
            assert summary["cleaned"] + summary["rejected"] + summary["pending"] == summary["rows"] == 6
        server.faults.clear()
        for _ in range(4):
            shop.run("run", "--ignore-errors", env=env)
        shop.run("run", env=env).ok()
        summary = shop.run("finalize", "--json", env=env).ok().json
        assert summary["pending"] == 0
        assert summary["cleaned"] + summary["rejected"] == 6
        assert max(server.asked.values(), default=0) <= 3
