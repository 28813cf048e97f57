"""Where the catalogue is, and where everything lies that furnclip writes: the work folder and the bucket."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator
from pydantic.types import PositiveFloat, PositiveInt


class _InWork:
    """A place inside the folder `work`, as an attribute of the paths."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, paths: DataPaths, owner: type) -> Path:
        return paths.work / self._name


class Section(BaseModel, ignored_types=(_InWork,)):
    """Settings of one command; the docstring under a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_nul(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("no file, address or name has a NUL character in it")
        return value

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """The documentation of each setting, on one line; pydantic would read it at each start."""
        body = [line for top in ast.parse(inspect.getsource(cls)).body for line in ast.iter_child_nodes(top)]
        return {
            field.target.id: " ".join(str(ast.literal_eval(below.value)).split())
            for field, below in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(below, ast.Expr)
        }


def _place(value: object) -> object:
    """A folder as a path; the address of a bucket as a text, because a path would lose a slash of it."""
    is_bucket = isinstance(value, str) and value.startswith("s3://")
    if is_bucket and not re.match(r"s3://[^/]+(/|\Z)", str(value)):
        raise ValueError("write it like `s3://bucket/prefix`")
    return Path(value) if value and isinstance(value, str) and not is_bucket else value


class DataPaths(Section):
    """Where the catalogue is, what its columns are called, and where furnclip works."""

    products: Path = Path("products.csv")
    """the raw catalogue: CSV, TSV, JSON, JSON lines, Parquet or an XML feed; gzipped as well"""
    images: Annotated[Path | str, BeforeValidator(_place)] = Path("images")
    """the folder, or `s3://bucket/prefix`, that image paths are relative to and `fetch` writes to"""
    work: Path = Path("work")
    """the folder for everything that furnclip writes"""
    id_column: str = "product_id"
    """column with the unique product id"""
    title_column: str = "title"
    """column with the product's title"""
    image_column: str = "image"
    """column with the image's path or web address; several are separated by `|`; empty: there are none"""
    more_image_columns: tuple[str, ...] = ()
    """further columns with images"""
    image_table: Annotated[Path | str, BeforeValidator(_place)] = ""
    """table with the file (`path`) of each image (`image_id`), where the catalogue names images by ids"""
    group_column: str = ""
    """column that groups variants of one product; empty: same id, image or title"""
    parent_column: str = ""
    """column with the parent of a variation, whose empty cells are the parent's, and whose group is its"""
    published_columns: tuple[str, ...] = ()
    """columns that leave a product out where they say draft, archived, no, 0 or the like"""
    merge_rows: bool = False
    """take rows that follow each other and have one id as one product, as Shopify exports them"""
    merge_untitled_rows: bool = False
    """take rows without a title as a part of the product above them, as Squarespace exports them"""
    language: str = "en"
    """of texts in several languages, the one that is taken"""

    fetched = _InWork("fetch/journal.jsonl")
    clean = _InWork("clean")
    cleaned = _InWork("clean/cleaned.csv")
    rejected = _InWork("clean/rejected.csv")
    shards = _InWork("shards")
    runs = _InWork("runs")
    embeddings = _InWork("embeddings")
    vectors = _InWork("embeddings/master_vectors.parquet")
    index = _InWork("index.lance")
    eval = _InWork("eval")
    queries = _InWork("serve/queries.jsonl")
    arena = _InWork("arena")
    votes = _InWork("arena/votes.jsonl")
    cache = _InWork("cache")
    features = _InWork("cache/features")


class StorageConfig(Section):
    """The S3 bucket; credentials come from boto3's own chain."""

    bucket: str = ""
    """S3 bucket; empty: none"""
    prefix: str = "furnclip"
    """key prefix inside the bucket"""
    endpoint_url: str = ""
    """endpoint of an S3-compatible server (MinIO, R2 ...); empty: AWS"""
    region: str = ""
    """region; empty: boto3's own chain decides"""
    concurrency: PositiveInt = 8
    """maximum concurrent requests"""
    timeout_s: PositiveFloat = 60.0
    """seconds without data after which a request is retried"""

    @property
    def shards(self) -> str:
        """The prefix of the shards in the bucket."""
        return f"{self.prefix.strip('/')}/shards".lstrip("/")

    @property
    def runs(self) -> str:
        """The prefix of the training runs in the bucket."""
        return f"{self.prefix.strip('/')}/runs".lstrip("/")
