"""A drawn shop and a `furnclip clean` to run in it, for the tests of cleaning."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from furnclip.clean.batch.state import State, apply
from tests.batch_server import BatchServer
from tests.conftest import Outcome, run_here
from tests.drawn_shop import write_shop


@dataclass
class CleanShop:
    """A catalogue, and the command in the same process: real HTTP, real files, no start-up time."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    products: int

    def run(self, *args: str, env: Mapping[str, str] | None = None) -> Outcome:
        """`furnclip clean ARGS` in the shop's folder."""
        return self.furnclip("clean", *args, env=env)

    def furnclip(self, *args: str, env: Mapping[str, str] | None = None) -> Outcome:
        return run_here(*args, cwd=self.folder, env=env)

    @property
    def work(self) -> Path:
        return self.folder / "work" / "clean"

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.work / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @property
    def cleaned(self) -> dict[str, dict[str, str]]:
        return {row["product_id"]: row for row in self.table("cleaned.csv")}

    @property
    def rejected(self) -> dict[str, str]:
        """product id -> reason"""
        return {row["product_id"]: row["rejected_reason"] for row in self.table("rejected.csv")}

    def events(self, name: str = "") -> list[dict[str, Any]]:
        lines = (self.work / "journal.jsonl").read_bytes().split(b"\n")[:-1]
        events = [json.loads(line) for line in lines]
        return [event for event in events if not name or event["event"] == name]

    def title(self, index: int) -> str:
        with (self.folder / "products.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))[index]["title"]

    def check_all_settled(self, *, rejected: Mapping[str, str] | None = None) -> None:
        """Every row is in exactly one of the two files, and the rejected ones are those expected."""
        assert self.rejected == dict(rejected or {})
        assert not self.cleaned.keys() & self.rejected.keys()
        assert len(self.table("cleaned.csv")) + len(self.table("rejected.csv")) == self.products


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer() as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> CleanShop:
    """A shop with as many products as the module's `PRODUCTS` says."""
    return make_shop(tmp_path / "shop", monkeypatch, products=getattr(request.module, "PRODUCTS", 6))


def make_shop(folder: Path, monkeypatch: pytest.MonkeyPatch, *, products: int) -> CleanShop:
    write_shop(folder, products=products, model=Path("not-used"))
    return CleanShop(folder, monkeypatch, products)


def fold(events: Iterable[dict[str, Any]], state: State | None = None) -> State:
    """The state after these events of a journal."""
    return reduce(apply, events, state or State())


def with_parts_of(server: BatchServer, requests: int, **more: object) -> dict[str, str]:
    """The server's environment with small parts; `more` are keys of `[clean]`."""
    keys = {"part_requests": requests, **more}
    return {**server.env, **{f"FURNCLIP_CLEAN__{name.upper()}": str(value) for name, value in keys.items()}}
