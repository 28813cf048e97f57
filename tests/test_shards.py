"""The shard format: the same bytes for the same samples, found again by any reader, damage noticed."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furnclip.catalogue import content_hash
from furnclip.errors import MissingStageError, StorageError, UsageError
from furnclip.images import BrokenImage
from furnclip.journal import sha256_of
from furnclip.shards import (
    SPLITS,
    Manifest,
    ProductImages,
    Sample,
    ShardDataset,
    read_manifest,
    seen_hash,
    write_manifest,
)
from furnclip.shards.manifest import ShardInfo, SplitInfo
from furnclip.shards.tar import (
    ShardAbout,
    WrittenShard,
    decode_sample,
    encode_sample,
    index_path,
    key_ranges,
    read_about,
    read_index,
    read_sample,
    write_shard,
)
from tests.prepare_shop import read_assignments


def sample(number: int, image_bytes: bytes = b"") -> Sample:
    chance = random.Random(number)
    return Sample(
        key=f"{number:016x}",
        image_bytes=image_bytes or chance.randbytes(chance.randrange(1, 3000)),
        caption=f"a photo of tür {number}",
        product_id=f"p-{number}",
        group=f"{number // 2:016x}",
        fields={"title": f"Tür {number}", "color": "rot"},
        title=f"Tür {number}",
    )


def write(path: Path, samples: list[Sample], content: str = "content") -> ShardAbout:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_shard(
        path, ((content_hash(*encode_sample(item).values()), item) for item in samples), content=content
    )


def indexed(shard: Path) -> list[Sample]:
    """Every sample of a shard, found by its index."""
    about = read_about(shard)
    index = read_index(shard, samples=about.samples if about else 0)
    return [read_sample(shard, index, row) for row in range(index.num_rows)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of train, one of test, none of validation, and their manifest."""
    numbers = {"train/shard-000000.tar": range(5), "train/shard-000001.tar": range(5, 12)}
    numbers |= {"train/shard-000002.tar": range(12, 13), "test/shard-000000.tar": range(20, 23)}
    infos: dict[str, list[ShardInfo]] = {name: [] for name in SPLITS}
    for name, range_ in numbers.items():
        about = write(tmp_path / name, [sample(number) for number in range_])
        digest = hashlib.sha256(index_path(tmp_path / name).read_bytes()).hexdigest()
        info = ShardInfo(name, about.sha256, about.bytes, about.samples, digest, 1)
        infos[name.split("/")[0]].append(info)
    splits = {
        name: SplitInfo(sum(shard.samples for shard in shards), len(shards), tuple(shards))
        for name, shards in infos.items()
    }
    write_manifest(tmp_path, Manifest("", splits).with_hash())
    return tmp_path


# --- the tar


@given(st.lists(st.binary(min_size=1, max_size=2000), min_size=1, max_size=8), st.text(max_size=30))
@settings(max_examples=40, deadline=None)
def test_whatever_is_written_comes_back_by_index_and_by_tar(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], text: str
) -> None:
    shard = tmp_path_factory.mktemp("shard") / "shard-000000.tar"
    caption = text.encode("utf-8", "replace").decode()
    samples = [
        Sample(f"{number:016x}", data, caption, f"p{number}", "g", {"title": caption, "": ""}, caption)
        for number, data in enumerate(images)
    ]
    write(shard, samples)
    assert indexed(shard) == list(read_tar(shard)) == samples
    written = shard.read_bytes()
    with tarfile.open(shard) as tar:  # headers are those of the library
        for member in tar:
            assert written[member.offset :][:512] == member.tobuf(tarfile.USTAR_FORMAT)


