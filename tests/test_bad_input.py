"""What users get wrong, through the command line: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import csv
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli, Outcome

CLEAN = ("clean", "run")


def products(shop: Path) -> Path:
    return shop / "products.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_told_plainly(outcome: Outcome, *, code: int, words: tuple[str, ...]) -> None:
    """Exactly one `error:` and one `hint:` line, each thing named, and no traceback."""
    lines = outcome.stderr.splitlines()
    assert outcome.code == code, outcome.stderr
    assert "Traceback" not in outcome.stderr + outcome.stdout
    assert sum(line.startswith("error: ") for line in lines) == 1, outcome.stderr
    assert sum(line.startswith("hint: ") for line in lines) == 1, outcome.stderr
    told = "\n".join(line for line in lines if line.startswith(("error: ", "hint: ")))
    assert [word for word in words if word not in told] == [], told


def remove_catalogue(shop: Path) -> None:
    products(shop).unlink()


def empty_catalogue(shop: Path) -> None:
    products(shop).write_bytes(b"")


def header_only(shop: Path) -> None:
    products(shop).write_text("product_id,title,image\n")


def rename_title_column(shop: Path) -> None:
    text = products(shop).read_text()
    products(shop).write_text(text.replace("title", "name", 1))


def break_encoding(shop: Path) -> None:
    """Neither UTF-8 nor cp1252 nor UTF-16: 0x81 and 0xff mean nothing in all of them."""
    with products(shop).open("ab") as file:
        file.write(b"P99999,caf\x81\xff\xfe\x8d chair,00000.jpg,1.00\n")


def unknown_key(shop: Path) -> None:
    with (shop / "furnclip.toml").open("a") as file:
        file.write("\n[embed]\nbatch_sise = 3\n")


def bad_toml(shop: Path) -> None:
    (shop / "furnclip.toml").write_text("[paths\n")


CATALOGUE_MISTAKES: list[tuple[Callable[[Path], None], int, tuple[str, ...]]] = [
    (remove_catalogue, 1, ("products.csv",)),
    (empty_catalogue, 1, ("products.csv", "empty")),
    (header_only, 1, ("products.csv", "no rows")),
    (rename_title_column, 2, ("`title`", "name", "product_id", "image", "price")),
    (break_encoding, 1, ("products.csv", "UTF-8")),
    (unknown_key, 2, ("unknown setting `embed.batch_sise`", "did you mean `embed.batch_size`?")),
    (bad_toml, 2, ("furnclip.toml", "is not valid TOML")),
]


@pytest.mark.parametrize(
    ("spoil", "code", "words"), CATALOGUE_MISTAKES, ids=[case[0].__name__ for case in CATALOGUE_MISTAKES]
)
def test_a_catalogue_that_cannot_be_read(
    cli: Cli,
    shop: Path,
    spoil: Callable[[Path], None],
    code: int,
    words: tuple[str, ...],
) -> None:
    spoil(shop)
    before = products(shop).read_bytes() if products(shop).exists() else None
    assert_told_plainly(cli(*CLEAN, cwd=shop), code=code, words=words)
    assert (products(shop).read_bytes() if products(shop).exists() else None) == before
    assert not (shop / "work" / "clean" / "cleaned.csv").exists()


def test_the_check_names_the_columns_there_are(cli: Cli, shop: Path) -> None:
    rename_title_column(shop)
    outcome = cli("prepare", "--check", cwd=shop)
    assert_told_plainly(outcome, code=2, words=("`title`", "name", "product_id", "image", "price"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("train", "--epochs", "-1"), ("train.epochs", "-1")),
        (("train", "--scenario", "everything"), ("train.scenario", "everything", "dual_lora")),
        (("train", "--lr", "nan"), ("train.lr",)),
        (("search", "chair", "-k", "0"), ("0",)),
        (("clean", "run", "--backend", "magic"), ("clean.backend", "magic", "local")),
        (("doctor", "--config", "nowhere.toml"), ("nowhere.toml",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags_that_cannot_be_used(
    cli: Cli, shop: Path, args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    outcome = cli(*args, cwd=shop)
    assert outcome.code == 2
    assert "Traceback" not in outcome.stderr
    assert "error" in outcome.stderr.lower()
    assert [word for word in words if word not in outcome.stderr] == []
    assert not (shop / "work").exists()


def bomb() -> bytes:
    """A 20,000 x 20,000 PNG in some kilobytes."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(2501) * 20_000, 9)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def test_bad_rows_are_counted_with_their_reasons_and_the_others_go_on(cli: Cli, shop: Path) -> None:
    images = shop / "images"
    (images / "00001.jpg").unlink()
    (images / "00002.jpg").write_bytes((images / "00002.jpg").read_bytes()[:600])
    (images / "00003.jpg").write_text("<html>not found</html>")
    (images / "00004.jpg").write_bytes(bomb())
    lines = products(shop).read_text().splitlines()
    products(shop).write_text("\n".join([*lines, lines[6]]) + "\n")
    report = cli("prepare", "--check", "--json", cwd=shop).ok().json
    assert (report["rows"], report["usable"]) == (13, 8)
    assert set(report["reasons"]) == {
        *("missing", "truncated", "not-a-picture", "too-many-pixels", "duplicate-id"),
    }
    cli(*CLEAN, "--json", cwd=shop).ok()
    cleaned, rejected = rows(shop / "work/clean/cleaned.csv"), rows(shop / "work/clean/rejected.csv")
    assert len(cleaned) + len(rejected) == 13
    assert all(row["rejected_reason"] and row["rejected_detail"] for row in rejected)
    prepared = cli("prepare", "--json", cwd=shop).ok().json
    assert prepared["products"] == 8
    assert len(rejected) + sum(prepared["rejected"].values()) == 5


def test_an_error_with_json_asked_for_leaves_stdout_empty(cli: Cli, shop: Path) -> None:
    remove_catalogue(shop)
    outcome = cli(*CLEAN, "--json", cwd=shop)
    assert outcome.stdout == ""
    assert_told_plainly(outcome, code=1, words=("products.csv",))
