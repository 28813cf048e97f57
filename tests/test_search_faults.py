"""Searching with whatever people type, filter by and point at: an answer or two clear lines, never a hang."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest

from furnclip import Searcher
from furnclip.config import load_config
from furnclip.errors import FurnclipError, InputError, ModelMismatchError, StorageError, UsageError
from tests.conftest import Cli
from tests.drawn_shop import write_shop
from tests.s3_server import CREDENTIALS, s3_server
from tests.test_embed import embed
from tests.test_search import clean, run

FULL = os.environ.get("FURNCLIP_FULL") == "1"
MODES = ("vector", "keyword", "hybrid")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    shop = write_shop(tmp_path_factory.mktemp("faults") / "shop", products=30, model=tiny_clip)
    clean(shop)
    embed(shop)
    return shop


@pytest.fixture(scope="module")
def searcher(embedded: Path) -> Searcher:
    return Searcher(load_config(embedded / "furnclip.toml"))


@pytest.fixture
def copy(embedded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded, tmp_path / "copy"))


# --- any text is a query


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", [None, "color <> 'plaid'"])
@pytest.mark.parametrize(
    "text",
    [
        '"red chair"',
        '"',
        "red AND (chair OR",
        "title:red* +oak -bed ~2 ^3",
        "!?...",
        "\U0001f6cb\ufe0f sofa",
        "red\0chair",
        "\x1b[31mred",
        "red \udce9",
        "oak " * 50_000,
        "x" * 300_000,
    ],
)
def test_any_text_is_a_query(searcher: Searcher, text: str, where: str | None, mode: Any) -> None:
    assert len(searcher.search(text, mode=mode, where=where, k=3)) <= 3
    assert len(searcher.search("red chair", mode=mode, where=where, exclude=[text[:150]], k=3)) <= 3


def test_quotes_do_not_change_what_words_find(searcher: Searcher) -> None:
    plain = searcher.search("velvet lamp", mode="keyword", k=3)
    assert plain
    assert searcher.search('"velvet lamp"', mode="keyword", k=3) == plain


def test_a_text_that_is_cut_is_told(embedded: Path) -> None:
    done = run(embedded, "red " * 1000, "-k", "1")
    assert done.exit_code == 0
    assert "of a text of 3999 characters the first 2000 are used" in done.stderr


# --- filters


@pytest.mark.parametrize(
    "where",
    [
        "color = 'red'",
        "COLOR == 'red' and `material` <> 'oak'",
        "\"color\" IN ('red', 'blue') OR group IS NOT NULL",
        "NOT (lower(color) LIKE 'R%' OR title ILIKE '%children''s%')",
        "length(title) > 3 AND color NOT BETWEEN 'a' AND 'b'",
        "trim(upper_case) = 'x' OR 1 = 1",
        "product_id IN (" + ", ".join(f"'P{number:05d}'" for number in range(5000)) + ")",
        " OR ".join(["color = 'red'"] * 400),
    ],
)
def test_filters_that_are_allowed(searcher: Searcher, where: str) -> None:
    if "upper_case" in where:
        with pytest.raises(UsageError, match="there is no column `upper_case`"):
            searcher.search("chair", where=where)
        return
    assert isinstance(searcher.search("chair", where=where), list)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("repeat(title, 1000000000) = 'x'", "there is no function `repeat`"),
        ("lowr(title) = 'x'", "did you mean `lower`?"),
        ("color = ?", "`?` is not possible there"),
        ("color = $1", "there is no column `$1`"),
        ("color = 'red') OR (1 = 1", "`)` is not expected"),
        ("(color = 'red'", "`)` is missing after `'red'`"),
        ("color = 'red'; drop table index", "`drop` is not expected"),
        ("color = 'red' -- or not", "is missing after `or`"),
        ("color IN (SELECT color FROM t)", "SELECT"),
        ("color = 'red' || 'x'", "'red' || 'x'` is not possible there"),
        ("title = 'children's bed'", "is never closed"),
        ("color = 5", "`color` is a text and `5` is a number"),
        ("color = NULL", "`column IS NULL`"),
        ("color", "it needs a comparison"),
        ("keywords = 'x'", "there is no column `keywords`"),
        ("NOT " * 50 + "color = 'red'", "lie inside each other"),
        ("(" * 10_000, "lie inside each other"),
        (" OR ".join(["color = 'red'"] * 1000), "more than 500 conditions"),
        ("color = '" + "x" * 200_000 + "'", "more than 100000"),
        ("color = '\udce9'", "not UTF-8"),
    ],
)
def test_filters_that_are_refused_by_what_is_wrong(searcher: Searcher, where: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        searcher.search("chair", where=where, exclude=["oak"])
    assert message in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    "where", ["1 = 1", "material = 'oak' OR 1 = 1", "(material = 'oak')", "NOT color = ''"]
)
def test_no_filter_brings_back_what_was_excluded(searcher: Searcher, where: str) -> None:
    hits = searcher.search("oak chair", where=where, exclude=["oak"], k=30)
    assert not any(hit.material == "oak" for hit in hits)


@pytest.mark.parametrize(("k", "hits"), [("1", 1), ("31", 30), ("9223372036854775807", 30), ("9" * 25, 30)])
def test_a_large_k_is_every_product(embedded: Path, k: str, hits: int) -> None:
    done = run(embedded, "chair", "--mode", "vector", "-k", k, "--all-variants", "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["hits"]) == hits


@pytest.mark.parametrize("k", ["0", "-1", "1e3", "ten"])
def test_a_k_that_is_no_count_is_refused(embedded: Path, searcher: Searcher, k: str) -> None:
    done = run(embedded, "chair", "-k", k)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    with pytest.raises(UsageError, match="`k` cannot be 0"):
        searcher.search("chair", k=0)


WORDS = [
    "color",
    "title",
    "colour",
    "'red'",
    "'o''k'",
    "5",
    "-2.5",
    "=",
    "<>",
    "<",
    "LIKE",
    "IN",
    "(",
    ")",
    ",",
]
WORDS += [
    "AND",
    "OR",
    "NOT",
    "IS",
    "NULL",
    "BETWEEN",
    "lower",
    "repeat",
    '"',
    "'",
    "`",
    "?",
    ";",
    "--",
    "TRUE",
    "%",
]
WORDS += [
    "\0",
    "\U0001f6cb",
    "\udce9",
    "\n",
    "1e999",
    "9" * 40,
    "vec_clip_base",
    "SELECT",
    "CAST",
    "::",
    "[",
    "{",
]
SEEDS = [
    "color = 'red'",
    "lower(title) LIKE '%oak%' AND NOT (style IS NULL OR color IN ('a', 'b'))",
    '"red" chair',
]


def mutated(chance: random.Random) -> str:
    """One of the seeds after a few insertions, deletions and repetitions of words and characters."""
    words = chance.choice(SEEDS).split(" ")
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(words) + 1)
        action = chance.randrange(4)
        if action == 0:
            words.insert(place, chance.choice(WORDS))
        elif action == 1 and words:
            words.pop(place - 1)
        elif action == 2:
            words[place:place] = words[: chance.randint(1, 4)]
        else:
            words = list(" ".join(words[:place]) + chr(chance.choice([chance.randrange(128), 0x202E])))
            words = "".join(words).split(" ") + words[place:]
    return " ".join(words)


def test_mutated_queries_and_filters_are_answered_or_refused(searcher: Searcher) -> None:
    chance, answered, refused, slowest_s = random.Random(13), 0, 0, 0.0
    for _ in range(10_000 if FULL else 100):
        text, where, excluded = mutated(chance), mutated(chance), mutated(chance)
        start = time.monotonic()
        try:
            searcher.search(text, mode=chance.choice(MODES), where=where, exclude=[excluded], k=3)
            answered += 1
        except UsageError:
            refused += 1
        slowest_s = max(slowest_s, time.monotonic() - start)
    assert answered
    assert refused
    assert slowest_s < 20


# --- where the table lies


class _Denying(BaseHTTPRequestHandler):
    """A server that knows the credentials and forbids everything."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def denying() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Denying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def remote(shop: Path, monkeypatch: pytest.MonkeyPatch, endpoint_url: str, *, index: str = "") -> Searcher:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    storage = {"endpoint_url": endpoint_url, "region": "us-east-1"}
    flags = {"search": {"index": index or "s3://furnclip-none/index.lance"}, "storage": storage}
    return Searcher(load_config(shop / "furnclip.toml", flags))


