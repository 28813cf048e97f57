"""Shopper queries: asked for in the same request, put right by rules, never a reason to pay twice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from furnclip.clean.batch.requests import Recipe
from furnclip.clean.offline import settled
from furnclip.clean.prompt import PROMPT
from furnclip.config import CleaningConfig
from furnclip.relevance import shopper_queries
from tests.batch_server import BatchServer
from tests.clean_shop import CleanShop
from tests.clean_shop import server as server
from tests.clean_shop import shop as shop

PRODUCTS = 4


def with_queries(count: int, server: BatchServer | None = None) -> dict[str, str]:
    return {**(server.env if server else {}), "FURNCLIP_CLEAN__QUERIES": str(count)}


def asked(server: BatchServer) -> list[dict[str, Any]]:
    """Bodies of all requests, in the order in which they ran."""
    return [request["body"] for batch in server.ran for request in batch.requests]


def properties(body: dict[str, Any]) -> set[str]:
    return set(body["response_format"]["json_schema"]["schema"]["properties"])


def test_queries_come_with_the_same_request(shop: CleanShop, server: BatchServer) -> None:
    summary = shop.run("run", "--json", env=server.env).ok().json
    assert summary["queries_by_rule"] == 0
    assert sum(server.asked.values()) == len(asked(server)) == PRODUCTS
    assert all("queries" in properties(body) for body in asked(server))
    rows = shop.cleaned.values()
    assert list(next(iter(rows)))[-3:] == ["object_type", "queries", "clean_source"]
    for row in rows:
        kind = row["object_type"]
        wanted = [f"{row['color']} {kind}", f"{row['style']} {kind}", f"nice {kind} please"]
        assert shopper_queries(row) == wanted == row["queries"].split(" | ")


def test_none_are_the_requests_from_before(shop: CleanShop, server: BatchServer) -> None:
    shop.run("run", env=with_queries(0, server)).ok()
    assert all(body["messages"][0]["content"] == PROMPT for body in asked(server))
    assert not any("queries" in properties(body) for body in asked(server))
    assert {row["queries"] for row in shop.cleaned.values()} == {""}


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (3, 1)])
def test_a_run_goes_on_as_it_was_begun(shop: CleanShop, server: BatchServer, before: int, after: int) -> None:
    """Another number of queries buys no row again; a new row is asked like the others."""
    shop.run("run", "--limit", "3", env=with_queries(before, server)).ok()
    done = shop.run("run", env=with_queries(after, server)).ok()
    assert f"begun with {before or 'no'} shopper queries" in done.stderr
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == PRODUCTS
    assert {"queries" in properties(body) for body in asked(server)} == {before > 0}
    assert {len(shopper_queries(row)) for row in shop.cleaned.values()} == {after}
    shop.check_all_settled()


def test_what_was_not_sent_yet_is_planned_anew(shop: CleanShop, server: BatchServer) -> None:
    shop.run("prepare", env=with_queries(0, server)).ok()
    done = shop.run("run", env=server.env).ok()
    assert "shopper queries" not in done.stderr
    assert all("queries" in properties(body) for body in asked(server))


def test_estimate_counts_them(shop: CleanShop, server: BatchServer) -> None:
    without, with_them = (
        shop.run("estimate", "--json", env=with_queries(count, server)).ok().json for count in (0, 3)
    )
    assert with_them["completion_tokens"] > without["completion_tokens"]
    assert with_them["cost_usd"] > without["cost_usd"]
    assert not server.asked


WRONG = {
    "missing": None,
    "no list": "red chair",
    "too few": ["gray chair"],
    "doubled": ["gray chair", "gray  CHAIR", "gray chair"],
    "too long": ["gray chair", "x" * 300, "comfy chair"],
    "of a brand": ["gray chair", "tove chair", "comfy chair"],
    "of a series": ["gray chair", "lomma chair", "comfy chair"],
    "not text": [3, None, {"a": "gray chair"}],
    "with the separator": ["gray | chair", "chair for the hall", "seat"],
    "of half a character": ["gray \ud83d chair", "comfy chair", "seat"],
}


def test_wrong_ones_are_put_right_without_another_request(shop: CleanShop, server: BatchServer) -> None:
    answer = {"clean_title": "chair", "style": "modern", "material": "wood", "color": "gray"}
    rows, server.texts = [], {}
    for number, queries in enumerate(WRONG.values()):
        title = f"LOMMA Chair {'with arms ' * number}"
        more = {} if queries is None else {"queries": queries}
        server.texts[title.strip()] = {"content": json.dumps({**answer, "object_type": "chair", **more})}
        image = f"{number % PRODUCTS:05d}.jpg"
        rows.append({"product_id": f"P{number}", "title": title, "image": image, "brand": "Tove"})
    text = "\n".join(json.dumps(row) for row in rows)
    (shop.folder / "products.jsonl").write_text(text, encoding="utf-8")
    env = {**server.env, "FURNCLIP_PATHS__PRODUCTS": "products.jsonl"}
    summary = shop.run("run", "--json", env=env).ok().json
    assert set(server.asked.values()) == {1}
    assert summary["queries_by_rule"] == len(WRONG) - 2  # the last two can be read
    for row in shop.cleaned.values():
        queries = shopper_queries(row)
        assert len(queries) == 3
        assert not any("tove" in query or "lomma" in query or len(query) > 80 for query in queries)
        assert row["queries"].count("|") == 2


def test_rules_write_them_offline(shop: CleanShop) -> None:
    for _ in range(2):
        shop.run("run", "--backend", "local").ok()
        written = {name: row["queries"] for name, row in shop.cleaned.items()}
    assert all(len(set(queries.split(" | "))) == 3 for queries in written.values())
    shop.run("run", "--backend", "local", env=with_queries(1)).ok()
    assert {row["queries"] for row in shop.cleaned.values()} == {
        queries.split(" | ")[0] for queries in written.values()
    }


@pytest.mark.parametrize(
    ("values", "queries"),
    [
        (
            {"clean_title": "oak sofa", "style": "rustic", "material": "leather", "color": "brown",
             "object_type": "sofa"},
            ["brown sofa", "rustic leather sofa", "brown leather settee"],
        ),
        (
            {"clean_title": "desk 120 cm", "style": "unknown", "material": "wood", "color": "unknown",
             "object_type": "desk"},
            ["wood desk", "wood desk for the home office", "wooden computer table"],
        ),
        ({"clean_title": "quux 30 cm", "color": "red"}, ["red quux", "quux red"]),
        ({"clean_title": "quux w59,4 x 60 cm zorp", "color": "red"}, ["red quux zorp", "quux zorp red"]),
    ],
)  # fmt: skip
def test_queries_of_attributes(values: dict[str, str], queries: list[str]) -> None:
    assert settled([], values, [], 3)[:2] == queries[:2]
    assert settled(["mine", "mine"], values, [], 2) == ["mine", queries[0]]
    assert settled([], values, [queries[0]], 1) != [queries[0]]
    assert settled([], values, [], 0) == []


def test_the_hash_of_a_run_without_them_is_the_one_from_before() -> None:
    """Answers that were bought by an earlier version are found by it."""
    recipe = Recipe.from_config(CleaningConfig(queries=0))
    assert recipe.identity == "1aea74b2022fa58c"
    assert len({Recipe.from_config(CleaningConfig(queries=n)).identity for n in range(4)}) == 4
