"""What a shopper may type: ids, typing errors, sizes, prices, negations; and what a shop's columns allow."""

from __future__ import annotations

import json
import shutil
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from furnclip import Searcher, vectors
from furnclip.config import load_config
from furnclip.errors import UsageError
from furnclip.search.query import understand
from furnclip.vectors.index import index_location, write_index
from furnclip.vectors.words import Vocabulary, fields_of, words_of
from tests.drawn_shop import write_shop
from tests.test_embed import embed
from tests.test_search import clean, run

PRODUCTS = 40
_BESIDE = {9: "kumquat"}
BRANDS = ("BILLY", "Malm", "Ägget", "St. Moritz")


def with_columns(shop: Path) -> None:
    """The vector file with a shop's own columns and, of some products, several views; and its table."""
    config = load_config(shop / "furnclip.toml")
    table = pq.read_table(config.paths.vectors).sort_by("product_id")
    pq.write_table(table, config.paths.vectors)
    rows = range(len(table))
    own: dict[str, pa.Array] = {
        "description": pa.array(
            [f"Goes well with {_BESIDE.get(row, 'glass')}. Measures {80 + row} x 40 cm." for row in rows]
        ),
        "width_cm": pa.array([200.0 + 10 * row + 0.2 for row in rows]),
        "depth": pa.array([None if row == 5 else 900.0 + row for row in rows], pa.float64()),
        "price": pa.array([None if row == 5 else 10.0 * row for row in rows], pa.float64()),
        "in_stock": pa.array([row % 2 == 0 for row in rows]),
        "added": pa.array([date(2026, 1, 1 + row % 28) for row in rows]),
        "tags": pa.array([["new", "Badetuch"] if row < 3 else ["old"] for row in rows]),
        "brand": pa.array([BRANDS[row % 4] for row in rows]),
        "barcode": pa.array([f"{4006381333000 + row}" for row in rows]),
        "sku": pa.array([f"SKU-{row:03d}/A" for row in rows]),
    }
    image, there = (
        vectors.VectorTable(config.paths.vectors).matrix("image_clip_base"),
        table["image_clip_base"],
    )
    other = vectors.unit(image[::-1] + np.eye(*image.shape, dtype=np.float32))
    views = [[image[row], other[row]] if row % 10 == 0 and there[row].is_valid else None for row in rows]
    kind = pa.list_(pa.list_(pa.float32(), image.shape[1]))
    added = {**own, "views_clip_base": pa.array(views, kind)}
    table = table.drop_columns([name for name in added if name in table.column_names])
    for name, column in added.items():
        table = table.append_column(name, column)
    pq.write_table(table, config.paths.vectors, row_group_size=16)
    write_index(index_location(config), config.paths.vectors, config.search)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    shop = write_shop(tmp_path_factory.mktemp("words") / "shop", products=PRODUCTS, model=tiny_clip)
    clean(shop)
    embed(shop)
    with_columns(shop)
    return shop


@pytest.fixture(scope="module")
def searcher(shop: Path) -> Searcher:
    return Searcher(load_config(shop / "furnclip.toml"))


@pytest.mark.parametrize(
    "text", ["P00007", "p00007", "SKU-007/A", "sku 007 a", "sku-007", "4006381333007", "  4006381333007 "]
)
def test_an_id_sku_or_barcode_leads(searcher: Searcher, text: str) -> None:
    answer = searcher.search(text)
    assert answer[0].product_id == "P00007"
    assert answer[0].why["exact"]
    assert not answer.note


@pytest.mark.parametrize(
    "text",
    ["zzzz P00007", "a chair, 4006381333007", "P00007 xylophone qqqq tax form", "article sku-007/a please"],
)
def test_a_code_leads_whatever_stands_beside_it(searcher: Searcher, text: str) -> None:
    answer = searcher.search(text)
    assert answer[0].product_id == "P00007"
    assert answer[0].why["exact"]


