"""What a night changed, prepared with what the last run kept, is what judging every row gives."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from furnclip.catalogue import content_hash, pieces
from furnclip.config import DataPaths
from furnclip.prepare import kept, reading
from furnclip.prepare.kept import Kept
from furnclip.prepare.scan import Scanner
from furnclip.sources import Folder
from tests.prepare_shop import Shop, draw

FULL = os.environ.get("FURNCLIP_FULL") == "1"
ROWS = 24
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "drop", "title", "price", "image", "other-image", "broken", "same-id", "odd"]
        ),
        st.integers(0, ROWS - 1),
    ),
    min_size=1,
    max_size=4,
)


def change(shop: Shop, kind: str, number: int, night: int) -> None:
    row = shop.rows[number % len(shop.rows)]
    path = shop.folder / "images" / row["image"]
    if kind == "add":
        shop.add([100 * night + number])
    elif kind == "drop":
        shop.rows.remove(row)
    elif kind == "title":
        row["title"] = f'Red\n"chair", {number}'
    elif kind == "price":
        row["price"] = f"{night + number},50"
    elif kind == "image":
        draw(path, 1000 + number, side_px=48 + night)
    elif kind == "other-image":
        row["image"] = shop.rows[number // 2]["image"]
    elif kind == "broken":
        path.write_bytes(b"no image" * night)
    elif kind == "same-id":
        shop.rows.append({**row, "title": "again"})
    else:
        row["title"] = 'a 5" pipe'


def judged_anew(shop: Shop, folder: Path) -> Shop:
    """A copy of the shop, prepared with nothing taken over but what a product was tied to."""
    shutil.copytree(shop.folder, folder)
    copy = Shop(folder, shop.rows, shop.settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "cut", lambda *_: None)

        def near(columns: Kept, *told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            columns._stored = columns._stored | {"looks": np.empty(0, np.uint64)}
            return as_it_is(columns, *told)

        as_it_is = Kept.near_pairs
        patch.setattr(Kept, "near_pairs", near)
        copy.prepared()
    return copy


@settings(
    max_examples=80 if FULL else 4,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=not FULL,
)
@given(st.lists(CHANGES, min_size=1, max_size=3))
def test_what_is_taken_over_is_what_is_judged(nights: list[list[tuple[str, int]]]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_BLOCK_ROWS_LOG2", 2)  # several blocks in a small catalogue
        shop = Shop(Path(name) / "shop", settings={"image_px": 32, "workers": 1, "shard_samples": 8})
        shop.add(range(ROWS))
        for row in shop.rows:
            row["price"] = "10"
        shop.prepared()
        for night, changes in enumerate(nights, start=1):
            for kind, number in changes:
                change(shop, kind, number, night)
            shop.write()
            copy = judged_anew(shop, Path(name) / f"copy-{night}")
            shop.prepared()
            assert shop.hashes() == copy.hashes()


LINE = st.text("ab,\n", max_size=12).map(lambda text: text.replace("\n\n", "\n") + "\n")


@given(st.lists(LINE, max_size=40), st.lists(LINE, max_size=40), st.integers(0, 8))
def test_hashes_taken_over_by_blocks_are_those_of_the_rows(
    before: list[str], after: list[str], block_rows_log2: int
) -> None:
    def pieces_of(path: Path, lines: list[str]) -> pieces.Pieces:
        path.write_text("product_id,title\n1,a\n" + "".join(lines), "utf-8")
        cut = pieces.cut(path, DataPaths())
        assert cut is not None
        return cut

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_BLOCK_ROWS_LOG2", block_rows_log2)
        known, _ = pieces_of(Path(folder) / "before.csv", before).digests(pieces.NO_DIGESTS)
        now = pieces_of(Path(folder) / "after.csv", [*before[: len(before) // 2], *after, *before[9:]])
        (expected, nowhere), (found, was) = now.digests(pieces.NO_DIGESTS), now.digests(known)
    assert (nowhere < 0).all()
    there, new = ({*found.rows[rows].tolist()} for rows in (was >= 0, was < 0))
    assert new.isdisjoint({*known.rows.tolist()} - there)  # of equal rows one is enough
    assert (known.rows[was[was >= 0]] == found.rows[was >= 0]).all()
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.blocks.tolist() == expected.blocks.tolist()


def test_only_what_changed_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(tmp_path, settings={"image_px": 32, "workers": 1})
    shop.add(range(60))
    shop.prepared()
    judged: list[int] = []
    judge = Scanner._judge
    monkeypatch.setattr(Scanner, "_judge", lambda self, row: judged.append(row.row) or judge(self, row))
    shop.rows[9]["color"] = "green"
    del shop.rows[20]
    draw(shop.folder / "images/40.png", 999, side_px=64)
    shop.prepared()
    assert judged == [10, 40]  # counted in the catalogue without the deleted one


def test_a_catalogue_that_loses_all_its_images_gets_them_back(tmp_path: Path) -> None:
    """As where the image column is set to one that names none."""
    shop = Shop(tmp_path, settings={"image_px": 32, "workers": 1})
    shop.add(range(12))
    first = shop.prepared()
    images = [row.pop("image") for row in shop.rows]
    shop.rows = [{**row, "image": ""} for row in shop.rows]
    shop.write()
    assert (
        "the row names no image" in shop.run().stderr
    )  # not one can be used: an error, as on the first night
    shop.rows = [{**row, "image": image} for row, image in zip(shop.rows, images, strict=True)]
    assert shop.prepared()["data_hash"] == first["data_hash"]


def test_an_address_that_was_fetched_again_is_judged_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path, settings={"image_px": 32, "workers": 1})
    shop.add(range(12))
    journal = tmp_path / "work/fetch/journal.jsonl"
    journal.parent.mkdir(parents=True)

    def fetched(number: int, image: int) -> None:
        """The image of product `number` is now a file that others have as well."""
        name = f"fetched/{image}.png"
        if not (shop.folder / "images" / name).exists():
            draw(shop.folder / "images" / name, image)
        key = content_hash(f"https://shop.example/{number}.png")
        size_bytes = (shop.folder / "images" / name).stat().st_size
        with journal.open("a") as file:
            file.write(json.dumps({"key": key, "name": name, "size_bytes": size_bytes}) + "\n")

    for number, row in enumerate(shop.rows):
        row["image"] = f"https://shop.example/{number}.png"
        fetched(number, number // 2)
    shop.prepared()
    fetched(4, 5)
    copy = judged_anew(shop, tmp_path.with_name("copy"))
    assert shop.prepared()["decoded"] == 1
    assert shop.hashes() == copy.hashes()


def test_columns_of_another_version_are_made_again_and_nothing_is_decoded(tmp_path: Path) -> None:
    shop = Shop(tmp_path, settings={"image_px": 32, "workers": 1, "shard_samples": 8})
    shop.add(range(24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_FORMAT", 6)
        shop.prepared()
    before = shop.hashes()
    (rows,) = (tmp_path / "work/cache/prepare").glob("kept-*/key")
    rows.rename(rows.with_name("rows"))
    assert shop.prepared()["decoded"] == 0
    assert shop.hashes() == before
    assert not list((tmp_path / "work/cache/prepare").glob("kept-*/rows"))


def test_image_files_are_told_by_their_sizes_and_times(tmp_path: Path) -> None:
    names = [b"a.jpg", b"in/a.jpg", b"in/deeper/a b.jpg", b"line\nbreak.jpg", "t\u00fcr.jpg".encode()]
    folder, lines = Folder(tmp_path), []
    for name in [*names, b"odd/\xff.jpg"]:
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image of " + name)
        lines.append(name + b"\0" + folder.status(os.fsdecode(name)).encode() + b"\0")

    def told(*lines: bytes) -> list[bool]:
        return reading._statuses_are(folder, pyarrow.array(lines, pyarrow.large_binary()))

    *plain, odd = lines
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    link = plain[0].replace(b"a.jpg", b"link.jpg")
    assert told(*plain, link, b"gone/a.jpg\x001 2\0", b"in\x001 2\0") == [True] * 6 + [False] * 2
    assert not any(told(*plain, odd))  # a look at each file has to tell
    (tmp_path / "in/a.jpg").write_bytes(b"image of in/b.jpg")
    os.utime(tmp_path / "a.jpg", ns=(0, 1))
    assert told(*plain) == [False, False, True, True, True]
