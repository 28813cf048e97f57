"""Text of others on the terminal: escapes, turned lines, secrets, and outputs that are not UTF-8."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from furnclip.config import load_config
from furnclip.console import clean_text, format_cell, hide, one_line, print_json, redact
from furnclip.errors import ConfigError
from tests.conftest import Cli

# moves the cursor, sets the title, erases a line, turns the line around, hides, isolates, breaks the line
DRIVERS = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b2K",
    "\r",
    "\x08\x08",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u2028",
    "\x00",
]


@pytest.mark.parametrize("driver", DRIVERS, ids=ascii)
def test_one_door_takes_them_out(driver: str) -> None:
    for clean in (clean_text, one_line):
        shown = clean(f"before{driver}after")
        assert shown.startswith("before")
        assert shown.endswith("after")
        assert shown.replace(" ", "").isprintable()
    assert one_line(f"a\nerror: b{driver}").splitlines() == [one_line(f"a error: b{driver}")]


def rename_a_column(shop: Path, text: str) -> None:
    lines = (shop / "products.csv").read_text().splitlines()
    (shop / "products.csv").write_text("\n".join([lines[0].replace("title", f'"{text}"'), *lines[1:]]))


def name_a_file(shop: Path, text: str) -> None:
    (shop / "furnclip.toml").write_text(f"[paths]\nproducts = {json.dumps(text)}\n")


def misspell_a_setting(shop: Path, text: str) -> None:
    (shop / "furnclip.toml").write_text(f"[train]\n{json.dumps(text)} = 3\n")


def give_a_wrong_value(shop: Path, text: str) -> None:
    (shop / "furnclip.toml").write_text(f"[train]\nloss = {json.dumps(text)}\n")


def name_a_variable(shop: Path, text: str) -> None:
    (shop / ".env").write_text(f"OTHER_{text}=3\nFURNCLIP_TRAIN__LOSS='{text}'\n")


SPOILERS = [rename_a_column, name_a_file, misspell_a_setting, give_a_wrong_value, name_a_variable]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_what_a_folder_says_cannot_drive_the_terminal(
    cli: Cli, shop: Path, spoil: Callable[[Path, str], None]
) -> None:
    spoil(shop, "ti\u202e\x9btle\x7f\u2067")
    outcome = cli("prepare", "--check", cwd=shop)
    assert outcome.code in (1, 2)
    assert "error: " in outcome.stderr
    assert outcome.stderr.replace("\n", "").isprintable(), ascii(outcome.stderr)


@pytest.mark.parametrize(
    "words",
    [
        ("--\x1b[2Jbogus",),
        ("tr\x1b]0;x\x07ain",),
        ("train", "--epochs", "\x1b[31m3\u202e"),
        ("train", "--scenario", "\x1b[31mlora"),
        ("init", "a", "\x1b[31mb"),
        ("search", "x", "--config", "\x9bnowhere.toml"),
    ],
    ids=ascii,
)
def test_what_is_typed_cannot_either(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    outcome = cli(*words, cwd=tmp_path)
    assert outcome.code == 2
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.splitlines()[1].startswith("hint: ")
    assert outcome.stderr.replace("\n", "").isprintable(), ascii(outcome.stderr)


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "cp437:strict"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
]


@pytest.mark.parametrize("env", ENCODINGS, ids=lambda env: " ".join(env.values()))
def test_an_output_that_is_not_utf8(tmp_path: Path, env: dict[str, str]) -> None:
    folder = tmp_path / "лавка \u65e5"
    folder.mkdir()
    for words in (["init"], ["init"], ["init", "--force", "--json"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "furnclip", *words],
            cwd=folder,
            env={**os.environ, **env},
            capture_output=True,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == (2 if b"exists already" in done.stderr else 0), done.stderr
        if "--json" in words:
            written = json.loads(done.stdout)["written"]
            assert written[0].encode("utf-8", "surrogateescape") == os.fsencode(folder / "furnclip.toml")


def test_a_product_title_in_an_ascii_table(cli: Cli, shop: Path) -> None:
    with (shop / "products.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["title"] = "Стул 椅子 \u202e"
    with (shop / "products.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    cli("clean", "run", cwd=shop).ok()
    shown = cli("clean", "review", "--rows", "12", cwd=shop, env={"PYTHONIOENCODING": "ascii"}).ok()
    assert "????" in shown.stdout


SECRETS = [
    ("https://user:hunter2@host/x", "hunter2"),
    ("cannot reach `http://k:p%40ss@10.0.0.1:9000`", "p%40ss"),
    ("GET https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIDEXAMPLE%2F2026&X-Amz-Signature=fe5f80", "fe5f80"),
    ("https://acc.blob.core.windows.net/c?sv=2026&sig=a%2Bb%3D&x=1", "a%2Bb%3D"),
    ("https://h/v1?api_key=abcdefgh", "abcdefgh"),
    ("https://h/v1?X-Amz-Security-Token=IQoJb3", "IQoJb3"),
    ("Authorization: Basic dXNlcjpwdw==", "dXNlcjpwdw=="),
    ("token hf_AbCdEfGhIjKl refused", "hf_AbCdEfGhIjKl"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS, ids=[secret for _, secret in SECRETS])
def test_secrets_in_addresses_and_headers(text: str, secret: str) -> None:
    shown = redact(text)
    assert secret not in shown
    assert "***" in shown
    host = text.split("//")[-1].split("/")[0].split("@")[-1] if "//" in text else ""
    assert host in shown


def test_a_known_key_is_hidden_in_pieces_too() -> None:
    hide("q7w8e9r0t1y2u3 \n i4o5p6a7s8d9f0")
    assert redact(repr(b"Bearer q7w8e9r0t1y2u3 \n i4o5p6a7s8d9f0")) == "b'Bearer *** \\n ***'"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("OPENAI_API_KEY", "sk-live-abc\ndef"),
        ("OPENAI_API_KEY", "sk-l\u00efve-abcdef"),
        ("OPENAI_API_KEY", "Bearer sk-abc"),
        ("AWS_ACCESS_KEY_ID", "AKIAX "),
        ("AWS_SECRET_ACCESS_KEY", "wJalr\x1b[31mXUtn"),
        ("HF_TOKEN", "hf_abc def"),
        ("WANDB_API_KEY", "0123\t4567"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True], ids=["environment", "dotenv"])
def test_a_malformed_key_shows_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, in_file: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, key)
    if in_file:
        monkeypatch.delenv(name)
        (tmp_path / ".env").write_text(f"{name}='{key}'\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^{name} contains") as caught:
        load_config()
    os.environ.pop(name, None)
    for piece in key.split():
        assert piece not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "address", ["https://shop:hunter2@stranger.example/v1", "https://stranger.example/v1?api_key=hunter2"]
)
def test_a_password_in_a_setting_is_not_printed(cli: Cli, tmp_path: Path, address: str) -> None:
    (tmp_path / "furnclip.toml").write_text(f'[clean]\nbase_url = "{address}"\n')
    outcome = cli("clean", "status", cwd=tmp_path)
    assert "stranger.example" in outcome.stderr
    assert "hunter2" not in outcome.stderr


@pytest.mark.parametrize(
    "text", ["desk-lamps-and-shades.csv", "sk-1002", "risk-assessment-2026", "https://host/a?page=3"]
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redact(f"cannot read `{text}`") == f"cannot read `{text}`"


def test_data_is_never_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    assert format_cell("sk-100234-oak-brown") == "sk-100234-oak-brown"
    print_json({"id": "sk-100234-oak-brown", "title": "\x9b2Kbüro"})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"id": "sk-100234-oak-brown", "title": "\x9b2Kbüro"}
    assert "\x9b" not in shown


def test_the_doctors_json_holds_no_password(cli: Cli, tmp_path: Path) -> None:
    variables = {
        "FURNCLIP_STORAGE__BUCKET": "shop",
        "FURNCLIP_STORAGE__ENDPOINT_URL": "http://user:hunter2@127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    outcome = cli("doctor", "--json", cwd=tmp_path, env=variables)
    assert "127.0.0.1:9" in outcome.stdout
    assert "hunter2" not in outcome.stdout + outcome.stderr
