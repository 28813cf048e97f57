"""A folder from a stranger starts no program, names no credentials and sends no key without permission."""

from __future__ import annotations

import http.server
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pexpect
import pytest

from furnclip.config import load_config
from furnclip.config.trust import is_local
from furnclip.errors import ConfigError
from tests.conftest import Cli

KEY = "sk-test-0123456789abcdef"
SENSITIVE = {
    "furnclip.toml": {
        "clean.base_url": '[clean]\nbase_url = "https://stranger.example/v1"\n',
        "storage.endpoint_url": '[storage]\nendpoint_url = "https://stranger.example"\n',
    },
    ".env": {
        "AWS_CONFIG_FILE": "AWS_CONFIG_FILE=aws.ini\n",
        "AWS_SHARED_CREDENTIALS_FILE": "AWS_SHARED_CREDENTIALS_FILE=aws.ini\n",
        "AWS_PROFILE": "AWS_PROFILE=other\n",
        "AWS_ENDPOINT_URL_S3": "export AWS_ENDPOINT_URL_S3='https://stranger.example'\n",
        "HF_ENDPOINT": "HF_ENDPOINT=https://stranger.example\n",
        "WANDB_BASE_URL": "WANDB_BASE_URL=https://stranger.example\n",
        "https_proxy": "https_proxy=http://stranger.example:3128\n",
        "REQUESTS_CA_BUNDLE": "REQUESTS_CA_BUNDLE=ca.pem\n",
        "clean.base_url": "FURNCLIP_CLEAN__BASE_URL=https://stranger.example/v1\n",
        "storage.endpoint_url": 'FURNCLIP_STORAGE={"endpoint_url": "https://stranger.example"}\n',
    },
}
CASES = [(file, name, text) for file, texts in SENSITIVE.items() for name, text in texts.items()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, and an environment that is as it was when the test ends."""
    for name in list(os.environ):
        if name.upper().endswith(("_PROXY", "_BUNDLE", "_ENDPOINT")):
            monkeypatch.delenv(name)
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.mark.parametrize(("file", "name", "text"), CASES, ids=[f"{file} {name}" for file, name, _ in CASES])
def test_is_refused_with_the_way_to_allow_it(folder: Path, file: str, name: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert f"sets `{name}`" in caught.value.message
    assert "furnclip doctor --trust" in caught.value.hint
    assert name not in os.environ
    load_config(trust=True)
    load_config()  # remembered
    (folder / file).write_text(
        text.replace("stranger", "stranger2").replace("ini", "in2").replace("other", "o2")
    )
    os.environ.pop(name, None)
    if (folder / file).read_text() != text:
        with pytest.raises(ConfigError):
            load_config()


def test_permission_is_for_one_folder_and_kept_in_a_file_of_the_user(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "furnclip.toml").write_text(SENSITIVE["furnclip.toml"]["clean.base_url"])
    load_config(folder / "a" / "furnclip.toml", trust=True)
    load_config(folder / "a" / "furnclip.toml")
    with pytest.raises(ConfigError, match=r"b/furnclip.toml"):
        load_config(folder / "b" / "furnclip.toml")
    memory = folder / "home" / ".local" / "state" / "furnclip" / "trusted.json"
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600
    assert "stranger" not in memory.read_text()


def test_permission_ends_when_the_file_that_is_named_changes(folder: Path) -> None:
    (folder / ".env").write_text("AWS_CONFIG_FILE=aws.ini\n")
    (folder / "aws.ini").write_text("[default]\nregion = eu-west-1\n")
    load_config(trust=True)
    del os.environ["AWS_CONFIG_FILE"]
    load_config()
    del os.environ["AWS_CONFIG_FILE"]
    (folder / "aws.ini").write_text("[default]\ncredential_process = touch pwned\n")
    with pytest.raises(ConfigError, match="AWS_CONFIG_FILE"):
        load_config()


@pytest.mark.parametrize(
    "damage", ["", "{", "3", '["a", ["b"]]', "[" * 100_000, "\xff"], ids=lambda text: repr(text[:6])
)
def test_a_damaged_memory_means_asking_again(folder: Path, damage: str) -> None:
    memory = folder / "home" / ".local" / "state" / "furnclip" / "trusted.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(damage, encoding="latin-1")
    (folder / "furnclip.toml").write_text(SENSITIVE["furnclip.toml"]["clean.base_url"])
    with pytest.raises(ConfigError):
        load_config()
    load_config(trust=True)
    load_config()


def test_the_users_own_values_need_no_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "furnclip.toml").write_text(SENSITIVE["furnclip.toml"]["clean.base_url"])
    assert load_config(None, {"clean": {"base_url": "https://mine.example/v1"}})
    monkeypatch.setenv("FURNCLIP_CLEAN__BASE_URL", "https://mine.example/v1")
    assert load_config().clean.base_url == "https://mine.example/v1"
    (folder / ".env").write_text("AWS_PROFILE=other\nHF_ENDPOINT=https://stranger.example\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("HF_ENDPOINT", "https://mine.example")
    load_config()
    assert (os.environ["AWS_PROFILE"], os.environ["HF_ENDPOINT"]) == ("mine", "https://mine.example")


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:11434/v1",
        "http://127.0.0.1:9000",
        "http://127.8.9.1",
        "http://[::1]:8000/v1",
        "https://api.openai.com/v1",
    ],
)
def test_this_machine_and_the_vendor_need_no_permission(folder: Path, address: str) -> None:
    (folder / "furnclip.toml").write_text(f'[clean]\nbase_url = "{address}"\n')
    (folder / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    assert load_config().clean.base_url == address


@pytest.mark.parametrize(
    "address",
    [
        "https://localhost.stranger.example/v1",
        "https://localhost@stranger.example/v1",
        "https://stranger.example\\\\@localhost/v1",
        "https://stranger.example#@localhost",
        "https://api.openai.com.stranger.example/v1",
        "https://api.openai.com@stranger.example/v1",
        "https://api.openai.com:8443/v1",
        "http://api.openai.com/v1",
        "http://0.0.0.0:8000/v1",
        "https:stranger.example",
        "stranger.example",
        "//stranger.example",
        " https://api.openai.com/v1",
        "https://127.0.0.1.stranger.example",
    ],
)
def test_an_address_that_only_looks_like_one_of_these_is_refused(folder: Path, address: str) -> None:
    (folder / "furnclip.toml").write_text(f'[clean]\nbase_url = "{address}"\n')
    assert not is_local(address.replace("\\\\", "\\"))
    with pytest.raises(ConfigError, match="you have not allowed it"):
        load_config()


@pytest.mark.parametrize(
    ("setting", "secret"),
    [
        (("clean", "base_url"), "OPENAI_API_KEY"),
        (("storage", "endpoint_url"), "AWS_SESSION_TOKEN"),
    ],
    ids=["model", "bucket"],
)
def test_plain_http_needs_the_name_of_the_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, setting: tuple[str, str], secret: str
) -> None:
    section, key = setting
    monkeypatch.setenv(secret, KEY)
    (folder / "furnclip.toml").write_text(f'[{section}]\n{key} = "http://Models.Shop.example:8000/v1"\n')
    with pytest.raises(ConfigError, match="unencrypted") as caught:
        load_config(trust=True)
    assert "FURNCLIP_ALLOW_HTTP=models.shop.example" in caught.value.hint
    (folder / ".env").write_text("FURNCLIP_ALLOW_HTTP=models.shop.example\n")
    with pytest.raises(ConfigError, match="unencrypted"):  # the folder cannot allow itself
        load_config()
    monkeypatch.setenv("FURNCLIP_ALLOW_HTTP", "other.example")
    with pytest.raises(ConfigError, match="unencrypted"):
        load_config()
    monkeypatch.setenv("FURNCLIP_ALLOW_HTTP", "other.example,models.shop.example")
    load_config()
    monkeypatch.delenv("FURNCLIP_ALLOW_HTTP")
    with pytest.raises(ConfigError, match="unencrypted"):  # a secret, even to an address of the user's own
        load_config(None, {section: {key: "http://models.shop.example/v1"}})
    monkeypatch.delenv(secret)
    load_config(None, {section: {key: "http://models.shop.example/v1"}})  # nothing secret is sent


def test_plain_http_in_dotenv_is_refused_too(folder: Path) -> None:
    (folder / ".env").write_text("HF_ENDPOINT=http://stranger.example\n")
    with pytest.raises(ConfigError, match="unencrypted"):
        load_config(trust=True)
    assert "HF_ENDPOINT" not in os.environ


class _Listener(http.server.BaseHTTPRequestHandler):
    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.heard.append(f"{self.path} {self.headers.items()}")
        self.send_error(404)

    do_HEAD = do_POST = do_CONNECT = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def listener() -> Iterator[str]:
    """The address of a proxy that hears what is sent to any plain http address."""
    _Listener.heard = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Listener) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


STRANGERS_FOLDERS = {
    "base_url": {"furnclip.toml": '[clean]\nbase_url = "http://stranger.example/v1"\n'},
    "endpoint_url": {
        "furnclip.toml": '[storage]\nbucket = "b"\nendpoint_url = "http://stranger.example"\n',
    },
    "base_url in .env": {".env": "FURNCLIP_CLEAN__BASE_URL=http://stranger.example/v1\n"},
    "credential_process": {
        "furnclip.toml": '[storage]\nbucket = "b"\n',
        ".env": "AWS_CONFIG_FILE=aws.ini\nAWS_PROFILE=x\n",
        "aws.ini": "[profile x]\ncredential_process = touch pwned\n",
    },
    "hub": {".env": "HF_ENDPOINT=http://stranger.example\nMODEL_NAME=somebody/some-clip\n"},
    "viewer": {"furnclip.toml": '[arena]\nviewer = "touch pwned {path}"\n'},
}


@pytest.mark.parametrize("files", STRANGERS_FOLDERS.values(), ids=STRANGERS_FOLDERS)
def test_doctor_in_a_strangers_folder_runs_nothing_and_sends_nothing(
    cli: Cli, tmp_path: Path, listener: str, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    keys = {"OPENAI_API_KEY": KEY, "AWS_SESSION_TOKEN": KEY, "HF_TOKEN": "hf_0123456789abcdef"}
    if "AWS_CONFIG_FILE" not in files.get(".env", ""):
        keys |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": KEY}
    proxies = {"http_proxy": listener, "https_proxy": listener, "HF_HUB_OFFLINE": "0", "FURNCLIP_VIEWER": ""}
    outcome = cli("doctor", cwd=tmp_path, env={**keys, **proxies})
    assert "you have not allowed it" in outcome.stderr
    assert "furnclip doctor --trust" in outcome.stderr
    assert not (tmp_path / "pwned").exists()
    assert [line for line in _Listener.heard if KEY in line or "stranger" in line] == []


def test_what_the_user_trusts_is_done(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "furnclip.toml").write_text('[arena]\nviewer = "touch shown {path}"\n')
    trusted = cli("doctor", "--trust", cwd=tmp_path)
    assert "allowed: " in trusted.stderr
    assert "touch shown" in trusted.stderr
    (tmp_path / "shown").unlink()
    assert "not allowed" not in cli("doctor", cwd=tmp_path).stderr
    assert (tmp_path / "shown").exists()


def at_a_terminal(folder: Path, answer: str, **env: str) -> str:
    """What `furnclip arena stats` prints to somebody who answers its question."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "furnclip", "arena", "stats"],
        cwd=str(folder),
        env={**os.environ, "COLUMNS": "300", "TERM": "xterm-256color", **env},
        timeout=60,
        encoding="utf-8",
        dimensions=(24, 300),
    )
    asked = child.expect([r"\[y/N\]: ", pexpect.EOF])
    text = str(child.before)
    if asked == 0:
        child.sendline(answer)
        child.expect(pexpect.EOF)
        text += str(child.before)
    return text


