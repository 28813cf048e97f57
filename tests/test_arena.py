"""The contest and the voting without a terminal: order, sides, repeats, votes, statistics, files."""

from __future__ import annotations

import csv
import errno
import json
import pwd
import random
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from furnclip import ArenaApp
from furnclip.arena import VoteBook, compute_standings
from furnclip.arena.app import Judging, query_order
from furnclip.arena.lineup import Card, JudgedQuery, Lineup
from furnclip.arena.session import View, compose
from furnclip.arena.sheet import DrawingQueue, arrange, draw_sheet
from furnclip.arena.standings import majority
from furnclip.arena.votes import Agreed, JudgedLineup, Vote
from furnclip.config import Config, load_config
from furnclip.errors import InputError, JournalError, MissingStageError, ModelMismatchError, UsageError
from furnclip.images import load_square
from furnclip.journal import write_json
from furnclip.vectors.parquet import ModelProvenance
from furnclip.viewers import Box, Viewer, Window, detect
from tests.arena_contest import product, write_contest, write_vectors
from tests.conftest import Cli, invoke
from tests.drawn_shop import captions

MODELS = ("base", "tuned", "third")


def lineup(queries: int = 30, models: int = 2, *, agreeing: int = 0, seed: int = 3) -> Lineup:
    """Every model answers with its own products, except to the first `agreeing` queries."""
    names = MODELS[:models]
    answers = {
        name: [[f"x{q}", "y"] if q < agreeing else [f"{name}{q}", "y"] for q in range(queries)]
        for name in names
    }
    ids = {product for rows in answers.values() for row in rows for product in row}
    return Lineup(
        key="k",
        models={name: f"hash-{name}" for name in names},
        order=list(names),
        k=2,
        seed=seed,
        queries=[JudgedQuery(f"q{q}", "text", f"query {q}", category=f"c{q % 3}") for q in range(queries)],
        answers=answers,
        cards=[Card(product, f"title {product}", "") for product in ids],
    )


def judge(judging: Judging, choice: str, number: int) -> Vote:
    vote = judging.cast(choice, vote_id=f"v{number}", at="now", seconds=1.0)
    judging.accept(vote)
    return vote


def judge_all(judging: Judging, choices: str = "A") -> list[Vote]:
    votes: list[Vote] = []
    while judging.current is not None:
        votes.append(judge(judging, choices[len(votes) % len(choices)], len(votes)))
    return votes


def test_pictures_are_prepared_for_what_really_comes() -> None:
    judging = Judging(lineup(40), "anna", [], repeat_every=5)
    for number in range(30):
        expected = list(judging.expected(2))
        judge(judging, "ABTX"[number % 4], number)
        assert judging.current == expected[0]
        assert list(judging.expected(1)) == expected[1:]


def test_only_queries_with_different_answers_are_shown() -> None:
    contest = lineup(queries=20, agreeing=8)
    votes = judge_all(Judging(contest, "anna", [], repeat_every=0))
    assert sorted(int(vote.query.query_id[1:]) for vote in votes) == list(range(8, 20))
    assert contest.differing(("base", "tuned")) == list(range(8, 20))


def test_the_same_products_in_another_order_are_a_difference() -> None:
    contest = lineup(queries=1)
    swapped = {"base": [["a", "b"]], "tuned": [["b", "a"]]}
    assert replace(contest, answers=swapped).differing(("base", "tuned")) == [0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["A", "B", "T", "X", "N", "U", "restart"]), max_size=60),
    st.integers(0, 5),
    st.integers(2, 3),
)
def test_whatever_is_pressed_nothing_is_judged_twice_and_nothing_is_forgotten(
    presses: list[str], seed: int, models: int
) -> None:
    contest = lineup(queries=12, models=models, seed=seed)
    judging = Judging(contest, "anna", [], repeat_every=5)
    standing: list[Vote] = []
    for number, press in enumerate(presses):
        if press == "restart":
            current = judging.current
            judging = Judging(contest, "anna", standing, repeat_every=5)
            undone = number > 0 and presses[number - 1] == "U"
            assert undone or judging.current == current
        elif press == "U":
            if standing:
                vote = standing.pop()
                judging.take_back(vote)
                assert judging.current is not None
                assert (judging.current.query, judging.current.sides) == (vote.query, vote.sides)
        elif judging.current is not None:
            standing.append(judge(judging, press, number))
        assert judging.own == standing
        fresh = [(vote.duel, vote.query.query_id) for vote in standing if not vote.repeat]
        assert len(fresh) == len(set(fresh))
        assert judging.left == 12 * len(contest.duels()) - len(fresh)


