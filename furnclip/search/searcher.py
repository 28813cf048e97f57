"""`Searcher`: a model and a table, kept open; the same for the command and for a web service.

However a search is asked for, `_page` alone turns it into hits.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pyarrow as pa
from PIL import Image

from furnclip import console
from furnclip.config import Config, load_config
from furnclip.errors import InputError, ModelMismatchError, UsageError
from furnclip.images import letterbox, load_square
from furnclip.search.encoder import load_encoder
from furnclip.search.hits import Answer, Hit
from furnclip.search.table import Scores, SearchTable
from furnclip.search.together import Together
from furnclip.vectors import Floats, Provenance, column_name, unit
from furnclip.vectors.index import DETAILS, KEYWORDS, explained, index_location, kind_of

Mode = Literal["vector", "keyword", "hybrid"]
_Key = TypeVar("_Key", bound=Hashable)
ImageSource = Path | str | Image.Image
_CANDIDATES = 100  # of each side, before they are fused
_RANK_OFFSET = 60  # of reciprocal rank fusion, as in the paper
# A filter knows only what was written down; of what was not, this keeps half out as well, and of the kind
# asked for more is left than with a larger share (tests/bench/relevance.py).
_AVOIDED_SHARE = 0.5
_LONGEST_QUERY = 2000  # characters; models read at most 77 tokens
_LONGEST_EXCLUDED = 200


@dataclass(frozen=True)
class _Request:
    """What is looked for: words, their vector and that of an image, (D,) each, as far as they count."""

    words: str = ""
    text: Floats | None = None
    image: Floats | None = None
    image_weight: float = 0.5


@dataclass(frozen=True)
class _Wish:
    """Which of the products that match, how many and in which order."""

    k: int | None = None
    where: str | None = None
    avoided: Sequence[str] = ()
    sort: str | None = None
    all_variants: bool = False


class Searcher:
    """Searches one table with the model that made it; safe to share between threads.

        searcher = Searcher()                                  # furnclip.toml of this folder
        hits = searcher.search("walnut sideboard", k=5, where="price < 400", exclude=["glass"])
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
        self._open = SearchTable(index_location(self.config), probes=self.config.search.probes)
        self.table, self.provenance, self.uri = self._open.lance, self._open.provenance, self._open.uri
        hidden = (KEYWORDS, DETAILS)
        kinds = {field.name: kind_of(field) for field in self.table.schema if field.name not in hidden}
        self.columns: dict[str, str] = {name: kind for name, kind in kinds.items() if kind}
        """What filters, `sort` and `facets` take: column -> text, number, boolean, date or list."""
        self.label = _label(self.provenance, run=run, model=model, uri=self.uri)
        self.clip = load_encoder(self.config, self.provenance, self.label, uri=self.uri, run=run, model=model)
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
        sort: str | None = None,
        literal: bool = False,
        all_variants: bool = False,
    ) -> Answer:
        """The `k` best products for a text, an image, or both.

        `where`: SQL over the product's columns. `exclude`: words that a product's title and attributes
        must not have, and that a text is moved away from. `image_weight`: weight of the image when there
        is a text too, 0 to 1. `sort`: a column, "price", or "-price" for the largest first; of the best
        hits. `literal`: take the text as words only, not as filters. `all_variants`: do not fold the
        products of a group into one.
        Raises `UsageError` for a bad filter and `BrokenImage` for an image that cannot be read.
        """
        words = _readable(text or "")
        chosen = self._mode(mode, words=words, has_image=image is not None)
        avoided = [word for word in map(_readable, exclude) if word]
        request = _Request(words)
        if image is not None:
            weight = self.config.search.image_weight if image_weight is None else image_weight
            request = replace(request, image=self._encode_image(image), image_weight=weight)
        if words and chosen != "keyword":
            request = replace(request, text=self._encode_texts([words], avoided)[0])
        return self._answer(request, chosen, _Wish(k, where, avoided, sort, all_variants))

    def search_many(
        self,
        texts: Sequence[str],
        *,
        k: int | None = None,
        where: str | None = None,
        exclude: Sequence[str] = (),
        mode: Mode | None = None,
        sort: str | None = None,
        literal: bool = False,
        all_variants: bool = False,
    ) -> list[Answer]:
        """The hits of each text, in order; all texts go through the model together."""
        chosen = self._mode(mode, words="several", has_image=False)
        texts = [_readable(text) for text in texts]
        avoided = [word for word in map(_readable, exclude) if word]
        encoded = self._encode_texts(texts, avoided) if texts and chosen != "keyword" else [None] * len(texts)
        wish = _Wish(k, where, avoided, sort, all_variants)
        return [
            self._answer(_Request(words, vector), chosen, wish)
            for words, vector in zip(texts, encoded, strict=True)
        ]

    def nearest(
        self, vector: Floats, *, k: int | None = None, where: str | None = None, exclude: Sequence[str] = ()
    ) -> Answer:
        """The `k` products nearest to a unit vector (D,) of this model, however it was made.

        `exclude` only filters here: the vector is taken as it is.
        """
        avoided = [word for word in map(_readable, exclude) if word]
        return self._answer(_Request(text=vector), "vector", _Wish(k, where, avoided))

    def product(self, product_id: str) -> Hit | None:
        """The product with this id, None where there is none."""
        rows = self._rows_of(product_id)
        return self._open.hits(dict.fromkeys(rows, 1.0), {})[0] if rows else None

    def similar(self, product_id: str, k: int | None = None, *, where: str | None = None) -> Answer:
        """The `k` products most like this one, by image and text, without it and its variants.

        Raises `InputError` where there is no such product; one without vectors has nothing like it.
        """
        rows = self._rows_of(product_id)
        if not rows:
            raise InputError(f"there is no product `{product_id}`", hint="ids stand in the hits of a search")
        itself = self._open.hits({rows[0]: 1.0}, {})[0]
        text, image = (self._open.vector(self._column(kind), rows[0]) for kind in ("vec", "image"))
        if text is None and image is None:
            return Answer()
        request = _Request(text=text, image=image)
        others = f"group <> {_quoted(itself.group)}"
        return self._answer(request, "vector", _Wish(k, where), others)

    def facets(
        self, columns: Sequence[str], text: str | None = None, *, where: str | None = None
    ) -> dict[str, dict[str, int]]:
        """For each column its values and how many products have each, most frequent first.

        Of all products that pass `where`; with a `text` of those among them that have all its words.
        """
        for name in columns:
            self._check_column(name)
        with explained(self.uri):
            condition, rows = self._condition(where, ()), None
            if words := _readable(text or ""):
                rows = list(self._open.words(words, self._open.products, condition, every_word=True))
            found = self._open.values(columns, condition, rows)
        return {name: _counts(found[name]) for name in columns}

    def _answer(self, request: _Request, mode: Mode, wish: _Wish, condition: str | None = None) -> Answer:
        """The hits of one request; `condition` is one of ours, in the table's own SQL."""
        wanted = self.config.search.k if wish.k is None else wish.k
        if wanted < 1:
            raise UsageError(f"`k` cannot be {wanted}", hint="ask for at least one hit")
        if wish.sort:
            self._check_column(wish.sort.removeprefix("-"))
        wanted = min(wanted, self._open.products)  # LanceDB counts in 64 bits
        with explained(self.uri):
            parts = [part for part in (self._condition(wish.where, wish.avoided), condition) if part]
            return self._page(request, mode, replace(wish, k=wanted, where=" AND ".join(parts) or None))

    def _page(self, request: _Request, mode: Mode, wish: _Wish) -> Answer:
        """The best `k`; where variants fold, as many candidates as fill the page."""
        k = wish.k or self.config.search.k
        count = max(k, _CANDIDATES)
        while True:
            scores = self._ranked(request, mode, count, wish.where)
            if wish.sort:
                scores = self._open.sorted(scores, wish.sort)
            hits = self._folded(scores, k, all_variants=wish.all_variants)
            if len(hits) == k or len(scores) < count or count >= self._open.products:
                return Answer(hits)
            count *= 4

    def _folded(self, scores: Scores, k: int, *, all_variants: bool) -> list[Hit]:
        rows, hits = list(scores), dict[str, Hit]()
        for start in range(0, len(rows), k):
            part = {row: scores[row] for row in rows[start : start + k]}
            for row, hit in zip(part, self._open.hits(part, {}), strict=True):
                hits.setdefault(str(row) if all_variants or not hit.group else hit.group, hit)
            if len(hits) >= k:
                break
        return list(hits.values())[:k]

    def _ranked(self, request: _Request, mode: Mode, count: int, where: str | None) -> Scores:
        """Rows and scores of a request, best first."""
        if mode == "keyword":
            return self._open.words(request.words, count, where)
        meaning = self._meaning(request, count, where)
        if mode == "vector":
            return meaning
        return fuse_ranks(meaning, self._open.words(request.words, count, where))

    def _meaning(self, request: _Request, count: int, where: str | None) -> Scores:
        """By cosine: a text to fused vectors, an image to image vectors, both by their weights."""
        weight = request.image_weight if request.text is not None else 1.0
        sides = [("vec", request.text, 1 - weight), ("image", request.image, weight)]
        asked = [(self._column(kind), vector, share) for kind, vector, share in sides if vector is not None]
        asked = [side for side in asked if side[2] > 0] if len(asked) > 1 else asked
        found = [self._open.nearest(column, vector, count, where) for column, vector, _ in asked]
        if len(found) == 1:
            return found[0]
        rows = list(dict.fromkeys(row for scores in found for row in scores))
        sums = dict.fromkeys(rows, 0.0)
        for column, vector, share in asked:
            for row, cosine in self._open.cosines(column, vector, rows).items():
                sums[row] += share * cosine
        return dict(sorted(sums.items(), key=lambda item: -item[1])[:count])

    def _condition(self, where: str | None, exclude: Sequence[str]) -> str | None:
        """What LanceDB is asked for: the shopper's filter, and that no word begins with an excluded one.

        So "leather" also means "leathers".
        """
        conditions = []
        if where and where.strip():
            from furnclip.search.where import rewritten

            conditions.append(f"({rewritten(where, self.columns)})")
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

    def _encode_image(self, image: ImageSource) -> Floats:
        """An image as a unit vector, (D,)."""
        side_px = self.clip.image_px
        if isinstance(image, Image.Image):
            square = letterbox(image.convert("RGB"), side_px)
        else:
            square = load_square(Path(image), side_px)
        vector: Floats = unit(self._images([square]))[0]
        return vector

    def _encode_texts(self, texts: Sequence[str], avoided: Sequence[str]) -> Floats:
        """The texts as unit vectors (N, D), moved away from the words to avoid."""
        vectors = self._texts([*texts, *avoided])
        asked, away = vectors[: len(texts)], vectors[len(texts) :]
        return unit(asked - _AVOIDED_SHARE * away.mean(axis=0)) if avoided else asked

    def _column(self, kind: str) -> str:
        return column_name(kind, self.label)

    def _rows_of(self, product_id: str) -> list[int]:
        with explained(self.uri):
            return self._open.rows(f"product_id = {_quoted(_readable(product_id))}")

    def _check_column(self, name: str) -> None:
        if name not in self.columns:
            from furnclip.search.where import no_column

            raise no_column(name, self.columns)


def fuse_ranks(*rankings: Iterable[_Key]) -> dict[_Key, float]:
    """Reciprocal rank fusion: each ranking gives what it holds 1 / (60 + rank); what -> sum, best first.

    Between equal sums what stood higher in the earlier ranking comes first.
    """
    sums: dict[_Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            sums[key] = sums.get(key, 0.0) + 1 / (_RANK_OFFSET + rank)
    return dict(sorted(sums.items(), key=lambda item: -item[1]))  # stable


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _counts(column: Any) -> dict[str, int]:
    values = column.combine_chunks()
    if pa.types.is_list(values.type):
        values = values.flatten()
    counted = [(item["values"], item["counts"]) for item in values.drop_null().value_counts().to_pylist()]
    ordered = sorted(counted, key=lambda item: (-item[1], str(item[0])))
    return {str(value): count for value, count in ordered if value != ""}


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
