"""Embedding with damaged files, stray variables and nothing to do: rebuilt or told, never a hang."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from furnclip import vectors
from furnclip.errors import InputError
from tests.conftest import invoke
from tests.drawn_shop import write_shop
from tests.forked import Forked
from tests.test_embed import embed, prepare, table_of
from tests.test_signals import wait_for_our_code

FULL = os.environ.get("FURNCLIP_FULL") == "1"
VECTORS = "work/embeddings/master_vectors.parquet"


def run(shop: Path, *arguments: str) -> Result:
    return invoke(*arguments, "--config", shop / "furnclip.toml")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A shop with its vectors."""
    shop = write_shop(tmp_path_factory.mktemp("made") / "shop", products=12, model=tiny_clip)
    embed(shop)
    return shop


@pytest.fixture
def embedded(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "shop"))


def refused(done: Result, *words: str) -> None:
    """Check for exit 1 with these words, in two lines without a traceback."""
    assert done.exit_code == 1, done.output
    assert done.stderr.count("error: ") == done.stderr.count("hint: ") == 1
    for word in words:
        assert word in done.stderr


# --- ids


@pytest.mark.parametrize("product_id", ["-A1", "=A1", "@A1", "+A1", "'-A1", "''A", "\U0001f6cb"])
def test_ids_are_what_the_shop_wrote(shop: Path, product_id: str) -> None:
    catalogue = shop / "products.csv"
    catalogue.write_text(catalogue.read_text().replace("P00003", product_id))
    assert run(shop, "clean", "run").exit_code == 0
    embed(shop)
    assert product_id in {row["product_id"] for row in table_of(shop).products}
    quoted = product_id.replace("'", "''")
    done = run(shop, "search", "lamp", "--where", f"product_id = '{quoted}'", "--json")
    assert [hit["product_id"] for hit in json.loads(done.stdout)["hits"]] == [product_id]


# --- damaged files


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_model(table: pa.Table, **fields: Any) -> pa.Table:
    stored = json.loads(table.schema.metadata[b"furnclip"])
    stored["models"]["base"].update(fields)
    return table.replace_schema_metadata({"furnclip": json.dumps(stored)})


def replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def ragged(table: pa.Table) -> pa.Array:
    return pa.array([[0.5] * (row % 3) for row in range(len(table))], pa.list_(pa.float32()))


DAMAGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no product_id": lambda table: table.drop_columns(["product_id"]),
    "no content_hash": lambda table: table.drop_columns(["content_hash"]),
    "no vectors": lambda table: table.drop_columns(["vec_clip_base"]),
    "no image vectors": lambda table: table.drop_columns(["image_clip_base"]),
    "lists of any length": lambda table: replaced(table, "image_clip_base", ragged(table)),
    "vectors of two numbers": lambda table: replaced(
        table, "vec_clip_base", pa.array([[1.0, 0.0]] * len(table), pa.list_(pa.float32(), 2))
    ),
    "texts for vectors": lambda table: replaced(table, "vec_clip_base", pa.array(["x"] * len(table))),
    "numbers for titles": lambda table: replaced(table, "title", pa.array([1] * len(table))),
    "no metadata": lambda table: table.replace_schema_metadata(None),
    "deep metadata": lambda table: table.replace_schema_metadata({"furnclip": "[" * 5000}),
    "a dimension that is a text": lambda table: with_model(table, dimension="many"),
    "another dimension": lambda table: with_model(table, dimension=7),
    "a fingerprint that is a number": lambda table: with_model(table, fingerprint=5),
    "models of another name": lambda table: table.replace_schema_metadata(
        {"furnclip": json.dumps({"models": {"x": {}}})}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_vector_file_is_told_and_made_again(embedded: Path, damage: str) -> None:
    shop = embedded
    good = (shop / VECTORS).read_bytes()
    rewritten(shop / VECTORS, DAMAGES[damage])
    with pytest.raises(InputError, match=r"master_vectors\.parquet`"):
        vectors.VectorTable(shop / VECTORS)
    embed(shop)
    assert (shop / VECTORS).read_bytes() == good


@pytest.mark.parametrize("value", ["not hexadecimal", None, "f" * 40])
def test_hashes_of_another_shape_are_not_used_again(embedded: Path, value: str | None) -> None:
    shop = embedded
    good = (shop / VECTORS).read_bytes()
    rewritten(
        shop / VECTORS,
        lambda table: replaced(
            table.replace_schema_metadata({"furnclip": with_key(table, "another")}),
            "content_hash",
            pa.array([value] * len(table), pa.string()),
        ),
    )
    assert embed(shop)["encoded"] == {"base": 12}
    assert (shop / VECTORS).read_bytes() == good


def with_key(table: pa.Table, key: str) -> str:
    return json.dumps({**json.loads(table.schema.metadata[b"furnclip"]), "key": key})


def test_other_bytes_in_a_vector_file_are_told_or_harmless(embedded: Path) -> None:
    path = embedded / VECTORS
    good, whole = contents(path), path.read_bytes()
    chance, told = random.Random(5), 0
    for _ in range(10_000 if FULL else 100):
        content = bytearray(whole)
        start, length = chance.randrange(len(content)), chance.choice([1, 4, 200])
        content[start : start + length] = chance.choice([b"", chance.randbytes(length), b"\xff" * length])
        path.write_bytes(content)
        found = contents(path)
        told += str(path) in found
        assert found == good or str(path) in found
    assert told > 10


@pytest.mark.parametrize("place", [os.mkfifo, Path.mkdir, Path.touch, lambda path: path.symlink_to(path)])
def test_something_else_in_place_of_a_vector_file_is_told(
    embedded: Path, place: Callable[[Path], None]
) -> None:
    (embedded / VECTORS).unlink()
    place(embedded / VECTORS)
    assert "master_vectors.parquet" in contents(embedded / VECTORS)


def contents(path: Path) -> str:
    """Everything in a vector file, or the error that it causes."""
    try:
        table = vectors.VectorTable(path)
        names = [name for name in table.columns if "_clip_" in name and not name.startswith("views_")]
        numbers = [table.matrix(name).tolist() for name in names]
        return json.dumps([table.products, numbers])
    except (InputError, OSError) as error:
        return str(error)


@pytest.mark.parametrize("column", ["title", "image", "content_hash", "vec_clip_base"])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused(embedded: Path, column: str) -> None:
    shop = embedded
    table = pq.read_table(shop / VECTORS)
    if column == "vec_clip_base":
        groups, many = 1, table.take(pa.array([0] * 250_000))
    else:
        groups, many = 20, table.take(pa.array([0] * 50))
        many = replaced(many, column, pa.array(["x" * 1_000_000] * 50))
    with pq.ParquetWriter(shop / VECTORS, table.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(many)
    assert (shop / VECTORS).stat().st_size < 200_000
    with pytest.raises(InputError, match="MB of memory"):
        _ = vectors.VectorTable(shop / VECTORS).products


# --- row groups left by a kill, and what lies beside them


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A shop whose row groups are encoded, and whose vector file is not written: a kill's leftovers."""
    shop = write_shop(tmp_path_factory.mktemp("stopped") / "shop", products=12, model=tiny_clip)
    with (shop / "furnclip.toml").open("a") as settings:
        settings.write("\n[embed]\nrow_group_rows = 5\n")
    row_groups = embed(shop)["row_groups"]
    expected = (shop / VECTORS).read_bytes()
    shutil.rmtree(shop / "work/embeddings")
    (shop / "work/embeddings/master_vectors.parquet").mkdir(parents=True)  # cannot be replaced by a file
    assert run(shop, "embed").exit_code == 1
    (shop / "work/embeddings/master_vectors.parquet").rmdir()
    (shop / "expected").write_bytes(expected)
    assert len(list((shop / "work/embeddings/parts").glob("*/part-*"))) == row_groups > 2
    return shop


@pytest.fixture
def unfinished(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "shop"))


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        shortened,
        emptied,
        piped,
        lambda path: rewritten(path, lambda table: table.slice(0, len(table) - 1)),
        lambda path: rewritten(path, lambda table: table.drop_columns(["title"])),
    ],
)
def test_a_damaged_row_group_is_encoded_again(unfinished: Path, spoil: Callable[[Path], None]) -> None:
    spoil(next((unfinished / "work/embeddings/parts").glob("*/part-00001.parquet")))
    said = embed(unfinished)
    assert said["row_groups_encoded"] == 1
    assert (unfinished / VECTORS).read_bytes() == (unfinished / "expected").read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        shortened,
        emptied,
        piped,
        lambda path: path.write_text("{}"),
        lambda path: path.write_text("[" * 5000),
        lambda path: path.write_text(path.read_text().replace('"dimension": 32', '"dimension": 16')),
        lambda path: path.write_text(path.read_text().replace('"base"', '"finetuned"')),
    ],
)
def test_a_damaged_plan_is_made_again(unfinished: Path, spoil: Callable[[Path], None]) -> None:
    spoil(next((unfinished / "work/embeddings/parts").glob("*/plan.json")))
    embed(unfinished)
    assert (unfinished / VECTORS).read_bytes() == (unfinished / "expected").read_bytes()


