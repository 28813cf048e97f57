"""Damaged votes files, lineups and run cards: named with file and line, or made again.

By default a hundred random mutations of a votes file; 10,000 with FURNCLIP_FULL=1.
"""

from __future__ import annotations

import copy
import csv
import json
import os
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from furnclip import ArenaApp
from furnclip.arena import VoteBook
from furnclip.catalogue.delimited import unescape
from furnclip.config import load_config
from furnclip.errors import InputError
from furnclip.journal import write_json
from tests.arena_contest import write_contest
from tests.conftest import invoke

MUTATIONS = 10_000 if os.environ.get("FURNCLIP_FULL") else 100
Event = dict[str, Any]
# Lines of the votes file that `voted` makes; the first one is the contest, the last but one an undo.
FIRST_VOTE, SECOND_VOTE, UNDO = 2, 3, 8


@pytest.fixture(scope="module")
def voted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A contest with seven votes, one of them taken back."""
    folder = write_contest(tmp_path_factory.mktemp("voted") / "contest", config="repeat_every = 5")
    with ArenaApp(load_config(folder / "furnclip.toml"), rater="anna") as arena:
        for choice in "ABTXNA":
            arena.next_query()
            arena.vote(choice)
        arena.undo()
        arena.next_query()
        arena.vote("B")
    return folder


def events_of(folder: Path) -> list[Event]:
    return [json.loads(line) for line in votes_file(folder).read_text().splitlines()]


def votes_file(folder: Path) -> Path:
    return folder / "work/arena/votes.jsonl"


@pytest.fixture
def damaged(voted: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on a changed votes file, which is put back afterwards."""
    content = votes_file(voted).read_bytes()
    monkeypatch.chdir(voted)
    yield Damaged(voted)
    path = votes_file(voted)
    if not path.is_file():
        path.unlink()
    path.write_bytes(content)


@dataclass(frozen=True)
class Said:
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Damaged:
    folder: Path

    def write(self, events: list[Event]) -> None:
        votes_file(self.folder).write_text("".join(json.dumps(event) + "\n" for event in events))

    def run(self, *args: str) -> Said:
        """`furnclip arena ARGS`; fails on a traceback."""
        result = invoke("arena", *args)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return Said(result.exit_code, result.stdout, " ".join(result.stderr.split()))

    def open_app(self) -> None:
        with ArenaApp(load_config(self.folder / "furnclip.toml"), rater="anna") as arena:
            arena.next_query()
            list(arena.judging.expected(3))


def put(path: str, value: object) -> Callable[[Event], None]:
    """Sets a field, given with dots, of one event."""

    def change(event: Event) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        inner: Any = event
        for parent in parents:
            inner = inner[parent]
        inner[last] = value

    return change


WRONG_VOTES: dict[str, Callable[[Event], object]] = {
    "no winner's side": lambda event: event.pop("sides"),
    "no query": lambda event: event.pop("query"),
    "no vote id": lambda event: event.pop("vote_id"),
    "no kind": lambda event: event.pop("event"),
    "an unknown kind": put("event", "ballot"),
    "a kind that is a list": put("event", ["vote"]),
    "an unknown choice": put("choice", "C"),
    "two choices": put("choice", "AB"),
    "a choice that is null": put("choice", None),
    "a rater that is null": put("rater", None),
    "a rater without a name": put("rater", ""),
    "a rater that is a number": put("rater", 7),
    "a query that is a text": put("query", "red sofa"),
    "a query without text": put("query", {"query_id": "image:P00002", "kind": "image"}),
    "a query number": put("query.query_id", 2),
    "results that are null": put("results", None),
    "one row of results": put("results", [[]]),
    "three rows of results": put("results", [[], [], []]),
    "cards that are titles": put("results", [["sofa"], ["chair"]]),
    "a card without a title": put("results.0.0", {"product_id": "P1"}),
    "sides that are one": put("sides", ["base"]),
    "sides that are the same": put("sides", ["base", "base"]),
    "sides of another duel": put("sides", ["base", "other"]),
    "a duel with itself": put("duel", ["base", "base"]),
    "a duel that is a text": put("duel", "base"),
    "models that are a list": put("models", ["base", "tuned-run"]),
    "models without the duel's": put("models", {"base": "b"}),
    "seconds that are a text": put("seconds", "2.5"),
    "seconds that are no number": put("seconds", float("nan")),
    "seconds without end": put("seconds", float("inf")),
    "seconds before the question": put("seconds", -3),
    "a repeat that is a number": put("repeat", 1),
    "k that is a fraction": put("k", 2.5),
    "a seed that is null": put("seed", None),
    "a time that is a number": put("at", 1),
    "a lineup that is a list": put("lineup", []),
}