@pytest.mark.parametrize(
    "text",
    [
        *("chair 1960", "120x60 table", "table 120cm x 60cm", "bed 2024 200mm", "under 1000"),
        *("under 4006381333007", "a chair under 4006381333007 euros", "between 100000 and 4006381333007"),
    ],
)
def test_years_sizes_and_prices_are_no_codes(searcher: Searcher, text: str) -> None:
    assert understand(text, vocabulary("chair"), {}, literal=False).exact[1:] == ()
    assert not any("exact" in hit.why for hit in searcher.search(text))


@pytest.mark.parametrize("text", ["ikea kumquat", "kumquat from oslo for zzzz", "qqqq wwww kumquat"])
def test_words_that_no_product_has_take_the_lead_from_no_rare_one(searcher: Searcher, text: str) -> None:
    assert searcher.search(text)[0].product_id == "P00009"


@pytest.mark.parametrize(
    "text", ["billy", "BILLY", "agget", "Ägget", "st moritz", "moritz", "bily", "malms", "AEGGET"]
)
def test_a_brand_is_found_however_it_is_typed(searcher: Searcher, text: str) -> None:
    brands = {hit.columns["brand"] for hit in searcher.search(text, k=5)}
    assert len(brands) == 1
    assert brands.pop()[0].lower() == text[0].lower().replace("a", "ä").replace(
        "m", "m" if text == "malms" else "s"
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(
            ("chairs", "chair"),
            ("chiar", "chair"),
            ("hcair", "chair"),
            ("benchs", "bench"),
            ("lamsp", "lamp"),
            ("a lamp for me", "lamp"),
        ),
        *(("Stühle", "chair"), ("lampes", "lamp"), ("sänky bed", "bed"), ("la chaise", "chair")),
    ],
)
def test_plurals_typing_errors_and_other_languages(searcher: Searcher, text: str, kind: str) -> None:
    kinds = {hit.object_type for hit in searcher.search(text, k=3, mode="keyword")}
    assert kinds == ({kind} if any(hit.object_type == kind for hit in searcher.search(kind)) else set())


def vocabulary(*titles: str, language: str = "en") -> Vocabulary:
    """Of a catalogue of these titles, whose last words say what each is, and colors their first."""
    colors = ("red", "black", "white", "gray")
    names = ("product_id", "title", "object_type", "color")
    rows = [
        dict(zip(names, (f"P{row}", title, words[-1], words[0] * (words[0] in colors)), strict=True))
        for row, title in enumerate(titles)
        for words in [title.split()]
    ]
    return Vocabulary.gather(rows, fields_of({}), language)


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        *(
            ("bookshelfs", "bookcas"),
            ("bookshelves", "bookcas"),
            ("wall-shelfs", "shelf"),
            ("couches", "sofa"),
        ),
        *(("couches", "sofa"), ("nighstand", "nightstand")),
        *(("sillones", "armchair"), ("boekenkasten", "bookcas"), ("canapés", "sofa"), ("étagères", "shelf")),
        *(("golve", "glove"), ("eeyshadow", "eye shadow"), ("eyeshadows", "eye shadow")),
        *(
            ("Bürostuhl", "offic chair"),
            ("bowlchair", "chair"),
            ("Küchensofa", "sofa"),
            ("nattduksbord", "tabl"),
            ("nighstand", "nightstand"),
        ),
    ],
)
def test_words_that_a_catalogue_writes_otherwise(text: str, stems: str) -> None:
    titles = (
        "bookcase",
        "wall shelf",
        "red sofa",
        "armchair",
        "gloves",
        "eye shadow",
        "office chair",
        "oak table",
    )
    known = vocabulary(*titles, "nightstand", "wool rug")
    found = [stem for term in understand(text, known, {}, literal=False).terms for stem in term.stems]
    assert set(found) >= set(stems.split())


