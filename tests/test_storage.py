"""`S3Manager` over real HTTP: what arrives, in which order, and what a second run does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import boto3
import pytest

from furnclip import S3Manager
from furnclip.config import StorageConfig
from furnclip.errors import ConfigError, InputError, StorageError
from tests.s3_server import Fault, fault_proxy

INVENTORY = ".furnclip-inventory.json"
MB = 2**20


@pytest.fixture
def manager(server: str, bucket: str) -> Iterator[S3Manager]:
    with S3Manager(bucket, endpoint_url=server, timeout_s=2) as manager:
        yield manager


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three shards, one of them big enough for several parts, and their manifest."""
    return write_dataset(tmp_path / "shards", {"train/a.tar": 9 * MB, "train/b.tar": 50_000, "test/c.tar": 0})


def write_dataset(folder: Path, sizes: dict[str, int], *, seed: int = 0) -> Path:
    files = []
    for name, size_bytes in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn_bytes(f"{seed}{name}", size_bytes))
        files.append({"name": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    (folder / "manifest.json").write_text(json.dumps({"splits": {"train": {"shards": files}}}))
    return folder


@cache
def drawn_bytes(word: str, size_bytes: int) -> bytes:
    return hashlib.shake_256(word.encode()).digest(size_bytes)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_what_comes_back_is_what_went_up(manager: S3Manager, dataset: Path, tmp_path: Path) -> None:
    up = manager.upload_dataset(dataset, "some/prefix/")
    down = manager.download_dataset("/some/prefix", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(dataset)
    assert (up.sent, up.kept, down.sent, down.kept) == (4, 0, 4, 0)
    assert up.sent_bytes == down.sent_bytes == sum(map(len, contents(dataset).values()))


def test_the_second_run_sends_nothing(manager: S3Manager, dataset: Path, tmp_path: Path) -> None:
    manager.upload_dataset(dataset, "p")
    manager.download_dataset("p", tmp_path / "back")
    again_up, again_down = (
        manager.upload_dataset(dataset, "p"),
        manager.download_dataset("p", tmp_path / "back"),
    )
    assert (again_up.sent, again_up.kept) == (again_down.sent, again_down.kept) == (0, 4)


def test_what_announces_goes_up_last(server: str, bucket: str, dataset: Path) -> None:
    with fault_proxy(server) as proxy, S3Manager(bucket, endpoint_url=proxy.address) as manager:
        manager.upload_dataset(dataset, "p")
    puts = proxy.keys("PUT")
    assert puts[0] == f"p/{INVENTORY}"  # "not complete"
    assert puts[-2:] == ["p/manifest.json", f"p/{INVENTORY}"]


def test_the_inventory_and_manifest_come_down_first(
    server: str, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    with fault_proxy(server) as proxy, S3Manager(bucket, endpoint_url=proxy.address) as manager:
        manager.upload_dataset(dataset, "p")
        proxy.log.clear()
        manager.download_dataset("p", tmp_path / "back")
    assert proxy.keys("GET")[:2] == [f"p/{INVENTORY}", "p/manifest.json"]


def test_only_what_changed_goes_up(server: str, bucket: str, dataset: Path) -> None:
    with fault_proxy(server) as proxy, S3Manager(bucket, endpoint_url=proxy.address) as manager:
        manager.upload_dataset(dataset, "p")
        (dataset / "train/b.tar").write_bytes(drawn_bytes("other", 50_000))  # the size stays
        proxy.log.clear()
        transfer = manager.upload_dataset(dataset, "p")
    assert (transfer.sent, transfer.kept) == (1, 3)
    assert proxy.keys("PUT") == [f"p/{INVENTORY}", "p/train/b.tar", f"p/{INVENTORY}"]
    assert sorted(proxy.keys("HEAD")) == ["p/train/a.tar", "p/train/b.tar"]  # the listing tells of the others


def test_an_object_replaced_by_someone_else_is_sent_again(
    manager: S3Manager, server: str, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    manager.upload_dataset(dataset, "p")
    put(server, bucket, "p/train/b.tar", drawn_bytes("other", 50_000))
    with pytest.raises(StorageError, match=r"`s3://.*/p/train/b.tar` is not what was uploaded"):
        manager.download_dataset("p", tmp_path / "back")
    assert manager.upload_dataset(dataset, "p").sent == 1
    manager.download_dataset("p", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(dataset)


def test_a_local_file_that_was_damaged_is_fetched_again(
    manager: S3Manager, dataset: Path, tmp_path: Path
) -> None:
    manager.upload_dataset(dataset, "p")
    manager.download_dataset("p", tmp_path / "back")
    (tmp_path / "back/train/b.tar").write_bytes(drawn_bytes("damage", 50_000))
    assert manager.download_dataset("p", tmp_path / "back").sent == 2  # the file, and the manifest again
    assert contents(tmp_path / "back") == contents(dataset)


def test_an_upload_that_did_not_end_is_not_a_dataset(
    server: str, bucket: str, manager: S3Manager, dataset: Path, tmp_path: Path
) -> None:
    fault = Fault("status", method="PUT", path="manifest", status=403, code="AccessDenied")
    with (
        fault_proxy(server, fault) as proxy,
        S3Manager(bucket, endpoint_url=proxy.address) as refused,
        pytest.raises(StorageError, match=r"no permission for PutObject on `s3://.*/p/manifest.json`"),
    ):
        refused.upload_dataset(dataset, "p")
    with pytest.raises(StorageError, match=r"the upload to `s3://.*/p` has not ended"):
        manager.download_dataset("p", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    resumed = manager.upload_dataset(dataset, "p")
    assert (resumed.sent, resumed.kept) == (1, 3)


def test_an_older_manifest_does_not_announce_a_half_new_dataset(
    server: str, bucket: str, manager: S3Manager, dataset: Path, tmp_path: Path
) -> None:
    manager.upload_dataset(dataset, "p")
    manager.download_dataset("p", tmp_path / "back")
    write_dataset(dataset, {"train/a.tar": 9 * MB, "train/b.tar": 50_000}, seed=1)
    manager.upload_dataset(dataset, "p")
    fault = Fault("status", path="a.tar", status=403, code="AccessDenied")
    with (
        fault_proxy(server, fault) as proxy,
        S3Manager(bucket, endpoint_url=proxy.address) as refused,
        pytest.raises(StorageError, match="no permission"),
    ):
        refused.download_dataset("p", tmp_path / "back")
    assert not (tmp_path / "back/manifest.json").exists()
    manager.download_dataset("p", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(dataset)


def test_a_dataset_uploaded_by_another_program(
    manager: S3Manager, server: str, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    for name, content in contents(dataset).items():
        put(server, bucket, f"p/{name}", content)
    assert manager.download_dataset("p", tmp_path / "back").sent == 4
    assert contents(tmp_path / "back") == contents(dataset)
    assert manager.download_dataset("p", tmp_path / "back").sent == 0
    put(server, bucket, "p/train/b.tar", drawn_bytes("damage", 50_000))
    (tmp_path / "back/train/b.tar").unlink()
    with pytest.raises(StorageError, match="is not what was uploaded"):  # the manifest has its SHA-256
        manager.download_dataset("p", tmp_path / "back")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        '{"complete": true}',
        '{"complete": true, "files": null}',
        '{"complete": true, "files": {"a": null}}',
        '{"complete": true, "files": {"a": {"size_bytes": -1}}}',
        '{"complete": true, "files": {"a": {"size_bytes": true}}}',
        '{"complete": true, "files": {"a": {"size_bytes": 1, "sha256": 3}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_inventory_is_named(
    manager: S3Manager, server: str, bucket: str, tmp_path: Path, content: str
) -> None:
    put(server, bucket, f"p/{INVENTORY}", content.encode())
    with pytest.raises(StorageError, match=rf"/p/{INVENTORY}` cannot be read"):
        manager.download_dataset("p", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_linked_folder_goes_up_too(manager: S3Manager, dataset: Path, tmp_path: Path) -> None:
    (dataset / "train").rename(tmp_path / "other disk")
    (dataset / "train").symlink_to(tmp_path / "other disk")
    assert manager.upload_dataset(dataset, "p").sent == 4


@pytest.mark.parametrize("name", [".", "../evil", "/evil", "a/../../evil", "a\\evil", "evil\n"])
def test_a_name_that_would_leave_the_folder_is_refused(
    manager: S3Manager, server: str, bucket: str, tmp_path: Path, name: str
) -> None:
    inventory = {"complete": True, "files": {name: {"size_bytes": 1, "sha256": "", "etag": ""}}}
    put(server, bucket, f"p/{INVENTORY}", json.dumps(inventory).encode())
    with pytest.raises(StorageError, match="cannot be written safely"):
        manager.download_dataset("p", tmp_path / "back")


def test_checkpoints_are_files_or_folders(manager: S3Manager, dataset: Path, tmp_path: Path) -> None:
    checkpoint = dataset / "train/a.tar"
    assert manager.upload_checkpoint(checkpoint, "runs/one/last.pt").sent == 1
    assert manager.upload_checkpoint(checkpoint, "runs/one/last.pt").sent == 0
    assert manager.download_checkpoint("runs/one/last.pt", tmp_path / "last.pt").sent == 1
    assert manager.download_checkpoint("runs/one/last.pt", tmp_path / "last.pt").sent == 0
    assert (tmp_path / "last.pt").read_bytes() == checkpoint.read_bytes()
    manager.upload_checkpoint(dataset, "runs/two")
    manager.download_checkpoint("runs/two", tmp_path / "two")
    assert contents(tmp_path / "two") == contents(dataset)
    with pytest.raises(StorageError, match=r"there is nothing at `s3://.*/runs/three`"):
        manager.download_checkpoint("runs/three", tmp_path / "three")


def test_hidden_files_and_half_written_ones_stay_here(manager: S3Manager, tmp_path: Path) -> None:
    write_dataset(tmp_path / "up", {"a.tar": 10})
    (tmp_path / "up/.b.tar.1.part").write_text("half")
    assert manager.upload_dataset(tmp_path / "up", "p").sent == 2


def test_nothing_to_upload_is_said(manager: S3Manager, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no files to upload"):
        manager.upload_dataset(tmp_path / "nowhere", "p")
    with pytest.raises(InputError, match="there is no checkpoint"):
        manager.upload_checkpoint(tmp_path / "nowhere", "p")


def test_a_bucket_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="no bucket is set"):
        S3Manager.from_config(StorageConfig())
    with pytest.raises(ConfigError, match="is not a valid bucket name"):
        S3Manager("s3://shop/and/prefix")


def put(server: str, bucket: str, key: str, content: bytes) -> None:
    """Put an object as another program would: without our metadata."""
    client = boto3.client("s3", endpoint_url=server)
    client.put_object(Bucket=bucket, Key=key, Body=content)
    client.close()
