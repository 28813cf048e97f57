"""No group and no near-duplicate pair in two splits, whatever the rows; adding rows never moves one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from furnclip.catalogue import content_hash
from furnclip.prepare.fingerprint import LIGHT_PX, NEAR, PRINT_BYTES, SAME, distances, fingerprint
from furnclip.prepare.nearby import near_pairs
from furnclip.prepare.splits import UNDECIDED, Assignment, Ledger, assign, drawn, leaks_left, read_ledger
from furnclip.prepare.store import IMAGE, RECORD, Records
from furnclip.prepare.ties import Ties, find_ties, looks_of, middles

SHARES = (0.5, 0.25)


@dataclass(frozen=True)
class Made:
    """A row by small numbers: the same number means the same title, picture and so on."""

    number: int
    title: int
    source: int
    look: int  # looks that are next to each other are near-duplicates
    more: tuple[int, ...] = ()  # looks of further images

    @property
    def images(self) -> list[tuple[int, int]]:
        """(source, look) of each image."""
        return [(self.source, self.look), *((100 + look, look) for look in self.more)]


LOOKS = st.integers(0, 30)
ROWS = st.lists(
    st.builds(
        Made,
        st.integers(0, 60),
        st.integers(0, 25),
        st.integers(0, 40),
        LOOKS,
        st.lists(LOOKS, max_size=2, unique=True).map(tuple),
    ),
    max_size=30,
    unique_by=lambda row: row.number,
)


def records_of(rows: list[Made]) -> Records:
    records = np.zeros(len(rows), dtype=RECORD)
    for record, row in zip(records, rows, strict=True):
        record["key"] = int(content_hash("id", str(row.number)), 16)
        record["title"] = record["group"] = row.title
    return records


def ties_of(rows: list[Made], *, by_column: bool = False) -> Ties:
    made = [(number, *image) for number, row in enumerate(rows) for image in row.images]
    images = np.zeros(len(made), dtype=IMAGE)
    for image, (_, source, look) in zip(images, made, strict=True):
        image["source"][0] = source
        image["fingerprint"] = print_of(look)
        image["look"] = look
    owners = np.array([number for number, _, _ in made], dtype=np.int64)
    near = partial(_near, images)
    return find_ties(records_of(rows), looks_of(images), owners, near, by_column=by_column)


def _near(images: Records, _: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return near_pairs(np.ascontiguousarray(images["fingerprint"][first]))


def print_of(look: int) -> np.ndarray:
    """A fingerprint that is near to that of the look before and after; ten looks on, it is another."""
    light = np.random.default_rng(look // 10).integers(0, 200, LIGHT_PX**2)
    return tinted(light, 3 * (look % 10))


def tinted(light: np.ndarray, levels: int) -> np.ndarray:
    """Fingerprints of one brightness, which are the same up to 2 levels apart, and near up to 4."""
    colors = np.full(PRINT_BYTES - len(light), 128)
    colors[:-1] += levels
    return np.concatenate([light, colors]).astype(np.uint8)


def assigned(rows: list[Made], ledger: Ledger, by_column: bool = False) -> Assignment:
    records = records_of(rows)
    ties = ties_of(rows, by_column=by_column)
    changed = np.zeros(len(rows), dtype=bool)
    assignment = assign(records, ties, ledger, changed=changed, shares=SHARES)
    assert leaks_left(ties, assignment) == 0
    return assignment


def remembered(ledger: Ledger, rows: list[Made], assignment: Assignment) -> Ledger:
    keys = records_of(rows)["key"]
    shards = []
    for number, split in enumerate(("train", "validation", "test")):
        inside = np.flatnonzero(assignment.split == number)
        index = pyarrow.table(
            {
                "key": [f"{int(keys[row]):016x}" for row in inside],
                "product_id": pyarrow.array([str(rows[row].number) for row in inside], pyarrow.string()),
                "group": [f"{int(assignment.group[row]):016x}" for row in inside],
            }
        )
        shards.append((split, index))
    return ledger.extended(shards)


@pytest.mark.parametrize("new", [0, 1, 3, 3000])  # in a few runs, and in so many that rows are taken alone
def test_what_a_ledger_learns_lies_by_key(tmp_path: Path, new: int) -> None:
    keys = np.random.default_rng(new).permutation(8000).astype(np.uint64)
    index = [f"{key:016x}" for key in keys.tolist()]

    def learnt(ledger: Ledger, some: list[str]) -> Ledger:
        return ledger.extended([("test", pyarrow.table(dict.fromkeys(("key", "product_id", "group"), some)))])

    empty = read_ledger(tmp_path / "none")
    for name, ledger in {
        "twice": learnt(learnt(empty, sorted(index[new:])), index[:new]),
        "once": learnt(empty, sorted(index)),
    }.items():
        ledger.write(tmp_path / name)
        split, group = ledger.lookup(keys)
        assert (split == 2).all()
        assert (group == keys).all()
    assert (tmp_path / "twice").read_bytes() == (tmp_path / "once").read_bytes()


def tied(first: Made, second: Made) -> bool:
    """The definition, spelt out for two rows."""
    if first.title == second.title != 0:
        return True
    return any(
        one == other or distance(look, like) <= NEAR
        for one, look in first.images
        for other, like in second.images
    )


@cache
def distance(look: int, like: int) -> float:
    """Of two looks, as they are or one of them mirrored."""
    both = (np.stack([print_of(number)] * 2) for number in (look, like))
    return float(distances(*both, np.array([False, True]), most=NEAR).min())


def assert_no_tie_across_splits(rows: list[Made], assignment: Assignment) -> None:
    for one, other in combinations(range(len(rows)), 2):
        splits = {int(assignment.split[one]), int(assignment.split[other])}
        if UNDECIDED not in splits and len(splits) > 1:
            assert not tied(rows[one], rows[other])


NOTHING = read_ledger(Path("nowhere"))
FAST = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@given(ROWS, st.booleans())
@FAST
def test_at_first_every_row_is_placed_and_no_tie_crosses_splits(rows: list[Made], by_column: bool) -> None:
    assignment = assigned(rows, NOTHING, by_column)
    assert not (assignment.split == UNDECIDED).any()
    assert_no_tie_across_splits(rows, assignment)
    for one, other in combinations(range(len(rows)), 2):
        if tied(rows[one], rows[other]):
            assert assignment.together[one] == assignment.together[other]
        if assignment.group[one] == assignment.group[other]:
            assert assignment.split[one] == assignment.split[other]


@given(ROWS, st.randoms(use_true_random=False))
@FAST
def test_the_order_of_rows_does_not_matter(rows: list[Made], chance: object) -> None:
    shuffled = list(rows)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    found = {}
    for version in (rows, shuffled):
        assignment = assigned(version, NOTHING)
        pairs = zip(assignment.group.tolist(), assignment.split.tolist(), strict=True)
        found[id(version)] = {row.number: pair for row, pair in zip(version, pairs, strict=True)}
    assert found[id(rows)] == found[id(shuffled)]


@given(st.lists(ROWS, min_size=1, max_size=4))
@FAST
def test_adding_rows_moves_none_and_lets_no_tie_cross(batches: list[list[Made]]) -> None:
    ledger, rows, before = NOTHING, [], {}
    for batch in batches:
        known = {row.number for row in rows}
        rows = rows + [row for row in batch if row.number not in known]
        assignment = assigned(rows, ledger)
        assert_no_tie_across_splits(rows, assignment)
        after = {
            row.number: (int(group), int(split))
            for row, group, split in zip(rows, assignment.group, assignment.split, strict=True)
        }
        assert before.items() <= after.items()
        ledger = remembered(ledger, rows, assignment)
        before = {number: pair for number, pair in after.items() if pair[1] != UNDECIDED}
    assert len(ledger) == len(before)


@given(ROWS, ROWS)
@FAST
def test_rows_that_change_or_leave_let_no_tie_cross(rows: list[Made], others: list[Made]) -> None:
    ledger = remembered(NOTHING, rows, assigned(rows, NOTHING))
    records = records_of(others)
    ties = ties_of(others)
    changed = np.isin(records["key"], records_of(rows)["key"])
    assignment = assign(records, ties, ledger, changed=changed, shares=SHARES)
    assert_no_tie_across_splits(others, assignment)
    known, _ = ledger.lookup(records["key"])
    kept = (known != UNDECIDED) & (assignment.split != UNDECIDED)
    assert (assignment.split[kept] == known[kept]).all()


def test_a_rejected_row_does_not_tie_what_it_would_have_joined() -> None:
    rows = [Made(number, number + 1, number, number * 10) for number in range(3)]
    first = assigned(rows, NOTHING)
    assert len(set(first.split.tolist())) == 3
    ledger = remembered(NOTHING, rows, first)
    bridge, tail = Made(9, 1, 1, 25), Made(10, 9, 9, 25)
    after = assigned([*rows, bridge, tail], ledger)
    assert after.split[3] == UNDECIDED
    assert after.split[4] != UNDECIDED
    assert after.split[:3].tolist() == first.split.tolist()


def test_a_share_of_nothing_gets_nothing_and_shares_are_kept() -> None:
    splits = np.array([drawn(group, (0.8, 0.1)) for group in range(20_000)])
    assert np.abs(np.bincount(splits) / 20_000 - [0.8, 0.1, 0.1]).max() < 0.01
    assert {drawn(group, (1.0, 0.0)) for group in range(1000)} == {0}


# --- near-duplicates


def drawn_prints(count: int, seed: int = 0) -> np.ndarray:
    """Fingerprints of things on white that have much the same outline, each with its own inside: (N, 177)."""
    chance = np.random.default_rng(seed)
    outline = np.pad(np.full((8, 8), -120), 2)
    inside = (
        np.pad(chance.normal(0, 40, (count, 4, 4)), ((0, 0), (1, 1), (1, 1)))
        .repeat(2, axis=1)
        .repeat(2, axis=2)
    )
    light = np.clip(240 + outline + inside, 0, 255).reshape(count, -1)
    colors = 128 + chance.normal(0, 12, (count, 2, 1)).repeat(16, axis=2).reshape(count, -1)
    return np.concatenate([light, colors, np.full((count, 1), 128)], axis=1).round().astype(np.uint8)


def test_the_search_finds_what_comparing_all_finds() -> None:
    made = drawn_prints(500)
    noisy = np.clip(made[:300] + np.random.default_rng(1).integers(-4, 5, (300, PRINT_BYTES)), 0, 255)
    prints = np.unique(np.concatenate([made, noisy.astype(np.uint8)]), axis=0)
    found = {(left, right) for left, right in near_pairs(prints)[0].tolist()}
    wanted = set()
    for row, one in enumerate(prints):
        rest = prints[row + 1 :]
        same = np.broadcast_to(one, rest.shape)
        for mirrored in (False, True):
            apart = distances(same, rest, np.full(len(rest), mirrored), most=NEAR)
            wanted.update((row, row + 1 + other) for other in np.flatnonzero(apart <= NEAR).tolist())
    assert len(wanted) >= 300
    assert len(found - wanted) == 0
    assert len(wanted - found) <= 0.01 * len(wanted)


def test_a_chain_is_kept_together_but_is_no_group() -> None:
    rows = [Made(number, number + 1, number, number) for number in range(10)]
    assignment = assigned(rows, NOTHING)
    assert len(set(assignment.together.tolist())) == len(set(assignment.split.tolist())) == 1
    assert len(set(assignment.group.tolist())) == 10


def test_a_group_is_close_to_its_middle() -> None:
    light = np.random.default_rng(0).integers(0, 200, LIGHT_PX**2)
    pairs, apart = near_pairs(np.array([tinted(light, levels) for levels in (0, 2, 4, 6)]))
    assert pairs[apart <= SAME].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert middles(pairs[apart <= SAME], 4).tolist() == [1, 1, 1, 3]


def drawn_chair(color: str = "brown", legs: int = 4, side_px: int = 200) -> Image.Image:
    """A chair of sorts on white, away from the border."""
    image = Image.new("RGB", (side_px, side_px), "white")
    draw = ImageDraw.Draw(image)
    unit = side_px / 20
    draw.rectangle((6 * unit, 3 * unit, 7 * unit, 11 * unit), fill=color)
    draw.rectangle((6 * unit, 10 * unit, 14 * unit, 12 * unit), fill=color, outline="black")
    for leg in range(legs):
        left = (6 + leg * 7 / max(1, legs - 1)) * unit
        draw.rectangle((left, 12 * unit, left + unit, 17 * unit), fill=color)
    return image


def near(first: Image.Image, second: Image.Image) -> bool:
    pair = [np.frombuffer(fingerprint(image), np.uint8) for image in (first, second)]
    return (pair[0] == pair[1]).all() or len(near_pairs(np.array(pair))[0]) == 1


def recoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def padded(image: Image.Image, border_px: int) -> Image.Image:
    wide = Image.new("RGB", (image.width + 2 * border_px, image.height + border_px), "white")
    wide.paste(image, (border_px, border_px // 3))
    return wide


@pytest.mark.parametrize(
    "changed",
    [
        recoded(drawn_chair(), 40),
        drawn_chair().resize((120, 120), Image.Resampling.BICUBIC),
        drawn_chair().resize((431, 431), Image.Resampling.BICUBIC),
        padded(drawn_chair(), 60),
        recoded(padded(drawn_chair(), 25), 70),
        ImageEnhance.Brightness(drawn_chair()).enhance(0.95),
        drawn_chair().crop((4, 4, 196, 196)),
        drawn_chair().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ],
    ids=["jpeg 40", "smaller", "larger", "padded", "padded jpeg", "darker", "cropped", "mirrored"],
)
def test_the_same_photograph_is_a_near_duplicate(changed: Image.Image) -> None:
    assert near(drawn_chair(), changed)


@pytest.mark.parametrize("other", [drawn_chair("red"), drawn_chair(legs=2)], ids=["recolored", "other legs"])
def test_another_product_on_white_is_none(other: Image.Image) -> None:
    assert not near(drawn_chair(), other)


def dark_rectangle(kind: int) -> Image.Image:
    """A rug, a hob, a cushion, a chest of drawers: dark rectangles on white, faint inside."""
    image = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = box = [(20, 60, 280, 240), (20, 62, 280, 238)][kind % 2]
    draw.rectangle(box, fill=[(30, 45, 32), (28, 28, 30), (70, 22, 25), (48, 36, 30), (34, 34, 40)][kind % 5])
    for part in range(1, 2 + kind % 4):
        across = left + part * (right - left) // (2 + kind % 4)
        draw.line((across, top + 8, across, bottom - 8), fill=(90, 80, 75), width=5)
    if kind >= 3:
        draw.ellipse((left + 30, top + 30, right - 30, bottom - 30), outline=(95, 90, 90), width=6)
    return image


def test_dark_rectangles_are_no_group_but_copies_are() -> None:
    made = [dark_rectangle(kind) for kind in range(10)]
    copies = [recoded(image, 50) for image in made]
    prints = np.array([np.frombuffer(fingerprint(image), np.uint8) for image in [*made, *copies]])
    pairs, apart = near_pairs(prints)
    assert pairs[apart <= SAME].tolist() == [[kind, kind + 10] for kind in range(10)]


def test_blank_and_tiny_pictures_have_a_fingerprint() -> None:
    blank = Image.new("RGB", (300, 200), "white")
    assert fingerprint(blank) == fingerprint(blank.resize((90, 60)))
    assert not near(blank, drawn_chair())
    assert not near(Image.new("RGB", (90, 90), "navy"), Image.new("RGB", (90, 90), "olive"))  # swatches
    for size in ((8, 8), (8, 500), (224, 1), (1, 1)):
        assert len(fingerprint(Image.new("RGB", size, "navy"))) == PRINT_BYTES