def read_tar(path: Path) -> Iterator[Sample]:
    """Every sample of a shard, in order, as webdataset finds them."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with path.open("rb") as file:
        for members in group_by_keys(tar_file_expander([{"url": path.name, "stream": file}])):
            yield decode_sample(members.pop("__key__"), members)


def test_the_bytes_depend_on_the_samples_alone(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(20)]
    first, second = (write(tmp_path / name / "shard.tar", samples) for name in ("a", "b"))
    assert first == second
    assert (tmp_path / "a/shard.tar").read_bytes() == (tmp_path / "b/shard.tar").read_bytes()
    assert hashlib.sha256((tmp_path / "a/shard.tar").read_bytes()).hexdigest() == first.sha256
    with tarfile.open(tmp_path / "a/shard.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == [
        f"{0:016x}.{suffix}" for suffix in ("jpg", "json", "txt")
    ]
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }


_READ_WITH_WEBDATASET = """
import hashlib, json, sys, webdataset
for item in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    digest = hashlib.sha256(item["jpg"]).hexdigest()
    print(json.dumps([item["__key__"], digest, json.loads(item["json"]), item["txt"].decode()]))
"""


def test_the_plain_webdataset_library_reads_them(folder: Path) -> None:
    urls = [f"file:{folder}/train/shard-{number:06d}.tar" for number in range(3)]
    # a process of its own, because the library leaves its files open
    command = [sys.executable, "-c", _READ_WITH_WEBDATASET, *urls]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        [
            item.key,
            hashlib.sha256(item.image_bytes).hexdigest(),
            {"product_id": item.product_id, "group": item.group, "title": item.title, "fields": item.fields},
            item.caption,
        ]
        for item in ShardDataset(folder, "train")
    ]


def test_a_shard_whose_index_does_not_fit_is_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard-000000.tar"
    assert read_about(path) is None
    about = write(path, [sample(1)])
    assert read_about(path) == about
    path.write_bytes(path.read_bytes()[:-1])
    assert read_about(path) is None
    index_path(path).write_bytes(b"no")
    assert read_about(path) is None
    with pytest.raises(StorageError, match="damaged"):
        indexed(path)


# --- random access


def test_a_dataset_is_a_sequence_in_the_order_of_the_shards(folder: Path) -> None:
    dataset = ShardDataset(folder, "train")
    assert len(dataset) == 13
    assert [item.product_id for item in dataset] == [f"p-{n}" for n in range(13)]
    assert [item.group for item in dataset] == [f"{n // 2:016x}" for n in range(13)]
    order = random.Random(0).sample(range(13), 13)
    assert [dataset[index] for index in order] == [sample(index) for index in order]
    for outside in (-1, 13):
        with pytest.raises(IndexError):
            dataset[outside]


def test_an_empty_split_is_an_empty_sequence_and_an_unknown_one_an_error(folder: Path) -> None:
    assert list(ShardDataset(folder, "validation")) == []
    with pytest.raises(UsageError, match="no split `valid`") as caught:
        ShardDataset(folder, "valid")
    assert caught.value.hint == "one of: test, train, validation"


def test_a_dataset_crosses_processes(folder: Path) -> None:
    dataset = ShardDataset(folder, "train")
    assert dataset[3] == sample(3)
    assert pickle.loads(pickle.dumps(dataset))[12] == sample(12)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(dataset.__getitem__, range(13))) == [sample(number) for number in range(13)]


def test_the_data_hash_changes_with_the_data(folder: Path) -> None:
    before = ShardDataset(folder, "train").data_hash
    manifest = read_manifest(folder)
    assert ShardDataset(folder, "test").data_hash != before
    about = write(folder / "train/shard-000002.tar", [sample(12, b"other")])
    train = manifest.splits["train"]
    changed = ShardInfo(**{**vars(train.shards[2]), "sha256": about.sha256})
    splits = {**manifest.splits, "train": SplitInfo(13, 1, (*train.shards[:2], changed))}
    write_manifest(folder, Manifest("", splits).with_hash())
    assert ShardDataset(folder, "train").data_hash != before
    assert read_manifest(folder).data_hash != manifest.data_hash


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_noticed_and_named(folder: Path, damage: str) -> None:
    path = folder / "train/shard-000001.tar"
    data = bytearray(path.read_bytes())
    dataset = ShardDataset(folder, "train")
    assert dataset[5] == sample(5)
    data[700] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:600])
    with pytest.raises(StorageError, match="shard-000001") as caught:
        dataset[5]
    assert "furnclip prepare --rebuild" in caught.value.hint


# --- manifest


def test_without_a_manifest_the_command_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingStageError) as caught:
        read_manifest(tmp_path)
    assert caught.value.hint == "run `furnclip prepare` first"


def test_a_manifest_comes_back_as_it_was_written(folder: Path) -> None:
    manifest = read_manifest(folder)
    before = (folder / "manifest.json").read_bytes()
    write_manifest(folder, manifest)
    assert (folder / "manifest.json").read_bytes() == before


def test_assignments_tell_group_and_split_of_each_product(folder: Path) -> None:
    found = read_assignments(folder)
    assert len(found) == 16
    assert found["p-5"] == (f"{2:016x}", "train")
    assert found["p-21"] == (f"{10:016x}", "test")


# --- several images, and none


def test_further_images_and_a_missing_one_come_back_from_index_and_tar(tmp_path: Path) -> None:
    shard = tmp_path / "train/shard-000000.tar"
    whole = replace(sample(1), more_images=(b"second", b"third"))
    bare = replace(sample(2), image_bytes=b"", missing_reason="missing: there is no image `2.jpg`")
    write(shard, [sample(0), whole, bare])
    assert indexed(shard) == list(read_tar(shard)) == [sample(0), whole, bare]
    assert [len(item.images) for item in indexed(shard)] == [1, 3, 0]
    with tarfile.open(shard) as tar:
        assert tar.getnames()[3:9] == [
            *(f"{1:016x}.{suffix}" for suffix in ("jpg", "1.jpg", "2.jpg", "json", "txt")),
            f"{2:016x}.json",
        ]


def test_texts_are_learnt_by_the_index_alone(folder: Path) -> None:
    dataset = ShardDataset(folder, "train")
    samples = list(dataset)
    for path in folder.rglob("*.tar"):
        path.unlink()
    found = list(dataset.texts())
    assert [text.sample for text in found] == [replace(each, image_bytes=b"") for each in samples]
    assert [text.seen for text in found] == [seen_hash(each) for each in samples]
    hashes = [[f"{value:016x}" for value in text.image_hashes] for text in found]
    assert hashes == [[content_hash(image) for image in each.images] for each in samples]


def test_one_image_each_gives_the_bytes_of_release_0_2(tmp_path: Path) -> None:
    write(tmp_path / "train/shard-000000.tar", [sample(number) for number in range(3)])
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in (tmp_path / "train").iterdir()
    }
    assert found["shard-000000.tar"] == "534254f8ed9298e3"
    assert pyarrow.parquet.read_schema(tmp_path / "train/shard-000000.parquet").names == [
        *("key", "product_id", "group", "content", "offset", "jpg_bytes", "json_bytes", "txt_bytes", "crc32"),
        *("json", "txt", "image_hashes", "seen"),
    ]


@pytest.mark.parametrize(("enough", "samples"), [(1, 5), (5, 5), (6, 12), (12, 12), (99, 13)])
def test_whole_shards_until_it_is_enough(folder: Path, enough: int, samples: int) -> None:
    dataset = ShardDataset(folder, "train", enough=enough)
    assert list(dataset) == list(ShardDataset(folder, "train"))[:samples]


def test_an_image_is_found_by_the_id_of_its_product(tmp_path: Path) -> None:
    samples = [
        replace(sample(number), key=content_hash(f"p-{number}"), more_images=(b"view",) * (number % 2))
        for number in range(9)
    ]
    parts = {"train": samples[:6], "validation": samples[6:7], "test": samples[7:8], "rest": samples[8:]}
    splits = {}
    for name, part in parts.items():
        about = write(tmp_path / name / "shard-000000.tar", part)
        info = ShardInfo(f"{name}/shard-000000.tar", about.sha256, about.bytes, about.samples, "", 0)
        splits[name] = SplitInfo(len(part), len(part), (info,))
    write_manifest(tmp_path, Manifest("", splits).with_hash())
    images = ProductImages(tmp_path)
    assert [images.image_bytes(item.product_id) for item in samples] == [item.image_bytes for item in samples]
    assert images.image_bytes("p-7", 1) == b"view"
    for product_id, view in (("p-8", 1), ("p-9", 0), ("p-1", -1)):
        with pytest.raises(BrokenImage, match=f"no image {view} of `{product_id}`"):
            images.image_bytes(product_id, view)


# --- pieces of a shard, and samples taken over


def spread(number: int) -> Sample:
    return replace(sample(number), key=content_hash(str(number)), group=content_hash("group", str(number)))


def in_order(numbers: Iterable[int]) -> list[Sample]:
    return sorted(map(spread, numbers), key=lambda item: item.key)


@given(st.sets(st.integers(0, 60), min_size=1), st.sets(st.integers(0, 60), min_size=1))
@settings(max_examples=20, deadline=None)
def test_a_shard_of_samples_taken_over_is_what_is_written_anew(
    tmp_path_factory: pytest.TempPathFactory, before: set[int], after: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    old, new, anew = (folder / f"{name}.tar" for name in ("old", "new", "anew"))
    about = write(old, in_order(before))
    written = WrittenShard(old, about.sha256, sha256_of(index_path(old)))
    samples = in_order(after)
    hashes = [content_hash(*encode_sample(item).values()) for item in samples]
    told = [
        [int(text, 16) for text in texts]
        for texts in zip(*((i.key, h, i.group) for i, h in zip(samples, hashes, strict=True)), strict=True)
    ]
    columns = [np.array(each, dtype=np.uint64) for each in (*told, [1] * len(samples))]
    places = written.places(*columns)
    assert (places >= 0).tolist() == [int(item.product_id[2:]) in before for item in samples]
    columns[3][0] = 2
    assert written.places(*columns)[0] == -1
    taken = [
        written.run(place, 1) if place >= 0 else (found, item)
        for place, found, item in zip(places.tolist(), hashes, samples, strict=True)
    ]
    assert write_shard(new, taken, content="content") == write(anew, samples)
    assert new.read_bytes() == anew.read_bytes()
    assert index_path(new).read_bytes() == index_path(anew).read_bytes()


def test_of_a_shard_that_is_not_as_told_nothing_is_taken_over(tmp_path: Path) -> None:
    about = write(tmp_path / "a.tar", in_order(range(9)))
    written = WrittenShard(tmp_path / "a.tar", about.sha256, "")
    assert written.places(*[np.arange(3, dtype=np.uint64)] * 4).tolist() == [-1] * 3


def test_a_product_that_comes_changes_one_piece_of_its_shard(tmp_path: Path) -> None:
    pieces = []
    for name, numbers in (("a", range(40)), ("b", range(41))):
        about = write(tmp_path / f"{name}/train/shard-000000.tar", in_order(numbers))
        info = ShardInfo("train/shard-000000.tar", about.sha256, about.bytes, about.samples, "", 1)
        splits = {each: SplitInfo(0, 0, ()) for each in SPLITS}
        splits["train"] = SplitInfo(info.samples, 1, (info,))
        write_manifest(tmp_path / name, Manifest("", splits).with_hash())
        pieces.append(ShardDataset(tmp_path / name, "train").pieces_of(info, 8))
    before, after = ({source for _, source in each} for each in pieces)
    assert len(before) > 4
    assert len(after - before) == 1
    assert max(size for size, _ in pieces[1]) <= 8
    assert [sum(size for size, _ in each) for each in pieces] == [40, 41]


@given(st.integers(0, 99), st.integers(1, 60), st.integers(1, 20), st.integers(1, 300))
def test_a_split_is_halved_until_its_shards_are_within_the_limits_and_no_further(
    seed: int, count: int, most_samples: int, most_bytes: int
) -> None:
    chance = random.Random(seed)  # keys are hashes
    keys = sorted(chance.getrandbits(64) for _ in range(count))
    sizes = [1 + key % 100 for key in keys]
    for halvings in range(65):
        ranges = [key >> (64 - halvings) for key in keys]
        held = [[size for each, size in zip(ranges, sizes, strict=True) if each == one] for one in {*ranges}]
        most = max(map(len, held))
        if most <= most_samples and (max(map(sum, held)) <= most_bytes or most == 1):
            break
    expected = [place for place in range(1, len(keys)) if ranges[place] != ranges[place - 1]]
    made = key_ranges(np.array(keys, dtype=np.uint64), most_samples, np.array(sizes), most_bytes)
    assert made.tolist() == expected
