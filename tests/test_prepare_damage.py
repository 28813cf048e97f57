"""Damaged files of `prepare`, files in the way, other disks: a clear error about that file, or rebuilt."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from furnclip.errors import InputError, StorageError
from furnclip.shards import ShardDataset, read_manifest
from tests.conftest import Outcome, run_cli, run_here
from tests.prepare_shop import Shop, read_assignments
from tests.small_disk import small_disk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    settings: dict[str, object] = {"image_px": 32, "workers": 1, "shard_samples": 20}
    shop = Shop(tmp_path_factory.mktemp("made") / "shop", settings=settings)
    shop.add(range(30))
    shop.prepared()
    return shop


@pytest.fixture
def store(made: Shop, tmp_path: Path) -> Shop:
    return Shop(Path(shutil.copytree(made.folder, tmp_path / "shop")), [*made.rows], made.settings)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """That of a small shop."""
    shop = Shop(tmp_path_factory.mktemp("shop"), settings={"image_px": 32, "workers": 1})
    shop.add(range(12))
    shop.prepared()
    value: dict[str, Any] = json.loads((shop.shards / "manifest.json").read_text())
    return value


def run(store: Shop, *arguments: str) -> Outcome:
    return run_here("prepare", *arguments, cwd=store.folder)


def run_apart(store: Shop, *arguments: str) -> Outcome:
    """`furnclip prepare` as a process that may not hang."""
    return run_cli("prepare", *arguments, cwd=store.folder, timeout_s=60)


def assert_two_lines(done: Outcome, name: str) -> None:
    error, hint = done.stderr.splitlines()
    assert done.code == 1
    assert error.startswith("error: ")
    assert name in error
    assert hint.startswith("hint: ")


# --- the manifest

Change = Callable[[dict[str, Any]], object]
MANIFEST_DAMAGE: dict[str, Change] = {
    "splits null": lambda value: value.update(splits=None),
    "split null": lambda value: value["splits"].update(train=None),
    "split gone": lambda value: value["splits"].pop("test"),
    "no samples": lambda value: value["splits"]["train"].update(samples=None),
    "too many samples": lambda value: value["splits"]["train"].update(samples=10**6),
    "groups": lambda value: value["splits"]["train"].update(groups=10**6),
    "shards a word": lambda value: value["splits"]["train"].update(shards="all"),
    "shard null": lambda value: value["splits"]["train"]["shards"].__setitem__(0, None),
    "negative": lambda value: value["splits"]["train"]["shards"][0].update(samples=-1),
    "count as text": lambda value: value["splits"]["train"]["shards"][0].update(samples="12"),
    "hash a number": lambda value: value["splits"]["train"]["shards"][0].update(sha256=7),
    "absolute": lambda value: value["splits"]["train"]["shards"][0].update(name="/etc/shard.tar"),
    "leads out": lambda value: value["splits"]["train"]["shards"][0].update(name="../../shard.tar"),
    "leads out inside": lambda value: value["splits"]["train"]["shards"][0].update(name="train/../../s.tar"),
    "drive": lambda value: value["splits"]["train"]["shards"][0].update(name="C:\\shard.tar"),
    "attributes a list": lambda value: value["splits"]["train"].update(attributes=[]),
    "data hash null": lambda value: value.update(data_hash=None),
    "other format": lambda value: value.update(format=99),
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGE)
def test_a_damaged_manifest_is_named(manifest: dict[str, Any], tmp_path: Path, damage: str) -> None:
    value = copy.deepcopy(manifest)
    MANIFEST_DAMAGE[damage](value)
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    for read in (lambda: read_manifest(tmp_path), lambda: ShardDataset(tmp_path, "train")):
        with pytest.raises(InputError, match=r"manifest\.json` is damaged") as caught:
            read()
        assert "furnclip prepare" in caught.value.hint


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", '{"format": 1', "[" * 100_000, "\udcff"])
def test_a_manifest_that_is_no_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=r"manifest.*manifest\.json` is ") as caught:
        read_manifest(tmp_path)
    assert "furnclip prepare" in caught.value.hint


@pytest.mark.parametrize("damage", ["splits null", "too many samples", "absolute", "no samples"])
def test_a_damaged_manifest_is_written_again(store: Shop, damage: str) -> None:
    path, before = store.shards / "manifest.json", store.hashes()
    value = json.loads(path.read_text())
    MANIFEST_DAMAGE[damage](value)
    path.write_text(json.dumps(value))
    store.prepared()
    assert store.hashes() == before


def test_a_shard_outside_is_not_opened(store: Shop) -> None:
    """A manifest from a stranger may name anything, a FIFO that would hang as well."""
    os.mkfifo(store.folder / "trap.tar")
    path = store.shards / "manifest.json"
    value = json.loads(path.read_text())
    value["splits"]["test"]["shards"][0]["name"] = str(store.folder / "trap.tar")
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="cannot be the name of a shard"):
        read_assignments(store.shards)


# --- the index of a shard


def without_column(table: pyarrow.Table) -> pyarrow.Table:
    return table.drop_columns(["product_id"])


def shorter(table: pyarrow.Table) -> pyarrow.Table:
    return table.slice(0, table.num_rows - 1)


def other_type(table: pyarrow.Table) -> pyarrow.Table:
    words = pyarrow.array(["far away"] * table.num_rows)
    return table.set_column(table.schema.get_field_index("offset"), "offset", words)


def with_nulls(table: pyarrow.Table) -> pyarrow.Table:
    nothing = pyarrow.nulls(table.num_rows, pyarrow.string())
    return table.set_column(table.schema.get_field_index("product_id"), "product_id", nothing)


def longer(table: pyarrow.Table) -> pyarrow.Table:
    return pyarrow.concat_tables([table, table])


@pytest.mark.parametrize("damage", [without_column, shorter, longer, other_type, with_nulls])
def test_a_damaged_index_is_named_and_rebuilt(
    store: Shop, damage: Callable[[pyarrow.Table], pyarrow.Table]
) -> None:
    before = store.hashes()
    index = next((store.shards / "train").glob("*.parquet"))
    table = pyarrow.parquet.read_table(index)
    changed = damage(table).replace_schema_metadata(table.schema.metadata)
    pyarrow.parquet.write_table(changed, index)
    with pytest.raises(StorageError, match=rf"{index.name}` is damaged") as caught:
        list(ShardDataset(store.shards, "train"))
    assert "--rebuild" in caught.value.hint
    assert run(store).code == 0
    if damage in (other_type, with_nulls):  # only a reader of the columns sees it; this run read none
        assert run(store, "--rebuild").code == 0
    assert store.hashes() == before


@pytest.mark.parametrize("about", [b"", b"null", b'{"content": "x", "bytes": null}'])
def test_an_index_that_says_nonsense_about_its_shard_is_rebuilt(store: Shop, about: bytes) -> None:
    before = store.hashes()
    index = next((store.shards / "train").glob("*.parquet"))
    table = pyarrow.parquet.read_table(index).replace_schema_metadata({"furnclip.shard": about})
    pyarrow.parquet.write_table(table, index)
    assert run(store).code == 0
    assert store.hashes() == before


@pytest.mark.parametrize(
    ("column", "value"), [("offset", -512), ("offset", 2**60), ("jpg_bytes", 2**31 - 1), ("json_bytes", -1)]
)
def test_a_place_outside_of_the_shard_is_damage(store: Shop, column: str, value: int) -> None:
    index = next((store.shards / "train").glob("*.parquet"))
    table = pyarrow.parquet.read_table(index)
    at, kind = table.schema.get_field_index(column), table.schema.field(column).type
    changed = table.set_column(at, column, pyarrow.array([value] * table.num_rows, kind))
    pyarrow.parquet.write_table(changed, index)
    with pytest.raises(StorageError, match="lies outside of it"):
        list(ShardDataset(store.shards, "train"))


# --- the assignments, which must never be taken for a fresh start


def assignments_without(column: str) -> Callable[[pyarrow.Table], pyarrow.Table]:
    return lambda table: table.drop_columns([column])


def assignments_with(column: str, value: object) -> Callable[[pyarrow.Table], pyarrow.Table]:
    def change(table: pyarrow.Table) -> pyarrow.Table:
        at, kind = table.schema.get_field_index(column), table.schema.field(column).type
        return table.set_column(at, column, pyarrow.array([value] * table.num_rows, kind))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        assignments_without("split"),
        assignments_without("key"),
        assignments_with("split", None),
        assignments_with("split", "holdout"),
        assignments_with("group", None),
    ],
)
def test_damaged_assignments_are_named(store: Shop, damage: Callable[[pyarrow.Table], pyarrow.Table]) -> None:
    path = store.shards / "assignments.parquet"
    pyarrow.parquet.write_table(damage(pyarrow.parquet.read_table(path)), path)
    assert_two_lines(run(store), "assignments.parquet")


# --- the cache: rebuilt, or named with the way to rebuild it


def garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def other_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE samples")
        database.execute("CREATE TABLE samples (name TEXT)")
        database.commit()


def other_image(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE samples SET images = x'FFD8'")
        database.commit()


@pytest.mark.parametrize("damage", [garbage, emptied, halved, fifo, other_tables, other_image])
def test_a_damaged_cache_is_rebuilt_or_named(store: Shop, damage: Callable[[Path], None]) -> None:
    before = store.hashes()
    path = next((store.folder / "work/cache/prepare").glob("samples-*"))
    damage(path)
    shutil.rmtree(store.shards / "train")  # so that the samples are needed
    done = run_apart(store)
    if done.code:
        assert_two_lines(done, path.name)
        assert "furnclip prepare --rebuild" in done.stderr
        done = run_apart(store, "--rebuild")
    assert done.code == 0, done.stderr
    assert store.hashes() == before


# --- a FIFO in place of a file


@pytest.mark.parametrize(
    ("name", "survives"),
    [
        ("shards/manifest.json", True),
        ("shards/rejected.csv", True),
        ("shards/assignments.parquet", False),
        ("shards/train/shard-000000.tar", True),
        ("shards/train/shard-000000.parquet", True),
    ],
)
def test_a_fifo_in_place_of_a_file_does_not_hang(store: Shop, name: str, survives: bool) -> None:
    before = store.hashes()
    path = store.folder / "work" / name
    path.unlink()
    os.mkfifo(path)
    done = run_apart(store)
    if survives:
        assert done.code == 0, done.stderr
        assert store.hashes() == before
    else:
        assert_two_lines(done, path.name)


@pytest.mark.parametrize("name", ["train/shard-000000.tar", "train/shard-000000.parquet", "manifest.json"])
def test_a_reader_of_a_fifo_does_not_hang(store: Shop, name: str) -> None:
    (store.shards / name).unlink()
    os.mkfifo(store.shards / name)
    script = (
        "import sys\nfrom pathlib import Path\nfrom furnclip.errors import FurnclipError\n"
        "from furnclip.shards import ShardDataset\n"
        "try:\n    list(ShardDataset(Path(sys.argv[1]), 'train'))\n"
        "except FurnclipError as error:\n    print(error.message)"
    )
    command = [sys.executable, "-c", script, str(store.shards)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert Path(name).name in done.stdout


# --- other disks


@pytest.mark.parametrize(
    ("elsewhere", "by"),
    [
        ("cache", "mount"),
        ("cache", "link"),
        ("cache/prepare", "link"),
        ("shards", "link"),
        ("shards/train", "link"),
    ],
)
def test_a_folder_of_work_may_lie_on_another_disk(tmp_path: Path, elsewhere: str, by: str) -> None:
    wanted, store = (
        Shop(tmp_path / name, settings={"image_px": 32, "workers": 1, "shard_samples": 10})
        for name in ("wanted", "store")
    )
    for shop in (wanted, store):
        shop.add(range(30))
    wanted.prepared()
    folder = store.folder / "work" / elsewhere
    folder.parent.mkdir(parents=True)
    disk = folder if by == "mount" else tmp_path / "disk"
    with small_disk(disk, 10_000):
        if by == "link":
            folder.symlink_to(disk)
        store.prepared()
        assert store.hashes() == wanted.hashes()
        store.add(range(30, 36))
        store.prepared()
        wanted.add(range(30, 36))
        wanted.prepared()
        assert store.hashes() == wanted.hashes()
        store.prepared("--rebuild")
        assert store.hashes() == wanted.hashes()


@pytest.mark.parametrize("full", ["work", "work/cache", "work/shards", "work/shards/train"])
def test_a_full_disk_is_named_with_its_folder(tmp_path: Path, full: str) -> None:
    store = Shop(tmp_path / "store", settings={"image_px": 64, "workers": 1, "shard_samples": 10})
    store.add(range(60))
    store.write()
    folder = store.folder / full
    with small_disk(folder, 40) as resize:
        done = run_apart(store)
        assert_two_lines(done, f"the disk `{folder}` is full: no room in `{folder}")
        assert "free some space" in done.stderr
        resize(10_000)
        assert run_apart(store).code == 0