@pytest.mark.parametrize("change", WRONG_VOTES.values(), ids=WRONG_VOTES)
def test_a_wrong_vote_is_named_with_its_line(damaged: Damaged, change: Callable[[Event], object]) -> None:
    events = events_of(damaged.folder)
    change(events[SECOND_VOTE - 1])
    damaged.write(events)
    for args in (["stats", "--json"], ["export"]):
        said = damaged.run(*args)
        assert (said.code, said.stdout) == (1, "")
        assert f"error: line {SECOND_VOTE} of `{votes_file(damaged.folder)}`" in said.stderr
        assert "hint: correct that line" in said.stderr
    with pytest.raises(InputError, match=f"line {SECOND_VOTE} of"):
        damaged.open_app()


WRONG_CONTESTS: dict[str, Callable[[Event], object]] = {
    "no models": lambda event: event.pop("models"),
    "models that are null": put("models", None),
    "agreed that is a number": put("agreed", 4),
    "agreed of one model": put("agreed.0.models", ["base"]),
    "agreed of an unknown model": put("agreed.0.models", ["base", "other"]),
    "fewer than no queries": put("queries", -1),
    "queries that are a list": put("queries", ["q"]),
    "a lineup that is null": put("lineup", None),
}


@pytest.mark.parametrize("change", WRONG_CONTESTS.values(), ids=WRONG_CONTESTS)
def test_a_wrong_contest_is_named_with_its_line(damaged: Damaged, change: Callable[[Event], object]) -> None:
    events = events_of(damaged.folder)
    change(events[0])
    damaged.write(events)
    said = damaged.run("stats")
    assert (said.code, "error: line 1 of" in said.stderr) == (1, True)


def undo_first(events: list[Event]) -> None:
    events.insert(1, events.pop(UNDO - 1))


def undo_unknown(events: list[Event]) -> None:
    events[UNDO - 1]["vote_id"] = "nobody's"


def undo_number(events: list[Event]) -> None:
    events[UNDO - 1]["vote_id"] = 3


def undo_nothing(events: list[Event]) -> None:
    del events[UNDO - 1]["vote_id"]


def same_id(events: list[Event]) -> None:
    events[SECOND_VOTE - 1]["vote_id"] = events[FIRST_VOTE - 1]["vote_id"]


def same_line(events: list[Event]) -> None:
    events.insert(SECOND_VOTE - 1, copy.deepcopy(events[FIRST_VOTE - 1]))


ORDERS = {
    "an undo before its vote": (undo_first, 2),
    "an undo of an unknown vote": (undo_unknown, UNDO),
    "an undo of a number": (undo_number, UNDO),
    "an undo of nothing": (undo_nothing, UNDO),
    "two votes with one id": (same_id, SECOND_VOTE),
    "a line twice": (same_line, SECOND_VOTE),
}


@pytest.mark.parametrize(("change", "line"), ORDERS.values(), ids=ORDERS)
def test_lines_that_contradict_each_other(
    damaged: Damaged, change: Callable[[list[Event]], None], line: int
) -> None:
    events = events_of(damaged.folder)
    change(events)
    damaged.write(events)
    said = damaged.run("stats")
    assert (said.code, f"error: line {line} of" in said.stderr) == (1, True), said.stderr