@given(st.integers(0, 1000), st.text("abcdefgh", min_size=1, max_size=8), st.integers(1, 60))
def test_sides_are_balanced_at_every_moment(seed: int, rater: str, count: int) -> None:
    judging = Judging(lineup(queries=60, seed=seed), rater, [], repeat_every=0)
    balance = 0
    for number in range(count):
        vote = judge(judging, "A", number)
        balance += 1 if vote.sides[0] == "base" else -1
        assert abs(balance) <= 2
        assert balance == 0 or (number + 1) % 4


def test_sides_cannot_be_guessed_from_the_number() -> None:
    first = Counter(
        tuple(vote.sides[0] for vote in judge_all(Judging(lineup(8), f"r{number}", [], repeat_every=0)))
        for number in range(60)
    )
    assert len(first) > 20


def test_repeats_come_back_with_sides_swapped_and_only_once() -> None:
    votes = judge_all(Judging(lineup(50), "anna", [], repeat_every=10))
    repeats = [(number, vote) for number, vote in enumerate(votes) if vote.repeat]
    assert [number for number, _ in repeats] == [9, 19, 29, 39, 49]
    assert len({vote.query.query_id for _, vote in repeats}) == 5
    for number, vote in repeats:
        place, original = next(
            (place, other)
            for place, other in enumerate(votes)
            if other.query == vote.query and not other.repeat
        )
        assert vote.sides == (original.sides[1], original.sides[0])
        assert vote.results == (original.results[1], original.results[0])
        assert number - place > 4
    assert len(votes) == 55


@given(st.integers(0, 200), st.floats(0, 1), st.integers(0, 99))
def test_every_rater_gets_every_query_once(queries: int, share: float, seed: int) -> None:
    order = query_order(queries, seed, "anna", shared_share=share)
    assert sorted(order) == list(range(queries))


def test_every_fourth_query_is_everybodys_and_the_rest_are_ones_own() -> None:
    anna, ben = (query_order(400, 0, rater, shared_share=0.25) for rater in ("anna", "ben"))
    assert anna[::4] == ben[::4]
    assert len(set(anna[:40]) & set(ben[:40])) < 20


def test_votes_go_where_they_tell_most() -> None:
    """Two models apart by a mile, the third close to the first: the close pair gets the votes."""
    judging = Judging(lineup(300, models=3), "anna", [], repeat_every=0)
    shown: Counter[tuple[str, str]] = Counter()
    for number in range(150):
        trial = judging.current
        assert trial is not None
        shown[trial.duel] += 1
        better = {"base": 0, "third": 0.1, "tuned": 5}
        gap = better[trial.sides[0]] - better[trial.sides[1]]
        choice = ("A" if gap > 0 else "B") if abs(gap) > 1 else "AB"[number % 2]
        judge(judging, choice, number)
    assert set(shown) == {("base", "tuned"), ("base", "third"), ("tuned", "third")}
    assert min(shown.values()) >= 10


def test_a_letter_that_is_no_vote_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        Judging(lineup(), "anna", []).cast("C", vote_id="v", at="", seconds=0)
    assert (caught.value.message, caught.value.hint) == (
        "`C` is not a valid vote",
        "valid votes: A, B, T, X, N",
    )


