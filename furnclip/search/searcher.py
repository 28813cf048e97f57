"""`Searcher`: a model and a table, kept open; the same for the command and for a web service."""

from __future__ import annotations

import json
import math
import shlex
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from lancedb.query import MatchQuery
from PIL import Image

from furnclip import console
from furnclip.config import Config, load_config
from furnclip.errors import InputError, ModelMismatchError, UsageError
from furnclip.images import letterbox, load_square
from furnclip.search.filters import combined, explained
from furnclip.vectors import Floats, Provenance, column_name, fuse, unit
from furnclip.vectors.index import DETAILS, KEYWORDS, SHOWN, index_location, open_index, partitions_of

if TYPE_CHECKING:
    from furnclip.model import Clip

Mode = Literal["vector", "keyword", "hybrid"]
ImageSource = Path | str | Image.Image
_Key = TypeVar("_Key", bound=Hashable)
_HYBRID_CANDIDATES = 100  # of each side, before they are fused
_RANK_OFFSET = 60  # of reciprocal rank fusion, as in the paper
# A filter knows only what was written down; of what was not, this keeps half out as well, and of the kind
# asked for more is left than with a larger share (tests/bench/relevance.py).
_AVOIDED_SHARE = 0.5
_LEAST_PROBES = 20
_EVERY_PARTITION = 1_000_000
_LONGEST_QUERY = 2000  # characters; models read at most 77 tokens
_MOST_SHARES = 1000  # filters whose share of the table is remembered


@dataclass(frozen=True)
class Hit:
    """One product. `score`: cosine, BM25 or reciprocal rank, by mode; higher is better."""

    product_id: str
    title: str
    score: float
    clean_title: str
    style: str
    material: str
    color: str
    object_type: str
    group: str
    split: str
    image: str
    """path of the image, relative to the image folder"""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Request:
    vector: Floats | None  # (D,)
    words: str
    mode: Mode
    k: int
    where: str | None