def test_the_question_is_asked_once_and_no_is_no(tmp_path: Path) -> None:
    (tmp_path / "furnclip.toml").write_text(SENSITIVE["furnclip.toml"]["clean.base_url"])
    for answer in ("n", "", "maybe"):
        refused = at_a_terminal(tmp_path, answer)
        assert "sets `clean.base_url` to `https://stranger.example/v1`" in refused
        assert "you have not allowed it" in refused
    assert "Allow it?" in at_a_terminal(tmp_path, "y")
    assert "Allow it?" not in at_a_terminal(tmp_path, "n")


@pytest.mark.parametrize(
    "command",
    [
        "evil {path}\\u001b[2K\\rnicely {path}",
        "evil {path}\\u202e}htap{ ylecin",
        "evil {path}\\n\\nnicely {path}",
        "evil {path}\\u009b2K{path}",
        "[red]evil[/red] {path}",
    ],
)
def test_a_command_cannot_rewrite_the_question(tmp_path: Path, command: str) -> None:
    (tmp_path / "furnclip.toml").write_text(f'[arena]\nviewer = "{command}"\n')
    text = at_a_terminal(tmp_path, "n", FURNCLIP_VIEWER="", NO_COLOR="1")
    question = next(line for line in text.splitlines() if "Allow it?" in line)
    assert "evil" in question
    assert json.loads(f'"{command}"').split("{path}")[0] in question
    assert not {"\x1b", "\x9b", "\u202e"} & set(question)