FOREIGN: dict[str, Callable[[Event], object]] = {
    "a query of another contest": put("query.query_id", "image:nobody"),
    "another run": lambda event: [
        event.update(duel=["base", "other"], sides=["base", "other"], models={"base": "b", "other": "o"})
    ],
    "the duel turned round": lambda event: event["duel"].reverse(),
    "another fingerprint": put("models.base", "c" * 16),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_vote_on_what_the_contest_does_not_have(
    damaged: Damaged, change: Callable[[Event], object]
) -> None:
    events = events_of(damaged.folder)
    change(events[FIRST_VOTE - 1])
    damaged.write(events)
    with pytest.raises(InputError, match=f"line {FIRST_VOTE} of .*its contest has no such query or models"):
        damaged.open_app()


def test_a_second_vote_on_the_same_query_is_counted_as_left_out(damaged: Damaged) -> None:
    events = events_of(damaged.folder)
    damaged.write([*events, {**events[FIRST_VOTE - 1], "vote_id": "copied", "choice": "X"}])
    said = damaged.run("export", "--json")
    assert json.loads(said.stdout)["votes"] == 6
    assert f"warning: votes in `{votes_file(damaged.folder)}` that do not count: 1," in said.stderr
    assert said.stderr.endswith("judged the same query before (line 10)")


HOSTILE: dict[str, Callable[[Event], object]] = {
    "a rater": put("rater", "anna\x1b]0;owned\x07"),
    "a rater that looks like markup": put("rater", "[link=http://x]anna[/link]"),
    "a model": lambda event: event.update(
        json.loads(json.dumps(event).replace("tuned-run", "tuned\\u001b[2J"))
    ),
    "a category": put("query.category", "sofa\x9b2J\x1b[6n"),
    "a vote id of another's words": put("vote_id", "\x1b[31m"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_names_in_votes_do_not_drive_the_terminal(
    damaged: Damaged, change: Callable[[Event], object]
) -> None:
    events = events_of(damaged.folder)
    change(events[FIRST_VOTE - 1])
    damaged.write(events)
    for args in (["stats"], ["export"]):
        said = damaged.run(*args)
        assert said.code == 0
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", said.stdout + said.stderr)


TAILS = {
    "without its newline": lambda content: content[:-1],
    "with Windows line ends": lambda content: content.replace(b"\n", b"\r\n")[:-2],
    "with an empty line after it": lambda content: content + b"\n  \n",
    "behind a byte order mark": lambda content: b"\xef\xbb\xbf" + content[:-1],
}


@pytest.mark.parametrize("change", TAILS.values(), ids=TAILS)
def test_what_an_editor_does_to_the_end_loses_no_vote(
    damaged: Damaged, change: Callable[[bytes], bytes]
) -> None:
    path = votes_file(damaged.folder)
    path.write_bytes(change(path.read_bytes()))
    assert [vote.choice for vote in VoteBook(path).votes()] == list("ABTXNB")
    with ArenaApp(load_config(damaged.folder / "furnclip.toml"), rater="anna") as arena:
        arena.next_query()
        arena.vote("X")
    assert [vote.choice for vote in VoteBook(path).votes()] == list("ABTXNBX")


FORMULAS = {
    "a rater": ("rater", put("rater", "=cmd|'/c calc'!A0")),
    "a query": ("query_text", put("query.text", "@SUM(1)")),
    "a category": ("category", put("query.category", "+1+1")),
    "an id": ("results_a", put("results", [[{"product_id": "-A1", "title": "x", "image": ""}], []])),
    "an id that looks neutralised": (
        "results_a",
        put("results", [[{"product_id": "'-A1", "title": "x", "image": ""}], []]),
    ),
}


@pytest.mark.parametrize(("column", "change"), FORMULAS.values(), ids=FORMULAS)
def test_no_cell_of_the_export_is_a_formula_and_each_comes_back(
    damaged: Damaged, column: str, change: Callable[[Event], object]
) -> None:
    events = events_of(damaged.folder)
    change(events[FIRST_VOTE - 1])
    damaged.write(events)
    assert damaged.run("export").code == 0
    with (damaged.folder / "work/arena/votes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0][column].startswith("'")
    expected = VoteBook(votes_file(damaged.folder)).votes()[0]
    meant = {
        "rater": expected.rater,
        "query_text": expected.query.text,
        "category": expected.query.category,
        "results_a": " ".join(card.product_id for card in expected.results[0]),
    }
    assert unescape(rows[0][column]) == meant[column]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [a_fifo, a_folder, a_device])
def test_what_is_no_file_is_named_and_does_not_hang(damaged: Damaged, make: Callable[[Path], None]) -> None:
    path = votes_file(damaged.folder)
    path.unlink()
    try:
        make(path)
        for args in (["stats"], ["export"]):
            said = damaged.run(*args)
            assert said.code == 1
            assert f"error: the journal `{path}` is not a regular file" in said.stderr
        with pytest.raises(InputError, match="is not a regular file"):
            damaged.open_app()
    finally:
        path.rmdir() if make is a_folder else path.unlink()
        path.touch()


# --- lineups and run cards


def lineup_of(folder: Path) -> Path:
    return next((folder / "work/arena/lineups").glob("*.json"))


WRONG_LINEUPS: dict[str, Callable[[Event], object]] = {
    "no cards": lambda lineup: lineup.pop("cards"),
    "a card less": lambda lineup: lineup["cards"].pop(),
    "queries that are null": put("queries", None),
    "a query less": lambda lineup: lineup["queries"].pop(),
    "a query twice": lambda lineup: lineup["queries"].__setitem__(0, lineup["queries"][1]),
    "answers of one model": lambda lineup: lineup["answers"].pop("base"),
    "answers that are a text": put("answers.base", "P00001"),
    "an unknown product": put("answers.base.0.0", "nobody"),
    "an order without a model": put("order", ["base"]),
    "another contest's key": put("key", "0" * 16),
    "k that is a text": put("k", "5"),
}


@pytest.mark.parametrize("change", WRONG_LINEUPS.values(), ids=WRONG_LINEUPS)
def test_a_damaged_lineup_is_worked_out_again(damaged: Damaged, change: Callable[[Event], object]) -> None:
    path = lineup_of(damaged.folder)
    whole = path.read_bytes()
    value = json.loads(whole)
    change(value)
    write_json(path, value)
    damaged.open_app()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("make", [a_fifo, a_device])
def test_a_lineup_that_is_no_file_is_worked_out_again(damaged: Damaged, make: Callable[[Path], None]) -> None:
    path = lineup_of(damaged.folder)
    whole = path.read_bytes()
    path.unlink()
    make(path)
    damaged.open_app()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    ["[]", "null", '{"model_fingerprint": 3}', '{"model_fingerprint": ["a"]}', "{", "\x00", '{"a": ' * 9000],
)
def test_a_damaged_run_card_is_named(tmp_path: Path, content: str) -> None:
    folder = write_contest(tmp_path / "c", runs=["one"])
    card = folder / "work/runs/one/run.json"
    card.parent.mkdir(parents=True)
    card.write_text(content)
    with pytest.raises(InputError, match=r"the run card `.*run.json` is damaged") as caught:
        ArenaApp(load_config(folder / "furnclip.toml"), rater="anna", runs=["one"])
    assert "furnclip train --run one" in caught.value.hint


def test_a_run_card_that_is_a_fifo_does_not_hang(tmp_path: Path) -> None:
    folder = write_contest(tmp_path / "c", runs=["one"])
    card = folder / "work/runs/one/run.json"
    card.parent.mkdir(parents=True)
    os.mkfifo(card)
    with pytest.raises(InputError, match="is not a regular file"):
        ArenaApp(load_config(folder / "furnclip.toml"), rater="anna", runs=["one"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"sof\xe1 rojo\n", "is not UTF-8 text"), ("sofa\n".encode("utf-16"), "is not UTF-8 text")],
)
def test_queries_in_another_encoding_are_not_guessed(tmp_path: Path, content: bytes, reason: str) -> None:
    folder = write_contest(tmp_path / "c")
    (tmp_path / "queries.txt").write_bytes(content)
    config = load_config(folder / "furnclip.toml", {"arena": {"queries": str(tmp_path / "queries.txt")}})
    with pytest.raises(InputError, match=reason):
        ArenaApp(config, rater="anna")


# --- mutations


WORDS = [None, True, 0, -1, 1.5, 10**30, float("nan"), "", "x", "\x1b[2J", "=1+1", [], {}, [[]], {"a": None}]


def mutated(events: list[Event], dice: random.Random) -> bytes:
    """The file with one to three changes: of a value, a key, a line, or bytes."""
    lines = copy.deepcopy(events)
    for _ in range(dice.randint(1, 3)):
        dice.choice([_value, _value, _value, _key, _line])(lines, dice)
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return _bytes(content, dice) if dice.random() < 0.4 else content


def _value(lines: list[Event], dice: random.Random) -> None:
    holder: Any = dice.choice(lines)
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = dice.choice(keys)
        if isinstance(holder[key], dict | list) and dice.random() < 0.6:
            holder = holder[key]
            continue
        others = [line.get(key) for line in lines] if isinstance(key, str) else []
        holder[key] = copy.deepcopy(dice.choice(WORDS + others))
        return


def _key(lines: list[Event], dice: random.Random) -> None:
    line = dice.choice(lines)
    if line:
        line.pop(dice.choice(list(line)))


def _line(lines: list[Event], dice: random.Random) -> None:
    index, other = dice.randrange(len(lines)), dice.randrange(len(lines))
    move = dice.randrange(3)
    if move == 0:
        lines[index], lines[other] = lines[other], lines[index]
    elif move == 1:
        lines.insert(index, copy.deepcopy(lines[other]))
    elif len(lines) > 1:
        lines.pop(index)


def _bytes(content: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(content))
    stop = start + dice.choice([0, 1, 1, 5, 400])
    new = dice.choice([b"", b"\n", b"\x00", b"\xff", b"}", b"[" * 3000, dice.randbytes(3)])
    cut = content[:start] + new + content[stop:]
    return cut if dice.random() < 0.7 else cut[: dice.randrange(len(cut))]


def ids_in(content: bytes) -> set[str]:
    """The votes that a reader of plain JSON lines would say stand; a torn tail is no line."""
    found: set[str] = set()
    for line in content.splitlines(keepends=False):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if event["event"] == "vote":
            found.add(event["vote_id"])
        elif event["event"] == "undo":
            found.discard(event["vote_id"])
    return found


def test_whatever_is_in_a_votes_file_it_is_read_or_named(damaged: Damaged) -> None:
    path = votes_file(damaged.folder)
    events = events_of(damaged.folder)
    outcomes = {"read": 0, "named": 0}
    for number in range(MUTATIONS):
        content = mutated(events, random.Random(number))
        path.write_bytes(content)
        said = damaged.run("export", "--json")
        if said.code == 0:
            outcomes["read"] += 1
            left_out = re.search(r"that do not count: (\d+)", said.stderr)
            counted = json.loads(said.stdout)["votes"] + (int(left_out[1]) if left_out else 0)
            assert counted == len(ids_in(content)), number
        else:
            outcomes["named"] += 1
            assert re.search(r"error: line \d+ of `.*votes.jsonl`", said.stderr), (number, said)
        if number % 10 == 0:
            assert damaged.run("stats", "--json").code in (0, 1)
            with suppress(InputError):
                damaged.open_app()
    assert min(outcomes.values()) > MUTATIONS / 20, outcomes