def test_what_a_title_says_a_product_is_without() -> None:
    known = vocabulary("red sofa", "desk chair without armrests chair", "desk chair", "non-slip rug")
    asked = understand("chair without armrest", known, {}, literal=False)
    row = {"product_id": "P1", "title": "Desk chair without armrests"}
    shares = asked.shares({0: known.keywords(row, fields_of({})), 1: "desk chair desk chair |"})
    assert shares[0] > shares[1]
    unknown = understand("sofa without wheels", known, {}, literal=False)
    assert [term.word for term in unknown.terms] == ["sofa"]
    assert "no product has `wheels`" in unknown.understood
    assert understand("rug non slip", known, {}, literal=False).understood == ("without slip",)


def test_a_title_that_opens_with_the_name_as_written_comes_first() -> None:
    titles = ("Van Heusen wool rug for halls", "Vans rug", "Rug of van der Rohe")
    known = vocabulary(*titles)
    rows = [{"product_id": f"P{place}", "title": title} for place, title in enumerate(titles)]
    words = {place: known.keywords(row, fields_of({})) for place, row in enumerate(rows)}
    for text, first in (("van", 0), ("vans", 1)):
        shares = understand(text, known, {}, literal=False).shares(words)
        assert max(shares, key=lambda place: shares[place]) == first


def test_the_word_as_typed_comes_before_what_means_the_same() -> None:
    known = vocabulary("sofa", "couch")
    shares = understand("couches", known, {}, literal=False).shares({0: "sofa sofa |", 1: "couch couch |"})
    assert shares[1] > shares[0] > 0


SPREAD = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "ß": "ss"})


@pytest.mark.parametrize("language", ["en", "de", "nl", "sv", "fr"])
@pytest.mark.parametrize("as_listed", [False, True])
@pytest.mark.parametrize(
    ("title", "other"),
    [
        *(("Bücherregal Ostsee", "Book bookcase Ostsee"), ("Tür Zürich", "Glass door Zürich")),
        *(("Türen Zürich", "door Zürich"), ("Kleiderschränke Nørrby", "wardrobe Nørrby")),
        *(("Küchenstühle Mårten", "kitchen chair Mårten"), ("Kommode weiß Ägget", "white cabinet Ägget")),
        ("Grüner Sessel Jämtöland", "green armchair Jämtöland"),
    ],
)
def test_umlauts_that_are_spelled_out_lead_before_what_means_the_same(
    title: str, other: str, language: str, as_listed: bool
) -> None:
    """In the query or in the catalogue, which may be in a language that knows none."""
    spread = title.translate(SPREAD)
    listed, asked, like = (spread, title, other.translate(SPREAD)) if as_listed else (title, spread, other)
    rows = [{"title": text, "object_type": text.split()[0]} for text in (like, listed, "Bett 3 Ostsee")]
    known = Vocabulary.gather(rows, fields_of({}), language)
    words = {place: known.keywords(row, fields_of({})) for place, row in enumerate(rows)}
    query = understand(asked, known, {}, literal=False)
    shares = query.shares(words)
    assert max(shares, key=lambda place: shares[place]) == 1, (query.terms, shares)
    assert "`" not in " ".join(query.understood)  # the model is not asked for another word


@pytest.mark.parametrize(
    ("text", "other"), [("Stuhl ueber 100", "Stuhl über 100"), ("Lampe fuer Oslo", "Lampe für Oslo")]
)
def test_umlauts_that_are_spelled_out_make_filters_and_say_nothing(
    searcher: Searcher, text: str, other: str
) -> None:
    known = searcher._open.vocabulary
    given, usual = (understand(each, known, searcher.columns, literal=False) for each in (text, other))
    assert given.where == usual.where
    assert given.unknown == usual.unknown


@pytest.mark.parametrize("text", ["BLUE-100", "100-BLUE", "blue100"])
def test_a_code_is_not_written_otherwise(text: str) -> None:
    assert (
        f"={text.lower().replace('-', '')}"
        in understand(text, vocabulary("blu chair"), {}, literal=False).exact
    )


