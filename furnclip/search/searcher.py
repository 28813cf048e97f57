"""`Searcher`: a model and a table, kept open; the same for the command and for a web service.

However a search is asked for, `_run` alone turns it into hits.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import pyarrow as pa
from lancedb.query import MatchQuery
from PIL import Image

from furnclip import console
from furnclip.config import Config, load_config
from furnclip.errors import InputError, ModelMismatchError, UsageError
from furnclip.images import BrokenImage, contact_sheet, encode_jpeg, letterbox, load_square, open_image
from furnclip.journal import write_bytes
from furnclip.search.together import Together
from furnclip.sources import ShopImages
from furnclip.vectors import Floats, Provenance, column_name, fuse, unit
from furnclip.vectors.index import DETAILS, KEYWORDS, explained, index_location, open_index, partitions_of
from furnclip.vectors.parquet import SHOWN

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
_LONGEST_EXCLUDED = 200
_ROW_ID = "_rowid"  # as LanceDB calls it
_CELL_PX = 200  # of the contact sheet
_SHEET_COLUMNS = 5


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
    image: str  # path of the image, relative to the image folder

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
        texts = [field.name for field in self.table.schema if field.type == pa.string()]
        self._filterable = [name for name in texts if name not in (KEYWORDS, DETAILS)]
        self._products = int(self.table.count_rows())
        if self._products == 0:
            raise InputError(f"the search table `{self.uri}` is empty", hint="run `furnclip embed` again")
        self.label = _label(self.provenance, run=run, model=model, uri=self.uri)
        self.clip = self._load(run=run, model=model)
        # The table does not change, and counting what passes a filter takes as long as a search.
        self._matches = lru_cache(maxsize=1000)(self.table.count_rows)
        # Not thread-safe by itself: tokenizers change their own settings while they work.
        self._texts, self._images = Together(self.clip.encode_texts), Together(self.clip.encode_images)

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
        must not have, and that a text is moved away from. `image_weight`: weight of the image when there
        is a text too, 0 to 1.
        Raises `UsageError` for a bad filter and `BrokenImage` for an image that cannot be read.
        """
        words = _readable(text or "")
        chosen = self._mode(mode, words=words, has_image=image is not None)
        encode = partial(self._encode_request, words, image, image_weight)
        return self._answers([words], encode, chosen, k=k, where=where, exclude=exclude)[0]

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
        texts = [_readable(text) for text in texts]
        encode = partial(self._encode_texts, texts)
        return self._answers(texts, encode, chosen, k=k, where=where, exclude=exclude)

    def nearest(
        self, vector: Floats, *, k: int | None = None, where: str | None = None, exclude: Sequence[str] = ()
    ) -> list[Hit]:
        """The `k` products nearest to a unit vector (D,) of this model, however it was made.

        `exclude` only filters here: the vector is taken as it is.
        """
        return self._answers([""], lambda _: [vector], "vector", k=k, where=where, exclude=exclude)[0]

    def _answers(
        self,
        texts: Sequence[str],
        encode: Callable[[Sequence[str]], Iterable[Floats]],
        mode: Mode,
        *,
        k: int | None,
        where: str | None,
        exclude: Sequence[str],
    ) -> list[list[Hit]]:
        """The hits of each text; `encode` gives their vectors, moved away from the words passed to it."""
        wanted = self.config.search.k if k is None else k
        if wanted < 1:
            raise UsageError(f"`k` cannot be {wanted}", hint="ask for at least one hit")
        count = min(wanted, self._products)  # LanceDB counts in 64 bits
        avoided = [word for word in map(_readable, exclude) if word]
        condition = self._condition(where, avoided)
        vectors: Iterable[Floats | None] = [None] * len(texts)
        if mode != "keyword" and texts:
            vectors = encode(avoided)
        with explained(self.uri):
            return [
                self._run({"vector": vector, "keyword": text}, mode, count, condition)
                for text, vector in zip(texts, vectors, strict=True)
            ]

    def _condition(self, where: str | None, exclude: Sequence[str]) -> str | None:
        """What LanceDB is asked for: the shopper's filter, and that no word begins with an excluded one.

        So "leather" also means "leathers".
        """
        conditions = []
        if where and where.strip():
            from furnclip.search.where import rewritten

            conditions.append(f"({rewritten(where, self._filterable)})")
        for words in exclude:
            if len(words) > _LONGEST_EXCLUDED:
                raise UsageError(
                    f"`{words[:40]}...` is too long to exclude: {len(words)} characters",
                    hint=f"give words of at most {_LONGEST_EXCLUDED} characters, one each `--not`",
                )
            pattern = r"(^|[^\p{L}\p{N}])" + r"\s+".join(map(re.escape, words.lower().split()))
            quoted = pattern.replace("'", "''")
            conditions.append(f"NOT regexp_like(lower({KEYWORDS}), '{quoted}')")
        return " AND ".join(conditions) or None

    def _load(self, *, run: str | None, model: str | None) -> Clip:
        # torch takes seconds to import; a table that cannot be opened is reported before
        from furnclip.model import latest_run, load_clip

        runs, made_by = self.config.paths.runs, self.provenance.models[self.label]
        wanted = self.config.model
        if wanted.precision == "auto":  # measuring which is faster takes longer than one request
            wanted = wanted.model_copy(update={"precision": "fp32"})
        if self.label == "base":
            clip = load_clip(model or wanted.name, wanted)
        else:
            # A table may come from anybody: only a run of this shop is loaded unless it was asked for.
            if not run and (Path(made_by.name).name != made_by.name or not (runs / made_by.name).is_dir()):
                raise ModelMismatchError(
                    f"the vectors of `{self.uri}` were made by `{made_by.name}`, "
                    f"which is no run under `{runs}`",
                    hint=f"if you trust that model, ask for it: `--run {shlex.quote(made_by.name)}`",
                )
            newest = latest_run(runs)
            if not run and newest not in (None, made_by.name):
                console.note(f"searching with run `{made_by.name}`; `furnclip embed` would take `{newest}`")
            clip = load_clip(run or made_by.name, wanted, runs=runs)
        self.provenance.require(self.label, clip.fingerprint, where=self.uri)
        return clip

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

    def _encode_request(
        self, words: str, image: ImageSource | None, image_weight: float | None, avoided: Sequence[str]
    ) -> Floats:
        """A text, an image or both as one unit vector, (1, D)."""
        if image is None:
            return self._encode_texts([words], avoided)
        side_px = self.clip.image_px
        if isinstance(image, Image.Image):
            square = letterbox(image.convert("RGB"), side_px)
        else:
            square = load_square(Path(image), side_px)
        vectors = self._images([square])
        if not words:
            return vectors
        weight = self.config.search.image_weight if image_weight is None else image_weight
        return fuse(vectors, self._encode_texts([words], avoided), weight)

    def _encode_texts(self, texts: Sequence[str], avoided: Sequence[str]) -> Floats:
        """The texts as unit vectors (N, D), moved away from the words to avoid."""
        vectors = self._texts([*texts, *avoided])
        asked, away = vectors[: len(texts)], vectors[len(texts) :]
        return unit(asked - _AVOIDED_SHARE * away.mean(axis=0)) if avoided else asked

    def _run(self, request: Mapping[str, Any], mode: Mode, k: int, where: str | None) -> list[Hit]:
        """The hits of one request: a `vector` (D,), None where only words count, and `keyword`, its words."""
        if mode != "hybrid":
            return [self._hit(*found) for found in self._ranked(mode, request[mode], k, where, key=DETAILS)]
        # Reading the details of all candidates would take longer than finding them.
        count = max(k, _HYBRID_CANDIDATES)
        sides = [self._ranked(side, asked, count, where, key=_ROW_ID) for side, asked in request.items()]
        best = fuse_ranks(*([key for key, _ in ranked] for ranked in sides))[:k]
        rows = self.table.take_row_ids([key for key, _ in best]).select([DETAILS]).with_row_id().to_list()
        details = {row[_ROW_ID]: row[DETAILS] for row in rows}
        return [self._hit(details[key], score) for key, score in best]

    def _ranked(
        self, side: str, asked: Any, count: int, where: str | None, *, key: str
    ) -> list[tuple[Any, float]]:
        """The best of one side, vector or keyword: what the products have in column `key`, and the score."""
        if side == "vector":
            search = self.table.search(asked, vector_column_name=column_name("vec", self.label))
            search, score = search.distance_type("dot").nprobes(self._probes(where)), "_distance"
        else:
            # Not the bare text: LanceDB would take quotes for a phrase, which the index does not know.
            match: Any = MatchQuery  # whose defaults mypy cannot see
            search, score = self.table.search(match(asked, KEYWORDS), query_type="fts"), "_score"
        if where:
            search = search.where(where, prefilter=True)
        by_id = key == _ROW_ID
        rows = search.with_row_id(by_id).select([score] if by_id else [key, score]).limit(count).to_list()
        # A distance is 1 - cosine.
        return [(row[key], 1.0 - row[score] if side == "vector" else row[score]) for row in rows]

    def _hit(self, details: str, score: float) -> Hit:
        try:
            product = json.loads(details)
            return Hit(score=float(score), **{name: str(product[name]) for name in SHOWN})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(
                f"the search table `{self.uri}` has a damaged product in `{DETAILS}`",
                hint=f"remove `{self.uri}` and run `furnclip embed` again",
            ) from None

    def _probes(self, where: str | None) -> int:
        """Partitions to probe: more behind a filter, where the nearest that pass lie further apart."""
        wanted = self.config.search.probes or max(_LEAST_PROBES, partitions_of(self._products) // 10)
        if where is None:
            return wanted
        share = self._matches(where) / self._products
        return _EVERY_PARTITION if share == 0 else math.ceil(wanted / math.sqrt(share))


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
    finetuned = provenance.models.get("finetuned")
    if run and (finetuned is None or finetuned.name != run):
        made_by = f"made by run `{finetuned.name}`" if finetuned else "of the base model only"
        raise ModelMismatchError(
            f"the vectors of `{uri}` are {made_by}, not by run `{run}`",
            hint=f"run `furnclip embed --run {run}`",
        )
    return "base" if model or finetuned is None else "finetuned"


def _readable(text: str) -> str:
    """A query or word as models and LanceDB take it: valid Unicode, not too long."""
    valid = text.encode("utf-8", "replace").decode("utf-8").strip()
    if len(valid) > _LONGEST_QUERY:
        console.note(f"of a text of {len(valid)} characters the first {_LONGEST_QUERY} are used")
    return valid[:_LONGEST_QUERY]


def write_preview(hits: Sequence[Hit], images: ShopImages, target: Path) -> Path:
    """A contact sheet of the hits' images with rank and title at `target`; its path.

    An image that cannot be read is an empty frame.
    """
    cells: list[tuple[Image.Image | None, str]] = []
    for place, hit in enumerate(hits, start=1):
        image = None
        with suppress(BrokenImage):
            image = open_image(images.read(hit.image), longest_px=_CELL_PX) if hit.image else None
        cells.append((image, f"{place}. {hit.clean_title or hit.title}"))
    rows = [cells[start : start + _SHEET_COLUMNS] for start in range(0, len(cells), _SHEET_COLUMNS)]
    write_bytes(target, encode_jpeg(contact_sheet(rows, cell_px=_CELL_PX), quality=90))
    return target