def test_a_vote_survives_its_line(tmp_path: Path) -> None:
    judging = Judging(lineup(), "anna", [])
    vote = judging.cast("B", vote_id="v", at="now", seconds=1.5)
    book = VoteBook(tmp_path / "votes.jsonl")
    book.append(vote.event())
    assert book.votes() == [vote]
    line = json.loads(book.path.read_text())
    assert line["winner"] == vote.sides[1]
    assert line["models"] == {"base": "hash-base", "tuned": "hash-tuned"}
    assert {"query", "results", "sides", "seed", "seconds", "rater", "k", "lineup"} <= line.keys()


# --- from files


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    return write_contest(tmp_path / "contest")


def app_in(folder: Path, rater: str = "anna", **more: object) -> ArenaApp:
    return ArenaApp(load_config(folder / "furnclip.toml"), rater=rater, **more)  # type: ignore[arg-type]


def test_driven_from_code_and_resumed(contest: Path) -> None:
    with app_in(contest) as app:
        first = app.next_query()
        assert first is not None
        assert app.vote("a") == 1
        second = app.next_query()
        assert second is not None
        assert second != first
        third = app.next_query()  # asked again without a vote: skipped, as N does
        assert third != second
        assert app.votes_cast == 1
    with app_in(contest) as app:
        assert app.next_query() == third
        app.vote("T")
        assert app.undo()
        assert app.next_query() == third
    events = [json.loads(line) for line in (contest / "work/arena/votes.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["contest", "vote", "vote", "vote", "undo"]
    agreed = 20 - len(app.lineup.differing(("base", "tuned-run")))
    assert (events[0]["queries"], events[0]["agreed"]) == (
        20,
        [{"models": ["base", "tuned-run"], "queries": agreed}],
    )


def test_a_question_says_nothing_about_models(contest: Path) -> None:
    with app_in(contest) as app:
        question = app.next_query()
    told = repr(question)
    assert not re.search(r"base|tuned|fingerprint|b{16}", told)


def test_a_picture_query_is_not_its_own_answer(contest: Path) -> None:
    with app_in(contest) as app:
        for number, query in enumerate(app.lineup.queries):
            own = query.query_id.removeprefix("image:")
            assert all(own not in rows[number] for rows in app.lineup.answers.values())
            assert all(len(rows[number]) == 5 for rows in app.lineup.answers.values())


def test_answers_equal_a_plain_search(contest: Path) -> None:
    import numpy as np

    from furnclip.vectors import VectorTable

    table = VectorTable(contest / "work/embeddings/master_vectors.parquet")
    ids = [product["product_id"] for product in table.products]
    with app_in(contest) as app:
        query = app.lineup.queries[3]
        own = ids.index(query.query_id.removeprefix("image:"))
        scores = table.matrix("vec_clip_finetuned") @ table.matrix("image_clip_finetuned")[own]
        scores[own] = -9
        assert list(app.lineup.answers["tuned-run"][3]) == [ids[row] for row in np.argsort(-scores)[:5]]


def test_one_rater_votes_in_one_window(contest: Path) -> None:
    with app_in(contest):
        with pytest.raises(JournalError) as caught:
            app_in(contest)
        assert caught.value.message == "rater `anna` is voting in another window"
        with app_in(contest, "ben") as ben:  # another rater may vote at the same time
            ben.next_query()
            ben.vote("B")


def test_raters_who_vote_in_the_same_moment_do_not_lose_a_vote(tmp_path: Path) -> None:
    book = VoteBook(tmp_path / "votes.jsonl")

    def vote_often(rater: int) -> None:
        for number in range(20):
            key = f"{rater}-{number}"
            book.append({"event": "contest", "lineup": key, "models": {}, "queries": 1, "agreed": []})

    with ThreadPoolExecutor(4) as raters:
        list(raters.map(vote_often, range(4)))
    assert len(book.contests()) == 80


class FullDisk(VoteBook):
    """A votes file on a disk without room."""

    def append(self, event: Mapping[str, object]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))


def test_a_vote_that_cannot_be_written_does_not_count(contest: Path) -> None:
    with app_in(contest) as app:
        asked = app.next_query()
        book, app.book = app.book, FullDisk(app.book.path)
        with pytest.raises(OSError, match="No space left"):
            app.vote("A")
        assert app.votes_cast == 0
        app.book = book
        assert app.question() == asked
        assert app.vote("A") == 1


def test_what_is_missing_is_named(contest: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match="vectors of run other"):
        app_in(contest, runs=["other"])
    with pytest.raises(ModelMismatchError, match="made by `test/base`, not by `openai/else`"):
        app_in(contest, model="openai/else")
    with pytest.raises(UsageError, match="cannot be a rater's name"):
        app_in(contest, "a\x1b[2Jb")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "furnclip.toml").write_text("")
    with pytest.raises(MissingStageError) as caught:
        app_in(empty)
    assert caught.value.hint == "run `furnclip embed` first"


