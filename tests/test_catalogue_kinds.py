"""Catalogues as other programs write them: one test family for each kind of trouble."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from furnclip.catalogue import (
    REJECT_COLUMNS,
    Product,
    Rejection,
    read_products,
    read_records,
    sheet_text,
    uncleaned_rows,
)
from furnclip.config import Config, DataPaths, load_config
from furnclip.errors import ConfigError, InputError
from furnclip.images import BrokenImage
from furnclip.sources import FoundImage, ShopImages
from tests.conftest import Cli, run_cli, run_here
from tests.drawn_shop import write_shop

HEADER = "product_id,title,image\n"
PATHS = DataPaths()


@pytest.fixture
def cli() -> Cli:
    """In this process: what is read does not depend on it."""
    return run_here


def rows_of(path: Path) -> list[dict[str, str]]:
    return [record.fields for record in read_records(path)[1]]


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
    assert uncleaned_rows(shop_folder(products, cleaned, rejected).paths) == missing


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
    assert [tuple(row.values())[:2] for row in rows_of(path)] == rows


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


# --- open quotes


def found(path: Path, paths: DataPaths = PATHS) -> dict[str, Product | Rejection]:
    return {row.product_id: row for row in read_products(path, paths)}


OPEN_QUOTES = {
    # name -> titles of the rows A1, A2 ... as they stand in the file
    "never closed": ['"Oslo sofa', "Iron lamp", "Blue vase", "Oak table"],
    "up to an inch sign within a cell": ["Iron lamp", '"Oslo sofa', "Blue vase", '24" stool'],
    "up to an inch sign at the end of a cell": ['"Oslo sofa', "Iron lamp", "Blue vase", 'Table 60"'],
    "up to a quoted cell": ['"Oslo sofa', "Iron lamp", '"Blue, round vase"', "Oak table"],
    "up to another open quote": ['"Oslo sofa', "Iron lamp", '"Blue vase', "Oak table"],
    "in the last row": ["Iron lamp", "Blue vase", "Oak table", '"Oslo sofa'],
    "round a word": ['"L" shaped desk', "Iron lamp", '"Oslo" and "Bergen"', "Oak table"],
}


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("titles", OPEN_QUOTES.values(), ids=list(OPEN_QUOTES))
def test_an_open_quote_swallows_no_product(tmp_path: Path, delimiter: str, titles: list[str]) -> None:
    path = tmp_path / "products.csv"
    rows = [
        ("product_id", "title", "image"),
        *((f"A{n}", title, f"p{n}.jpg") for n, title in enumerate(titles)),
    ]
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    rows_found = found(path)
    assert list(rows_found) == [f"A{n}" for n in range(4)]
    assert {row.images for row in rows_found.values() if isinstance(row, Product)} == {
        (f"p{n}.jpg",) for n in range(4)
    }


@given(st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_mixture_of_quotes_loses_a_product(tmp_path: Path, data: st.DataObject) -> None:
    delimiter = data.draw(st.sampled_from(",;\t|"))
    title = st.sampled_from(
        [
            "Oak table",
            "Lamp 3",
            '"Oslo',
            '24"',
            '"L" desk',
            f'"Blue{delimiter} round"',
            '"a ""b"" c"',
            '"',
            '""',
        ]
    )
    titles = data.draw(st.lists(title, min_size=4, max_size=12))
    path = tmp_path / "products.csv"
    lines = [delimiter.join((f"A{n}", title, f"p{n}.jpg")) for n, title in enumerate(titles)]
    path.write_text("\n".join([delimiter.join(("product_id", "title", "image")), *lines]) + "\n")
    assert list(found(path)) == [f"A{n}" for n in range(len(titles))]


def test_the_rest_of_a_broken_cell_is_no_product(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_text(HEADER + 'A1,Lamp,p1.jpg\nA2,"A "grand" sofa\nof oak, with legs",p2.jpg\nA3,Bed,p3.jpg\n')
    rows = list(read_products(path, PATHS))
    assert [row.product_id for row in rows if isinstance(row, Product)] == ["A1", "A3"]
    assert all("quote in line" in row.detail for row in rows if isinstance(row, Rejection))


def test_descriptions_of_several_lines_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    rows = [[f"A{n}", f"Oak, {n} cm,\nwith legs, matt\r\nA9,and,p{n}.png", f"p{n}.jpg"] for n in range(30)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["product_id", "title", "image"], *rows])
    assert [list(row.values()) for row in rows_of(path)] == rows


# --- encodings


TITLES = {
    "gb18030": ["实木餐桌", "布艺沙发三人位", "蓝色椅子"],
    "shift_jis": ["木製の椅子", "ダイニングテーブル", "青いソファ"],
    "big5": ["實木餐桌", "布藝沙發三人位", "藍色椅子"],
    "cp949": ["원목 식탁", "파란 소파", "의자"],
    "cp1251": ["Дубовый стол", "Синий диван", "Стул"],
    "cp1252": ["Küchenbüfett für 5 €", "“Sofa” grün", "Canapé - 60° ½"],
    "cp1250": ["Dębowy stół", "Krzesło żółte", "Świecznik"],
    "utf-16": ["Küche", "椅子", "Стул"],
    "utf-16-le": ["Küche", "椅子", "Стул"],
    "utf-32": ["Küche", "椅子", "Стул"],
    "utf-32-be": ["Küche", "椅子", "Стул"],
}


@pytest.mark.parametrize("encoding", TITLES)
def test_an_encoding_is_told_and_what_was_guessed_is_said(cli: Cli, tmp_path: Path, encoding: str) -> None:
    shop = write_shop(tmp_path / "shop", products=3, model=Path("furnclip-tiny"))
    lines = [f"A{n},{title},0000{n}.jpg\n" for n, title in enumerate(TITLES[encoding])]
    (shop / "products.csv").write_bytes((HEADER + "".join(lines)).encode(encoding))
    told = cli("clean", "run", cwd=shop).ok().stderr
    titles = [row["title"] for row in rows_of(shop / "work/clean/cleaned.csv")]
    assert titles == TITLES[encoding]
    assert ("is not UTF-8" in told) == (not encoding.startswith("utf"))


UTF8, ODD = "A{},Küche {},p.jpg\n", b"A9,gr\xfcn,p.jpg\n"


@pytest.mark.parametrize(
    "odd",
    [ODD, "A9,椅子,p.jpg\n".encode("gb18030"), "A9,Küche".encode()[:-4], b"A9,a \xf0\x9f,p.jpg\n"],
    ids=["cp1252", "gbk", "cut", "half"],
)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_a_row_in_another_encoding_is_rejected_alone(tmp_path: Path, odd: bytes, place: int) -> None:
    path = tmp_path / "products.csv"
    rows = [UTF8.format(n, n).encode() for n in range(3)]
    rows.insert(place, odd if odd.endswith(b"\n") else b"A9,\xff,p.jpg\n")
    path.write_bytes(HEADER.encode() + b"".join(rows))
    found_rows = found(path)
    assert [row.title for row in found_rows.values() if isinstance(row, Product)] == [
        f"Küche {n}" for n in range(3)
    ]
    assert isinstance(found_rows["A9"], Rejection)


def test_rows_that_are_utf8_after_all_are_read_as_that(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    rows = [f"A{n},Küche {n},p.jpg\n".encode("utf-8" if n == 3 else "cp1252") for n in range(8)]
    path.write_bytes(HEADER.encode() + b"".join(rows))
    assert [row.title for row in found(path).values() if isinstance(row, Product)] == [
        f"Küche {n}" for n in range(8)
    ]


@pytest.mark.parametrize("place", [30, 80, 199])
def test_one_zero_byte_does_not_make_a_file_utf16(tmp_path: Path, place: int) -> None:
    path = tmp_path / "products.csv"
    text = bytearray((HEADER + "".join(f"A{n},lamp {n},p{n}.jpg\n" for n in range(20))).encode())
    text[place] = 0
    path.write_bytes(text)
    assert sum(isinstance(row, Product) for row in read_products(path, PATHS)) >= 19


# --- cells that are not text


ENGLISH = {"language_tag": "en_GB", "value": "Oak table"}
GERMAN = {"language_tag": "de_DE", "value": "Eichentisch"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([GERMAN, ENGLISH], "Oak table"),
        ([GERMAN], "Eichentisch"),
        ([ENGLISH, {**ENGLISH, "value": "solid"}, GERMAN], "Oak table|solid"),
        ({"value": 80.5, "unit": "cm"}, "80.5"),
        ({"de": "Eichentisch", "en": "Oak table"}, "Oak table"),
        ({"width": 80, "height": 40}, "width: 80, height: 40"),
        ([{"name": "oak"}, {"name": "steel"}], "oak|steel"),
        (b"Oak table", "Oak table"),
        (b"\x89PNG\xff", ""),
        ({"bytes": None, "path": "a.jpg"}, "a.jpg"),
        ([None, "", "oak"], "oak"),
    ],
)
def test_nested_cells_become_text(tmp_path: Path, value: object, text: str) -> None:
    row = {"product_id": "1", "title": value, "image": "a.jpg"}
    paths = [tmp_path / "p.parquet"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), paths[0])
    if not isinstance(value, bytes):
        paths.append(tmp_path / "p.jsonl")
        paths[1].write_text(json.dumps(row))
    for path in paths:
        assert [row["title"] for row in rows_of(path)] == [text], path.name


@pytest.mark.parametrize(
    "cell",
    [
        lambda image: {"bytes": image, "path": "hub/p.jpg"},
        lambda image: {"bytes": image, "path": None},
        lambda image: image,
        lambda image: [{"bytes": image, "path": None}, {"bytes": image, "path": "second.jpg"}],
    ],
    ids=["with a name", "without a name", "bytes alone", "several"],
)
def test_images_inside_a_parquet_file_are_used(
    cli: Cli, tmp_path: Path, cell: Callable[[bytes], object]
) -> None:
    shop = write_shop(tmp_path / "shop", products=3, model=Path("furnclip-tiny"))
    images = [path.read_bytes() for path in sorted((shop / "images").iterdir())]
    shutil.rmtree(shop / "images")
    rows = [{"product_id": n, "title": f"lamp {n}", "image": cell(image)} for n, image in enumerate(images)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), shop / "train.parquet")
    env = {"FURNCLIP_PATHS__PRODUCTS": "train.parquet"}
    cli("clean", "run", cwd=shop, env=env).ok()
    assert len(rows_of(shop / "work/clean/cleaned.csv")) == 3
    assert cli("prepare", "--check", "--json", cwd=shop, env=env).ok().json["usable"] == 3
    assert sorted(path.read_bytes() for path in (shop / "images/train").iterdir()) == sorted(images)


# --- image names


NAMES_IN_CELLS = {
    "a.jpg|b.jpg": ("a.jpg", "b.jpg"),
    "a.jpg, b.jpg ,c.png": ("a.jpg", "b.jpg", "c.png"),
    "a.jpg;b.jpg": ("a.jpg", "b.jpg"),
    "a.jpg\nb.jpg": ("a.jpg", "b.jpg"),
    "['a.jpg', \"b.jpg\"]": ("a.jpg", "b.jpg"),
    "oslo, red.jpg": ("oslo, red.jpg",),
    "oslo sofa.jpg": ("oslo sofa.jpg",),
    "https://x/a?w=1,2, https://x/b": ("https://x/a?w=1,2", "https://x/b"),
    " | ": (),
}


@pytest.mark.parametrize("cell", NAMES_IN_CELLS)
def test_the_images_of_a_cell(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"product_id": "1", "title": "a", "image": cell}))
    [row] = read_products(path, PATHS)
    assert isinstance(row, Product)
    assert row.images == NAMES_IN_CELLS[cell]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("/w/b/wb01.jpg", "w/b/wb01.jpg"),
        ("w/b/WB01.JPG", "w/b/wb01.jpg"),
        ("W/B/wb01.jpeg", "w/b/wb01.jpg"),
        ("w/b/wb01", "w/b/wb01.jpg"),
        ("w/b/wb01.jpg?v=1#top", "w/b/wb01.jpg"),
        ("oslo%20sofa.jpg", "oslo sofa.jpg"),
        ("images/w/b/wb01.jpg", "w/b/wb01.jpg"),
        ("Images\\w\\b\\wb01.jpg", "w/b/wb01.jpg"),
        ("doubled.jpg", "images/doubled.jpg"),
        ("gru\u0308n.jpg", "grün.jpg"),
        ("100%25.jpg", "100%25.jpg"),
        ("linked.jpg", "linked.jpg"),
        ("linked/far.jpg", "linked/far.jpg"),
    ],
)
def test_the_file_that_is_nearly_the_name_is_taken(images: Path, name: str, file: str) -> None:
    [found] = find(images, name)
    assert found.name == file
    assert found.read() == (images / file).read_bytes()


@pytest.mark.parametrize(
    "name",
    ["../far.jpg", "w/%2e%2e/%2e%2e/far.jpg", "/etc/passwd", "images/../../far.jpg", "two.jpeg", "wb01.jpg"],
)
def test_a_name_that_leads_out_or_fits_two_files_is_refused(images: Path, name: str) -> None:
    with pytest.raises(BrokenImage):
        find(images, name)


@pytest.mark.skipif(os.getuid() != 0, reason="only the administrator can give a folder to another user")
def test_links_out_of_the_folder_of_another_user_are_not_followed(images: Path) -> None:
    os.chown(images, 12345, 12345)
    images.parent.chmod(0o755)
    for folder in (images.parent, *images.parent.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    program = (
        "import os, sys; from pathlib import Path; from furnclip.config import Config, DataPaths\n"
        "from furnclip.sources import ShopImages; os.setuid(23456)\n"
        "images = ShopImages(Config(paths=DataPaths(images=Path(sys.argv[1]))))\n"
        "images.find(['plain.jpg']); images.find([sys.argv[2]])"
    )
    (images / "plain.jpg").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", program, images, "linked.jpg"], capture_output=True, text=True, check=False
    )
    assert "BrokenImage: `linked.jpg` leads out of the image folder" in done.stderr


def find(images: Path, name: str) -> list[FoundImage]:
    return ShopImages(Config(paths=DataPaths(images=images))).find([name])


def test_near_matches_are_counted(cli: Cli, tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop", products=4, model=Path("furnclip-tiny"))
    text = (shop / "products.csv").read_text().replace(".jpg", ".JPEG", 3)
    (shop / "products.csv").write_text(text)
    for command in (("clean", "run"), ("prepare",)):
        assert "3 image names are not quite those of the files" in cli(*command, cwd=shop).ok().stderr


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in (
        "w/b/wb01.jpg",
        "oslo sofa.jpg",
        "images/doubled.jpg",
        "grün.jpg",
        "100%25.jpg",
        "two.jpg",
        "two.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (tmp_path / "away").mkdir()
    for far in (tmp_path / "far.jpg", tmp_path / "away/far.jpg"):
        far.write_bytes(b"far")
    (root / "linked.jpg").symlink_to(tmp_path / "far.jpg")
    (root / "linked").symlink_to(tmp_path / "away")
    return root


# --- files of another kind


PRODUCTS = [{"product_id": f"A{n}", "title": f"lamp {n}", "image": f"{n}.jpg"} for n in range(3)]
CSV_TEXT = HEADER + "".join(",".join(row.values()) + "\n" for row in PRODUCTS)


OF_ANOTHER_KIND = {
    "array.json": json.dumps(PRODUCTS).encode(),
    "indented.csv": json.dumps(PRODUCTS, indent=2).encode("utf-16"),
    "lines.json": "".join(json.dumps(row) + "\n" for row in PRODUCTS).encode(),
    "lines.txt": "".join(json.dumps(row) + "\n" for row in PRODUCTS).encode("utf-8-sig"),
    "packed.csv.gz": gzip.compress(CSV_TEXT.encode()),
    "packed.jsonl": gzip.compress(json.dumps(PRODUCTS).encode()),
    "sep.csv": ("sep=;\n" + CSV_TEXT.replace(",", ";")).encode(),
    "sep.txt": ('"SEP=|"\r\n' + CSV_TEXT.replace(",", "|")).encode("utf-8-sig"),
    "sep16.csv": ("sep=;\n" + CSV_TEXT.replace(",", ";")).encode("utf-16"),
    "titled.csv": ("Our products\n\n" + CSV_TEXT).encode(),
    "dated.csv": ("Export, 2026\n" + CSV_TEXT.replace(",", ";")).encode(),
    "padded.csv": ("Our products,,\n,,\n" + CSV_TEXT).encode(),
    "tabs.csv": CSV_TEXT.replace(",", "\t").encode(),
    "commas.tsv": CSV_TEXT.encode(),
}


@pytest.mark.parametrize("name", OF_ANOTHER_KIND)
def test_a_file_is_read_as_what_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(OF_ANOTHER_KIND[name])
    assert [row.fields for row in read_products(tmp_path / name, PATHS)] == PRODUCTS


def test_a_parquet_file_needs_no_ending(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PRODUCTS), tmp_path / "products.csv")
    assert [row.fields for row in read_products(tmp_path / "products.csv", PATHS)] == PRODUCTS


OTHER_KINDS = {
    "book.xlsx": (b"PK\x03\x04" + bytes(range(256)), "spreadsheet"),
    "book.csv": (b"PK\x03\x04" + bytes(range(256)), "spreadsheet"),
    "book.xls": (b"\xd0\xcf\x11\xe0" + bytes(600), "spreadsheet"),
    "feed.xml": (b'\n<?xml version="1.0"?><rss><item/></rss>', "XML"),
    "page.csv": (b"<!DOCTYPE html><html>404</html>", "HTML"),
    "packed.csv.bz2": (b"BZh91AY&SY" + bytes(range(200)), "bzip2"),
    "noise.csv": (bytes(range(256)) * 9, "not a text file"),
    "cut.csv.gz": (gzip.compress(CSV_TEXT.encode() * 99)[:-30], "damaged"),
    "nested.json": (json.dumps({"chairs": PRODUCTS}).encode(), "its rows are in `chairs`"),
    "indented.json": (json.dumps({"chairs": PRODUCTS}, indent=1).encode(), "one JSON object"),
    "cut-in-object.json": (json.dumps({"data": {"products": PRODUCTS}}).encode()[:-9], "item 3"),
    "cut.json": (json.dumps(PRODUCTS).encode()[:-9], "item 3"),
    "fake.parquet": (CSV_TEXT.encode(), "not a Parquet file"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_another_kind_of_file_is_named_without_its_bytes_on_the_terminal(
    cli: Cli, tmp_path: Path, name: str
) -> None:
    content, words = OTHER_KINDS[name]
    (tmp_path / name).write_bytes(content)
    done = cli("clean", "run", "--backend", "local", cwd=tmp_path, env={"FURNCLIP_PATHS__PRODUCTS": name})
    assert done.code == 1
    assert words in done.stderr
    assert all(character.isprintable() or character == "\n" for character in done.stdout + done.stderr)
    assert "hint: " in done.stderr


@pytest.mark.parametrize(
    "name", ["products.csv", "products.jsonl", "products.parquet", "work/clean/cleaned.csv"]
)
def test_a_pipe_in_place_of_a_catalogue_does_not_hang(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    env = {} if name.startswith("work") else {"FURNCLIP_PATHS__PRODUCTS": name}
    done = run_cli("prepare", cwd=tmp_path, env=env, timeout_s=60)
    assert (done.code, "is not a file" in done.stderr) == (1, True)


# --- large, deep and out of range


def test_many_columns_take_no_square_of_time(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_text(
        "product_id,title,image," + ",".join(f"c{n}" for n in range(50_000)) + "\n1,a,a.jpg" + ",x" * 50_000
    )
    started = time.monotonic()
    assert len(list(read_products(path, PATHS))) == 1
    assert time.monotonic() - started < 10
    with pytest.raises(ConfigError) as caught:
        list(read_products(path, DataPaths(id_column="sku")))
    assert len(caught.value.hint) < 1000


@pytest.mark.parametrize(
    "values",
    [
        lambda: pyarrow.array(["x" * 30_000_000, "a"]),
        lambda: pyarrow.DictionaryArray.from_arrays(
            pyarrow.array([0] * 3000, pyarrow.int32()), ["x" * 8_000_000]
        ),
        lambda: pyarrow.array(["a"]).take(pyarrow.array([0] * 20_000_000, pyarrow.int32())),
        lambda: pyarrow.array([[1] * 20_000_000]),
    ],
    ids=["one cell", "repeated cell", "rows", "list"],
)
def test_a_small_parquet_file_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, values: Callable[[], pyarrow.Array]
) -> None:
    path, title = tmp_path / "p.parquet", values()
    ids = pyarrow.nulls(len(title), pyarrow.string())
    table = pyarrow.table({"product_id": ids, "title": title, "image": ids})
    pyarrow.parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 200_000
    with pytest.raises(InputError, match="unpacks to"):
        list(read_products(path, PATHS))


FAR = pyarrow.array([0, 10_000_000], pyarrow.date32())


@pytest.mark.parametrize(
    "column",
    [
        FAR,
        FAR.cast(pyarrow.timestamp("s")),
        pyarrow.array([0, 2**62], pyarrow.timestamp("us")),
        pyarrow.array([0, 2**62], pyarrow.duration("ms")),
    ],
    ids=str,
)
def test_dates_beyond_the_calendar_reject_their_row_alone(tmp_path: Path, column: pyarrow.Array) -> None:
    path = tmp_path / "p.parquet"
    table = pyarrow.table({"product_id": ["1", "2"], "title": ["a", "b"], "image": ["a", "b"], "day": column})
    pyarrow.parquet.write_table(table, path)
    first, second = read_products(path, PATHS)
    assert isinstance(first, Product)
    assert isinstance(second, Rejection)
    assert second.reason == "unreadable-row"


@pytest.mark.parametrize(
    "value",
    ["[" * 100_000 + "]" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 300 + "1" + "}" * 300, "9" * 5000],
)
def test_deep_and_huge_json_rejects_its_row_alone(tmp_path: Path, value: str) -> None:
    path = tmp_path / "p.jsonl"
    row = '{"product_id": "%s", "title": %s, "image": "a"}\n'
    path.write_text(row % ("1", value) + row % ("2", '"lamp"'))
    first, second = read_products(path, PATHS)
    assert isinstance(first, Rejection)
    assert isinstance(second, Product)


# --- hints


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (lambda path: path.write_text(""), "delete"),
        (lambda path: path.write_text(path.read_text().splitlines()[0] + "\n"), "delete"),
        (lambda path: path.write_bytes(b"\0" * 100), "delete"),
        (lambda path: path.write_text("<html>"), "delete"),
    ],
    ids=["emptied", "header alone", "zeros", "page"],
)
def test_a_damaged_cleaned_catalogue_is_written_again_by_what_the_hint_says(
    cli: Cli, tmp_path: Path, spoil: Callable[[Path], object], hint: str
) -> None:
    shop = write_shop(tmp_path / "shop", products=4, model=Path("furnclip-tiny"))
    cli("clean", "run", cwd=shop).ok()
    cleaned = shop / "work/clean/cleaned.csv"
    before = cleaned.read_bytes()
    spoil(cleaned)
    done = cli("prepare", cwd=shop)
    assert done.code == 1
    assert f"hint: {hint} `{cleaned}` and run `furnclip clean run`" in done.stderr
    cleaned.unlink()
    cli("clean", "run", cwd=shop).ok()
    assert cleaned.read_bytes() == before


def test_a_catalogue_of_which_no_row_was_cleaned_points_to_the_reasons(cli: Cli, tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop", products=2, model=Path("furnclip-tiny"))
    shutil.rmtree(shop / "images")
    cli("clean", "run", cwd=shop)
    done = cli("prepare", cwd=shop)
    assert done.code == 1
    assert f"`{shop / 'work/clean/rejected.csv'}` has the reason" in done.stderr
