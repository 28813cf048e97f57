"""`S3Manager`: datasets and checkpoints between this machine and a bucket."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from furnclip.errors import ConfigError, InputError
from furnclip.storage.bucket import Bucket, Transfer
from furnclip.storage.download import fetch_dataset, fetch_file
from furnclip.storage.inventory import key_of
from furnclip.storage.upload import send_dataset, send_file

if TYPE_CHECKING:
    from furnclip.config import StorageConfig  # a quarter of the time to import this package


class S3Manager:
    """Moves datasets and checkpoints to and from one bucket.

    `endpoint_url`: for MinIO, R2 and other servers that speak S3; empty for Amazon.
    `timeout_s`: how long a connection may stay silent before it is tried again.
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
                f"`{bucket}` is no bucket" if bucket else "no bucket is set",
                hint="pass `--s3-bucket NAME` or set `storage.bucket`; the rest of the path is the prefix",
            )
        self.bucket = Bucket(
            name, endpoint_url=endpoint_url, region=region, concurrency=concurrency, timeout_s=timeout_s
        )

    @classmethod
    def from_config(cls, storage: StorageConfig) -> S3Manager:
        """A manager for the bucket of the `[storage]` section."""
        return cls(
            storage.bucket,
            endpoint_url=storage.endpoint_url,
            region=storage.region,
            concurrency=storage.concurrency,
            timeout_s=storage.timeout_s,
        )

    def __enter__(self) -> S3Manager:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bucket.close()

    def check(self) -> None:
        """Raise `StorageError` unless the bucket can be reached and listed with these credentials."""
        self.bucket.check()

    def probe(self, prefix: str) -> None:
        """Raise `StorageError` unless an object can be put under `prefix/`, read and deleted again."""
        self.bucket.probe(key_of(prefix.strip("/"), f".furnclip-probe-{secrets.token_hex(4)}"))

    def upload_dataset(self, local: Path | str, prefix: str) -> Transfer:
        """Put every file of folder `local` under `prefix/`, what announces it last.

        Files that are there already with the same content are left alone.
        """
        return send_dataset(self.bucket, Path(local), prefix.strip("/"))

    def download_dataset(self, prefix: str, local: Path | str) -> Transfer:
        """Write every file under `prefix/` into folder `local`, checked, what announces it last.

        Files that are there already with the same content are left alone; others are not touched.
        """
        return fetch_dataset(self.bucket, prefix.strip("/"), Path(local))

    def upload_checkpoint(self, local: Path | str, key: str) -> Transfer:
        """Put a file under `key`, or a folder under `key/`."""
        local, key = Path(local), key.strip("/")
        if local.is_dir():
            return send_dataset(self.bucket, local, key)
        if not local.is_file():
            raise InputError(f"there is no checkpoint `{local}`", hint="check the path")
        return send_file(self.bucket, local, key)

    def download_checkpoint(self, key: str, local: Path | str) -> Transfer:
        """Write the object `key` to the file `local`, or the folder `key/` to the folder `local`."""
        local, key = Path(local), key.strip("/")
        stored = self.bucket.head(key)
        if stored is None:
            return fetch_dataset(self.bucket, key, local)
        return fetch_file(self.bucket, key, stored, local)