def test_one_word_for_a_coffee_table_finds_no_cups() -> None:
    known = vocabulary("coffee table", "coffee cup", "oak table", "armchair")
    rows = dict(enumerate(("coffe cup", "tabl oak", "coffe tabl")))
    query = understand("Couchtisch", known, {}, literal=False)
    shares = query.shares(rows)
    assert max(shares, key=lambda place: shares[place]) == 2
    assert query.text == "coffee table"
    assert understand("coffee table", vocabulary("Couchtisch", "sofa"), {}, literal=False).groups == [
        "couchtisch"
    ]


def test_without_prices_a_price_is_no_word() -> None:
    asked = understand("mesas de sofa under 500", vocabulary("oak table", "red sofa"), {}, literal=False)
    assert [term.word for term in asked.terms] == ["mesas", "sofa"]
    assert "no column `price` for `price <= 500.0`" in asked.understood
    asked = understand("sofa under 500", vocabulary("red sofa"), {"price": "text"}, literal=False)
    assert (asked.where, asked.understood) == ((), ("column `price` holds texts: `price <= 500.0`",))


@pytest.mark.parametrize("text", ["lamp and clock", "Lampe oder Uhr", "black and white lamp"])
def test_one_of_two_things_is_enough_but_not_one_of_two_colors(text: str) -> None:
    known = vocabulary("black lamp", "white clock", "gray lamp")
    rows = {0: "lamp", 1: "clock", 2: "black lamp", 3: "black clock"}
    shares = understand(text, known, {}, literal=False).shares(rows)
    if "black" in text:
        assert shares[2] > shares[0] > shares[3]
    else:
        assert shares[0] == pytest.approx(shares[1], abs=0.1)
        assert shares[1] > 0.4


@pytest.mark.parametrize("word", ["hair", "ramp", "damp", "wed"])
def test_a_short_word_is_no_slip_for_one_that_begins_otherwise(searcher: Searcher, word: str) -> None:
    answer = searcher.search(f"{word} chair", k=3, mode="keyword")
    assert f"no product has `{word}`" in answer.understood
    assert {hit.object_type for hit in answer} == {"chair"}


@pytest.mark.parametrize("text", ["x" * 2000, "abcdefghijklmnopqrstuvwxyzabcdefghi " * 60])
def test_a_word_longer_than_any_is_not_taken_apart(text: str) -> None:
    known = vocabulary("black lamp", "white clock")
    start_s = time.process_time()
    assert not any(term.stems for term in understand(text, known, {}, literal=False).terms)
    assert time.process_time() - start_s < 2


@pytest.mark.parametrize("mode", ["hybrid", "keyword"])
def test_what_it_is_comes_before_how_it_looks(searcher: Searcher, mode: Any) -> None:
    """No product has all the words: a chair of another color or size is nearer than a red bed."""
    there = {(hit.color, hit.object_type) for hit in searcher.search(where="price >= 0", k=PRODUCTS)}
    kinds = {kind for _, kind in there}
    absent = [(color, kind) for color in ("red", "blue") for kind in kinds if (color, kind) not in there]
    sizes = [f"{kind} {80 + row} cm" for kind in kinds for row in (3, 8, 21)]
    foreign = [f"{'rotes' if color == 'red' else 'bleu'} {kind}" for color, kind in absent]
    asked = [*(f"{color} {kind}" for color, kind in absent), *sizes, *foreign]
    assert len(asked) > 10
    for text in asked:
        answer = searcher.search(text, k=1, mode=mode)
        assert answer[0].object_type in text, text


def test_a_word_the_catalogue_lacks_reaches_the_model_as_what_it_has(searcher: Searcher) -> None:
    german, english = searcher.search("blauer Stuhl", k=5), searcher.search("blue chair", k=5)
    assert [hit.product_id for hit in german] == [hit.product_id for hit in english]
    assert "`stuhl` as `chair`" in german.understood


@pytest.mark.parametrize("text", ["95 cm", "95cm", "950 mm", "0,95 m", "95x40 cm", "95 x 40", "95\u00d740"])
def test_a_size_is_found_however_it_is_written(searcher: Searcher, text: str) -> None:
    assert searcher.search(text, k=1)[0].product_id == "P00015"


