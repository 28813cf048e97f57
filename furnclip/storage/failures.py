"""What boto3 raises, told as one `StorageError` with what to do about it.

The codes are those of "List of error codes" in Amazon's S3 API reference; MinIO, R2 and Ceph use the
same ones. HEAD answers have no body, so there a bare status number stands in for the code.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from boto3.exceptions import S3UploadFailedError
from botocore import exceptions as boto
from s3transfer.exceptions import RetriesExceededError
from s3transfer.exceptions import S3DownloadFailedError as ChangedDuringDownload
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from furnclip.errors import ConfigError, FurnclipError, StorageError

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
_GRANT = "let these credentials use s3:ListBucket, s3:GetObject and s3:PutObject on this bucket"
_CLOCK = "set this machine's clock (`timedatectl set-ntp true`) and run the same command again"
_REGION = "set `storage.region` (or AWS_DEFAULT_REGION) to the bucket's region"
_VIRTUAL = "put `addressing_style = virtual` under `s3 =` in the AWS configuration (`~/.aws/config`)"
_REFUSED = "check the [storage] section, the credentials and their rights; the vendor's manual has the code"
_LONGEST_MESSAGE = 300
_MAKE = "create it with `aws s3 mb`, or correct `storage.bucket` and `storage.endpoint_url`"

# Code: (what is wrong, what to do).
_BY_CODE: dict[str, tuple[str, str]] = {
    "NoSuchBucket": ("there is no bucket `{bucket}`", _MAKE),
    "InvalidBucketName": ("`{bucket}` cannot be the name of a bucket", _MAKE),
    "NoSuchKey": ("there is no object `{where}`", "check `storage.prefix`, or upload it first"),
    "AccessDenied": ("no permission for {operation} on `{where}`", _GRANT),
    "AllAccessDisabled": ("no permission for {operation} on `{where}`", _GRANT),
    "InvalidAccessKeyId": ("the server does not know this access key", _KEYS),
    "SignatureDoesNotMatch": ("the server refused the secret access key", _KEYS),
    "ExpiredToken": ("the credentials have expired", "get new ones, e.g. with `aws sso login`"),
    "InvalidToken": ("the server refused the session token", _KEYS),
    "RequestTimeTooSkewed": ("this machine's clock is too far from the server's", _CLOCK),
    "RequestExpired": ("this machine's clock is too far from the server's", _CLOCK),
    "PermanentRedirect": ("bucket `{bucket}` is in another region", _REGION),
    "AuthorizationHeaderMalformed": ("bucket `{bucket}` is in another region", _REGION),
    "PreconditionFailed": ("`{where}` was changed while it was being downloaded", _GO_ON),
    "BadDigest": ("`{where}` was damaged on its way to the server", _GO_ON),
    "XAmzContentChecksumMismatch": ("`{where}` was damaged on its way to the server", _GO_ON),
    "SlowDown": ("the server asks to slow down, and kept asking", "lower `storage.concurrency`; " + _GO_ON),
    "InternalError": ("the server kept failing on `{where}`", _GO_ON),
    "ServiceUnavailable": ("the server kept failing on `{where}`", _GO_ON),
}
_BY_STATUS = {
    "403": "AccessDenied",
    "404": "NoSuchKey",
    "412": "PreconditionFailed",
    "500": "InternalError",
    "502": "ServiceUnavailable",
    "503": "ServiceUnavailable",
    "504": "ServiceUnavailable",
}


@contextmanager
def explained(bucket: str, key: str = "", *, endpoint_url: str = "") -> Iterator[None]:
    """Turn whatever boto3 raises inside into a `StorageError` that names the bucket and the key."""
    try:
        yield
    except FurnclipError:
        raise
    except (*_FROM_BOTO, OSError) as error:
        raise explain(error, bucket, key, endpoint_url=endpoint_url) from None


_FROM_BOTO = (
    boto.BotoCoreError,
    boto.ClientError,
    RetriesExceededError,
    ChangedDuringDownload,
    S3UploadFailedError,
    ProtocolError,
    ReadTimeoutError,
)


def explain(error: BaseException, bucket: str, key: str = "", *, endpoint_url: str = "") -> FurnclipError:
    """The error a user should see for `error`."""
    where = f"s3://{bucket}/{key}".rstrip("/")
    if isinstance(error, RetriesExceededError):
        return explain(error.last_exception, bucket, key, endpoint_url=endpoint_url)
    if isinstance(error, boto.ClientError):
        return _from_answer(error, bucket, where)
    if isinstance(error, ChangedDuringDownload):
        return _worded("PreconditionFailed", bucket, where, operation="")
    if isinstance(error, OSError) and not isinstance(error, BROKEN_STREAM):
        return _from_disk(error)
    return _from_connection(error, where, endpoint_url=endpoint_url)


def _from_answer(error: boto.ClientError, bucket: str, where: str) -> StorageError:
    answer = error.response.get("Error", {})
    code, message = str(answer.get("Code", "")), " ".join(str(answer.get("Message", "")).split())
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    told = f"; the server says: {message[:_LONGEST_MESSAGE]}" if message else ""
    if "virtual" in message.lower() and "host" in message.lower():
        return StorageError(f"the server refuses the bucket in the path of an address{told}", hint=_VIRTUAL)
    # An answer without a body has the status for its code; a code of the vendor's own says more than that.
    known = code if code in _BY_CODE else _BY_STATUS.get(code) or ("" if message else _BY_STATUS.get(status))
    if known:
        return _worded(known, bucket, where, operation=error.operation_name, told=told)
    named = f" ({code})" if code else ""
    return StorageError(
        f"the server refused {error.operation_name} on `{where}`{named}{told or ' and gave no reason'}",
        hint=_REFUSED if status.startswith("4") else _GO_ON,
    )


def _worded(code: str, bucket: str, where: str, *, operation: str, told: str = "") -> StorageError:
    message, hint = _BY_CODE[code]
    return StorageError(message.format(bucket=bucket, where=where, operation=operation) + told, hint=hint)


def _from_disk(error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space and run the same command again; what has arrived is kept" if full else _GO_ON
    thing = f" `{error.filename}`" if error.filename else ""
    return StorageError(f"{(error.strerror or str(error)).lower()}{thing}", hint=hint)


def _from_connection(error: BaseException, where: str, *, endpoint_url: str) -> FurnclipError:
    server = f"`{endpoint_url}`" if endpoint_url else "Amazon S3"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return StorageError(
            "there are no credentials for the bucket",
            hint="put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into `.env`, or run `aws configure`",
        )
    if isinstance(error, boto.ParamValidationError | boto.InvalidRegionError | boto.ProfileNotFound):
        return ConfigError(
            f"`{where}` cannot be used: {error}", hint="check the [storage] section and AWS_PROFILE"
        )
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
        return StorageError(
            f"cannot reach {server}", hint="check the network, any proxy, and `storage.endpoint_url`"
        )
    if isinstance(error, boto.SSLError):
        return StorageError(f"no safe connection to {server}: {error}", hint="check its certificate")
    if isinstance(error, boto.FlexibleChecksumError):
        return StorageError(f"`{where}` keeps arriving damaged", hint="upload it again")
    if isinstance(error, (*BROKEN_STREAM, boto.HTTPClientError)):
        return StorageError(f"the connection kept breaking at `{where}`", hint=_GO_ON)
    return StorageError(f"`{where}`: {error}", hint=_KEYS)