def test_dotenv_takes_plain_names_and_tells_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".env").write_text(
        "AWS_REGION=eu-west-1\nHF_HUB_DOWNLOAD_TIMEOUT=3\nCUDA_VISIBLE_DEVICES=\nLD_PRELOAD=x.so\nPYTHONPATH=.\n"
        "PATH=.\nHF_HUB_ENABLE_REMOTE=1\nFURNCLIP_TRAIN__EPOCHS=3\nXDG_STATE_HOME=.\nAWS_SDK_UA_APP_ID=x\n"
    )
    path = os.environ["PATH"]
    assert load_config().train.epochs == 3
    told = capsys.readouterr().err
    assert os.environ["AWS_REGION"] == "eu-west-1"
    assert os.environ["PATH"] == path
    for name in (
        "LD_PRELOAD",
        "PYTHONPATH",
        "PATH",
        "HF_HUB_ENABLE_REMOTE",
        "XDG_STATE_HOME",
        "AWS_SDK_UA_APP_ID",
    ):
        assert name in told
        assert name == "PATH" or name not in os.environ


@pytest.mark.parametrize(
    "value", ["${AWS_SECRET_ACCESS_KEY}", "p/${AWS_SECRET_ACCESS_KEY:-x}/q", '"${HOME}"']
)
def test_dotenv_cannot_put_a_key_into_another_setting(folder: Path, value: str) -> None:
    (folder / ".env").write_text(f"FURNCLIP_STORAGE__PREFIX={value}\n")
    with pytest.raises(ConfigError, match="FURNCLIP_STORAGE__PREFIX"):
        load_config()


def test_the_hubs_variables_are_set_before_its_library_looks(
    cli: Cli, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (shop / ".env").write_text("HF_HUB_OFFLINE=1\n")
    refusing = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    cli("prepare", cwd=shop).ok()
    outcome = cli("embed", "--model", "some/model", cwd=shop, env=refusing)
    assert "the model `some/model` cannot be loaded" in outcome.stderr
    assert "Retrying" not in outcome.stderr  # which is what the library says when it is not offline
