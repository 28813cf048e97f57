"""Typed columns: what kind a column is, what its cells are worth, and by which name a filter finds it."""

from __future__ import annotations

import re
from datetime import date

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from furnclip.catalogue import Column, ColumnTypes
from furnclip.catalogue.columns import plain_name
from furnclip.search.where import _LanceDB, rewritten

RESERVED = ("product_id", "title", "style", "material", "color", "group", "split", "image", "content_hash")
AMOUNTS = {
    "12.99 USD": 12.99,
    "USD 12.99": 12.99,
    "€ 1.299,00": 1299.0,
    "1,299.00": 1299.0,
    "1'299.00 CHF": 1299.0,
    "1 299,00\u00a0zł": 1299.0,
    "1,23,456.00": 123456.0,
    "1.234.567": 1234567.0,
    "Rs. 500": 500.0,
    "\u22125,5 €": -5.5,
    "12,-": 12.0,
    "1e-05": 1e-05,
    ".5": 0.5,
    "10 kg": None,
    "1,2,3": None,
    "1..5": None,
    "1e999": None,
    "": None,
    "n/a": None,
    "from 12": 12,
}


def columns_of(**columns: list[str]) -> dict[str, Column]:
    """The columns by what the catalogue calls them."""
    types = ColumnTypes()
    for cells in zip(*columns.values(), strict=True):
        types.add(dict(zip(columns, cells, strict=True)))
    return {column.source: column for column in types.columns(RESERVED)}


def only(cells: list[str], name: str = "x") -> Column:
    return columns_of(**{name: cells})[name]


@pytest.mark.parametrize(("cell", "value"), AMOUNTS.items())
def test_amounts_are_numbers_however_they_are_written(cell: str, value: float | None) -> None:
    assert Column("x", "x", "number").value(cell) == value


@given(
    st.lists(st.decimals(0, 10**6, places=2), min_size=1, max_size=20),
    st.sampled_from([("", ","), (".", ","), (" ", ","), (",", "."), ("'", "."), ("", ".")]),
    st.sampled_from(["", " €", " USD", "kr"]),
)
def test_a_column_of_money_is_read_as_it_was_written(amounts: list, signs: tuple, money: str) -> None:
    thousands, point = signs
    marks = {",": thousands, ".": point}
    cells = ["".join(marks.get(c, c) for c in f"{amount:,.2f}") + money for amount in amounts]
    column = only(cells, "price")
    assert (column.name, column.kind) == ("price", "number")
    assert [column.value(cell) for cell in cells] == [float(amount) for amount in amounts]
    # what a whole amount means is told by the others
    assert column.value(f"1{point}299") == (1.299 if point == "." else 1299.0) or point == ","


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_of_json_and_parquet_stay_what_they_are(numbers: list[float]) -> None:
    column = only([str(number) for number in numbers], "weight")
    assert [column.value(str(number)) for number in numbers] == numbers


@given(
    st.lists(st.dates(date(1900, 1, 1), date(2100, 1, 1)), min_size=1),
    st.sampled_from(["%Y-%m-%d", "%d.%m.%Y"]),
)
def test_dates_are_dates(days: list[date], written: str) -> None:
    cells = [day.strftime(written) for day in days]
    column = only(cells)
    assert column.kind == "date"
    assert [column.value(cell) for cell in cells] == days


def test_day_and_month_are_told_by_the_column_or_not_at_all() -> None:
    assert only(["12/31/2025", "04/05/2025"]).value("04/05/2025") == date(2025, 4, 5)
    assert only(["31/12/2025", "04/05/2025"]).value("04/05/2025") == date(2025, 5, 4)
    assert only(["01/12/2025", "04/05/2025"]).kind == "text"
    assert only(["2025-01-31T10:00:00+0100"]).value("2025-01-31T10:00:00+0100") == date(2025, 1, 31)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("availability", ["in stock", "out of stock", "preorder"]),
        ("g:availability", ["in_stock", "backorder", "out_of_stock"]),
        ("Availability", ["https://schema.org/InStock", "https://schema.org/OutOfStock", "sold out"]),
        ("In stock?", ["1", "0", "backorder"]),
        ("Vorrätig?", ["1", "0", "0"]),
        ("Verfügbarkeit", ["auf Lager", "nicht auf Lager", "ausverkauft"]),
        ("is_in_stock", ["1", "0", "0"]),
        ("in_stock", ["true", "false", "no"]),
        ("Variant Inventory Qty", ["7", "0", "-2"]),
        ("Lagerbestand", ["12", "0", "0"]),
    ],
)
def test_stock_is_one_boolean_whatever_the_feed_calls_it(name: str, cells: list[str]) -> None:
    types = ColumnTypes()
    for cell in cells:
        types.add({name: cell})
    (column,) = (column for column in types.columns(RESERVED) if column.name == "in_stock")
    assert column.kind == "boolean"
    assert [column.value(cell) for cell in cells] == [True, False, False]