def test_a_user_without_a_login_name_is_asked_for_one(contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a container's user without a passwd entry
    with pytest.raises(UsageError, match="this user has no login name") as caught:
        app_in(contest, "")
    assert "--rater" in caught.value.hint
    app_in(contest, "ben").close()


def test_a_run_trained_again_since_its_vectors_is_refused(tmp_path: Path) -> None:
    folder = write_contest(tmp_path / "c", runs=["one", "two"])
    card = folder / "work/runs/two/run.json"
    write_json(card, {"status": "finished", "model_fingerprint": "f1" * 8})
    app_in(folder, runs=["one", "two"]).close()
    write_json(card, {"status": "running"})
    app_in(folder, runs=["two"]).close()
    write_json(card, {"status": "finished", "model_fingerprint": "a5" * 8})
    app_in(folder, runs=["one"]).close()
    with pytest.raises(ModelMismatchError, match="`two` was trained again after") as caught:
        app_in(folder, runs=["one", "two"])
    assert caught.value.hint == "run `furnclip embed --run two`"


def test_queries_that_are_no_file_are_named(tmp_path: Path) -> None:
    folder = write_contest(tmp_path / "c", config='queries = "nothing.txt"')
    with pytest.raises(
        InputError, match=r"`arena.queries` is `nothing.txt`, which is neither a file nor a folder"
    ):
        app_in(folder)


def test_text_queries_come_from_the_test_split(tmp_path: Path) -> None:
    folder = write_contest(tmp_path / "c", config='queries = "both"\nquery_limit = 25')
    with app_in(folder) as app:
        kinds = Counter(query.kind for query in app.lineup.queries)
        assert sum(kinds.values()) == 25
        assert min(kinds.values()) > 5
        texts = [query for query in app.lineup.queries if query.kind == "text"]
        assert all(query.text.startswith("a photo of ") and not query.image for query in texts)


@pytest.fixture
def real_models(tmp_path: Path, tiny_clip: Path) -> Path:
    """A contest between two tiny CLIPs that can be loaded; the second one is a run's model folder."""
    from examples.make_tiny_clip import build_tiny_clip
    from furnclip.model.loading import load_clip

    folder = write_contest(tmp_path / "real", products=12)
    config = load_config(folder / "furnclip.toml")
    other = build_tiny_clip(tmp_path / "other-run", captions(), seed=5, image_px=32, width=32, layers=2)
    rows = [product(index) for index in range(12)]
    pictures = [load_square(folder / "images" / row["image"], 32) for row in rows]
    vectors, models = {}, {}
    for label, path in (("base", tiny_clip), ("finetuned", other)):
        clip = load_clip(str(path), config.model)
        vectors[label] = clip.encode_images(pictures)
        models[label] = ModelProvenance(
            name=str(path),
            fingerprint=clip.fingerprint,
            dimension=clip.dimension,
            image_px=32,
            precision="fp32",
        )
    write_vectors(config.paths.vectors, rows, vectors, models)
    return folder


def with_queries(folder: Path, queries: Path) -> Config:
    return load_config(folder / "furnclip.toml", {"arena": {"queries": str(queries)}})


def test_queries_from_a_text_file_are_encoded_by_each_model(real_models: Path) -> None:
    texts = real_models / "queries.txt"
    texts.write_text("\ufeffred sofa\n\n  blue lamp \nred sofa\n", encoding="utf-8")
    with ArenaApp(with_queries(real_models, texts), rater="anna") as app:
        assert [query.text for query in app.lineup.queries] == ["red sofa", "blue lamp"]
        assert list(app.lineup.models) == ["base", "other-run"]
        key = app.lineup.key
    texts.write_text("green chair\n")
    with ArenaApp(with_queries(real_models, texts), rater="anna") as app:
        assert app.lineup.key != key  # other queries are another contest


def test_queries_from_a_picture_folder_find_that_very_product(real_models: Path) -> None:
    queries = real_models / "photos"
    queries.mkdir()
    for name in ("00003.jpg", "00007.jpg"):
        shutil.copy(real_models / "images" / name, queries / name)
    (queries / "notes.txt").write_text("no picture")
    with ArenaApp(with_queries(real_models, queries), rater="anna") as app:
        assert [query.text for query in app.lineup.queries] == ["00003", "00007"]
        assert {rows[0][0] for rows in app.lineup.answers.values()} <= {"P00003", "P00009"}  # same picture


def test_vectors_of_another_model_are_refused(real_models: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "other-run")
    build_other(tmp_path / "other-run")
    texts = real_models / "queries.txt"
    texts.write_text("red sofa\n")
    with pytest.raises(ModelMismatchError, match="the finetuned vectors of"):
        ArenaApp(with_queries(real_models, texts), rater="anna")


def build_other(folder: Path) -> None:
    from examples.make_tiny_clip import build_tiny_clip

    build_tiny_clip(folder, captions(), seed=6, image_px=32, width=32, layers=2)


def test_three_models_are_ranked(tmp_path: Path) -> None:
    folder = write_contest(tmp_path / "c", runs=["one", "two"])
    with app_in(folder, runs=["one", "two"]) as app:
        assert list(app.lineup.models) == ["base", "one", "two"]
        for number in range(30):
            app.next_query()
            trial = app.trial
            assert trial is not None
            better = "two" if "two" in trial.sides else "one"
            app.vote("AB"[trial.sides.index(better)] if number % 5 else "T")
        standings = app.standings()
    assert [place.model for place in standings.ranking] == ["two", "one", "base"]
    assert {(duel.baseline, duel.challenger) for duel in standings.duels} == {
        ("base", "one"),
        ("base", "two"),
        ("one", "two"),
    }


def test_a_sheet_tells_nothing(contest: Path) -> None:
    with app_in(contest) as app:
        assert app.trial is not None
        with DrawingQueue(Viewer(detect("builtin")), contest / "work" / "cache") as images:
            _, path = images.start(app.trial, Box(80, 13)).result()
            sheet = path.read_bytes()
    assert path.name == "0001.jpg"
    assert b"tuned" not in sheet
    assert b"Exif" not in sheet


def test_screen_and_sheet_depend_on_nothing_but_what_is_shown(contest: Path) -> None:
    """Were the models on the other sides, with the same rows shown, not a byte would differ."""
    with app_in(contest) as app:
        trial = app.trial
        assert trial is not None
    other = replace(trial, sides=(trial.sides[1], trial.sides[0]), duel=("x", "y"), repeat=not trial.repeat)
    window = Window(80, 24, 8, 16)
    sheets = [contest / "one.jpg", contest / "other.jpg"]
    for which, sheet in zip((trial, other), sheets, strict=True):
        draw_sheet(which, sheet, width_px=640, height_px=208)
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    frames = [
        compose(View(which.query, which.results, "anna", 1, 2), window, color=True)
        for which in (trial, other)
    ]
    assert frames[0] == frames[1]


def test_a_picture_takes_no_more_cells_than_it_may(contest: Path) -> None:
    with app_in(contest) as app:
        trial = app.trial
        assert trial is not None
    view, window = View(trial.query, trial.results, "anna", 1, 2), Window(80, 24, 8, 16)
    free = compose(view, window, color=True).box
    small = compose(replace(view, max_cells=(30, 6)), window, color=True).box
    assert free is not None
    assert small is not None
    assert (free.cols, small.cols, small.rows) == (80, 30, 6)
    assert compose(replace(view, max_cells=(900, 900)), window, color=True).box == free


def test_a_missing_picture_is_said_on_the_sheet(contest: Path) -> None:
    for picture in (contest / "images").iterdir():
        picture.unlink()
    with app_in(contest) as app:
        assert app.trial is not None
        draw_sheet(app.trial, contest / "sheet.jpg", width_px=640, height_px=208)
    assert load_square(contest / "sheet.jpg", 64).size == (64, 64)


@given(st.integers(40, 1600), st.integers(40, 900), st.integers(1, 10), st.booleans())
def test_nothing_on_a_sheet_overlaps_or_leaves_it(width: int, height: int, k: int, with_query: bool) -> None:
    layout = arrange(width, height, k=k, with_query=with_query)
    cells = [*layout.rows[0], *layout.rows[1], *([layout.query] if layout.query else [])]
    sheet_width, sheet_height = layout.size_px
    for left, top, side in cells:
        assert left >= 0
        assert top >= 0
        assert left + side <= sheet_width
        assert top + side <= sheet_height
    boxes = [(left, top, left + side, top + side) for left, top, side in cells]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


# --- statistics


def votes_of(rater: str, winners: str, *, models: int = 2) -> list[Vote]:
    """Votes where each letter says who wins: t(uned), b(ase), = tie, x both bad, n skip, c(oin)."""
    judging = Judging(lineup(len(winners), models), rater, [], repeat_every=0, shared_share=1.0)
    coin, votes = random.Random(rater), []
    for number, letter in enumerate(winners):
        trial = judging.current
        assert trial is not None
        wanted = {"t": "tuned", "b": "base", "c": coin.choice(trial.sides)}.get(letter)
        choice = "AB"[trial.sides.index(wanted)] if wanted else {"=": "T", "x": "X", "n": "N"}[letter]
        votes.append(judge(judging, choice, number))
    return votes


def test_standings_of_a_hand_counted_contest() -> None:
    standings = compute_standings(votes_of("anna", "ttttttttbb==xnn"), {})
    score = standings.duels[0].score
    assert (score.wins, score.losses, score.ties, score.both_bad) == (8, 2, 2, 1)
    assert score.win_rate == 0.8
    assert score.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert score.p_value == pytest.approx(0.109375)
    assert standings.votes == 13
    assert standings.raters[0].skips == 2
    assert standings.duels[0].decided == ""
    assert sum(part.wins for part in standings.categories["tuned against base"].values()) == 8


def statistics_with(folder: Path, name: str) -> tuple[list[object], list[dict[str, str]]]:
    """What `arena stats` says of fixed opinions on the base, `name` and another; the rows of the export."""
    models = ["", "base", name, "other"]
    write_contest(folder, runs=models[2:])
    for rater, opinions in (("anna", "1101TXN"), ("ben", "10010XT")):
        with app_in(folder, rater, runs=models[2:]) as app:
            while trial := app.trial:
                opinion = opinions[int(trial.query.query_id[-5:]) % len(opinions)]
                better = trial.duel[int(opinion)] if opinion.isdigit() else ""
                app.vote("AB"[trial.sides.index(better)] if better else opinion)
    book = folder / "work/arena/votes.jsonl"
    events = [json.loads(line) for line in book.read_text().splitlines()]
    for event in events:  # as release 0.1.0 wrote them
        event["winner"] = event.get("winner") or event.get("outcome")
    book.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    stats = json.loads(run("stats", "--json", "--config", folder / "furnclip.toml").stdout)
    for duel in stats["duels"]:
        duel |= {role: models.index(duel[role]) for role in ("baseline", "challenger", "decided")}
    ranking = [(models.index(each["model"]), each["rating"]) for each in stats["ranking"]]
    raters = [(each["ties"], each["both_bad"], each["repeats_alike"]) for each in stats["raters"]]
    categories = list(stats["categories"].values())
    run("export", folder / "votes.csv", "--config", folder / "furnclip.toml")
    with (folder / "votes.csv").open(newline="") as file:
        return [stats["duels"], stats["alpha"], ranking, raters, categories], list(csv.DictReader(file))


@pytest.mark.parametrize(
    "name", ["A", "B", "T", "X", "N", "tie", "both bad", "skip", "baseline", "challenger", "unknown"]
)
def test_a_run_may_be_called_like_an_outcome(name: str, tmp_path: Path) -> None:
    expected, _ = statistics_with(tmp_path / "plain", "tuned")
    found, rows = statistics_with(tmp_path / "odd", name)
    assert found == expected
    assert any(row["winner"] == name for row in rows)
    for row in rows:
        is_won = row["outcome"] in ("A", "B")
        assert row["winner"] in ((row["baseline_method"], row["challenger_method"]) if is_won else ("",))


def test_a_run_called_like_the_base_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_contest(tmp_path / "c", runs=["base", "two"]))
    for args in ([], ["--run", "two", "--run", "base"]):
        refused = run(*args)
        assert (refused.exit_code, "error: a run called `base` clashes" in refused.stderr) == (2, True)
        assert "hint: rename its folder" in refused.stderr


