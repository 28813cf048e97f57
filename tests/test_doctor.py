"""`furnclip doctor`: what it finds, how it says so, and that nothing can break it."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from time import sleep

import pytest

from furnclip import doctor, viewers
from furnclip.config import Config, load_config
from furnclip.doctor import Check, outcome
from furnclip.errors import ServiceError, StorageError
from tests.conftest import Cli
from tests.s3_server import CREDENTIALS, Fault, create_bucket, fault_proxy, s3_server

NAMES = ["python", "torch", "device", "base model", "catalogue", "cleaning", "bucket", "disk", "viewer"]


def settings(tmp_path: Path, **flags: object) -> Config:
    return load_config(None, {"paths": {"work": str(tmp_path / "work")}, **flags})


def test_one_line_each_and_exit_0_when_ready(cli: Cli, shop: Path) -> None:
    done = cli("doctor", cwd=shop).ok()
    lines = done.stdout.splitlines()
    assert [line[6:18].strip() for line in lines] == NAMES
    assert all(line.startswith(("ok ", "warn ")) for line in lines)
    assert "loads: 32 px" in lines[3]
    assert not (shop / "work").exists()


def test_json_exit_1_and_a_hint_when_something_is_missing(cli: Cli, shop: Path) -> None:
    variables = {
        "MODEL_NAME": "somebody/some-clip",
        "FURNCLIP_STORAGE__BUCKET": "shop",
        "FURNCLIP_STORAGE__ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    done = cli("doctor", "--json", cwd=shop, env=variables)
    assert (done.code, done.json["ready"]) == (1, False)
    found = {check["name"]: check for check in done.json["checks"]}
    assert list(found) == NAMES
    failed = {name for name, check in found.items() if check["status"] == "fail"}
    assert failed == {"base model", "bucket"}
    assert found["bucket"]["message"] == "cannot reach `http://127.0.0.1:9`"
    assert "is not in the cache, and HF_HUB_OFFLINE is set" in found["base model"]["message"]
    assert all(found[name]["hint"] for name in failed)


def never() -> tuple[date | None, str]:
    raise AssertionError("nobody should be asked")


def shut_down_in(days: int) -> Callable[[], tuple[date | None, str]]:
    return lambda: (date.today() + timedelta(days=days), "gpt-next")


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (lambda: (None, "gpt-next"), "ok", "no shutdown date"),
        (shut_down_in(400), "ok", "is shut down on"),
        (shut_down_in(20), "warn", "is shut down on"),
        (shut_down_in(-1), "fail", "was shut down on"),
    ],
)
def test_the_model_that_is_about_to_go(
    tmp_path: Path, ask: Callable[[], tuple[date | None, str]], status: str, words: str
) -> None:
    config = settings(tmp_path, clean={"backend": "openai"}, openai_api_key="sk-test-test")
    check = outcome("cleaning", lambda: doctor.check_cleaning(config, ask))
    assert check.status == status
    assert words in check.message
    assert ("gpt-next" in check.hint) == (status != "ok")


def test_without_a_key_nobody_is_asked(tmp_path: Path) -> None:
    online, offline = (settings(tmp_path, clean={"backend": backend}) for backend in ("openai", "local"))
    check = outcome("cleaning", lambda: doctor.check_cleaning(online, never))
    assert (check.status, check.message) == ("warn", "OPENAI_API_KEY is not set")
    assert doctor.check_cleaning(offline, never) == "backend `local` needs no key"


def test_a_refused_key_is_a_line_not_an_end(tmp_path: Path) -> None:
    def refuse() -> tuple[date | None, str]:
        raise ServiceError("the key was refused", hint="make a new one")

    config = settings(tmp_path, clean={"backend": "openai"}, openai_api_key="sk-test-test")
    found = {check.name: check for check in doctor.examine(config, ask_provider=refuse)}
    assert found["cleaning"] == Check("cleaning", "fail", "the key was refused", "make a new one")
    assert found["python"].status == "ok"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "no such name at all/x"}, "neither a folder nor a hub id"),
        ({"name": "some/model", "device": "cuda:7"}, "no CUDA device"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, model: dict[str, str], words: str) -> None:
    checks = doctor.examine(settings(tmp_path, model=model), ask_provider=never)
    assert any(check.status == "fail" and words in check.message for check in checks)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    checks = doctor.examine(settings(tmp_path, model={"name": str(tmp_path / "empty")}), ask_provider=never)
    assert any("not a model folder" in check.message for check in checks if check.name == "base model")


def test_what_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIMIT_S", 3.0)
    config = settings(tmp_path, clean={"backend": "openai"}, openai_api_key="sk-test-test")
    checks = doctor.examine(config, ask_provider=lambda: sleep(30) or never())
    assert [check.name for check in checks] == NAMES
    cleaning = next(check for check in checks if check.name == "cleaning")
    assert cleaning == Check("cleaning", "fail", "no answer within 3 s", "check the network")


def test_the_bucket_is_only_written_to_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    forbidden = Fault("status", method="DELETE", status=403, code="AccessDenied", after=1)
    with s3_server() as server, fault_proxy(server, forbidden) as proxy:
        create_bucket(server, "shop")
        config = settings(tmp_path, storage={"bucket": "shop", "prefix": "p", "endpoint_url": proxy.address})
        listed = doctor.check_bucket(config)
        assert listed == "s3://shop can be listed; reading and writing were not tried (--write-probe)"
        assert [method for method, _ in proxy.log] == ["GET"]
        proxy.log.clear()
        probed = doctor.check_bucket(config, write_probe=True)
        assert probed == "s3://shop/p can be listed, written, read and deleted from"
        assert [method for method, _ in proxy.log] == ["GET", "PUT", "GET", "DELETE"]
        with pytest.raises(
            StorageError, match=r"no permission for DeleteObject on `s3://shop/p/.furnclip-probe"
        ):
            doctor.check_bucket(config, write_probe=True)


@pytest.mark.parametrize(("free", "status"), [(1e8, "fail"), (2e9, "warn"), (1e12, "ok")])
def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, status: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(0, 0, free))
    work = tmp_path / "not" / "there" / "yet"
    assert outcome("disk", lambda: doctor.check_disk(work)).status == status


@pytest.mark.parametrize(
    ("graphics", "status", "words"),
    [("symbols", "ok", ""), ("sixels", "warn", '"--format", "sixels"'), (None, "warn", "`arena.viewer`")],
)
def test_the_terminal_is_asked_and_its_answer_becomes_a_setting(
    monkeypatch: pytest.MonkeyPatch, graphics: str | None, status: str, words: str
) -> None:
    around = viewers.TerminalEnvironment({"TERM": "xterm"}, lambda tool: f"/bin/{tool}", True, "linux")
    answer = viewers.detection.TerminalReply("Xterm(379)", graphics) if graphics else None
    monkeypatch.setattr(viewers, "query_terminal", lambda: answer)
    monkeypatch.setattr(viewers.TerminalEnvironment, "here", lambda: around)
    check = outcome("terminal", doctor.check_terminal)
    assert check.status == status
    assert words in check.hint
