"""`furnclip prepare` from the outside: splits without leaks, shards that only change where they have to."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from furnclip.journal import exclusive
from furnclip.prepare import spread
from furnclip.prepare.pack import MOST_VALUES
from furnclip.shards import (
    MINI_TRAIN,
    SPLITS,
    Manifest,
    ShardDataset,
    read_manifest,
)
from furnclip.shards.manifest import SplitInfo
from tests.conftest import Cli
from tests.prepare_shop import Shop, draw, read_assignments, sha256_of
from tests.s3_server import CREDENTIALS, create_bucket, s3_server


@pytest.fixture
def store(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path, settings={"image_px": 32, "workers": 1})
    shop.add(range(60))
    return shop


# --- what comes out


def test_every_row_is_in_one_split_or_rejected_with_its_reason(store: Shop) -> None:
    (store.folder / "images/3.png").write_bytes(b"no picture")
    (store.folder / "images/4.png").unlink()
    store.rows[5]["title"] = ""
    store.rows[5] |= {"color": "", "object_type": ""}
    store.rows.append({**store.rows[0], "title": "again"})
    summary = store.prepared()
    assert summary["rejected"] == {"duplicate-id": 1, "missing": 1, "no-text": 1, "not-a-picture": 1}
    assert store.rejected() == {"p3": "not-a-picture", "p4": "missing", "p5": "no-text", "p0": "duplicate-id"}
    found = [item.product_id for split in SPLITS for item in ShardDataset(store.shards, split)]
    assert sorted(found) == sorted({row["product_id"] for row in store.rows} - {"p3", "p4", "p5"})
    assert (summary["rows"], summary["products"]) == (61, 57)


def test_a_sample_holds_the_picture_the_caption_and_every_column(store: Shop) -> None:
    store.prepared()
    samples = [item for split in SPLITS for item in ShardDataset(store.shards, split)]
    [sample] = [item for item in samples if item.product_id == "p7"]
    assert sample.fields == store.rows[7]
    assert sample.caption == "a photo of blue sofa 7, chair"
    assert sample.group == read_assignments(store.shards)["p7"][0]
    square = Image.open(__import__("io").BytesIO(sample.image_bytes))
    assert (square.format, square.size) == ("JPEG", (32, 32))


def test_the_first_picture_that_can_be_read_is_used(store: Shop) -> None:
    (store.folder / "images/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    store.rows[0]["image"] = "nope.png|broken.png|0.png"
    store.prepared()
    assert "p0" in read_assignments(store.shards)


def test_splits_have_about_their_shares_and_mini_train_is_stratified(tmp_path: Path) -> None:
    store = Shop(tmp_path, settings={"image_px": 16, "workers": 1, "mini_train_samples": 60})
    store.add(range(600))
    store.prepared()
    manifest = read_manifest(store.shards)
    sizes = [manifest.splits[split].samples for split in SPLITS]
    assert sum(sizes) == 600
    assert np.abs(np.array(sizes) - [480, 60, 60]).max() < 35
    train = {item.product_id for item in ShardDataset(store.shards, "train")}
    mini = [item.fields["object_type"] for item in ShardDataset(store.shards, MINI_TRAIN)]
    assert {item.product_id for item in ShardDataset(store.shards, MINI_TRAIN)} <= train
    whole = manifest.splits["train"].attributes["object_type"]
    for kind in ("sofa", "chair", "lamp"):
        assert abs(mini.count(kind) - 60 * whole[kind] / sum(whole.values())) <= 1


def test_the_summary_shows_how_object_types_are_spread(store: Shop) -> None:
    summary = store.prepared()
    spread = summary["attributes"]["object_type"]
    splits = read_assignments(store.shards)
    assert set(spread) == {"sofa", "chair", "lamp"}
    assert spread["sofa"] == {
        split: sum(splits[row["product_id"]][1] == split for row in store.rows[::3]) for split in SPLITS
    }
    assert "style" in summary["attributes"]  # without values
    shown = store.run().stdout
    assert "the 3 commonest of 3 object types" in shown
    [line] = [line for line in shown.splitlines() if line.split()[:1] == ["sofa"]]
    assert [int(cell) for cell in line.split()[1:]] == list(spread["sofa"].values())


def test_a_count_that_the_manifest_does_not_keep_is_not_called_zero(tmp_path: Path) -> None:
    many = {f"t{number:02}": 9 - (number > 0) for number in range(MOST_VALUES)}
    splits = {
        "train": SplitInfo(0, 0, (), {"object_type": many}),
        "validation": SplitInfo(0, 0, (), {"object_type": {"rare": 1}}),
        "test": SplitInfo(0, 0, ()),
    }
    found = spread(Manifest("", splits), "object_type")
    assert next(iter(found)) == "t00"
    assert found["rare"] == {"train": None, "validation": 1, "test": 0}


def test_no_split_is_empty_even_in_a_dozen(tmp_path: Path) -> None:
    store = Shop(tmp_path, settings={"image_px": 16, "workers": 1})
    store.add(range(4))
    store.prepared()
    assert {split for _, split in read_assignments(store.shards).values()} == set(SPLITS)
    store.add(range(4, 30))
    before = read_assignments(store.shards)
    store.prepared()
    assert before.items() <= read_assignments(store.shards).items()


def test_shards_keep_to_their_limits(store: Shop) -> None:
    store.settings["shard_samples"] = 7
    store.prepared()
    manifest = read_manifest(store.shards)
    for split in manifest.splits.values():
        assert all(0 < shard.samples <= 7 for shard in split.shards)
        assert all((store.shards / shard.name).stat().st_size == shard.bytes for shard in split.shards)
        assert all(sha256_of(store.shards / shard.name) == shard.sha256 for shard in split.shards)


# --- what belongs together


def split_of(store: Shop, *product_ids: str) -> set[tuple[str, str]]:
    assignments = read_assignments(store.shards)
    return {assignments[product_id] for product_id in product_ids}


def test_same_title_same_bytes_and_near_duplicates_are_one_group(store: Shop) -> None:
    pictures = store.folder / "images"
    first = store.rows[0]
    Image.open(pictures / "0.png").convert("RGB").resize((90, 90)).save(pictures / "near.jpg", quality=50)
    (pictures / "copy.png").write_bytes((pictures / "0.png").read_bytes())
    draw(pictures / "other.png", 1000)
    store.rows += [
        {**first, "product_id": "near", "title": "Near", "image": "near.jpg"},
        {**first, "product_id": "copy", "title": "Copy", "image": "copy.png"},
        {**first, "product_id": "title", "title": "SOFA, 0!", "image": "other.png"},
    ]
    leaks = store.prepared()["leaks"]
    assert len(split_of(store, "p0", "near", "copy", "title")) == 1
    assert (leaks["same_picture"], leaks["same_title"]) == (1, 1)
    assert leaks["near_duplicate_pairs"] == 3  # p0, near and copy with one another
    assert (leaks["groups"], leaks["groups_joined"], leaks["largest_group"]) == (60, 1, 4)
    assert leaks["left_across_splits"] == 0
    lines = (store.shards / "near_duplicates.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:5] for line in lines[1:]] == [
        ["1", "3", "1", "3", one] for one in ("p0", "near", "copy")
    ]
    assert (
        "1 groups of near-duplicate images, the largest of 3 products; 0 mix object types"
        in store.run().stdout
    )


def test_with_a_group_column_titles_do_not_count_but_pictures_do(store: Shop) -> None:
    for number, row in enumerate(store.rows):
        row |= {"title": "Sofa", "family": f"f{number // 2}"}
    (store.folder / "images/59.png").write_bytes((store.folder / "images/0.png").read_bytes())
    store.write()
    (store.folder / "furnclip.toml").write_text(
        '[paths]\ngroup_column = "family"\n[prepare]\nimage_px = 32\n'
    )
    assert store.run().exit_code == 0
    assert len(split_of(store, "p0", "p1", "p58", "p59")) == 1
    assert len({group for group, _ in read_assignments(store.shards).values()}) == 29


def test_a_row_that_joins_two_splits_is_rejected_and_nothing_moves(store: Shop) -> None:
    store.prepared()
    before = read_assignments(store.shards)
    of_split = {split: product_id for product_id, (_, split) in before.items()}
    train, test = of_split["train"], of_split["test"]
    store.rows.append(
        {"product_id": "bridge", "title": f"Sofa {train[1:]}", "image": f"{test[1:]}.png", "color": "red"}
    )
    store.add([100])
    summary = store.prepared()
    assert summary["rejected"] == {"joins-splits": 1}
    assert store.rejected() == {"bridge": "joins-splits"}
    after = read_assignments(store.shards)
    assert {product_id: after[product_id] for product_id in before} == before
    assert after.keys() - before.keys() == {"p100"}


def test_a_known_product_that_turns_into_another_splits_twin_is_the_one_rejected(store: Shop) -> None:
    store.prepared()
    of_split = {split: product_id for product_id, (_, split) in read_assignments(store.shards).items()}
    train, test = of_split["train"], of_split["test"]
    pictures = store.folder / "images"
    (pictures / f"{train[1:]}.png").write_bytes((pictures / f"{test[1:]}.png").read_bytes())
    assert store.prepared()["rejected"] == {"joins-splits": 1}
    assert store.rejected() == {train: "joins-splits"}
    assert read_manifest(store.shards).leaks["left_across_splits"] == 0


def test_a_product_that_comes_back_is_where_it_was(store: Shop) -> None:
    store.prepared()
    before = read_assignments(store.shards)
    away, store.rows = store.rows[:20], store.rows[20:]
    store.prepared()
    assert read_assignments(store.shards).keys() == {row["product_id"] for row in store.rows}
    store.rows += away
    store.prepared()
    assert read_assignments(store.shards) == before


# --- the same bytes, and only the work there is


def test_the_bytes_do_not_depend_on_processes_or_the_order_of_rows(tmp_path: Path) -> None:
    found = []
    for workers, seed in ((1, 0), (2, 1), (4, 2)):
        folder = tmp_path / str(workers)
        store = Shop(folder, settings={"image_px": 32, "workers": workers, "shard_samples": 30})
        store.add(range(100))
        random.Random(seed).shuffle(store.rows)
        store.prepared()
        found.append(store.hashes())
    assert found[0] == found[1] == found[2]


def test_the_second_run_does_nothing_and_says_so(store: Shop) -> None:
    (store.folder / "images/3.png").write_bytes(b"no picture")
    store.prepared()
    before = store.times()
    result = store.run()
    assert "nothing to do" in result.stdout
    assert store.times() == before
    assert json.loads(store.run("--json").stdout)["changed_shards"] == 0


def test_a_changed_row_touches_its_shard_alone(store: Shop) -> None:
    store.settings["shard_samples"] = 5
    store.settings["mini_train_samples"] = 1
    store.prepared()
    before, samples = store.hashes(), read_assignments(store.shards)
    store.rows[9]["color"] = "green"
    summary = store.prepared()
    after = store.hashes()
    changed = {name for name in after if name.endswith(".tar") and before.get(name) != after[name]}
    assert len(changed) == 1
    assert changed.pop().startswith(samples["p9"][1])
    assert (summary["decoded"], summary["changed_shards"]) == (0, 1)


def test_what_was_built_in_steps_is_what_is_built_at_once(tmp_path: Path) -> None:
    steps, once = (
        Shop(tmp_path / name, settings={"image_px": 32, "workers": 1}) for name in ("steps", "once")
    )
    for upto in (30, 31, 60):
        steps.rows = []
        steps.add(range(upto))
        steps.prepared()
    once.add(range(60))
    once.prepared()
    assert steps.hashes() == once.hashes()


def test_a_new_picture_under_an_old_name_is_decoded(store: Shop) -> None:
    store.prepared()
    draw(store.folder / "images/5.png", 999, side_px=64)
    summary = store.prepared()
    assert summary["decoded"] == 1
    assert summary["changed_shards"] >= 1


def test_other_settings_mean_other_pictures(store: Shop) -> None:
    store.prepared()
    before = read_assignments(store.shards)
    store.settings["image_px"] = 40
    assert store.prepared()["decoded"] == 60
    assert read_assignments(store.shards) == before


def test_without_its_cache_it_decodes_again_and_writes_nothing_new(store: Shop) -> None:
    store.prepared()
    before = store.times()
    for path in (store.folder / "work/cache/prepare").glob("samples-*"):
        path.unlink()
    summary = store.prepared()
    assert (summary["decoded"], summary["changed_shards"]) == (60, 0)
    assert store.times() == before


def test_a_damaged_shard_is_rebuilt_where_it_changes_and_where_that_is_asked_for(store: Shop) -> None:
    store.prepared()
    before = store.hashes()
    path = store.shards / read_manifest(store.shards).splits["train"].shards[0].name

    def damage() -> None:
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        path.write_bytes(data)

    damage()
    for row in store.rows[:3]:
        row["material"] = "oak"
    assert store.prepared()["decoded"] == 0
    assert len(list(ShardDataset(store.shards, "train"))) > 30
    for row in store.rows[:3]:
        del row["material"]
    damage()
    store.prepared("--rebuild")
    assert store.hashes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 9}'])
def test_a_damaged_manifest_is_written_again(store: Shop, content: str) -> None:
    """Its error sends the reader here."""
    store.prepared()
    before = store.hashes()
    (store.shards / "manifest.json").write_text(content)
    assert store.prepared()["changed_shards"] == 0
    assert store.hashes() == before


def test_fresh_draws_new_splits(store: Shop) -> None:
    store.prepared()
    store.settings |= {"train_fraction": 0.2, "validation_fraction": 0.2}
    store.prepared()
    assert read_manifest(store.shards).splits["train"].samples > 30
    store.prepared("--fresh")
    assert read_manifest(store.shards).splits["train"].samples < 30


def test_two_at_a_time_are_refused(store: Shop) -> None:
    store.write()
    with exclusive(store.folder / "work/cache/prepare"):
        result = store.run()
    assert result.exit_code == 1
    assert "is in use by another furnclip process" in result.stderr


@pytest.mark.parametrize("statement", ["import furnclip.prepare", "from furnclip import S3Manager"])
def test_a_worker_and_a_transfer_start_without_what_they_do_not_need(statement: str) -> None:
    script = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not {"torch", "transformers", "pydantic", "openai", "lancedb"} & set(done.stdout.split())


# --- used wrongly


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("", 1, "is empty"),
        ("product_id,title,image\n", 1, "has no rows"),
        ("id,title,image\n1,a,b\n", 2, "has no column `product_id`"),
        ("product_id,title,image\n1,a,b.png\n2,b,b.png\n", 1, "no row of"),
    ],
)
def test_a_useless_catalogue_is_two_lines(tmp_path: Path, content: str, code: int, message: str) -> None:
    store = Shop(tmp_path)
    (tmp_path / "images").mkdir()
    store.write()
    (tmp_path / "products.csv").write_text(content)
    result = store.run()
    assert (result.exit_code, result.stdout) == (code, "")
    error, hint = result.stderr.splitlines()
    assert message in error
    assert hint.startswith("hint: ")


def test_no_catalogue_and_impossible_shares(tmp_path: Path) -> None:
    store = Shop(tmp_path, settings={"train_fraction": 0.8, "validation_fraction": 0.3})
    store.write()
    assert "add up to more than 1" in store.run().stderr
    assert store.run().exit_code == 2
    store.settings = {}
    store.write()
    (tmp_path / "products.csv").unlink()
    assert "there is no catalogue" in store.run().stderr


def test_a_damaged_ledger_is_not_taken_for_a_fresh_start(store: Shop) -> None:
    store.prepared()
    (store.shards / "assignments.parquet").write_bytes(b"PAR1")
    result = store.run()
    assert result.exit_code == 1
    assert "assignments.parquet` is damaged" in result.stderr


def test_check_reports_by_reason_and_writes_nothing(store: Shop) -> None:
    for number in range(5):
        (store.folder / f"images/{number}.png").write_bytes(b"no")
    store.rows[10]["product_id"] = store.rows[11]["product_id"]
    store.write()
    report = json.loads(store.run("--check", "--json").stdout)
    assert (report["rows"], report["usable"]) == (60, 54)
    assert report["reasons"] == {"not-a-picture": 5, "duplicate-id": 1}
    assert [example["row"] for example in report["examples"]["not-a-picture"]] == [1, 2, 3]
    assert not (store.folder / "work").exists()
    shown = store.run("--check").stdout
    assert "54 of 60 rows" in shown
    assert "duplicate-id" in shown


def test_check_fails_where_prepare_would(store: Shop) -> None:
    for row in store.rows:
        row["image"] = "nowhere.png"
    store.write()
    result = store.run("--check", "--json")
    assert (result.exit_code, json.loads(result.stdout)["reasons"]) == (1, {"missing": 60})
    (store.folder / "products.csv").write_text("product_id,title,image\n")
    result = store.run("--check", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "products.csv` has no rows\nhint: " in result.stderr


# --- to the bucket


def test_upload_and_download_give_the_same_shards(store: Shop, tmp_path: Path, cli: Cli) -> None:
    from furnclip import S3Manager

    store.write()
    with s3_server() as server:
        create_bucket(server, "shop")
        env = {**CREDENTIALS, "FURNCLIP_STORAGE__ENDPOINT_URL": server}
        missing = cli("prepare", "--upload", "--s3-bucket", "nope", cwd=store.folder, env=env)
        assert missing.code == 1
        assert not store.shards.exists()  # looked at before the work
        done = cli("prepare", "--upload", "--s3_bucket", "shop", "--json", cwd=store.folder, env=env).ok()
        assert done.json["upload"]["sent"] > 4
        again = cli("prepare", "--upload", "--s3-bucket", "shop", "--json", cwd=store.folder, env=env).ok()
        assert again.json["upload"]["sent"] == 0
        with pytest.MonkeyPatch.context() as patch:
            for name, value in CREDENTIALS.items():
                patch.setenv(name, value)
            with S3Manager("shop", endpoint_url=server) as manager:
                manager.download_dataset("furnclip/shards", tmp_path / "copy")
    ours, theirs = (list(ShardDataset(folder, "train")) for folder in (store.shards, tmp_path / "copy"))
    assert ours == theirs
    assert _names(ours) == sorted(_names(ours))


def _names(samples: Sequence[object]) -> list[str]:
    return [str(getattr(sample, "key", "")) for sample in samples]