class Searcher:
    """Searches one table with the model that made it; safe to share between threads.

        searcher = Searcher()                                  # furnclip.toml of this folder
        hits = searcher.search("walnut sideboard", k=5, where="color = 'brown'", exclude=["glass"])
        hits = searcher.search(image="sofa.jpg")
        many = searcher.search_many(["red chair", "oak table"])

    It sees the table as it was when it was opened; make a new one after `furnclip embed`.

    `run` or `model` choose between fine-tuned and base vectors; by default the fine-tuned ones where
    the table has them. Raises `MissingStageError` before the first `furnclip embed`,
    `ModelMismatchError` when the model asked for did not make the table's vectors.
    """

    def __init__(
        self, config: Config | None = None, *, run: str | None = None, model: str | None = None
    ) -> None:
        self.config = config or load_config()
        location = index_location(self.config)
        self.table, self.provenance = open_index(location)
        self.uri = location.uri
        self._products = int(self.table.count_rows())
        if self._products == 0:
            raise InputError(f"the search table `{self.uri}` is empty", hint="run `furnclip embed` again")
        self.label = _label(self.provenance, run=run, model=model, uri=self.uri)
        self.clip = self._load(run=run, model=model)
        self._shares: dict[str, float] = {}  # filter -> share of the table; the table does not change
        self._encoding = threading.Lock()  # tokenizers change their own settings while they work

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageSource | None = None,
        k: int | None = None,
        where: str | None = None,
        exclude: Sequence[str] = (),
        mode: Mode | None = None,
        image_weight: float | None = None,
    ) -> list[Hit]:
        """The `k` best products for a text, an image, or both.

        `where`: SQL over the product columns. `exclude`: words that a product's title and attributes
        must not have, and that a text is led away from. `image_weight`: weight of the image when there
        is a text too, 0 to 1.
        Raises `UsageError` for a bad filter and `BrokenImage` for an image that cannot be read.
        """
        words, exclude = _readable(text or ""), [_readable(word) for word in exclude]
        chosen = self._mode(mode, words=words, has_image=image is not None)
        count, condition = self._count(k), combined(where, exclude, self.table.schema)
        vector = None if chosen == "keyword" else self._vector(words, image, image_weight, exclude=exclude)
        with explained(self.uri, where):
            return self._run(_Request(vector, words, chosen, count, condition))

    def search_many(
        self,
        texts: Sequence[str],
        *,
        k: int | None = None,
        where: str | None = None,
        exclude: Sequence[str] = (),
        mode: Mode | None = None,
    ) -> list[list[Hit]]:
        """The hits of each text, in order; all texts go through the model together."""
        chosen = self._mode(mode, words="several", has_image=False)
        texts, exclude = [_readable(text) for text in texts], [_readable(word) for word in exclude]
        count, condition = self._count(k), combined(where, exclude, self.table.schema)
        vectors: Sequence[Floats | None] = [None] * len(texts)
        if chosen != "keyword" and texts:
            with self._encoding:
                vectors = list(self._encode_texts(texts, exclude))
        with explained(self.uri, where):
            return [
                self._run(_Request(vector, text, chosen, count, condition))
                for text, vector in zip(texts, vectors, strict=True)
            ]

    def nearest(
        self, vector: Floats, *, k: int | None = None, where: str | None = None, exclude: Sequence[str] = ()
    ) -> list[Hit]:
        """The `k` products nearest to a unit vector (D,) of this model, made by whoever.

        `exclude` only filters here: the vector is taken as it is.
        """
        condition = combined(where, [_readable(word) for word in exclude], self.table.schema)
        with explained(self.uri, where):
            return self._run(_Request(vector, "", "vector", self._count(k), condition))

    def _count(self, k: int | None) -> int:
        """How many hits to find: never more than there are products, LanceDB counts in 64 bits."""
        wanted = self.config.search.k if k is None else k
        if wanted < 1:
            raise UsageError(f"`k` cannot be {wanted}", hint="ask for at least one hit")
        return min(wanted, self._products)

    def _load(self, *, run: str | None, model: str | None) -> Clip:
        # torch takes seconds to import; a table that cannot be opened is told before
        from furnclip.model import latest_run, load_clip

        made_by = self.provenance.models[self.label]
        is_base = self.label == "base"
        name = (model or self.config.model.name) if is_base else (run or self._run_of(made_by.name))
        newest = latest_run(self.config.paths.runs)
        if not is_base and not run and newest not in (None, made_by.name):
            console.note(f"searching with run `{made_by.name}`; `furnclip embed` would take `{newest}`")
        wanted = self.config.model
        if wanted.precision == "auto":  # measuring which is faster takes longer than one request
            wanted = wanted.model_copy(update={"precision": "fp32"})
        clip = load_clip(name, wanted, runs=None if is_base else self.config.paths.runs)
        self.provenance.require(self.label, clip.fingerprint, where=self.uri)
        return clip

    def _run_of(self, name: str) -> str:
        """The run that the table names, if it is one of these runs: a table may come from anybody."""
        runs = self.config.paths.runs
        if Path(name).name == name and (runs / name).is_dir():
            return name
        raise ModelMismatchError(
            f"the vectors of `{self.uri}` were made by `{name}`, which is no run under `{runs}`",
            hint=f"if you trust that model, ask for it: `--run {shlex.quote(name)}`",
        )

    def _mode(self, mode: Mode | None, *, words: str, has_image: bool) -> Mode:
        if not words and not has_image:
            raise UsageError("there is nothing to search for", hint="give a text, or an image with `--image`")
        if not words and mode == "keyword":
            raise UsageError("an image has no keywords", hint="search by `vector`, or add a text")
        chosen = mode or self.config.search.mode
        if chosen not in get_args(Mode):
            raise UsageError(
                f"there is no mode `{chosen}`", hint=f"choose one of {', '.join(get_args(Mode))}"
            )
        return chosen if words else "vector"

    def _vector(
        self, words: str, image: ImageSource | None, image_weight: float | None, *, exclude: Sequence[str]
    ) -> Floats:
        """The request as a unit vector (D,)."""
        share = self.config.search.image_weight if image_weight is None else image_weight
        square = None if image is None else _square(image, self.clip.image_px)
        with self._encoding:
            text_vectors = self._encode_texts([words], exclude) if words else None
            image_vectors = None if square is None else self.clip.encode_images([square])
        if image_vectors is not None and text_vectors is not None:
            return _first(fuse(image_vectors, text_vectors, share))
        only = text_vectors if image_vectors is None else image_vectors
        assert only is not None
        return _first(only)

    def _encode_texts(self, texts: Sequence[str], exclude: Sequence[str]) -> Floats:
        """The texts as unit vectors (N, D), led away from the words to avoid."""
        avoid = [word for word in exclude if word.strip()]
        vectors = self.clip.encode_texts([*texts, *avoid])
        asked, avoided = vectors[: len(texts)], vectors[len(texts) :]
        return unit(asked - _AVOIDED_SHARE * avoided.mean(axis=0)) if avoid else asked

    def _run(self, request: _Request) -> list[Hit]:
        if request.mode == "hybrid":
            return self._by_both(request)
        if request.mode == "vector":
            rows = self._rows(self._by_vector(request), request, request.k, read=[DETAILS, "_distance"])
            return [self._hit(row, 1.0 - row["_distance"]) for row in rows]  # the distance is 1 - cosine
        rows = self._rows(self._by_keyword(request), request, request.k, read=[DETAILS, "_score"])
        return [self._hit(row, row["_score"]) for row in rows]

    def _hit(self, row: Mapping[str, Any], score: float) -> Hit:
        try:
            details = json.loads(row[DETAILS])
            return Hit(score=float(score), **{name: str(details[name]) for name in SHOWN})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(
                f"the search table `{self.uri}` has a damaged product in `{DETAILS}`",
                hint=f"remove `{self.uri}` and run `furnclip embed` again",
            ) from None

    def _by_both(self, request: _Request) -> list[Hit]:
        """Both rankings fused. Reading the details of all candidates would take longer than finding them."""
        count = max(request.k, _HYBRID_CANDIDATES)
        rankings = [
            self._rows(self._by_vector(request).with_row_id(True), request, count, read=["_distance"]),
            self._rows(self._by_keyword(request).with_row_id(True), request, count, read=["_score"]),
        ]
        best = fuse_ranks(*([row["_rowid"] for row in ranking] for ranking in rankings))[: request.k]
        query = self.table.take_row_ids([row_id for row_id, _ in best])
        found = {row["_rowid"]: row for row in query.select([DETAILS]).with_row_id().to_list()}
        return [self._hit(found[row_id], score) for row_id, score in best]

    def _by_vector(self, request: _Request) -> Any:
        query = self.table.search(request.vector, vector_column_name=column_name("vec", self.label))
        return query.distance_type("dot").nprobes(self._probes(request.where))

    def _probes(self, where: str | None) -> int:
        """Partitions to look into: more behind a filter, where the nearest that pass lie further apart."""
        wanted = self.config.search.probes or max(_LEAST_PROBES, partitions_of(self._products) // 10)
        if where is None:
            return wanted
        if where not in self._shares:
            if len(self._shares) >= _MOST_SHARES:
                self._shares.clear()
            self._shares[where] = self.table.count_rows(where) / self._products
        share = self._shares[where]
        return _EVERY_PARTITION if share == 0 else math.ceil(wanted / math.sqrt(share))

    def _by_keyword(self, request: _Request) -> Any:
        # Not the bare text: LanceDB would take quotes around it for a phrase, which the index does not know.
        match: Any = MatchQuery  # whose defaults mypy cannot see
        return self.table.search(match(request.words, KEYWORDS), query_type="fts")

    def _rows(
        self, query: Any, request: _Request, count: int, *, read: Sequence[str]
    ) -> list[dict[str, Any]]:
        if request.where:
            query = query.where(request.where, prefilter=True)
        rows: list[dict[str, Any]] = query.select(list(read)).limit(count).to_list()
        return rows


def fuse_ranks(*rankings: Sequence[_Key]) -> list[tuple[_Key, float]]:
    """Reciprocal rank fusion: each ranking gives what it holds 1 / (60 + rank); (what, sum), best first.

    Between equal sums what stood higher in the earlier ranking comes first.
    """
    sums: dict[_Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            sums[key] = sums.get(key, 0.0) + 1 / (_RANK_OFFSET + rank)
    return sorted(sums.items(), key=lambda item: -item[1])  # stable


def _label(provenance: Provenance, *, run: str | None, model: str | None, uri: str) -> str:
    """Which of the table's vectors are asked for."""
    if run and model:
        raise UsageError("`--run` and `--model` ask for two models", hint="give one of them")
    if model:
        return "base"
    if run:
        finetuned = provenance.models.get("finetuned")
        if finetuned is None or finetuned.name != run:
            made_by = f"made by run `{finetuned.name}`" if finetuned else "of the base model only"
            raise ModelMismatchError(
                f"the vectors of `{uri}` are {made_by}, not by run `{run}`",
                hint=f"run `furnclip embed --run {run}`",
            )
        return "finetuned"
    return "finetuned" if "finetuned" in provenance.models else "base"


def _first(vectors: Floats) -> Floats:
    row: Floats = vectors[0]
    return row


def _square(image: ImageSource, side_px: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return letterbox(image.convert("RGB"), side_px)
    return load_square(Path(image), side_px)


def _readable(text: str) -> str:
    """A query or word as models and LanceDB take it: valid Unicode, not too long."""
    valid = text.encode("utf-8", "replace").decode("utf-8").strip()
    if len(valid) > _LONGEST_QUERY:
        console.note(f"of a text of {len(valid)} characters the first {_LONGEST_QUERY} are used")
    return valid[:_LONGEST_QUERY]