def test_a_quantity_stays_a_number_beside_the_stock() -> None:
    types = ColumnTypes()
    types.add({"Qty": "12"})
    assert [(column.name, column.kind) for column in types.columns()] == [
        ("qty", "number"),
        ("in_stock", "boolean"),
    ]


def test_what_most_cells_are_counts_and_the_rest_is_counted() -> None:
    column = only([*map(str, range(99)), "on request"], "price")
    assert (column.kind, column.unread, column.value("on request")) == ("number", 1, None)
    assert only(["1", "on request"]).kind == "text"
    prices = ["ab 1.299,00 €", "2.499,00 €", "auf Anfrage"]
    column = only(prices, "Preis")
    assert (column.kind, [column.value(cell) for cell in prices]) == ("number", [1299, 2499, None])
    assert only(prices[1:], "Preis").kind == "text"


@pytest.mark.parametrize("cells", [["00123", "456"], ["4006381333931000"], ["12", "007"]])
def test_digits_that_are_a_name_stay_text(cells: list[str]) -> None:
    assert only(cells).kind == "text"
    assert columns_of(**{"Variant SKU": ["12"]})["Variant SKU"].value("12") == "12"


def test_lists_and_texts() -> None:
    assert only(["oak|ash", "pine"]).value("oak|ash") == ["oak", "ash"]
    assert only(["oak, ash"], "Tags").value("oak, ash") == ["oak", "ash"]
    assert only(["oak, ash"]).value("oak, ash") == "oak, ash"
    html = "<p>Solid&nbsp;oak &amp; <b>b</b>rass</p><script>var x</script><ul><li>wide</li></ul>"
    found = only([html], "Body (HTML)")
    assert (found.name, found.value(html)) == ("description", "Solid oak & brass wide")
    assert found.value("&lt;p&gt;5 &amp;lt; 6&lt;/p&gt;") == "5 < 6"
    assert found.value("wide < 5 & deep > 3") == "wide < 5 & deep > 3"


def test_the_shops_own_columns_give_way_and_both_names_are_told() -> None:
    found = columns_of(group=["a"], color=["b"], order=["c"], raw_order=["d"])
    assert {source: column.name for source, column in found.items()} == {
        "group": "raw_group",
        "color": "raw_color",
        "order": "raw_order",
        "raw_order": "raw_raw_order",
    }


def works_in_a_filter(name: str) -> bool:
    filters = (f"{name} = 'x'", f"NOT {name} IS NULL", f"lower({name}) LIKE 'x'")
    return all(f"`{name}`" in rewritten(text, {name: "text"}) for text in filters)


def test_no_word_of_sql_is_a_name() -> None:
    words = [word for word in _LanceDB.Tokenizer.KEYWORDS if re.fullmatch("[A-Za-z_]+", word)]
    assert len(words) > 200
    types = ColumnTypes()
    types.add(dict.fromkeys(words, "x"))
    assert [column for column in types.columns() if not works_in_a_filter(column.name)] == []


NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["Größe (cm)", "2nd", "order", "Group", "group", "g:price", "price", "select", "DESC", "价格"]
    ),
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(NAMES, st.text(min_size=1, max_size=12), min_size=1, max_size=8))
@example({"": "|"})
def test_every_name_is_free_and_works_in_a_filter(row: dict[str, str]) -> None:
    types = ColumnTypes()
    types.add(row)
    columns = types.columns(RESERVED)
    names = [column.name for column in columns]
    assert len(set(names)) == len(names)
    assert not set(names) & set(RESERVED)
    for column in columns:
        assert plain_name(column.name) == column.name.lstrip("_")
        assert works_in_a_filter(column.name)
        assert column.kind == "text" or column.value(row[column.source]) is not None


@settings(deadline=None)
@given(st.text(max_size=40), st.sampled_from(["text", "number", "boolean", "date", "list"]))
def test_no_cell_is_an_error(cell: str, kind: str) -> None:
    expected = {"text": str, "number": float, "boolean": bool, "date": date, "list": list}[kind]
    value = Column("x", "x", kind).value(cell)  # type: ignore[arg-type]
    assert value is None or isinstance(value, expected)
    columns_of(x=[cell])


def test_longer_names_that_hold_a_usual_one_are_found_and_those_that_only_look_so_are_not() -> None:
    cells = {"old_price": "9.50", "searchPrice": "8.50", "body_material": "oak", "stock_keeping_unit": "12"}
    types = ColumnTypes()
    types.add(cells)
    assert {column.source: column.name for column in types.columns()} == {
        "old_price": "old_price",
        "searchPrice": "price",
        "body_material": "body_material",
        "stock_keeping_unit": "stock_keeping_unit",
    }