def test_raters_who_toss_a_coin_do_not_agree_on_three_models() -> None:
    votes = [vote for rater in "ab" for vote in votes_of(rater, "c" * 900, models=3)]
    alpha = compute_standings(votes, {}).alpha
    assert alpha is not None
    assert abs(alpha) < 0.1


def test_a_clear_contest_is_decided_even_for_those_who_peek() -> None:
    standings = compute_standings(votes_of("anna", "t" * 20), {})
    duel = standings.duels[0]
    assert duel.always_valid[0] > 0.5
    assert duel.decided == "tuned"
    assert duel.votes_still_needed == 0


def test_votes_still_needed_follow_the_planner() -> None:
    # 6 of 10 decisive, 10 ties: 194 decisive votes are needed at 60 %, half of all votes are decisive
    duel = compute_standings(votes_of("anna", "ttttttbbbb" + "=" * 10), {}).duels[0]
    assert duel.votes_still_needed == (194 - 10) * 2


def test_several_raters_of_one_query_count_once() -> None:
    votes = [*votes_of("anna", "tttb"), *votes_of("ben", "ttbb"), *votes_of("cleo", "tbtb")]
    standings = compute_standings(votes, {})
    score = standings.duels[0].score
    assert (score.wins, score.losses) == (3, 1)
    assert standings.queries_judged_by_several == 4
    assert standings.alpha is not None
    assert [rater.votes for rater in standings.raters] == [4, 4, 4]


