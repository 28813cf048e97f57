"""Several images a product, and none: what goes into the shards, what is trained on, what is searched."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from furnclip.config import TrainingConfig
from furnclip.model.inputs import Preprocessing
from furnclip.shards import REST, SPLITS, Sample, ShardDataset, read_manifest
from furnclip.train.data import TrainingData
from tests.prepare_shop import Shop, draw, read_assignments


@pytest.fixture
def store(tmp_path: Path) -> Shop:
    """30 products, the first five of which have three images."""
    shop = Shop(tmp_path, settings={"train_fraction": 0.6, "validation_fraction": 0.2})
    shop.add(range(30))
    for row in shop.rows[:5]:
        number = row["product_id"][1:]
        for view in ("b", "c"):
            draw(shop.folder / f"images/{number}{view}.png", 1000 + int(number) * 10 + ord(view))
        row["image"] = f"{number}.png|{number}b.png|{number}c.png"
    return shop


def samples_of(store: Shop, *splits: str) -> dict[str, Sample]:
    return {item.product_id: item for split in splits or SPLITS for item in ShardDataset(store.shards, split)}


def rejected_images(store: Shop) -> list[tuple[str, str, str]]:
    with (store.shards / "rejected_images.csv").open(encoding="utf-8", newline="") as file:
        return [(row["product_id"], row["image"], row["reason"]) for row in csv.DictReader(file)]


def test_every_image_goes_into_the_shards_in_the_catalogue_s_order(store: Shop) -> None:
    store.prepared()
    samples = samples_of(store)
    assert [len(samples[f"p{number}"].images) for number in range(6)] == [3, 3, 3, 3, 3, 1]
    alone = store.rows[7]
    store.rows[7] = {**alone, "image": "0b.png"}
    store.rows[0]["image"] = "0.png"
    store.prepared()
    assert samples_of(store)["p7"].image_bytes == samples["p0"].images[1]
    assert samples_of(store)["p0"].images == samples["p0"].images[:1]


def test_further_images_change_no_byte_of_other_products_shards(store: Shop, tmp_path: Path) -> None:
    store.prepared()
    whole = samples_of(store)
    store.settings["max_images"] = 1
    assert store.prepared()["rejected_images"] == {"too-many-images": 5}
    first_only = samples_of(store)
    assert all(len(item.images) == 1 for item in first_only.values())
    assert {key: item.image_bytes for key, item in whole.items()} == {
        key: item.image_bytes for key, item in first_only.items()
    }


def test_a_broken_further_image_is_counted_and_loses_nothing(store: Shop) -> None:
    (store.folder / "images/1b.png").write_text("not an image")
    (store.folder / "images/2c.png").unlink()
    (store.folder / "images/3b.png").write_bytes((store.folder / "images/3.png").read_bytes())
    (store.folder / "images/4.png").write_bytes((store.folder / "images/4.png").read_bytes()[:99])
    said = store.prepared()
    assert said["products"] == 30
    assert said["rejected_images"] == {"missing": 1, "not-a-picture": 1, "same-image": 1, "truncated": 1}
    assert sorted(rejected_images(store)) == [
        ("p1", "1b.png", "not-a-picture"),
        ("p2", "2c.png", "missing"),
        ("p3", "3b.png", "same-image"),
        ("p4", "4.png", "truncated"),
    ]
    samples = samples_of(store)
    assert [len(samples[f"p{number}"].images) for number in range(5)] == [3, 2, 2, 2, 2]
    times = store.times()
    again = store.prepared()
    assert (again["decoded"], again["rejected_images"]) == (0, said["rejected_images"])
    assert store.times() == times
    draw(store.folder / "images/2c.png", 77)  # it is there now
    assert store.prepared()["decoded"] == 1
    assert len(samples_of(store)["p2"].images) == 3


def test_a_second_image_that_another_product_has_ties_the_two(store: Shop) -> None:
    store.prepared()
    splits = read_assignments(store.shards)
    one = "p0"
    other = next(f"p{number}" for number in range(6, 30) if splits[f"p{number}"][1] != splits[one][1])
    row = next(row for row in store.rows if row["product_id"] == other)
    near = store.folder / "images/near.png"
    draw(near, 1000 + ord("b"), side_px=64)  # the second image of p0 in another size
    row["image"] += "|near.png"
    joined = store.prepared("--fresh")
    splits = read_assignments(store.shards)
    assert splits[one] == splits[other]
    assert joined["leaks"]["left_across_splits"] == 0
    assert joined["leaks"]["near_duplicate_pairs"] == 1


def test_an_image_of_all_products_is_left_out_and_loses_none(store: Shop) -> None:
    names = ("sofa", "lamp", "table", "chair", "bed", "shelf", "mirror", "rug")
    draw(store.folder / "images/sizes.png", 5000)
    for row, name in zip(store.rows[10:18], names, strict=True):
        row["title"] = name
        row["image"] += "|sizes.png"
    said = store.prepared()
    assert said["products"] == 30
    assert said["rejected_images"] == {"placeholder-image": 8}
    assert all(len(samples_of(store)[f"p{number}"].images) == 1 for number in range(10, 18))
    assert said["leaks"]["largest_group"] == 1


def test_a_product_without_an_image_is_searchable_and_in_no_split(store: Shop) -> None:
    store.rows[20]["image"] = ""
    store.rows[21]["image"] = "nowhere.png"
    store.rows[22] |= {"title": "", "color": "", "object_type": ""}
    said = store.prepared()
    assert said["rejected"] == {"missing": 2, "no-text": 1}
    assert (said["products"], said["splits"][REST]["samples"]) == (27, 3)
    rest = samples_of(store, REST)
    assert rest["p20"].images == ()
    assert rest["p20"].missing_reason == "missing: the row names no image"
    assert rest["p21"].missing_reason.startswith("missing: there is no image `nowhere.png`")
    assert rest["p20"].caption
    assert len(rest["p22"].images) == 1
    assert not rest.keys() & samples_of(store).keys()
    store.rows[20]["image"] = "20.png"
    assert store.prepared()["splits"][REST]["samples"] == 2
    assert "p20" in samples_of(store)


def test_columns_are_kept_with_their_types(store: Shop) -> None:
    for number, row in enumerate(store.rows):
        row |= {"price": f"${number}.50", "On sale?": ("yes", "no")[number % 2]}
    store.prepared()
    columns = {column.source: (column.name, column.kind) for column in read_manifest(store.shards).columns}
    assert columns["price"] == ("price", "number")
    assert columns["On sale?"] == ("on_sale", "boolean")
    assert columns.keys() == {"price", "On sale?"}


def test_training_sees_one_image_a_step_drawn_by_position(store: Shop) -> None:
    store.prepared()
    config = TrainingConfig(augment="none")
    data = TrainingData(ShardDataset(store.shards, "train"), Preprocessing(32), config)
    several = np.flatnonzero(data.image_counts == 3)
    alone = np.flatnonzero(data.image_counts == 1)
    assert len(several) > 0
    assert len(data.image_keys) == data.image_counts.sum()
    drawn = [data.drawn_images(several, epoch=epoch) for epoch in range(40)]
    assert len({tuple(images) for images in drawn}) > 3
    assert {image for images in drawn for image in images} == {
        image for image, key in enumerate(data.image_keys) if _owner(data, image) in several
    }
    again = TrainingData(ShardDataset(store.shards, "train"), Preprocessing(32), config)
    assert [again.drawn_images(several, epoch=epoch) for epoch in range(40)] == drawn
    np.testing.assert_array_equal(data.squares(several, epoch=5), again.image_squares(drawn[5]))
    first = data.squares(alone, epoch=None)
    np.testing.assert_array_equal(data.squares(alone, epoch=9), first)


def _owner(data: TrainingData, image: int) -> int:
    return int(np.searchsorted(np.cumsum(data.image_counts), image, side="right"))
