"""`S3Manager` when the network, the server or the disk fails: over real HTTP, with real processes.

A fault that passes must not be noticed; one that stays must give one clear error, and leave nothing
half-written under a final name.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from furnclip import S3Manager
from furnclip.errors import ConfigError, FurnclipError, StorageError
from tests.s3_server import Fault, Proxy, fault_proxy, make_bucket
from tests.small_disk import small_disk
from tests.test_storage import INVENTORY, MB, contents, drawn_bytes, put, write_dataset

# boto3's transfer manager leaves the socket of a broken download to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FULL = os.environ.get("FURNCLIP_FULL") == "1"
SIZES = {"train/a.tar": 9 * MB, "train/b.tar": 300_000, "train/c.tar": 200_000}


@pytest.fixture(autouse=True)
def _collect_sockets() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "shards", SIZES)


def through(proxy: Proxy, bucket: str) -> S3Manager:
    return S3Manager(bucket, endpoint_url=proxy.address, timeout_s=1)


PASSING_UP = [
    Fault("cut_request", method="PUT", path=r"b\.tar", times=2),
    Fault("cut_request", method="PUT", path="partNumber=2", times=2),
    Fault("status", method="PUT", path=r"b\.tar", times=2),
    Fault("status", method="PUT", path=r"b\.tar", times=2, status=503, code="SlowDown"),
    Fault("status", method="PUT", path="partNumber=1", times=2),
    Fault("stall", method="PUT", path=r"b\.tar", times=1, pause_s=2),
]
PASSING_DOWN = [
    Fault("cut_response", path=r"b\.tar", times=2),
    Fault("cut_response", path=r"a\.tar", times=2),
    Fault("cut_response", path=INVENTORY, times=2),
    Fault("status", path=r"b\.tar", times=2),
    Fault("status", path=r"a\.tar", times=2, status=503, code="SlowDown"),
    Fault("slow", path=r"[ab]\.tar", pause_s=0.05),
    Fault("stall", path=r"b\.tar", times=1, pause_s=2),
]


def named(fault: Fault) -> str:
    return f"{fault.kind}-{fault.path}-{fault.status}"


@pytest.mark.parametrize("fault", PASSING_UP, ids=named)
def test_a_fault_that_passes_on_the_way_up(
    server: str, bucket: str, dataset: Path, tmp_path: Path, fault: Fault
) -> None:
    with fault_proxy(server, fault) as proxy, through(proxy, bucket) as manager:
        manager.upload_dataset(dataset, "p")
        manager.download_dataset("p", tmp_path / "back")
    assert fault.hits > fault.times
    assert contents(tmp_path / "back") == contents(dataset)


@pytest.mark.parametrize("fault", PASSING_DOWN, ids=named)
def test_a_fault_that_passes_on_the_way_down(
    server: str, bucket: str, dataset: Path, tmp_path: Path, fault: Fault
) -> None:
    with fault_proxy(server) as proxy, through(proxy, bucket) as manager:
        manager.upload_dataset(dataset, "p")
        proxy.faults.append(fault)
        fault.hits = 0
        manager.download_dataset("p", tmp_path / "back")
    assert fault.hits
    assert contents(tmp_path / "back") == contents(dataset)


# Each gives up only after some seconds of trying, as it should; a few are enough by default.
STAYING = [
    (Fault("cut_response", path=r"b\.tar"), "the connection kept breaking at `s3://{}/p/train/b.tar`"),
    (Fault("cut_response", path=r"a\.tar"), "the connection kept breaking at `s3://{}/p/train/a.tar`"),
    (Fault("status", path=r"b\.tar"), "the server kept failing on `s3://{}/p/train/b.tar`"),
    (Fault("corrupt", path=r"b\.tar"), "`s3://{}/p/train/b.tar` is not what was uploaded"),
    (Fault("corrupt", path=r"a\.tar"), "`s3://{}/p/train/a.tar` is not what was uploaded"),
    (Fault("corrupt", path="manifest"), "`s3://{}/p/manifest.json` is not what was uploaded"),
]


if FULL:
    slow_down = Fault("status", path=r"b\.tar", status=503, code="SlowDown")
    stall = Fault("stall", path=r"b\.tar", pause_s=1.3)
    STAYING += [
        (slow_down, "the server asks to slow down, and kept asking"),
        (stall, "the connection kept breaking at `s3://{}/p/train/b.tar`"),
    ]


@pytest.mark.parametrize(("fault", "message"), STAYING, ids=lambda value: getattr(value, "kind", ""))
def test_a_fault_that_stays(
    server: str, bucket: str, dataset: Path, tmp_path: Path, fault: Fault, message: str
) -> None:
    with fault_proxy(server) as proxy, through(proxy, bucket) as manager:
        manager.upload_dataset(dataset, "p")
        proxy.faults.append(fault)
        with pytest.raises(StorageError) as caught:
            manager.download_dataset("p", tmp_path / "back")
        assert caught.value.message.startswith(message.format(bucket))
        assert_no_half_dataset(tmp_path / "back", contents(dataset))
        proxy.faults.clear()
        manager.download_dataset("p", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(dataset)


def assert_no_half_dataset(folder: Path, whole: dict[str, bytes]) -> None:
    """Every file under a final name is whole, nothing lies beside, and no manifest announces it."""
    found = contents(folder) if folder.exists() else {}
    assert "manifest.json" not in found
    assert {name: content == whole.get(name) for name, content in found.items()} == dict.fromkeys(found, True)


@pytest.mark.parametrize("name", ["train/a.tar", "train/b.tar"])
def test_an_object_that_changes_while_it_is_downloaded(
    server: str, bucket: str, dataset: Path, tmp_path: Path, name: str
) -> None:
    other = drawn_bytes("other", SIZES[name])
    replace = Fault("before", path=name, times=1, action=lambda: put(server, bucket, f"p/{name}", other))
    with fault_proxy(server) as proxy, through(proxy, bucket) as manager:
        manager.upload_dataset(dataset, "p")
        proxy.faults.append(replace)
        with pytest.raises(
            StorageError, match=r"replaced meanwhile|was changed while it was being downloaded"
        ):
            manager.download_dataset("p", tmp_path / "back")
    assert_no_half_dataset(tmp_path / "back", contents(dataset))


REFUSALS = {
    "NoSuchBucket": (404, "there is no bucket `{}`", "aws s3 mb"),
    "AccessDenied": (403, "no permission for ListObjectsV2 on `s3://{}/p`", "s3:ListBucket"),
    "InvalidAccessKeyId": (403, "the server does not know this access key", "AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": (403, "the server refused the secret access key", "AWS_SECRET_ACCESS_KEY"),
    "ExpiredToken": (400, "the credentials have expired", "aws sso login"),
    "RequestTimeTooSkewed": (403, "this machine's clock is too far from the server's", "timedatectl"),
    "PermanentRedirect": (301, "bucket `{}` is in another region", "storage.region"),
    "Whatever": (400, "the server refused ListObjectsV2 on `s3://{}/p` (Whatever)", "[storage]"),
    "Broken": (509, "the server refused ListObjectsV2 on `s3://{}/p` (Broken)", "again"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_each_refusal_says_what_to_do(server: str, bucket: str, tmp_path: Path, code: str) -> None:
    status, message, hint = REFUSALS[code]
    fault = Fault("status", path="list-type", status=status, code=code)
    with (
        fault_proxy(server, fault) as proxy,
        through(proxy, bucket) as manager,
        pytest.raises(StorageError) as caught,
    ):
        manager.download_dataset("p", tmp_path / "back")
    assert caught.value.message == message.format(bucket) + "; the server says: told to fail"
    assert hint in caught.value.hint


def test_a_real_server_without_the_bucket(server: str, bucket: str, tmp_path: Path) -> None:
    with (
        S3Manager("no-such-bucket", endpoint_url=server) as manager,
        pytest.raises(StorageError, match="there is no bucket `no-such-bucket`"),
    ):
        manager.download_dataset("p", tmp_path / "back")


def test_no_credentials(server: str, tmp_path: Path) -> None:
    with (
        S3Manager("bucket", endpoint_url=server) as manager,
        pytest.raises(StorageError, match="there are no credentials"),
    ):
        manager.download_dataset("p", tmp_path / "back")


def test_no_server(bucket: str, tmp_path: Path) -> None:
    with (
        S3Manager(bucket, endpoint_url="http://127.0.0.1:9") as manager,
        pytest.raises(StorageError, match=r"cannot reach `http://127.0.0.1:9`"),
    ):
        manager.download_dataset("p", tmp_path / "back")


@pytest.mark.parametrize(
    ("bucket_name", "endpoint"), [("good", "no address"), ("BAD bucket!", "http://127.0.0.1:9")]
)
def test_settings_that_cannot_be_used(bucket: str, tmp_path: Path, bucket_name: str, endpoint: str) -> None:
    with pytest.raises(ConfigError), S3Manager(bucket_name, endpoint_url=endpoint) as manager:
        manager.download_dataset("p", tmp_path / "back")


def test_no_error_tells_a_secret(
    server: str, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-word")
    fault = Fault("status", path="list-type", status=403, code="SignatureDoesNotMatch")
    with (
        fault_proxy(server, fault) as proxy,
        through(proxy, bucket) as manager,
        pytest.raises(FurnclipError) as caught,
    ):
        manager.download_dataset("p", tmp_path / "back")
    assert "very-secret-word" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


DOWNLOAD = """
import resource, sys
from furnclip import S3Manager
from furnclip.errors import StorageError
if limit := int(sys.argv[4]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with S3Manager(sys.argv[1], endpoint_url=sys.argv[2], timeout_s=5) as manager:
    try:
        transfer = manager.download_dataset("p", sys.argv[3])
    except StorageError as error:
        sys.exit(f"error: {error.message}\\nhint: {error.hint}")
print(transfer.sent, transfer.kept)
"""
UPLOAD = """
import signal, sys
from furnclip import S3Manager
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with S3Manager(sys.argv[1], endpoint_url=sys.argv[2], timeout_s=5) as manager:
    transfer = manager.upload_dataset(sys.argv[3], "p")
print(transfer.sent, transfer.kept)
"""


def process(script: str, *args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_disk_that_fills_up_on_the_way(server: str, bucket: str, dataset: Path, tmp_path: Path) -> None:
    """A quota of 250 kB a file: the first shards fit, the others do not."""
    with S3Manager(bucket, endpoint_url=server) as manager:
        manager.upload_dataset(dataset, "p")
    for _ in range(2):
        limited = process(DOWNLOAD, bucket, server, tmp_path / "back", "250000")
        _, stderr = limited.communicate(timeout=60)
        assert limited.returncode == 1
        assert stderr.startswith("error: file too large")
        assert "free some space" in stderr
        assert_no_half_dataset(tmp_path / "back", contents(dataset))


def test_a_disk_without_enough_room_is_seen_before(
    server: str, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    with S3Manager(bucket, endpoint_url=server) as manager:
        manager.upload_dataset(dataset, "p")
        inventory = json.loads(manager.read(f"p/{INVENTORY}"))
        inventory["files"]["train/a.tar"]["size_bytes"] = 10**18
        put(server, bucket, f"p/{INVENTORY}", json.dumps(inventory).encode())
        with pytest.raises(StorageError, match=r"MB free, 1,000,.* MB are needed"):
            manager.download_dataset("p", tmp_path / "back")


def test_killed_downloads_go_on(server: str, bucket: str, tmp_path: Path) -> None:
    """SIGKILL at random moments: never a manifest before the rest, and the last run gets it all."""
    dataset = write_dataset(tmp_path / "many", {f"s{number:02}.tar": 200_000 for number in range(30)})
    with S3Manager(bucket, endpoint_url=server) as manager:
        manager.upload_dataset(dataset, "p")
    slow = Fault("slow", path=r"\.tar", pause_s=0.004)
    with fault_proxy(server, slow) as proxy:
        whole_s = seconds(process(DOWNLOAD, bucket, proxy.address, tmp_path / "first", "0"))
        for moment_s in moments(whole_s, seed=1):
            kill_after(process(DOWNLOAD, bucket, proxy.address, tmp_path / "back", "0"), moment_s)
            assert_no_half_files(tmp_path / "back", contents(dataset))
        last = process(DOWNLOAD, bucket, proxy.address, tmp_path / "back", "0")
        assert last.communicate(timeout=60)[1] == ""
    clean = {name: content for name, content in contents(tmp_path / "back").items() if ".part" not in name}
    assert clean == contents(dataset)


def test_killed_uploads_go_on(server: str, bucket: str, tmp_path: Path) -> None:
    """SIGKILL at random moments: what is in the bucket is whole, or says that it is not."""
    dataset = write_dataset(tmp_path / "many", {f"s{number:02}.tar": 200_000 for number in range(30)})
    slow = Fault("stall", method="PUT", path=r"\.tar", pause_s=0.05)
    with fault_proxy(server, slow) as proxy, S3Manager(bucket, endpoint_url=server) as manager:
        whole_s = seconds(process(UPLOAD, make_bucket(server, "first"), proxy.address, dataset))
        for round_number, moment_s in enumerate(moments(whole_s, seed=2)):
            kill_after(process(UPLOAD, bucket, proxy.address, dataset), moment_s)
            folder = tmp_path / f"back{round_number}"
            assert outcome(manager, folder) in ("not ended", "nothing", "whole")
            assert not folder.exists() or contents(folder) == contents(dataset)
        last = process(UPLOAD, bucket, server, dataset)
        assert last.communicate(timeout=60)[1] == ""
        manager.download_dataset("p", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(dataset)


def begun_uploads(server: str, bucket: str) -> list[str]:
    client = boto3.client("s3", endpoint_url=server)
    uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    client.close()
    return sorted(upload["Key"] for upload in uploads)


def test_parts_that_a_killed_upload_left_are_thrown_away(
    server: str, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    """They cost money, and no listing shows them. Those of other keys are somebody else's."""
    client = boto3.client("s3", endpoint_url=server)
    for key in ("p/somebody/else.bin", "q/train/a.tar", "last.pt"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    client.close()
    others = ["p/somebody/else.bin", "q/train/a.tar"]
    second_part = Fault("stall", method="PUT", path="partNumber=2", pause_s=20)
    with fault_proxy(server, second_part) as proxy:
        running = process(UPLOAD, bucket, proxy.address, dataset)
        deadline = time.monotonic() + 60
        while not second_part.hits:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kill_after(running, 0)
    assert begun_uploads(server, bucket) == sorted([*others, "last.pt", "p/train/a.tar"])
    with S3Manager(bucket, endpoint_url=server) as manager:
        manager.upload_dataset(dataset, "p")
        assert begun_uploads(server, bucket) == sorted([*others, "last.pt"])
        manager.download_dataset("p", tmp_path / "back")
        manager.upload_checkpoint(dataset / "train/a.tar", "last.pt")
        assert begun_uploads(server, bucket) == others
    assert contents(tmp_path / "back") == contents(dataset)


def test_housekeeping_that_is_refused_stops_no_upload(
    server: str, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    refused = Fault("status", path=r"\?.*uploads", status=403, code="AccessDenied")
    with fault_proxy(server, refused) as proxy, through(proxy, bucket) as manager:
        manager.upload_dataset(dataset, "p")
        manager.download_dataset("p", tmp_path / "back")
    assert refused.hits
    assert contents(tmp_path / "back") == contents(dataset)


def test_a_small_disk_that_somebody_else_fills(
    server: str, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    """There is room when the download begins, and then there is none; later there is again."""
    disk = tmp_path / "disk"
    other = disk / "other"
    fill = Fault("before", path=r"a\.tar", times=1, action=lambda: other.write_bytes(bytes(6 * MB)))
    with small_disk(disk, 12_000), fault_proxy(server) as proxy:
        with through(proxy, bucket) as manager:
            manager.upload_dataset(dataset, "p")
            proxy.faults.append(fill)
            with pytest.raises(StorageError, match="no space left on device") as caught:
                manager.download_dataset("p", disk / "back")
            assert caught.value.hint.startswith("free some space and run the same command again")
            assert_no_half_dataset(disk / "back", contents(dataset))
            other.unlink()
            manager.download_dataset("p", disk / "back")
        assert contents(disk / "back") == contents(dataset)


def test_ctrl_c_does_not_wait_for_the_queue(server: str, bucket: str, tmp_path: Path) -> None:
    """40 files at 8 a second each: begun ones end, the others are left for the next run."""
    dataset = write_dataset(tmp_path / "many", {f"s{number:02}.tar": 1000 for number in range(40)})
    slow = Fault("stall", method="PUT", path=r"\.tar", pause_s=1)
    with fault_proxy(server, slow) as proxy:
        running = process(UPLOAD, bucket, proxy.address, dataset)
        while not proxy.keys("PUT"):
            time.sleep(0.05)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in running.communicate(timeout=30)[1]
    assert len([key for key in proxy.keys("PUT") if key.endswith(".tar")]) < 30


def outcome(manager: S3Manager, folder: Path) -> str:
    """What a reader gets who comes now."""
    try:
        manager.download_dataset("p", folder)
    except StorageError as error:
        return {"the upload": "not ended", "there is n": "nothing"}.get(error.message[:10], error.message)
    return "whole"


def seconds(running: subprocess.Popen[str]) -> float:
    """How long a process takes that nobody kills."""
    start = time.monotonic()
    assert running.communicate(timeout=120)[1] == ""
    return time.monotonic() - start


def moments(whole_s: float, seed: int) -> list[float]:
    """Seconds after the start at which to kill; the first fifth is Python starting up."""
    draw = random.Random(seed)
    return [draw.uniform(0.2, 1.0) * whole_s for _ in range(50 if FULL else 3)]


def kill_after(running: subprocess.Popen[str], moment_s: float) -> None:
    time.sleep(moment_s)
    running.send_signal(signal.SIGKILL)
    running.communicate()


def assert_no_half_files(folder: Path, whole: dict[str, bytes]) -> None:
    found = contents(folder) if folder.exists() else {}
    finals = {name: content for name, content in found.items() if not name.rsplit("/")[-1].startswith(".")}
    assert all(content == whole[name] for name, content in finals.items())
    if "manifest.json" in finals:
        assert finals == whole
