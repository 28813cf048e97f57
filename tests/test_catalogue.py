"""Catalogues as shops write them: every row comes out as a product or as a rejection with its reason."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from furnclip.catalogue import (
    Product,
    Rejection,
    content_hash,
    normalized_title,
    read_products,
    read_records,
)
from furnclip.catalogue.delimited import MAX_CELL_CHARS
from furnclip.catalogue.text import find_encoding
from furnclip.config import Config, DataPaths
from furnclip.errors import ConfigError, FurnclipError, InputError
from furnclip.images import BrokenImage
from furnclip.relevance import default_caption
from furnclip.sources import ShopImages

PATHS = DataPaths()
HEADER = "product_id,title,image"


def products(path: Path, paths: DataPaths = PATHS) -> list[Product | Rejection]:
    return list(read_products(path, paths))


def reasons(path: Path) -> list[str]:
    return [row.reason if isinstance(row, Rejection) else "" for row in products(path)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "products.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


# --- encodings and separators


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_any_encoding_and_separator_gives_the_same_rows(
    write: Callable[..., Path], encoding: str, separator: str
) -> None:
    text = "product_id,title,image\n1,Küchenbüfett für 5 €,a.jpg\n2,“Sofa”,b.jpg\n".replace(",", separator)
    found = products(write(text, encoding=encoding))
    assert [(row.product_id, row.title) for row in found if isinstance(row, Product)] == [
        ("1", "Küchenbüfett für 5 €"),
        ("2", "“Sofa”"),
    ]


def test_an_encoding_is_judged_by_the_last_byte_too(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(HEADER + "\n" + "".join(f"{n},plain,a.jpg\n" for n in range(200_000)))
    assert find_encoding(path)[0] == "utf-8-sig"
    with path.open("ab") as file:
        file.write("x,grün,a.jpg\n".encode("cp1252"))
    assert find_encoding(path)[0] == "cp1252"


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(InputError, match="is not a text file") as caught:
        products(path)
    assert "CSV" in caught.value.hint


def test_quoted_newlines_quotes_and_separators_stay_inside_their_cell(write: Callable[..., Path]) -> None:
    [row] = products(write(HEADER + '\n1,"a ""grand""\r\nsofa, grey",a.jpg\n'))
    assert isinstance(row, Product)
    assert row.title == 'a "grand"\r\nsofa, grey'


def test_columns_are_trimmed_and_nameless_ones_get_a_name(write: Callable[..., Path]) -> None:
    columns, records = read_records(write(" product_id , title,image,\n1,a,b,c\n"))
    assert columns == ["product_id", "title", "image", "column_4"]
    assert [list(record.fields.values()) for record in records] == [["1", "a", "b", "c"]]


# --- rows that cannot be used


def test_each_bad_row_has_its_reason_and_the_good_ones_come_through(write: Callable[..., Path]) -> None:
    big = "x" * (MAX_CELL_CHARS + 1)
    path = write(
        f"{HEADER}\n1,a,a.jpg\n1,b,b.jpg\n ,c,c.jpg\n2,d\n3,e,e.jpg,f\n\n"
        f"4,{big},f.jpg\n5\x07,g,g.jpg\n6,h,h.jpg\n"
    )
    assert reasons(path) == [
        "",
        "duplicate-id",
        "no-id",
        "wrong-number-of-cells",
        "wrong-number-of-cells",
        "unreadable-row",
        "bad-id",
        "",
    ]
    assert [row.row for row in products(path)] == list(range(1, 9))


def test_a_row_of_several_lines_with_too_few_cells_names_its_lines(write: Callable[..., Path]) -> None:
    *_, last = products(write(f'{HEADER}\n1,a,a.jpg\n2,"b\n3,c\n4,d"\n'))
    assert isinstance(last, Rejection)
    assert last.detail == "2 cells under 3 columns in lines 3 to 5; is a quote not closed?"


def test_a_five_megabyte_cell_is_refused_in_every_format(tmp_path: Path) -> None:
    rows = [
        {"product_id": "1", "title": "x" * 5_000_000, "image": "a"},
        {"product_id": "2", "title": "b", "image": "b"},
    ]
    for path in written_in_all_formats(tmp_path, rows):
        assert reasons(path) == ["unreadable-row", ""], path.name


# --- files that cannot be used


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\n\n", "no header line"), (b"a,b,a\n1,2,3\n", "has the column `a` twice")],
)
def test_a_useless_file_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "products.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        products(path)


def test_a_missing_file_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no catalogue") as caught:
        products(tmp_path / "products.csv")
    assert "paths.products" in caught.value.hint


def test_a_missing_column_names_those_there_are_and_the_nearest(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="no column `product_id`") as caught:
        products(write("productid,title,image\n1,a,b\n"))
    assert caught.value.hint == (
        'set `paths.id_column = "productid"`; columns there: productid, title, image'
    )


@pytest.mark.parametrize("name", ["products.parquet", "products.jsonl"])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PAR1 no, it is not")
    with pytest.raises(InputError):
        products(path)


def test_a_line_without_end_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_text(HEADER + "\n" + "x" * 2**25)
    with pytest.raises(InputError, match="a line of over"):
        products(path)


# --- other formats


def written_in_all_formats(folder: Path, rows: list[dict[str, str]]) -> list[Path]:
    csv_path, json_path, parquet_path = (
        folder / f"products.{suffix}" for suffix in ("csv", "jsonl", "parquet")
    )
    with csv_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    json_path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet_path)
    return [csv_path, json_path, parquet_path]


def test_all_formats_give_the_same_products(tmp_path: Path) -> None:
    rows = [{"product_id": str(n), "title": f"Sofa\n{n} ü", "image": f"{n}.jpg|b.jpg"} for n in range(5000)]
    first, second, third = (products(path) for path in written_in_all_formats(tmp_path, rows))
    assert first == second == third
    assert len(first) == 5000


def test_json_and_parquet_values_become_the_text_a_csv_would_have(tmp_path: Path) -> None:
    row = {
        "product_id": 7,
        "title": "a",
        "image": ["a.jpg", "b.jpg"],
        "price": 9.5,
        "new": True,
        "note": None,
    }
    json_path = tmp_path / "p.jsonl"
    json_path.write_text(
        json.dumps(row) + "\n\n[1]\nnot json\n" + json.dumps({"product_id": "8", "late": 1}) + "\n"
    )
    found = products(json_path)
    assert isinstance(found[0], Product)
    assert found[0].images == ("a.jpg", "b.jpg")
    assert found[0].fields == {
        "product_id": "7",
        "title": "a",
        "image": "a.jpg|b.jpg",
        "price": "9.5",
        "new": "true",
        "note": "",
        "late": "",
    }
    assert [row.reason for row in found if isinstance(row, Rejection)] == ["unreadable-row", "unreadable-row"]
    parquet_path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, "price": float("nan")}]), parquet_path)
    [product] = products(parquet_path)
    assert isinstance(product, Product)
    assert (product.fields["price"], product.fields["new"], product.images) == (
        "",
        "true",
        ("a.jpg", "b.jpg"),
    )


def test_half_a_character_in_json_is_a_rejection_not_a_crash_when_writing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"product_id": "1", "title": "\\ud800", "image": "a"}\n')
    assert reasons(path) == ["unreadable-row"]


# --- whatever the rows are


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=12))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_that_a_csv_writer_wrote_comes_back(
    tmp_path: Path, rows: list[tuple[str, str, str]]
) -> None:
    path = tmp_path / "products.csv"
    buffer = io.StringIO()
    # without QUOTE_ALL, the writer leaves a lone carriage return bare and loses it
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("product_id", "title", "image"), *rows])
    path.write_bytes(buffer.getvalue().encode())
    _, records = read_records(path)
    assert [tuple(record.fields.values()) for record in records] == rows


@given(st.binary(max_size=400))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_rows_or_one_clear_error(tmp_path: Path, data: bytes) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"products.{suffix}"
        path.write_bytes(data)
        with suppress(FurnclipError):
            for row in read_products(path, PATHS):
                assert isinstance(row, Product) or row.reason


# --- finding pictures


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").write_bytes(b"a")
    (root / "sub/b.jpg").write_bytes(b"b")
    (tmp_path / "secret.jpg").write_bytes(b"c")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "inside.jpg").symlink_to(root / "a.jpg")
    os.mkfifo(root / "pipe.jpg")
    return root


def find(names: list[str], root: Path) -> list[Path]:
    images = ShopImages(Config(paths=DataPaths(images=root, work=root.parent / "work")))
    return [root / found.name for found in images.find(names)]


def find_image(name: str, root: Path) -> Path:
    return find([name], root)[0]


def test_pictures_inside_the_folder_are_found(images: Path) -> None:
    assert find_image("a.jpg", images).name == "a.jpg"
    assert find_image("sub\\b.jpg", images).name == "b.jpg"
    assert find_image(str(images / "a.jpg"), images).name == "a.jpg"
    assert find_image("inside.jpg", images).read_bytes() == b"a"
    assert find_image("link.jpg", images).read_bytes() == b"c"
    assert [path.name for path in find(["nope.jpg", "a.jpg", "sub/b.jpg"], images)] == [
        "a.jpg",
        "b.jpg",
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.jpg", "outside"),
        ("sub/../../secret.jpg", "outside"),
        ("sub/../a.jpg", "outside"),
        ("..\\secret.jpg", "outside"),
        ("/etc/passwd", "outside"),
        ("https://example.com/a.jpg", "not-fetched"),
        ("ftp://example.com/a.jpg", "outside"),
        ("nope.jpg", "missing"),
        ("a\0.jpg", "missing"),
        ("a" * 5000, "missing"),
        ("sub", "not-a-file"),
        ("pipe.jpg", "not-a-file"),
    ],
)
def test_pictures_elsewhere_are_not(images: Path, name: str, reason: str) -> None:
    with pytest.raises(BrokenImage) as caught:
        find_image(name, images)
    assert caught.value.reason == reason


def test_a_row_without_a_picture_says_so(images: Path) -> None:
    with pytest.raises(BrokenImage, match="the row names no image"):
        find([], images)


# --- words


@pytest.mark.parametrize(
    ("fields", "title", "caption"),
    [
        ({"title": "  OAK   Table "}, "", "a photo of oak table"),
        ({"title": "x"}, "Oslo Chair", "a photo of oslo chair"),
        ({"clean_title": "Walnut Sideboard", "style": "Mid-Century", "material": "walnut"}, "raw",
         "a photo of mid-century walnut sideboard"),
        ({"clean_title": "Oslo", "object_type": "chair", "style": "unknown"}, "", "a photo of oslo, chair"),
        ({"object_type": "sofa", "color": "red"}, "", "a photo of red sofa"),
        ({"title": "n/a"}, "", ""),
    ],
)  # fmt: skip
def test_the_default_caption(fields: dict[str, str], title: str, caption: str) -> None:
    assert default_caption(fields, title=title) == caption


def test_titles_are_compared_without_case_punctuation_and_spelling_of_accents() -> None:
    assert normalized_title("  OSLO / Stuhl (grün) ") == normalized_title("oslo stuhl, gru\u0308n")
    assert normalized_title("Oslo 2") != normalized_title("Oslo 3")


def test_the_content_hash_tells_where_parts_end() -> None:
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash("ü") == content_hash("ü".encode())
    assert len(content_hash()) == 16
