"""Every way a batch run is known to go wrong, and what has to come out of it.

One test a failure mode, numbered as in the table of failure modes seen in the wild. The real client
talks to `batch_server` over HTTP; a row may end cleaned, rejected with a reason, or pending, and a request
that the service has answered is never bought again.
"""

from __future__ import annotations

import csv
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.batch_server import KEY, BatchServer, Fault
from tests.clean_shop import CleanShop, make_shop, with_parts_of
from tests.clean_shop import server as server
from tests.clean_shop import shop as shop


def days_from_now(days: int) -> str:
    return (datetime.now(timezone.utc).date() + timedelta(days=days)).isoformat()


def test_nothing_wrong(shop: CleanShop, server: BatchServer) -> None:
    shop.run("run", env=with_parts_of(server, 3)).ok()
    shop.check_all_settled()
    assert len(server.batches) == 2
    assert set(server.asked.values()) == {1}


def test_01_stuck_validating(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("stuck:6")
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1, "a live batch is never doubled"


def test_02_stuck_finalizing_past_its_expiry(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("stuck-finalizing:9")
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


def test_03_file_not_usable_right_after_upload(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("POST /batches", "gone", times=2))
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert (len(server.batches), server.calls.count("POST /files")) == (1, 1)


def test_04_batch_fails_because_its_file_was_not_found(shop: CleanShop, server: BatchServer) -> None:
    server.plans += ["fail:invalid_request", "fail:invalid_request"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.ran) == 1
    assert server.calls.count("POST /files") == 2, "first the same file again, then a new upload"


def test_04_batch_that_always_fails_stops_the_run(shop: CleanShop, server: BatchServer) -> None:
    server.plans += ["fail:invalid_request"] * 3
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 1
    assert "sending stopped: the batch of part 1 failed (invalid_request: told to fail)" in stopped.stderr
    shop.run("run", "--ignore-errors", env=server.env).ok()
    shop.check_all_settled()


def test_05_queue_limit_is_waited_out(shop: CleanShop, server: BatchServer) -> None:
    server.queue_limit = 4_000  # two parts of two requests
    shop.run("run", env=with_parts_of(server, 2)).ok()
    shop.check_all_settled()
    assert len(server.ran) == 3
    assert set(server.asked.values()) == {1}


def test_05_part_larger_than_the_queue_is_cut(shop: CleanShop, server: BatchServer) -> None:
    server.queue_limit = 2_500
    shop.run("run", env=with_parts_of(server, 6)).ok()
    shop.check_all_settled()
    assert all(len(batch.requests) <= 3 for batch in server.ran)
    assert shop.events("queue_limit")[0]["limit"] == 2_500


def test_05_queue_limit_said_on_creation(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("POST /batches", "status:429:token_limit_exceeded", times=2))
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


def test_06_completed_without_an_output_file(shop: CleanShop, server: BatchServer) -> None:
    for index in range(6):
        server.scripts[shop.title(index)] = ["http:400"]
    assert shop.run("run", env=server.env).code == 1
    shop.check_all_settled(rejected={f"P0000{index}": "request-refused" for index in range(6)})
    assert shop.table("rejected.csv")[0]["rejected_detail"] == "HTTP 400 told: told to fail"


def test_07_file_ids_come_late(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("late-ids")
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


def test_08_error_file_id_is_an_empty_text(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("empty-ids")
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert not any("/files//content" in call for call in server.calls)


def test_09_download_is_reset(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("GET /files/.*/content", "truncate", times=4))
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()


def test_10_download_is_silently_short(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("GET /files/.*/content", "truncate-silently", times=3))
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}


def test_10_download_that_stays_short_is_an_error(shop: CleanShop, server: BatchServer) -> None:
    fault = Fault("GET /files/.*/content", "truncate-silently", times=99)
    server.faults.append(fault)
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 1
    assert "does not arrive whole" in stopped.stderr
    fault.times = 0
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


def test_11_line_separators_inside_an_answer(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(2)] = ["u2028"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert shop.cleaned["P00002"]["clean_title"].endswith(" with a break")


def test_12_broken_text_in_titles(shop: CleanShop, server: BatchServer) -> None:
    lines = [
        '{"product_id": "P1", "title": "cafe\\u0301 \\u0000 \\u2028 chair", "image": "00000.jpg"}',
        '{"product_id": "P2", "title": "half \\ud83d a character", "image": "00001.jpg"}',
    ]
    (shop.folder / "products.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shop.run("run", env={**server.env, "FURNCLIP_PATHS__PRODUCTS": "products.jsonl"}).ok()
    (upload,) = (file.content for file in server.files.values() if file.purpose == "batch")
    assert upload.isascii()
    user = json.loads(upload)["body"]["messages"][1]["content"][0]["text"]
    assert json.loads(user)["title"] == "caf\u00e9 chair"
    assert [row["rejected_reason"] for row in shop.table("rejected.csv")] == ["unreadable-row"]


def test_13_byte_order_mark(shop: CleanShop, server: BatchServer) -> None:
    products = shop.folder / "products.csv"
    products.write_bytes(b"\xef\xbb\xbf" + products.read_bytes())
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert all(file.content.startswith(b"{") for file in server.files.values())


def test_14_duplicate_ids(shop: CleanShop, server: BatchServer) -> None:
    products = shop.folder / "products.csv"
    lines = products.read_text(encoding="utf-8").splitlines()
    products.write_text("\n".join([*lines, lines[1]]) + "\n", encoding="utf-8")
    shop.run("run", env=server.env).ok()
    assert [row["rejected_reason"] for row in shop.table("rejected.csv")] == ["duplicate-id"]
    assert len(shop.cleaned) == 6
    assert set(server.asked.values()) == {1}


def test_15_one_bad_line_does_not_sink_the_file(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(3)] = ["invalid-line"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled(rejected={"P00003": "request-invalid"})
    assert len(server.ran) == 1
    assert len(server.ran[0].requests) == 5


def test_16_wrong_parameter_is_caught_by_the_trial_request(shop: CleanShop, server: BatchServer) -> None:
    config = shop.folder / "furnclip.toml"
    row = '\n[clean.models."gpt-5-nano"]\nefforts = ["none"]\n'
    config.write_text(config.read_text(encoding="utf-8") + row, encoding="utf-8")
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 1
    assert "a trial request was refused (HTTP 400 unsupported_value)" in stopped.stderr
    assert "clean.effort" in stopped.stderr
    assert not server.batches
    assert not server.files


def test_16_same_error_in_many_rows_stops_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: BatchServer
) -> None:
    shop = make_shop(tmp_path / "large", monkeypatch, products=24)
    for index in range(12):
        server.scripts[shop.title(index)] = ["http:400"]
    env = with_parts_of(server, 12, max_concurrent_batches=1)
    stopped = shop.run("run", env=env)
    assert stopped.code == 1
    assert "12 of 12 requests of part 1 were refused" in stopped.stderr
    assert len(server.batches) == 1
    shop.run("run", "--ignore-errors", env=env).ok()
    assert len(shop.cleaned) == 12
    assert set(shop.rejected.values()) == {"request-refused"}


def test_17_rate_limit_inside_a_batch(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(1)] = ["http:429"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert sorted(server.asked.values()) == [1, 1, 1, 1, 1, 2]


def test_18_cut_answer_is_asked_again_with_a_higher_cap(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(0)] = ["length-under:8000"] * 3
    server.scripts[shop.title(1)] = ["empty"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert max(server.asked.values()) == 3


def test_18_answer_that_is_always_cut_is_rejected(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(0)] = ["length"] * 9
    shop.run("run", env=server.env).ok()
    shop.check_all_settled(rejected={"P00000": "cut-off"})
    assert max(server.asked.values()) == 3


def test_19_refusal_is_not_asked_again(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(4)] = ["refusal"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled(rejected={"P00004": "refused"})
    assert set(server.asked.values()) == {1}


def test_20_content_filter(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(4)] = ["content-filter"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled(rejected={"P00004": "content-filter"})
    assert set(server.asked.values()) == {1}


def test_21_valid_json_with_wrong_words(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(0)] = ["wrong-word"]
    server.scripts[shop.title(1)] = ["bad-json", "wrong-word", "wrong-word"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled(rejected={"P00001": "invalid-answer"})
    assert shop.table("rejected.csv")[0]["rejected_detail"].startswith("color: ")
    assert b"octarine" in (shop.work / "results" / "part-0001.output.jsonl").read_bytes()


def test_22_expired_batch_gives_its_finished_rows(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("expire:4")
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 2
    assert set(server.asked.values()) == {1}, "what was finished is not bought again"


def test_23_cancelled_batch_gives_its_finished_rows(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("cancel:2")
    env = with_parts_of(server, 6, max_attempts=1)
    shop.run("run", env=env).ok()
    reasons = {f"P0000{index}": "no-answer" for index in range(2, 6)}
    shop.check_all_settled(rejected=reasons)


def test_23_cancel_command(shop: CleanShop, server: BatchServer) -> None:
    env = with_parts_of(server, 3)
    shop.run("prepare", env=env).ok()
    shop.run("dispatch", env=env).ok()
    assert shop.run("cancel", "--json", env=env).ok().json == {"cancelled": [1, 2]}
    assert {batch.status for batch in server.batches.values()} == {"cancelling"}
    unfinished = shop.run("finalize", env=env)
    assert unfinished.code == 1
    assert "6 rows have no answer yet" in unfinished.stderr
    shop.run("run", env=env).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("what", ["drop-reply", "lost:500", "delay:0.6"])
def test_24_lost_reply_after_creating(shop: CleanShop, server: BatchServer, what: str) -> None:
    server.faults.append(Fault("POST /batches", what))
    shop.run("run", env=with_parts_of(server, 3, timeout_s=0.5)).ok()
    shop.check_all_settled()
    assert len(server.batches) == 2, "one a part"
    assert [event["adopted"] for event in shop.events("created")] == [True, False]


@pytest.mark.parametrize("what", ["drop-request", "status:500", "status:503"])
def test_24_request_lost_before_creating(shop: CleanShop, server: BatchServer, what: str) -> None:
    server.faults.append(Fault("POST /batches", what))
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


def test_24_batch_is_listed_late(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("POST /batches", "drop-reply"))
    server.hidden_batches = 2
    shop.run("run", env=server.env).ok()
    assert len(server.batches) == 1


def test_24_lost_upload_is_adopted_or_repeated(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("POST /files", "drop-reply", times=3))
    assert shop.run("run", env=server.env).code == 1
    uploads = len(server.files)
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len([file for file in server.files.values() if file.purpose == "batch"]) == uploads
    assert len(server.batches) == 1


def test_25_crash_between_creating_and_noting_it(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", env=server.env).ok()
    shop.run("dispatch", env=server.env).ok()
    journal = shop.work / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"created"' in line)
    journal.write_bytes(b"".join(lines[:place]) + lines[place][:20])  # torn in the middle
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


def test_26_other_project(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", env=server.env).ok()
    shop.run("dispatch", env=server.env).ok()
    hidden = dict(server.batches)
    server.batches.clear()
    server.keys.add("sk-another-key")
    stopped = shop.run("run", env={**server.env, "OPENAI_API_KEY": "sk-another-key"})
    assert stopped.code == 1
    assert "the batches were sent with another API key" in stopped.stderr
    assert "does not know the batch `batch_000001`" in stopped.stderr
    assert not server.batches, "nothing is sent again"
    server.batches.update(hidden)
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()


def test_26_wrong_key(shop: CleanShop, server: BatchServer) -> None:
    stopped = shop.run("run", env={**server.env, "OPENAI_API_KEY": "sk-wrong"})
    assert stopped.code == 1
    assert "the service refused the API key" in stopped.stderr
    assert KEY not in stopped.stderr


def test_26_address_without_version(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("GET /models", "status:404"))
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 1
    assert "does not answer as the OpenAI API does" in stopped.stderr
    assert "correct `clean.base_url`: it usually ends in /v1" in stopped.stderr


def test_27_internal_batch_model_is_missing_for_a_moment(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(0)] = ["http:404"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()


def test_27_other_endpoint(shop: CleanShop, server: BatchServer) -> None:
    server.scripts[shop.title(0)] = ["refusal"]
    server.scripts[shop.title(1)] = ["length-under:4000"] * 2
    shop.run("run", env=with_parts_of(server, 6, endpoint="/v1/responses")).ok()
    shop.check_all_settled(rejected={"P00000": "refused"})
    assert {batch.facts["endpoint"] for batch in server.batches.values()} == {"/v1/responses"}


def test_28_counts_disagree_with_files(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("wrong-counts")
    server.scripts[shop.title(0)] = ["http:0"]
    server.scripts[shop.title(1)] = ["missing"]
    server.scripts[shop.title(2)] = ["error-in-output"]
    server.scripts[shop.title(3)] = ["doubled"]
    server.scripts[shop.title(4)] = ["server-error-line"]
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert shop.cleaned["P00003"]["clean_title"] == shop.title(3).lower()


def test_29_result_file_is_gone(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("GET /files/.*/content", "gone"))
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 1
    assert "is not kept by the service any more; asking again costs about $0.000" in stopped.stderr
    assert len(server.batches) == 1, "buying again is the user's decision"
    shop.run("run", "--ignore-errors", env=server.env).ok()
    shop.check_all_settled()


def test_30_pictures_travel_inside_the_request(shop: CleanShop, server: BatchServer) -> None:
    products = shop.folder / "products.csv"
    text = products.read_text(encoding="utf-8").replace("00001.jpg", "https://example.org/00001.jpg")
    products.write_text(text, encoding="utf-8")
    shop.run("run", env=server.env).ok()
    shop.check_all_settled(rejected={"P00001": "picture-not-fetched"})
    assert all(b"https://example.org" not in file.content for file in server.files.values())


def test_31_model_is_shut_down_soon(shop: CleanShop, server: BatchServer) -> None:
    server.shutdown_date = days_from_now(18)
    warned = shop.run("run", env=server.env).ok()
    assert "in 18 days" in warned.stderr
    assert "`clean.model`" in warned.stderr
    assert "`gpt-6-luna`" in warned.stderr


def test_31_model_would_be_shut_down_before_the_batch_ends(shop: CleanShop, server: BatchServer) -> None:
    server.shutdown_date = days_from_now(1)
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 2
    assert "its successor is `gpt-6-luna`" in stopped.stderr
    assert not server.batches
    shop.run("run", env={**server.env, "FURNCLIP_CLEAN__ALLOW_RETIRING_MODEL": "true"}).ok()
    shop.check_all_settled()


def test_31_model_is_gone(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("GET /models", "status:404:model_not_found"))
    stopped = shop.run("run", env=server.env)
    assert stopped.code == 1
    assert "does not offer the model `gpt-5-nano`" in stopped.stderr
    assert not server.files


def test_32_credit_ends_midway(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("POST /batches", "status:429:insufficient_quota", skip=1))
    env = with_parts_of(server, 3)
    stopped = shop.run("run", env=env)
    assert stopped.code == 1
    assert "no credit left" in stopped.stderr
    shop.run("run", env=env).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("hours", [-24 * 400, -30, -12, 12, 30])
def test_33_clocks_disagree(shop: CleanShop, server: BatchServer, hours: int) -> None:
    server.clock_offset_s = hours * 3600
    server.faults.append(Fault("POST /batches", "drop-reply"))
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


@pytest.mark.parametrize("hours", [-30, 30])
@pytest.mark.parametrize("what", ["drop-reply", "lost:500"])
def test_33_journal_restored_while_clocks_disagree(
    shop: CleanShop, server: BatchServer, hours: int, what: str
) -> None:
    """The batch that the journal does not know is found by its marks, whatever time it carries."""
    shop.run("prepare", env=server.env).ok()
    journal = (shop.work / "journal.jsonl").read_bytes()
    server.clock_offset_s = hours * 3600
    server.faults.append(Fault("POST /batches", what))
    shop.run("dispatch", env=server.env).ok()
    (shop.work / "journal.jsonl").write_bytes(journal)
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1
    assert set(server.asked.values()) == {1}


def test_33_batch_is_known_by_its_file_where_marks_are_lost(shop: CleanShop, server: BatchServer) -> None:
    server.keeps_metadata = False
    server.faults.append(Fault("POST /batches", "drop-reply"))
    shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert len(server.batches) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_33_second_batch_is_cancelled(shop: CleanShop, server: BatchServer, restarted: bool) -> None:
    """The list shows the first batch so late that another one was asked for."""
    server.faults.append(Fault("POST /batches", "drop-reply"))
    server.hidden_batches = 3
    server.plans.append("stuck:100")
    if restarted:
        shop.run("prepare", env=server.env).ok()
        shop.run("dispatch", env=server.env).ok()
    warned = shop.run("run", env=server.env).ok()
    shop.check_all_settled()
    assert [batch.status for batch in server.batches.values()] in (
        ["cancelling", "completed"],
        ["cancelled", "completed"],
    )
    assert "part 1 has a second batch `batch_000001`; it is cancelled" in warned.stderr
    assert set(server.asked.values()) == {1}


def test_34_no_number_that_json_does_not_know(shop: CleanShop, server: BatchServer) -> None:
    line = '{"product_id": "P1", "title": NaN, "image": "00000.jpg", "price": Infinity}'
    (shop.folder / "products.jsonl").write_text(line, encoding="utf-8")
    shop.run("run", env={**server.env, "FURNCLIP_PATHS__PRODUCTS": "products.jsonl"}).ok()
    (upload,) = (file.content for file in server.files.values() if file.purpose == "batch")
    assert b"NaN" not in upload
    assert b"Infinity" not in upload


def test_unknown_status_is_waited_out(shop: CleanShop, server: BatchServer) -> None:
    server.plans.append("odd-status")
    warned = shop.run("run", env=server.env).ok()
    assert "unknown status `paused`" in warned.stderr
    shop.check_all_settled()


def test_slow_and_shaky_server(shop: CleanShop, server: BatchServer) -> None:
    server.faults += [
        Fault("GET /batches/", "status:429:rate_limit_exceeded", times=2),
        Fault("GET /batches/", "status:500", skip=2),
        Fault("GET /files/.*/content", "reorder", times=2),
        Fault("POST /files", "status:500"),
        Fault("GET /models", "drop-request"),
    ]
    shop.run("run", env=with_parts_of(server, 3)).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}


def test_outage_while_watching_is_waited_out(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("GET /batches/", "status:503", times=12))
    warned = shop.run("run", env=server.env).ok()
    assert warned.stderr.count("answers with HTTP 503; retrying") == 1
    shop.check_all_settled()


def test_a_batch_that_cannot_be_asked_for_does_not_hold_up_the_others(
    shop: CleanShop, server: BatchServer
) -> None:
    fault = Fault("GET /batches/batch_000001", "status:503", times=10**6)
    server.faults.append(fault)
    stopped = shop.run("run", env=with_parts_of(server, 3))
    assert stopped.code == 1
    assert "HTTP 503" in stopped.stderr
    parts = {event["part"] for event in shop.events("merged")}
    assert len(parts) == len(server.batches) - 1
    fault.times = 0
    shop.run("run", env=with_parts_of(server, 3)).ok()
    shop.check_all_settled()
    assert set(server.asked.values()) == {1}


def test_a_bill_far_from_the_estimate_is_warned_of(shop: CleanShop, server: BatchServer) -> None:
    with (shop.folder / "furnclip.toml").open("a", encoding="utf-8") as file:
        file.write('\n[clean.models."gpt-5-nano"]\nimage_multiplier = 1000.0\n')
    warned = shop.run("run", env=server.env).ok()
    assert "check `image_multiplier`" in warned.stderr
    shop.check_all_settled()


def test_answers_are_joined_by_id_not_by_order(shop: CleanShop, server: BatchServer) -> None:
    server.faults.append(Fault("GET /files/.*/content", "reorder"))
    shop.run("run", env=server.env).ok()
    with (shop.folder / "products.csv").open(encoding="utf-8") as file:
        titles = {row["product_id"]: row["title"].lower() for row in csv.DictReader(file)}
    assert {key: row["clean_title"] for key, row in shop.cleaned.items()} == titles
