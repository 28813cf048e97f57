"""What boto3 raises, told as one `StorageError` with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli
from botocore import exceptions as boto
from s3transfer.exceptions import RetriesExceededError
from s3transfer.exceptions import S3DownloadFailedError as ChangedDuringDownload
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from furnclip.errors import FULL_DISK, ConfigError, FurnclipError, StorageError

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
