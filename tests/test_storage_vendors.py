"""S3 as other vendors speak it: headers they refuse, bucket names in the host, and their own words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from furnclip import S3Manager
from furnclip.errors import StorageError
from tests.s3_server import Fault, fault_proxy
from tests.test_storage import INVENTORY, MB, contents, put, write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "shards", {"train/a.tar": 9 * MB, "train/b.tar": 50_000})


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ("x-amz-checksum-", 400, "InvalidArgument"),
        ("x-amz-sdk-checksum", 400, "InvalidRequest"),
        ("x-amz-checksum-algorithm", 501, "NotImplemented"),
        ("x-amz-checksum-mode", 400, ""),
        ("x-amz-trailer", 411, "MissingContentLength"),
    ],
)
def test_no_header_is_sent_that_other_vendors_refuse(
    server: str, bucket: str, dataset: Path, tmp_path: Path, header: str, status: int, code: str
) -> None:
    """Up and down, by parts and whole, with and without what furnclip noted of the files."""
    refusal = Fault("status", method=".*", header=header, status=status, code=code)
    with (
        fault_proxy(server, refusal) as proxy,
        S3Manager(bucket, endpoint_url=proxy.address, timeout_s=5) as manager,
    ):
        manager.upload_dataset(dataset, "p")
        manager.download_dataset("p", tmp_path / "back")
        put(server, bucket, "q/one.bin", b"of another program")
        manager.download_dataset("q", tmp_path / "other")
    assert contents(tmp_path / "back") == contents(dataset)
    assert contents(tmp_path / "other") == {"one.bin": b"of another program"}
    assert not refusal.hits


UPLOAD = """
import sys
from furnclip import S3Manager
from furnclip.errors import FurnclipError
try:
    with S3Manager(sys.argv[1], endpoint_url=sys.argv[2], timeout_s=5) as manager:
        manager.check()
        print(manager.upload_dataset(sys.argv[3], "p").sent)
except FurnclipError as error:
    sys.exit(f"error: {error.message}\\nhint: {error.hint}")
"""
REFUSES_PATHS = {"status": 403, "code": "SecondLevelDomainForbidden"}
VIRTUAL = "s3 =\n  addressing_style = virtual\n"


@pytest.mark.parametrize(
    ("configuration", "environment", "endpoint"),
    [
        (f"[default]\n{VIRTUAL}", {}, "http://oss.example.com"),
        (f"[profile shop]\n{VIRTUAL}", {"AWS_PROFILE": "shop"}, "http://oss.example.com"),
        (f"[default]\n{VIRTUAL}", {"AWS_ENDPOINT_URL_S3": "http://oss.example.com"}, ""),
        (f"[default]\nregion = eu-central-1\n{VIRTUAL}", {}, "http://s3.eu-central-1.wasabisys.example"),
    ],
)
def test_the_addressing_style_of_the_aws_configuration_counts(
    server: str,
    bucket: str,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configuration: str,
    environment: dict[str, str],
    endpoint: str,
) -> None:
    (tmp_path / "aws.config").write_text(configuration)
    in_the_path = Fault("status", method=".*", path=r"^http://(oss|s3)\.", **REFUSES_PATHS)  # type: ignore[arg-type]
    with fault_proxy(server, in_the_path) as proxy:
        for name, value in {
            "AWS_CONFIG_FILE": str(tmp_path / "aws.config"),
            "HTTP_PROXY": proxy.address,  # so that any host name leads to the server
            "http_proxy": proxy.address,
            **environment,
        }.items():
            monkeypatch.setenv(name, value)
        done = uploaded(bucket, endpoint, dataset)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
    assert all(path.startswith(f"http://{bucket}.") for _, path in proxy.log)


@pytest.mark.parametrize(
    ("code", "status", "message", "hint"),
    [
        ("SecondLevelDomainForbidden", 403, "Please use virtual hosted style to access.", "addressing_style"),
        ("AccessDenied", 403, "Bucket is locked by your reseller until Monday.", "s3:PutObject"),
        ("QuotaExceeded", 403, "The plan of this bucket has 10 GB.", "[storage]"),
        ("InvalidRequest", 400, "The authorization mechanism is not supported.", "[storage]"),
    ],
)
def test_an_error_has_the_servers_own_words(
    server: str, bucket: str, dataset: Path, code: str, status: int, message: str, hint: str
) -> None:
    refusal = Fault("status", method=".*", status=status, code=code, message=message)
    with (
        fault_proxy(server, refusal) as proxy,
        S3Manager(bucket, endpoint_url=proxy.address) as manager,
        pytest.raises(StorageError) as caught,
    ):
        manager.upload_dataset(dataset, "p")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_web_page_is_no_s3_server(server: str, bucket: str, dataset: Path) -> None:
    page = Fault("status", method=".*", status=200, body="<html><body>Welcome to the shop</body></html>")
    with (
        fault_proxy(server, page) as proxy,
        S3Manager(bucket, endpoint_url=proxy.address) as manager,
        pytest.raises(StorageError, match=rf"`{proxy.address}` does not answer as an S3 server"),
    ):
        manager.upload_dataset(dataset, "p")


@pytest.mark.parametrize("left", ["nothing", "folder object", "empty inventory", "unfinished"])
def test_a_download_of_nothing_is_an_error(server: str, bucket: str, tmp_path: Path, left: str) -> None:
    if left == "folder object":
        put(server, bucket, "p/", b"")
    if left in ("empty inventory", "unfinished"):
        inventory = {"complete": left == "empty inventory", "files": {}}
        put(server, bucket, f"p/{INVENTORY}", json.dumps(inventory).encode())
    with S3Manager(bucket, endpoint_url=server) as manager, pytest.raises(StorageError) as caught:
        manager.download_dataset("p", tmp_path / "back")
    wanted = "has not ended" if left == "unfinished" else "there is nothing at"
    assert wanted in caught.value.message
    assert not (tmp_path / "back").exists()


def uploaded(bucket: str, endpoint: str, dataset: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", UPLOAD, bucket, endpoint, str(dataset)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