@pytest.mark.parametrize("line", ['{"x": 1}', '{"event": 5}', '{"event": ["begun"]}'])
def test_foreign_lines_in_the_journal_do_no_harm(unfinished: Path, line: str) -> None:
    with (unfinished / "work/embeddings/journal-0.jsonl").open("a") as file:
        file.write(line + "\n")
    embed(unfinished)


@pytest.mark.parametrize("spoil", [piped, lambda path: path.write_text("[]\n{}\n")])
def test_a_damaged_journal_is_told(unfinished: Path, spoil: Callable[[Path], None]) -> None:
    spoil(unfinished / "work/embeddings/journal-0.jsonl")
    refused(run(unfinished, "embed"), "journal-0.jsonl")


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "8"},
        {"RANK": "first", "WORLD_SIZE": ""},
        {"RANK": "3", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"},
        {"LOCAL_RANK": "1", "SLURM_PROCID": "1", "WORLD_SIZE": "-1"},
    ],
)
def test_stray_variables_of_a_launcher_do_not_make_it_wait(
    shop: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert embed(shop)["products"] == 12


@pytest.mark.parametrize("setting", ["BATCH_SIZE", "ROW_GROUP_ROWS"])
def test_counts_beyond_any_catalogue_are_all_of_it(
    shop: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv(f"FURNCLIP_EMBED__{setting}", "9" * 25)
    assert embed(shop)["products"] == 12


# --- Ctrl-C


@pytest.mark.parametrize("command", [("embed",), ("search", "lamp")])
def test_an_interrupt_at_any_moment_is_one_line(shop: Path, command: tuple[str, ...]) -> None:
    embed(shop) if command[0] == "search" else prepare(shop)
    start = time.monotonic()
    interrupted(shop, command, after_s=300)
    whole_s = time.monotonic() - start
    moments = 25 if FULL else 4
    for moment in range(moments):
        flags = ["--json"] * (moment % 2)
        code, stdout, stderr = interrupted(
            shop, (*command, *flags), after_s=whole_s * (moment + 0.5) / moments
        )
        assert code in (130, 0), (code, stderr)
        assert "Traceback" not in stdout + stderr
        assert stderr.count("error: ") == (1 if code else 0), stderr
        if command[0] == "embed":
            shutil.rmtree(shop / "work/embeddings", ignore_errors=True)


def interrupted(shop: Path, command: tuple[str, ...], *, after_s: float) -> tuple[int, str, str]:
    """Exit code and output of a command that gets SIGINT so long after its first line, or ends before.

    What happens while Python and the libraries are loaded is in `test_signals.py`.
    """
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        process = Forked(command, shop, os.environ, stdout, stderr)
        wait_for_our_code(process)
        try:
            code = process.wait(after_s)
        except TimeoutError:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        said = []
        for file in (stdout, stderr):
            file.seek(0)
            said.append(file.read().decode())
    return code, said[0], said[1]
