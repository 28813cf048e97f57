"""One bucket over HTTP: objects in and out, each checked, each failure a `StorageError`.

Up to 8 MiB an object is one request; above that boto3's transfer manager sends and fetches parts side
by side. The signature of each request covers the SHA-256 of its content, which every server compares
with what arrived; the newer checksum headers of Amazon say the same, but other vendors refuse them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import boto3
import tomli
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore import exceptions as boto
from botocore.config import Config as ClientConfig
from s3transfer.exceptions import RetriesExceededError
from s3transfer.exceptions import S3DownloadFailedError as ChangedDuringDownload
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from furnclip.errors import FULL_DISK, ConfigError, FurnclipError, StorageError
from furnclip.journal import replacing, sha256_of

if TYPE_CHECKING:
    from typing import Self

    from botocore.response import StreamingBody

# The stream of a GET broke after its headers: botocore itself does not try these again.
BROKEN_STREAM = (
    boto.IncompleteReadError,
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    boto.FlexibleChecksumError,
    ProtocolError,
    ReadTimeoutError,
    ConnectionError,
)
_GO_ON = "run the same command again; what has arrived is kept"
_KEYS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE"
_VIRTUAL = "put `addressing_style = virtual` under `s3 =` in the AWS configuration (`~/.aws/config`)"
_REFUSED = "check the [storage] section, the credentials and their rights; the vendor's manual has the code"
_LONGEST_MESSAGE = 300
_TABLE = tomli.loads(Path(__file__).with_name("failures.toml").read_text(encoding="utf-8"))
# Code: (what is wrong, what to do).
_BY_CODE: dict[str, tuple[str, str]] = {
    code: (row["problem"], row["hint"])
    for name, row in _TABLE.items()
    for code in (name, *row.get("also", ()))
}
# There was no answer, or it broke off: (errors, what is wrong, what to do); the first that fits counts.
_WITHOUT_ANSWER: tuple[tuple[tuple[type[BaseException], ...], str, str], ...] = (
    ((ChangedDuringDownload,), *_BY_CODE["PreconditionFailed"]),
    (
        (boto.NoCredentialsError, boto.PartialCredentialsError),
        "there are no credentials for the bucket",
        "put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into `.env`, or run `aws configure`",
    ),
    (
        (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError),
        "cannot reach {server}",
        "check the network, any proxy, and `storage.endpoint_url`",
    ),
    ((boto.SSLError,), "no safe connection to {server}: {error}", "check its certificate"),
    ((boto.FlexibleChecksumError,), "`{where}` keeps arriving damaged", "upload it again"),
    ((*BROKEN_STREAM, boto.HTTPClientError), "the connection kept breaking at `{where}`", _GO_ON),
    ((BaseException,), "`{where}`: {error}", _KEYS),
)
_FROM_BOTO = (
    *BROKEN_STREAM,
    boto.BotoCoreError,
    boto.ClientError,
    RetriesExceededError,
    ChangedDuringDownload,
)
PART_BYTES = 8 * 2**20
_PIECE_BYTES = 2**18  # as large as memory is used again for; of whole files every page would be new
ATTEMPTS = 5
_PAUSES_S = (0.1, 0.2, 0.4, 0.8)
_CONNECT_TIMEOUT_S = 10
_DIGEST_KEY = "sha256"  # x-amz-meta-sha256

Report = Callable[[int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)  # a listing holds millions of them
class S3File:
    """One file, in the bucket or to be."""

    size_bytes: int
    sha256: str = ""  # hex; empty: unknown, another program uploaded it
    etag: str = ""  # of what another program uploaded, where the server said it


@dataclass(frozen=True)
class Transfer:
    """What an upload or a download did."""

    sent: int  # files that went over the network
    sent_bytes: int
    kept: int  # files that were the same on both sides already


class Bucket:
    """The objects of one bucket. Used by several threads at once.

    `endpoint_url`: for MinIO, R2 and other servers that speak S3; empty for Amazon.
    `timeout_s`: seconds without data after which a request is retried.
    Credentials are found by boto3: environment, `~/.aws`, instance role and so on.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str = "",
        region: str = "",
        concurrency: int = 8,
        timeout_s: float = 60,
    ) -> None:
        name = bucket.removeprefix("s3://").strip("/")
        if not name or "/" in name:
            raise ConfigError(
                f"`{bucket}` is not a valid bucket name" if bucket else "no bucket is set",
                hint="pass `--s3-bucket NAME` or set `storage.bucket`; the rest of the path is the prefix",
            )
        self.name = name
        self.endpoint_url = endpoint_url
        self.concurrency = concurrency
        self._explained = partial(explained, name, endpoint_url=endpoint_url)
        config = ClientConfig(
            max_pool_connections=2 * concurrency,
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=timeout_s,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            tcp_keepalive=True,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # No addressing style: that of the AWS configuration counts, and without one boto3 is right.
            s3={"payload_signing_enabled": True},
        )
        try:
            with self._explained():
                session = boto3.session.Session(region_name=region or None)
                self._client = session.client("s3", endpoint_url=endpoint_url or None, config=config)
        except ValueError as error:  # an endpoint that is not an address
            message = f"`storage.endpoint_url` cannot be `{endpoint_url}`: {error}"
            raise ConfigError(message, hint="write it like `https://s3.example.com:9000`") from None
        transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=concurrency
        )
        self._parts = create_transfer_manager(self._client, transfer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop transfers that are still running and give the connections back."""
        self._parts.shutdown(cancel=True)
        self._client.close()

    def where(self, prefix: str) -> str:
        """The address of a prefix, for people."""
        return f"s3://{self.name}/{prefix}".rstrip("/")

    def side_by_side(self, function: Callable[[Item], Result], items: Iterable[Item]) -> dict[Item, Result]:
        """`function` of every item, several at once, by item; after the first failure nothing new begins."""
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="furnclip-s3")
        futures = {item: pool.submit(function, item) for item in items}
        try:
            for future in as_completed(futures.values()):
                future.result()
        except KeyboardInterrupt:
            self._parts.shutdown(cancel=True)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return {item: future.result() for item, future in futures.items()}

    def listing(self, prefix: str) -> dict[str, S3File]:
        """Everything under `prefix/`, by its path below it."""
        start = f"{prefix}/" if prefix else ""
        found: dict[str, S3File] = {}
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=start)
            for item in (item for page in pages for item in page.get("Contents", ())):
                name = item["Key"][len(start) :]
                if name and not name.endswith("/"):  # some consoles make empty objects for folders
                    found[name] = S3File(item["Size"], etag=item["ETag"].strip('"'))
        return found

    def check(self) -> None:
        """Raise `StorageError` unless the bucket can be reached and listed with these credentials."""
        with self._explained(""):
            self._client.list_objects_v2(Bucket=self.name, MaxKeys=1)

    def head(self, key: str) -> S3File | None:
        """Size, SHA-256 (where we uploaded it) and ETag of an object; None when there is none."""
        with self._explained(key):
            try:
                answer = self._client.head_object(Bucket=self.name, Key=key)
            except boto.ClientError as error:
                if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                    return None
                raise
        digest = answer["Metadata"].get(_DIGEST_KEY, "")
        return S3File(answer["ContentLength"], digest, answer.get("ETag", "").strip('"'))

    def read(self, key: str, expected: S3File | None = None) -> bytes:
        """The content of an object, in memory, and as `expected` says."""
        with self._explained(key):
            content = self._answer(key, lambda body: body.read())
        if expected:
            self._compare(key, expected, len(content), hashlib.sha256(content).hexdigest())
        return content

    def find(self, key: str, most_bytes: int | None = None) -> bytes | None:
        """The content of an object, or None when there is none; of a longer one `most_bytes` and one more."""
        amount = None if most_bytes is None else most_bytes + 1
        with self._explained(key), suppress(self._client.exceptions.NoSuchKey):
            return self._answer(key, lambda body: body.read(amount))
        return None

    def piece(self, key: str, start: int, size_bytes: int) -> bytes:
        """Some bytes of an object, fewer where it ends before them."""
        with self._explained(key):
            return self._answer(
                key, lambda body: body.read(), Range=f"bytes={start}-{start + size_bytes - 1}"
            )

    def _answer(self, key: str, consume: Callable[[StreamingBody], Result], **what: Any) -> Result:
        """What `consume` makes of the body of an object, begun anew where it breaks off."""
        for pause_s in _PAUSES_S:  # botocore tries requests again, but not the bodies of answers
            body = self._client.get_object(Bucket=self.name, Key=key, **what)["Body"]
            with suppress(*BROKEN_STREAM), closing(body):
                return consume(body)
            time.sleep(pause_s)
        with closing(self._client.get_object(Bucket=self.name, Key=key, **what)["Body"]) as body:
            return consume(body)

    def write(self, key: str, content: bytes) -> S3File:
        """Put `content` under `key` in one request."""
        digest = hashlib.sha256(content).hexdigest()
        with self._explained(key):
            answer = self._client.put_object(
                Bucket=self.name,
                Key=key,
                Body=content,  # bytes: a file would cost a round trip for `Expect: 100-continue`
                Metadata={_DIGEST_KEY: digest},
            )
        if "ETag" not in answer:  # every S3 server names one; a web page that says 200 to everything does not
            raise StorageError(
                f"`{self.endpoint_url}` does not answer as an S3 server", hint="check `storage.endpoint_url`"
            )
        return S3File(len(content), digest)

    def remove(self, key: str) -> None:
        """Delete an object, if it is there."""
        with self._explained(key):
            self._client.delete_object(Bucket=self.name, Key=key)

    def send(self, path: Path, key: str, report: Report) -> S3File:
        """Put a file under `key`. Raises `StorageError` when it changes meanwhile."""
        with self._explained(key):
            before = path.stat()
            if before.st_size <= PART_BYTES:
                entry = self.write(key, path.read_bytes())
                report(entry.size_bytes)
                return entry
            digest = sha256_of(path)
            extra = {"Metadata": {_DIGEST_KEY: digest}}
            self._parts.upload(str(path), self.name, key, extra, [ProgressCallbackInvoker(report)]).result()
            after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise StorageError(f"`{path}` changed while it was being uploaded", hint="upload it again")
        return S3File(before.st_size, digest)

    def abandon(self, prefix: str, keys: Container[str]) -> None:
        """Throw away parts that killed uploads to these keys left: they are paid for, and in no listing.

        Nobody may be sending these keys now. A server or a policy that refuses stops nothing.
        """
        with self._explained(prefix), suppress(boto.ClientError):
            pages = self._client.get_paginator("list_multipart_uploads")
            begun = pages.paginate(Bucket=self.name, Prefix=prefix)
            for upload in [upload for page in begun for upload in page.get("Uploads", ())]:
                key, number = upload["Key"], upload["UploadId"]
                if key in keys:
                    self._client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=number)

    def probe(self, prefix: str) -> None:
        """Raise `StorageError` unless an object can be put under `prefix/`, read and deleted again."""
        key = key_of(prefix.strip("/"), f".furnclip-probe-{secrets.token_hex(4)}")
        expected = self.write(key, b"written by furnclip doctor, may be deleted")
        self.read(key, expected)
        self.remove(key)

    def fetch(self, key: str, expected: S3File, target: Path, report: Report) -> None:
        """Write an object to `target`, whole and as `expected` says, or not at all; the caller flushes it."""
        with self._explained(key), replacing(target, durable=False) as file:
            if expected.size_bytes <= PART_BYTES:
                digest = self._answer(key, lambda body: _written(body, file))
                report(expected.size_bytes)
            else:
                self._parts.download(self.name, key, file, None, [ProgressCallbackInvoker(report)]).result()
                file.flush()
                digest = sha256_of(Path(file.name))
            self._compare(key, expected, file.seek(0, os.SEEK_END), digest)

    def _compare(self, key: str, expected: S3File, size_bytes: int, sha256: str) -> None:
        if size_bytes != expected.size_bytes or (expected.sha256 and sha256 != expected.sha256):
            raise StorageError(
                f"`{self.where(key)}` is not what was uploaded: it is damaged, or was replaced meanwhile",
                hint="run the same command again; if that does not help, upload it again",
            )


def _written(body: StreamingBody, file: IO[bytes]) -> str:
    """The SHA-256 of a body that is written to a file piece by piece."""
    digest = hashlib.sha256()
    file.seek(0)
    file.truncate()  # an earlier attempt may have broken off
    while piece := body.read(_PIECE_BYTES):
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def key_of(prefix: str, name: str) -> str:
    """The key of a file under a prefix."""
    return f"{prefix}/{name}" if prefix else name


# --- what boto3 raises, told as one `StorageError` with what to do about it


@contextmanager
def explained(bucket: str, key: str = "", *, endpoint_url: str = "") -> Iterator[None]:
    """Turn whatever boto3 raises inside into a `StorageError` that names the bucket and the key."""
    try:
        yield
    except (*_FROM_BOTO, OSError) as error:
        raise _explain(error, bucket, key, endpoint_url) from None


def _explain(error: BaseException, bucket: str, key: str, endpoint_url: str) -> FurnclipError:
    """The error a user should see for `error`."""
    while isinstance(error, RetriesExceededError):
        error = error.last_exception
    where = f"s3://{bucket}/{key}".rstrip("/")
    if isinstance(error, boto.ClientError):
        return _from_answer(error, bucket, where)
    if isinstance(error, OSError) and not isinstance(error, BROKEN_STREAM):  # of the disk
        hint = f"free some space and {_GO_ON}" if error.errno in FULL_DISK else _GO_ON
        thing = f" `{error.filename}`" if error.filename else ""
        return StorageError(f"{(error.strerror or str(error)).lower()}{thing}", hint=hint)
    if isinstance(error, boto.ParamValidationError | boto.InvalidRegionError | boto.ProfileNotFound):
        hint = "check the [storage] section and AWS_PROFILE"
        return ConfigError(f"`{where}` cannot be used: {error}", hint=hint)
    message, hint = next(texts for kinds, *texts in _WITHOUT_ANSWER if isinstance(error, kinds))
    server = f"`{endpoint_url}`" if endpoint_url else "Amazon S3"
    return StorageError(message.format(where=where, server=server, error=error), hint=hint)


def _from_answer(error: boto.ClientError, bucket: str, where: str) -> StorageError:
    answer = error.response.get("Error", {})
    code, message = str(answer.get("Code", "")), " ".join(str(answer.get("Message", "")).split())
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    told = f"; the server says: {message[:_LONGEST_MESSAGE]}" if message else ""
    if "virtual" in message.lower() and "host" in message.lower():
        return StorageError(f"the server refuses the bucket in the path of an address{told}", hint=_VIRTUAL)
    # A message says more than the status does.
    known = _BY_CODE.get(code) or (None if message else _BY_CODE.get(status))
    if known:
        problem, hint = known
        names = {"bucket": bucket, "where": where, "operation": error.operation_name}
        return StorageError(problem.format(**names) + told, hint=hint)
    named = f" ({code})" if code else ""
    return StorageError(
        f"the server refused {error.operation_name} on `{where}`{named}{told or ' and gave no reason'}",
        hint=_REFUSED if status.startswith("4") else _GO_ON,
    )
