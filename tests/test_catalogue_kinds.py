"""Catalogues as other programs write them: one test family for each kind of trouble."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from furnclip.catalogue import REJECT_COLUMNS, original_column, read_rows, sheet_text, uncleaned_rows
from furnclip.config import Config, load_config
from tests.conftest import Cli
from tests.drawn_shop import write_shop

HEADER = "product_id,title,image\n"


@pytest.fixture
def shop_folder(tmp_path: Path) -> Callable[..., Config]:
    """Writes a catalogue, `cleaned.csv` and `rejected.csv`; None leaves a file out."""

    def write(products: str | None, cleaned: str | None, rejected: str | None = None) -> Config:
        config_path = tmp_path / "furnclip.toml"
        config_path.touch()
        config = load_config(config_path)
        paths = config.paths
        paths.clean.mkdir(parents=True)
        files = {paths.products: products, paths.cleaned: cleaned, paths.clean / "rejected.csv": rejected}
        for path, text in files.items():
            if text is not None:
                path.write_text(HEADER + text)
        return config

    return write


@pytest.mark.parametrize(
    ("products", "cleaned", "rejected", "missing"),
    [
        ("1,a,a\n2,b,b\n3,c,c\n", "1,a,a\n", "2,b,b\n", 1),
        ("1,a,a\n2,b,b\n", "1,a,a\n2,b,b\n", None, 0),
        ("1,a,a\n1,b,b\n1,c,c\n", "1,a,a\n", "1,b,b\n", 1),  # an id that is there three times, judged twice
        ("1,a,a\n,b,b\n,c,c\n", "1,a,a\n", ",b,b\n", 1),  # rows without an id
        ("1,a,a\n2,b\n3,c\n", "1,a,a\n", "2,b,\n", 1),  # a damaged row keeps its id
        ("1,a,a\n", "1,a,a\n9,gone,z\n", "8,gone,z\n", 0),  # rows that left the catalogue do not count
        ("1,a,a\n2,b,b\n", None, None, 0),  # nothing was cleaned: the raw catalogue is read
        (None, "1,a,a\n", None, 0),
    ],
)
def test_rows_that_were_never_cleaned_are_counted(
    shop_folder: Callable[..., Config],
    products: str | None,
    cleaned: str | None,
    rejected: str | None,
    missing: int,
) -> None:
    assert uncleaned_rows(shop_folder(products, cleaned, rejected)) == missing


# --- cells that a spreadsheet would run


SHEET_CELLS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
    st.text("'=+-@\t\r\n1.a", max_size=6),
)


@given(st.lists(st.tuples(SHEET_CELLS, SHEET_CELLS), min_size=1, max_size=6))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_our_sheets_are_safe_to_open_and_come_back_as_they_were(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path / "sheet.csv"
    path.write_bytes(
        sheet_text([("id", "title", *REJECT_COLUMNS), *((*row, "", "") for row in rows)]).encode()
    )
    with path.open(newline="", encoding="utf-8") as file:
        written = [cell for row in list(csv.reader(file))[1:] for cell in row]
    assert not [cell for cell in written if cell[:1] in tuple("=@\t\r\n")]
    assert all(float(cell.replace(",", "")) is not None for cell in written if cell[:1] in tuple("+-"))
    assert [tuple(row.values())[:2] for row in read_rows(path)[1]] == rows


def json_members(path: Path) -> list[dict[str, Any]]:
    """The JSON of every sample of a shard."""
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".json")]
        return [json.loads(tar.extractfile(member).read()) for member in members]  # type: ignore[union-attr]


@pytest.mark.parametrize("ids", [("-A1", "'-A1"), ("=1+2", "''=1+2"), ("@home", "+49 30"), ("-12", "'-12")])
def test_ids_that_look_like_formulas_reach_the_shards_as_they_are(
    cli: Cli, tmp_path: Path, ids: tuple[str, str]
) -> None:
    shop = write_shop(tmp_path / "shop", products=2, model=Path("furnclip-tiny"))
    table = list(csv.DictReader((shop / "products.csv").read_text().splitlines()))
    with (shop / "products.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*table[0], "=SUM(A1)"])
        writer.writeheader()
        writer.writerows(
            {**row, "product_id": id, "=SUM(A1)": id} for row, id in zip(table, ids, strict=True)
        )
    cli("clean", "run", "--backend", "local", cwd=shop).ok()
    with (shop / "work/clean/cleaned.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert "'=SUM(A1)" in header
    cli("prepare", cwd=shop).ok()
    samples = [sample for tar in (shop / "work/shards").glob("[!m]*/*.tar") for sample in json_members(tar)]
    assert {sample["product_id"] for sample in samples} == set(ids)
    assert {sample["fields"]["=SUM(A1)"] for sample in samples} == set(ids)


@pytest.mark.parametrize("name", ["style", "raw_style", "clean_title", "raw_raw_color", "rejected_reason"])
def test_columns_that_have_the_names_of_ours_are_kept_apart(cli: Cli, tmp_path: Path, name: str) -> None:
    shop = write_shop(tmp_path / "shop", products=2, model=Path("furnclip-tiny"))
    text = (shop / "products.csv").read_text().replace("title", name, 1).replace("price", "style_raw", 1)
    (shop / "products.csv").write_text(text)
    with (shop / "furnclip.toml").open("a") as file:
        file.write(f'[paths]\ntitle_column = "{name}"\n')
    cli("clean", "run", cwd=shop).ok()
    checked = cli("prepare", "--check", "--json", cwd=shop).ok()
    assert checked.json["usable"] == 2
    with (shop / "work/clean/cleaned.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert len(set(header)) == len(header)
    renamed = header[1]
    assert renamed == f"raw_{name}"
    assert original_column(renamed) == name