@pytest.mark.parametrize("text", ["260x906", "906 x 260", "260 cm x 906"])
def test_the_sizes_in_columns_of_numbers_are_words(shop: Path, text: str) -> None:
    hit = json.loads(run(shop, text, "-k", "1", "--json").stdout)["hits"][0]
    assert hit["product_id"] == "P00006"
    assert hit["why"]["words"] == {"260": ["width_cm"], "906": ["depth"]}


def test_words_of_a_text() -> None:
    assert words_of('T-Shirt 1.200 mm, 3/4" wall-mounted') == [
        *[("tshirt",), ("1200", "120cm"), ("3",), ("4", "4in")],
        *[("wall", "wallmounted"), ("mounted",)],
    ]


def test_a_compound_counts_as_its_last_part_in_german() -> None:
    titles = ["Esstisch aus Eiche", "Tisch", "der Schreibtisch mit Lampe", "die Tischlampe"]
    from furnclip.vectors.words import fields_of

    fields = fields_of({})
    vocabulary = Vocabulary.gather([{"title": title} for title in titles], fields, "")
    assert vocabulary.language == "de"
    assert "tisch" in vocabulary.keywords({"title": titles[0]}, fields).split()
    assert "lamp" in vocabulary.keywords({"title": titles[3]}, fields).split()


# --- what a text says about filters


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        *(
            ("lamp under 100", 0, 100),
            ("chair over 250 euros", 250, 1e9),
            ("bed between 100 and 200 €", 100, 200),
        ),
        *(
            ("Bett unter 150 Euro", 0, 150),
            ("lampe moins de 120 €", 0, 120),
            ("Stuhl zwischen 90 und 180", 90, 180),
        ),
    ],
)
def test_a_price_in_the_text_is_a_filter(searcher: Searcher, text: str, least: float, most: float) -> None:
    answer = searcher.search(text, k=PRODUCTS)
    assert answer
    assert all(least <= hit.columns["price"] <= most for hit in answer)
    assert "price" in answer.understood[0]
    literal = searcher.search(text, k=PRODUCTS, literal=True)
    assert not any("price" in line for line in literal.understood)
    assert len(literal) > len(answer)


@pytest.mark.parametrize(
    "text", ["chair not red", "chair without red", "Stuhl nicht rot", "chaise pas rouge"]
)
def test_a_negation_in_the_text_keeps_out(searcher: Searcher, text: str) -> None:
    answer = searcher.search(text, k=PRODUCTS)
    assert answer
    assert "red" not in {hit.color for hit in answer}
    assert answer.understood
    assert "red" in {hit.color for hit in searcher.search(text, k=PRODUCTS, literal=True)}


@pytest.mark.parametrize("text", ["table 100 cm", "under 100 cm", "no 7", "not at all", "without", "over"])
def test_what_is_no_filter_stays_in_the_text(searcher: Searcher, text: str) -> None:
    said = searcher.search(text).understood
    assert not any(line.startswith(("price", "without")) for line in said)


def test_a_description_does_not_keep_a_product_out(searcher: Searcher) -> None:
    assert len(searcher.search("chair", k=PRODUCTS, exclude=["glass"], all_variants=True)) > 0


def test_nothing_is_an_answer(shop: Path, searcher: Searcher) -> None:
    answers = [searcher.search(text) for text in ("xylophone", "zzzz qqqq", "income tax form")]
    assert all(answer.understood for answer in answers)
    assert any(answer.note for answer in answers)
    done = run(shop, "xylophone", "-k", "1")
    assert "no product has `xylophone`" in done.stdout
    assert not searcher.search("red chair").note


# --- columns