def test_a_run_trained_again_under_its_name_is_another_model() -> None:
    first = votes_of("anna", "ttt")
    models = {"base": "hash-base", "tuned": "other-hash"}
    second = [replace(vote, models=models, lineup="k2") for vote in votes_of("anna", "bbbb")]
    contest = JudgedLineup("k2", models, 9, (Agreed(("base", "tuned"), 2),))
    standings = compute_standings([*first, *second], {"k2": contest})
    found = {duel.challenger: (duel.score.wins, duel.score.losses) for duel in standings.duels}
    assert found == {"tuned (hash-t)": (3, 0), "tuned (other-)": (0, 4)}
    assert [duel.queries_agreed for duel in standings.duels] == [None, 2]


@pytest.mark.parametrize(
    ("winners", "result"),
    [("tt", "t"), ("tb", "tie"), ("ttb", "t"), (["tie", "t", "b"], "tie"), (["tie", "tie", "b"], "tie")],
)
def test_majority(winners: list[str], result: str) -> None:
    assert majority(list(winners)) == result


def test_consistency_and_side_bias_of_a_rater_who_always_presses_a() -> None:
    votes = judge_all(Judging(lineup(50), "anna", [], repeat_every=10))
    rater = compute_standings(votes, {}).raters[0]
    assert rater.share_a == 1.0
    assert rater.share_a_p_value < 1e-9
    assert (rater.repeats, rater.repeats_alike) == (5, 0)  # always A is always somebody else


