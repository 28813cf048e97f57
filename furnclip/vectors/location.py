"""Where the search table is: a folder of this machine, or a bucket."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lancedb

from furnclip.config import Config
from furnclip.errors import ConfigError, FurnclipError, InputError, StorageError

_TABLE = re.compile(r"(s3://[^/]+(/.*)?|(?!\w+://).*)/[^/]+\.lance", re.DOTALL)


@dataclass(frozen=True)
class IndexLocation:
    """Where the table is and what its storage wants to know."""

    uri: str
    options: Mapping[str, str]

    def connect(self) -> tuple[Any, str, Any | None]:
        """The LanceDB database that holds the table, the table's name in it, and the table if it is there."""
        folder, name = self.uri.removesuffix(".lance").rsplit("/", 1)
        database = lancedb.connect(folder, storage_options=dict(self.options))
        try:
            return database, name, database.open_table(name)
        except (ValueError, FileNotFoundError) as error:
            if "not found" in str(error).lower():
                return database, name, None
            raise


def index_location(config: Config) -> IndexLocation:
    """The table of these settings.

    Raises `InputError` for a name that is no table's, `StorageError` or `ConfigError` for a bucket about
    which LanceDB would retry for minutes or panic.
    """
    uri, storage = (config.search.index or str(config.paths.index)).rstrip("/"), config.storage
    if not _TABLE.fullmatch(uri):
        hint = "it is a folder or an `s3://` address ending in `.lance`, e.g. `s3://bucket/shop/index.lance`"
        raise InputError(f"`search.index` cannot be `{uri}`", hint=hint)
    if not uri.startswith("s3://"):
        return IndexLocation(uri, {})
    from furnclip.storage import S3Manager  # boto3, which a local table does not need

    options = {"timeout": f"{storage.timeout_s:g}s", "connect_timeout": "10s", "client_max_retries": "3"}
    if storage.endpoint_url:
        if not storage.endpoint_url.startswith(("http://", "https://")):
            hint = f"begin it with `https://` or `http://`, e.g. `https://{storage.endpoint_url}`"
            raise ConfigError(f"`storage.endpoint_url` cannot be `{storage.endpoint_url}`", hint=hint)
        options["endpoint"] = storage.endpoint_url
        options["allow_http"] = str(storage.endpoint_url.startswith("http://")).lower()
    if storage.region:
        options["region"] = storage.region
    bucket = uri.removeprefix("s3://").split("/")[0]
    with S3Manager.from_config(storage.model_copy(update={"bucket": bucket})) as manager:
        manager.check()
    return IndexLocation(uri, options)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """What LanceDB raises for a table or storage that it cannot use, panics included, as `StorageError`."""
    try:
        yield
    except FurnclipError:
        raise
    except BaseException as error:
        is_theirs = isinstance(error, ValueError | RuntimeError | OSError)
        if not is_theirs and type(error).__name__ != "PanicException":
            raise
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "unknown")
        remote = "check `storage.endpoint_url`, `storage.region`, the bucket and your credentials"
        raise StorageError(
            f"the search table `{uri}` cannot be used: {said[:300]}",
            hint=remote if uri.startswith("s3://") else f"remove `{uri}` and run `furnclip embed` again",
        ) from None