@pytest.mark.parametrize(
    ("where", "right"),
    [
        ("price < 100 AND price >= 20", lambda hit: 20 <= hit.columns["price"] < 100),
        ("in_stock", lambda hit: hit.columns["in_stock"]),
        ("NOT in_stock AND in_stock = FALSE", lambda hit: not hit.columns["in_stock"]),
        ("added > '2026-01-20'", lambda hit: hit.columns["added"] > "2026-01-20"),
        (
            "added BETWEEN '2026-01-03' AND '2026-01-05'",
            lambda hit: hit.columns["added"][-2:] in ("03", "04", "05"),
        ),
        ("tags = 'new'", lambda hit: "new" in hit.columns["tags"]),
        ("tags IN ('x', 'old') AND tags <> 'new'", lambda hit: hit.columns["tags"] == ["old"]),
        ("price IS NULL", lambda hit: "price" not in hit.columns),
    ],
)
def test_typed_columns_filter(searcher: Searcher, where: str, right: Any) -> None:
    hits = searcher.search("chair", k=PRODUCTS, where=where, all_variants=True)
    assert hits
    assert all(map(right, hits))
    assert searcher.facets(["price"], where=where)["price"].keys() <= {
        str(10.0 * row) for row in range(PRODUCTS)
    }


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("prise < 3", "did you mean `price`?"),
        ("color = red", "put text in quotes: color = 'red'"),
        ("color IN ('blue', red)", "put text in quotes: color = 'red'"),
        ("price = 'cheap'", "`price` is a number and `'cheap'` is a text"),
        ("in_stock = 1", "`in_stock` is a boolean and `1` is a number"),
        ("added > 'soon'", "soon"),
        ("tags LIKE 'n%'", "LIKE compares a text column"),
        ("tags > 'n'", "`tags` is a list"),
        ("price", "it needs a comparison"),
    ],
)
def test_a_wrong_filter_says_what_to_write(searcher: Searcher, where: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        searcher.search("chair", where=where)
    assert message in refused.value.message + refused.value.hint


def test_sorting_and_counting(shop: Path) -> None:
    done = run(shop, "chair", "--sort", "-price", "--facets", "brand,tags", "--json", "-k", "5")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    prices = [hit["columns"].get("price", -1) for hit in said["hits"]]
    assert prices == sorted(prices, reverse=True)
    assert {hit["object_type"] for hit in said["hits"]} == {"chair"}
    assert set(said["facets"]) == {"brand", "tags"}
    listed = json.loads(run(shop, "--where", "price < 50", "--sort", "price", "--json").stdout)["hits"]
    assert [hit["columns"]["price"] for hit in listed] == [0, 10, 20, 30, 40]
    assert "did you mean `price`?" in run(shop, "chair", "--sort", "prise").stderr


def test_every_view_of_a_product_finds_it_first(shop: Path, searcher: Searcher) -> None:
    stored = pq.read_table(
        load_config(shop / "furnclip.toml").paths.vectors, columns=["product_id", "views_clip_base"]
    )
    for product_id, views in zip(*stored.to_pydict().values(), strict=True):
        for view in views or ():
            column = vectors.column_name("image", searcher.label)
            row = next(iter(searcher._open.nearest(column, np.array(view, np.float32), 1, None)))
            assert searcher._open.hits({row: 1.0})[0].product_id == product_id


def test_variants_fold(shop: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shop, tmp_path / "copy"))
    config = load_config(copy / "furnclip.toml")
    table = pq.read_table(config.paths.vectors)
    place = table.schema.get_field_index("group")
    table = table.set_column(place, "group", pa.array([f"G{row // 4}" for row in range(len(table))]))
    pq.write_table(table, config.paths.vectors)
    write_index(index_location(config), config.paths.vectors, config.search)
    searcher = Searcher(config)
    folded, unfolded = searcher.search("red chair", k=8), searcher.search("red chair", k=8, all_variants=True)
    assert len({hit.group for hit in folded}) == 8
    assert {hit.variants for hit in folded} == {4}
    assert len({hit.group for hit in unfolded}) < 8
    assert folded[0].product_id == unfolded[0].product_id