def test_a_careful_rater_is_consistent() -> None:
    judging = Judging(lineup(50), "anna", [], repeat_every=10)
    number = 0
    while (trial := judging.current) is not None:
        judge(judging, "AB"[trial.sides.index("tuned")], number)
        number += 1
    rater = compute_standings(judging.own, {}).raters[0]
    assert (rater.repeats, rater.repeats_alike) == (5, 5)
    assert rater.share_a is not None
    assert 0.3 < rater.share_a < 0.7


def run(*args: str) -> Result:
    """`furnclip arena ARGS` in this process."""
    return invoke("arena", *args)


def test_stats_export_and_page_through_the_command(contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(contest)
    missing = run("stats")
    assert (missing.exit_code, "run `furnclip arena` first" in missing.stderr) == (2, True)
    with app_in(contest) as app:
        for choice in "ABTXNABABA":
            app.next_query()
            app.vote(choice)
        app.undo()
    payload = json.loads(run("stats", "--json").stdout)
    assert payload["votes"] == 8
    assert payload["planner"] == {"0.55": 783, "0.60": 194, "0.65": 85, "0.70": 47}
    assert payload["duels"][0]["queries"] == 20
    page = Path(payload["page"]).read_text()
    assert page.count("<article>") == 9
    assert page.count("data:image/jpeg;base64,") > 10
    assert "http" not in page
    human = run("stats").stdout
    assert "tuned-run against base" in human
    exported = run("export", "out.csv")
    assert "wrote 9 votes" in exported.stdout
    with (contest / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == [
        "timestamp",
        "query_image",
        "baseline_method",
        "challenger_method",
        "user_choice",
        "baseline_is_row_a",
    ]
    assert [row["user_choice"] for row in rows] == list("ABTXNABAB")
    for row in rows[:2]:
        baseline_chosen = (row["user_choice"] == "A") == (row["baseline_is_row_a"] == "True")
        assert row["winner"] == (row["baseline_method"] if baseline_chosen else row["challenger_method"])


def test_voting_without_a_terminal_is_an_error_of_two_lines(contest: Path, cli: Cli) -> None:
    outcome = cli("arena", cwd=contest)
    assert outcome.code == 2
    assert outcome.stderr.endswith(
        "\nerror: the arena needs a terminal to vote in\n"
        "hint: run it in one, or vote from Python with `furnclip.ArenaApp`\n"
    )


def test_a_torn_last_line_is_a_vote_that_was_never_acknowledged(contest: Path) -> None:
    with app_in(contest) as app:
        for _ in range(3):
            app.next_query()
            app.vote("A")
    path = contest / "work/arena/votes.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    with app_in(contest) as app:
        assert app.votes_cast == 2
        app.next_query()
        app.vote("B")
    assert len(VoteBook(path).votes()) == 3


def test_models_that_agree_on_everything_are_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_contest(tmp_path / "c", runs=["tuned"])
    vectors = folder / "work/embeddings/master_vectors.parquet"
    import pyarrow.parquet as pq

    table = pq.read_table(vectors)
    for kind in ("image", "text", "vec"):
        place = table.schema.get_field_index(f"{kind}_clip_finetuned")
        table = table.set_column(place, table.schema.field(place), table.column(f"{kind}_clip_base"))
    pq.write_table(table, vectors)
    monkeypatch.chdir(folder)
    outcome = run()
    assert outcome.exit_code == 1
    assert "error: the models gave the same 5 answers to all 20 queries" in outcome.stderr