@pytest.mark.parametrize("endpoint_url", ["127.0.0.1:9", "localhost", "ftp://127.0.0.1", "s3.example.com/x"])
def test_an_address_without_http_is_told(
    embedded: Path, monkeypatch: pytest.MonkeyPatch, endpoint_url: str
) -> None:
    with pytest.raises(UsageError, match=r"storage\.endpoint_url"):
        remote(embedded, monkeypatch, endpoint_url)


@pytest.mark.parametrize(
    "index", ["s3://index.lance", "s3:///x/index.lance", "gs://b/index.lance", "db://x.lance"]
)
def test_a_table_of_another_kind_of_address_is_refused(
    embedded: Path, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    with pytest.raises(InputError, match=r"`search\.index` cannot be"):
        remote(embedded, monkeypatch, "http://127.0.0.1:9", index=index)


def test_a_server_that_does_not_answer_is_told(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="cannot reach"):
        remote(embedded, monkeypatch, "http://127.0.0.1:9")


def test_a_bucket_that_is_forbidden_or_missing_is_told(
    embedded: Path, monkeypatch: pytest.MonkeyPatch, denying: str
) -> None:
    with pytest.raises(StorageError, match="no permission"):
        remote(embedded, monkeypatch, denying)
    with s3_server() as server, pytest.raises(StorageError, match="there is no bucket `furnclip-none`"):
        remote(embedded, monkeypatch, server)


def test_a_bucket_without_credentials_is_told_by_the_command(embedded: Path, cli: Cli) -> None:
    env = {"FURNCLIP_SEARCH__INDEX": "s3://furnclip-none/index.lance"}
    for command in (("search", "sofa"), ("embed",)):
        outcome = cli(
            *command, cwd=embedded, env={**env, "FURNCLIP_STORAGE__ENDPOINT_URL": "http://127.0.0.1:9"}
        )
        assert outcome.code == 1
        assert "error: there are no credentials for the bucket" in outcome.stderr
        assert "Traceback" not in outcome.stderr


# --- a damaged table, a stranger's table


def rewritten(shop: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """The search table after `change`."""
    database = lancedb.connect(shop / "work")
    database.create_table("index", change(database.open_table("index").to_arrow()), mode="overwrite")


def with_metadata(table: pa.Table, **fields: Any) -> pa.Table:
    stored = json.loads(table.schema.metadata[b"furnclip"])
    changed = json.dumps({**stored, **fields})
    return table.replace_schema_metadata({**table.schema.metadata, b"furnclip": changed})


DAMAGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no details": lambda table: table.drop_columns(["details"]),
    "no keywords": lambda table: table.drop_columns(["keywords"]),
    "no title": lambda table: table.drop_columns(["title"]),
    "no vectors": lambda table: table.drop_columns(["vec_clip_base"]),
    "shorter": lambda table: table.slice(0, 7),
    "shorter vectors": lambda table: table.set_column(
        table.schema.get_field_index("vec_clip_base"),
        "vec_clip_base",
        pa.array([[1.0, 0.0]] * len(table), pa.list_(pa.float32(), 2)),
    ),
    "numbers for texts": lambda table: table.set_column(1, "title", pa.array([1] * len(table))),
    "details that are no JSON": lambda table: table.set_column(
        table.schema.get_field_index("details"), "details", pa.array(["{"] * len(table))
    ),
    "details without a field": lambda table: table.set_column(
        table.schema.get_field_index("details"), "details", pa.array(['{"title": 1}'] * len(table))
    ),
    "no words": lambda table: table.replace_schema_metadata({"furnclip": table.schema.metadata[b"furnclip"]}),
    "words of another kind": lambda table: table.replace_schema_metadata(
        {**table.schema.metadata, b"furnclip_words": b"eA=="}
    ),
    "no metadata": lambda table: table.replace_schema_metadata(None),
    "metadata of another type": lambda table: table.replace_schema_metadata({"furnclip": "[" * 5000}),
    "no models": lambda table: with_metadata(table, models={}),
    "a model without a name": lambda table: with_metadata(table, models={"base": {"dimension": 32}}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_told_and_made_anew(copy: Path, damage: str) -> None:
    rewritten(copy, DAMAGES[damage])
    done = run(copy, "chair", "--mode", "vector")
    assert done.exit_code == 1, done.output
    assert "index.lance` " in done.stderr
    assert "furnclip embed" in done.stderr
    if "JSON" not in damage and "field" not in damage:
        embed(copy)
        assert run(copy, "chair").exit_code == 0


@pytest.mark.parametrize("place", ["folder", "file", "fifo", "data"])
def test_a_table_that_is_something_else_is_told(copy: Path, place: str) -> None:
    index = copy / "work/index.lance"
    if place == "data":
        for path in (index / "data").iterdir():
            path.write_bytes(path.read_bytes()[:100])
    else:
        shutil.rmtree(index)
        {"folder": index.mkdir, "file": lambda: index.write_text("x"), "fifo": lambda: os.mkfifo(index)}[
            place
        ]()
    with pytest.raises(FurnclipError):
        Searcher(load_config(copy / "furnclip.toml")).search("chair")


@pytest.mark.parametrize("name", ["stranger/model", "/tmp/stranger", "../stranger", "stranger"])
def test_a_model_that_only_the_table_names_is_not_loaded(copy: Path, name: str) -> None:
    def foreign(table: pa.Table) -> pa.Table:
        model = json.loads(table.schema.metadata[b"furnclip"])["models"]["base"] | {"name": name}
        for kind in ("vec", "image"):
            table = table.append_column(f"{kind}_clip_finetuned", table[f"{kind}_clip_base"])
        return with_metadata(table, models={"finetuned": model})

    rewritten(copy, foreign)
    with pytest.raises(ModelMismatchError, match="is no run under") as refused:
        Searcher(load_config(copy / "furnclip.toml"))
    assert "--run" in refused.value.hint