def test_a_product_and_its_like(searcher: Searcher) -> None:
    found = searcher.product("P00003")
    assert found is not None
    assert found.columns["sku"] == "SKU-003/A"
    assert searcher.product("nobody") is None
    like = searcher.similar("P00003", k=5)
    assert len(like) == 5
    assert "P00003" not in {hit.product_id for hit in like}


def test_image_and_text_together(shop: Path, searcher: Searcher) -> None:
    with Image.open(shop / "images/00004.jpg") as image:
        hits = searcher.search("lamp", image=image, k=3, image_weight=0.2)
    assert {hit.object_type for hit in hits} == {"lamp"}


def test_an_image_with_a_word_finds_of_all_that_have_it_what_looks_like_the_image(
    shop: Path, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only of the few that are looked at for the word or for the image alone."""
    monkeypatch.setattr("furnclip.search.searcher._CANDIDATES", 3)
    for number in (4, 7, 11, 23):
        with Image.open(shop / f"images/{number:05d}.jpg") as image:
            image.load()
        red = searcher.search(image=image, k=PRODUCTS, where="color = 'red'", all_variants=True)
        found = searcher.search("red", image=image, k=3, all_variants=True)
        assert {hit.color for hit in found} == {"red"}
        assert red[0].product_id in [hit.product_id for hit in found]


def test_a_size_finds_those_nearby_and_is_looked_for_as_a_word(searcher: Searcher) -> None:
    widths = [hit.columns["width_cm"] for hit in searcher.search("305 cm", k=2)]
    assert sorted(widths) == [300.2, 310.2]
    asked = understand("wide 305 cm", searcher._open.vocabulary, searcher.columns, literal=False)
    assert asked.unknown == []
    assert searcher._ranker.trust_in_words(asked) >= 0.98


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I am looking for a red lamp", {"red", "lamp"}),
        ("ich suche etwas rotes", {"rotes"}),
        ("je cherche une lampe", {"lampe"}),
        ("busco una silla", {"silla"}),
        ("a 40 cm deep table", {"40", "table"}),
    ],
)
def test_what_a_request_says_beside_the_product_is_not_looked_for(text: str, kept: set[str]) -> None:
    rows = [{"title": "red lamp 40 cm"}, {"title": "chair and table, 2 heaters, wine"}]
    vocabulary = Vocabulary.gather(rows, fields_of({}), "en")
    assert {term.word for term in understand(text, vocabulary, {}, literal=False).terms} == kept


def test_another_first_letter_is_another_word() -> None:
    vocabulary = Vocabulary.gather([{"title": "heater sofa"}], fields_of({}), "en")
    assert understand("seater", vocabulary, {}, literal=False).unknown == ["seater"]
    assert [term.spelled for term in understand("osfa", vocabulary, {}, literal=False).terms] == ["sofa"]


@pytest.mark.parametrize(
    "text", ["chair without a back", "chair not for the back", "Stuhl ohne eine Back", "chair, not in back"]
)
def test_what_is_kept_out_may_have_an_article(text: str) -> None:
    vocabulary = Vocabulary.gather([{"title": "chair with back"}], fields_of({}), "en")
    asked = understand(text, vocabulary, {}, literal=False)
    assert asked.avoided == ("back",)
    assert {stem for term in asked.terms for stem in term.stems if "!" not in stem} == {"chair"}


@pytest.mark.parametrize("text", ["SKU-007/B", "sku-007-x", "sku 007 c", "a chair, SKU-007/XL"])
def test_of_a_variant_that_there_is_not_the_article_leads(searcher: Searcher, text: str) -> None:
    assert searcher.search(text)[0].product_id == "P00007"


@pytest.mark.parametrize("text", ["chairs 2024-2025", "table 120-60", "lamp 100cm/B"])
def test_a_year_or_size_with_a_sign_is_no_article(text: str) -> None:
    assert understand(text, vocabulary("chair"), {}, literal=False).articles[1:] == ()


@pytest.mark.parametrize(
    ("text", "where"),
    [("under 100", "price <= 100"), ("more than 100 euro?", "price >= 100"), ("unter 100 €", "price <= 100")],
)
@pytest.mark.parametrize("mode", ["hybrid", "keyword", "vector"])
def test_a_text_that_is_only_a_filter_lists_what_passes(
    searcher: Searcher, text: str, where: str, mode: Any
) -> None:
    answer = searcher.search(text, mode=mode)
    assert [hit.product_id for hit in answer] == [hit.product_id for hit in searcher.search(where=where)]
    assert not answer.note
    assert all(line.startswith("price") for line in answer.understood)
    assert searcher.facets(["brand"], text) == searcher.facets(["brand"], where=where)


@pytest.mark.parametrize("text", ["no glass", "not red", "ohne rot"])
def test_a_text_that_only_keeps_out_looks_for_no_word_of_itself(text: str) -> None:
    query = understand(text, vocabulary("glass table", "red chair"), {}, literal=False)
    assert (query.text, query.terms, len(query.understood)) == ("", (), 1)


@pytest.mark.parametrize(
    ("text", "avoided"),
    [
        ("sofa without glass or metal", ("glass", "metal")),
        ("sofa, not red or blue", ("red", "blue")),
        ("not red, nor blue or green sofa", ("red", "blue", "green")),
        ("Sofa ohne Glas oder Metall", ("glas", "metall")),
        ("canapé sans verre ni métal", ("verre", "metal")),
        ("no leather and black shoes", ("leather",)),
    ],
)
def test_or_behind_what_is_kept_out_keeps_out_as_well(text: str, avoided: tuple[str, ...]) -> None:
    known = vocabulary("red sofa", "glass metal leather green blue shoes", "verre rot table")
    assert understand(text, known, {}, literal=False).avoided == avoided


@pytest.mark.parametrize("text", ["wrist watch", "a wrist watch", "wrist watches"])
def test_a_guess_does_not_come_before_the_kind_that_was_typed(text: str) -> None:
    known = vocabulary(*["black watch"] * 20, "red waist", *["white bag"] * 20)
    terms = understand(text, known, {}, literal=False).terms
    weights = {term.word.removesuffix("es"): term.weight for term in terms}
    assert weights["wrist"] < weights["watch"]


def test_a_mistyped_kind_at_the_end_or_with_swapped_letters_stays_one() -> None:
    known = vocabulary("floor lamp", "side table", "black floor")
    terms = [understand(text, known, {}, literal=False).terms for text in ("table lamb", "lmap table")]
    assert [[term.is_kind for term in each] for each in terms] == [[True, True], [True, True]]


@pytest.mark.parametrize("word", ["mens", "womens", "men's", "childrens", "women", "man"])
def test_a_genitive_without_its_sign_is_the_same_word(word: str) -> None:
    known = vocabulary("Men shirt", "Women shirt", "Children shirt")
    assert understand(word, known, {}, literal=False).groups
    assert not understand(word, known, {}, literal=False).understood


@pytest.mark.parametrize("text", ["do you have a table", "where is a table", "gibt es auch einen table"])
def test_words_of_a_question_are_no_typing_errors(text: str) -> None:
    query = understand(text, vocabulary("hane table", "whale table"), {}, literal=False)
    assert [term.word for term in query.terms] == ["table"]


@pytest.mark.parametrize("name", ["No Fear", "Not Rated", "Max 90", "Under 100", "Sans Souci", "Ohne Ende"])
def test_a_brand_or_series_that_reads_like_a_filter_is_none(name: str) -> None:
    rows = [{"title": "fear rated souci ende chair", "brand": name, "price": 9.0}]
    known = Vocabulary.gather(rows, fields_of({"brand": "text", "price": "number"}), "en")
    query = understand(name.lower(), known, {"price": "number"}, literal=False)
    assert (query.where, query.avoided, query.understood) == ((), (), ())
    assert "@" in "".join(query.exact)
