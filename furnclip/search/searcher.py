"""`Searcher`: a model and a table, kept open; the same for the command and for a web service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from PIL import Image

from furnclip import console
from furnclip.config import Config, load_config
from furnclip.errors import InputError, ModelMismatchError, UsageError
from furnclip.images import letterbox, load_square
from furnclip.search.encoder import Together, load_encoder
from furnclip.search.query import Query, understand
from furnclip.search.ranking import Mode, Ranker, Ranking, Request
from furnclip.search.table import NOTHING, Answer, Hit, SearchTable, explain
from furnclip.vectors import Floats, Provenance, column_name, unit
from furnclip.vectors.index import DETAILS, KEYWORDS, explained, index_location, kind_of, quoted
from furnclip.vectors.words import knowledge, words_of

ImageSource = Path | str | Image.Image
_CANDIDATES = 100  # of each side, before they are fused
# A filter knows only what was written down; of what was not, this keeps half out as well, and of the kind
# asked for more is left than with a larger share (tests/bench/relevance.py).
_AVOIDED_SHARE = 0.5
_LONGEST_QUERY = 2000  # characters; models read at most 77 tokens
_LONGEST_EXCLUDED = 200


@dataclass(frozen=True)
class _Wish:
    """Which of the products that match, how many and in which order."""

    k: int | None = None
    where: Sequence[str] = ()  # filters in the shopper's SQL
    condition: str = ""  # one of ours, in the table's own
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
        self._ranker = Ranker(self._open, self.label)
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
        wish = _Wish(k, _given(where), "", tuple(exclude), sort, all_variants)
        chosen = self._mode(mode, words=words, has_image=image is not None, lists=bool(where or sort))
        encodes = bool(words) and chosen != "keyword"
        [(request, wish)] = self._asked([words], wish, literal=literal, encodes=encodes)
        if image is not None:
            weight = self.config.search.image_weight if image_weight is None else image_weight
            request = replace(request, image=self._encode_image(image), image_weight=weight)
        return self._answer(request, chosen, wish)

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
        wish = _Wish(k, _given(where), "", tuple(exclude), sort, all_variants)
        asked = self._asked(list(map(_readable, texts)), wish, literal=literal, encodes=chosen != "keyword")
        return [self._answer(request, chosen, own) for request, own in asked]

    def nearest(
        self, vector: Floats, *, k: int | None = None, where: str | None = None, exclude: Sequence[str] = ()
    ) -> Answer:
        """The `k` products nearest to a unit vector (D,) of this model, however it was made.

        `exclude` only filters here: the vector is taken as it is.
        """
        return self._answer(Request(text=vector), "vector", _Wish(k, _given(where), "", tuple(exclude)))

    def product(self, product_id: str) -> Hit | None:
        """The product with this id, None where there is none."""
        rows = self._rows_of(product_id)
        return self._open.hits({rows[0]: 1.0})[0] if rows else None

    def similar(self, product_id: str, k: int | None = None, *, where: str | None = None) -> Answer:
        """The `k` products most like this one, by image and text, without it and its variants.

        Raises `InputError` where there is no such product; one without vectors has nothing like it.
        """
        rows = self._rows_of(product_id)
        if not rows:
            raise InputError(f"there is no product `{product_id}`", hint="ids stand in the hits of a search")
        itself = self._open.hits({rows[0]: 1.0})[0]
        text, image = (self._open.vector(column_name(kind, self.label), rows[0]) for kind in ("vec", "image"))
        if text is None and image is None:
            return Answer()
        request = Request(text=text, image=image)
        others = f"product_id <> {quoted(product_id)}"
        if itself.group:
            others += f" AND group <> {quoted(itself.group)}"
        return self._answer(request, "vector", _Wish(k, _given(where), others))

    def facets(
        self,
        columns: Sequence[str],
        text: str | None = None,
        *,
        where: str | None = None,
        exclude: Sequence[str] = (),
        literal: bool = False,
    ) -> dict[str, dict[str, int]]:
        """For each column its values and how many products have each, most frequent first.

        Of all products that pass `where`; with a `text` of those among them that have all its words.
        """
        for name in columns:
            self._check_column(name)
        with explained(self.uri):
            wish, rows = _Wish(where=_given(where), avoided=tuple(exclude)), None
            if words := _readable(text or ""):
                query, wish = self._understand(words, wish, literal=literal)
                if query.text:
                    rows = self._open.every_word(query.groups, self._condition(wish))
            found = self._open.values(columns, self._condition(wish), rows)
        return {name: _counts(found[name]) for name in columns}

    def _understand(self, words: str, wish: _Wish, *, literal: bool) -> tuple[Query, _Wish]:
        """What the text asks for, and the wish with the filters in it."""
        query = understand(words, self._open.vocabulary, self.columns, literal=literal)
        avoided = [word for word in map(_readable, (*wish.avoided, *query.avoided)) if word]
        return query, replace(wish, where=(*wish.where, *query.where), avoided=avoided)

    def _asked(
        self, texts: Sequence[str], wish: _Wish, *, literal: bool, encodes: bool
    ) -> list[tuple[Request, _Wish]]:
        """The requests of some texts, which go through the model together, and what is wished of each.

        Each is moved away from the words that it does not want.
        """
        asked = [self._understand(text, wish, literal=literal) for text in texts]
        if not encodes:
            return [(Request(query), own) for query, own in asked]
        vectors = iter(self._texts([each for query, own in asked for each in (query.text, *own.avoided)]))
        found = []
        for query, own in asked:
            text = next(vectors)
            if own.avoided:
                away = np.mean([next(vectors) for _ in own.avoided], axis=0)
                text = unit((text - _AVOIDED_SHARE * away)[None])[0]
            found.append((Request(query, text if query.text else None), own))
        return found

    def _answer(self, request: Request, mode: Mode, wish: _Wish) -> Answer:
        """The best `k`; where variants fold, as many candidates as fill the page."""
        k = self.config.search.k if wish.k is None else wish.k
        if k < 1:
            raise UsageError(f"`k` cannot be {k}", hint="ask for at least one hit")
        if wish.sort:
            self._check_column(wish.sort.removeprefix("-"))
        k = min(k, self._open.products)  # LanceDB counts in 64 bits
        query, count = request.query, max(k, _CANDIDATES)
        with explained(self.uri):
            where = self._condition(wish)
            while True:
                ranking = self._ranked(request, mode, count, where, wish.sort)
                hits = self._folded(ranking, k, all_variants=wish.all_variants)
                if len(hits) == k or len(ranking.scores) < count or count >= self._open.products:
                    break
                count *= 4
            found = hits
            if query.terms:
                found = [replace(hit, why=explain(hit, query, self._open)) for hit in hits]
            if found and "exact" in found[0].why:
                return Answer(found, understood=query.understood)
            said = [*query.understood, *(f"no product has `{word}`" for word in query.unknown)]
            is_unknown = mode == "hybrid" and query.terms and not query.groups
            is_noise = is_unknown and self._ranker.surprise(request, ranking) < self._noise
        return Answer(found, understood=said, note=NOTHING if is_noise else "")

    def _ranked(
        self, request: Request, mode: Mode, count: int, where: str | None, sort: str | None
    ) -> Ranking:
        """The rows that may be shown, in order: by relevance, or by a column those with every word."""
        has_words = mode == "keyword" and request.query.text
        if request.text is None and request.image is None and not has_words:
            ranking = Ranking(dict.fromkeys(self._open.rows(where), 0.0))
        else:
            ranking = self._ranker.ranked(request, mode, count, where)
            if sort and mode != "vector" and (rows := self._open.every_word(request.query.groups, where)):
                ranking = replace(ranking, scores={row: ranking.scores.get(row, 0.0) for row in rows})
        return replace(ranking, scores=self._open.sorted(ranking.scores, sort)) if sort else ranking

    def _folded(self, ranking: Ranking, k: int, *, all_variants: bool) -> list[Hit]:
        """The first `k` products, of each group the first."""
        rows, hits = list(ranking.scores), dict[str, Hit]()
        for start in range(0, len(rows), k):
            part = {row: ranking.scores[row] for row in rows[start : start + k]}
            for row, hit in zip(part, self._open.hits(part, ranking.cosines), strict=True):
                hits.setdefault(str(row) if all_variants or not hit.group else hit.group, hit)
            if len(hits) >= k:
                break
        return list(hits.values())[:k]

    @cached_property
    def _noise(self) -> float:
        """How near the nearest is to a text about something else, as a rule: the upper quartile."""
        requests = [Request(text=vector) for vector in self._texts(knowledge()["noise"]["texts"])]
        rankings = [self._ranker.ranked(request, "vector", _CANDIDATES, None) for request in requests]
        found = list(map(self._ranker.surprise, requests, rankings))
        return float(np.percentile(found, 75))

    def _condition(self, wish: _Wish) -> str | None:
        """What LanceDB is asked for: the shopper's filters, and that no word begins with an excluded one.

        So "leather" also means "leathers".
        """
        conditions, known = [wish.condition] if wish.condition else [], self._open.vocabulary
        if wish.where:
            from furnclip.search.where import rewritten

            conditions += [f"({rewritten(part, self.columns)})" for part in wish.where]
        for words in wish.avoided:
            if len(words) > _LONGEST_EXCLUDED:
                hint = f"give words of at most {_LONGEST_EXCLUDED} characters, one each `--not`"
                raise UsageError(f"`{words[:40]}...` is too long to exclude", hint=hint)
            # Only in front of the words of descriptions, which also say what goes with a product.
            typed = [known.written(forms[0]) for forms in words_of(words)]
            stems = [known.meanings(word) or [known.stem(word)] for word in typed]
            pattern = r"\S* ".join(f"({'|'.join(same)})" for same in stems)  # letters and digits
            conditions += [f"NOT regexp_like({KEYWORDS}, '^([^|]* )?{pattern}')"] if pattern else []
        return " AND ".join(conditions) or None

    def _mode(self, mode: Mode | None, *, words: str, has_image: bool, lists: bool = False) -> Mode:
        if not words and not has_image and not lists:
            raise UsageError("there is nothing to search for", hint="give a text, or an image with `--image`")
        if has_image and not words and mode == "keyword":
            raise UsageError("an image has no keywords", hint="search by `vector`, or add a text")
        chosen = mode or self.config.search.mode
        if chosen not in get_args(Mode):
            hint = f"choose one of {', '.join(get_args(Mode))}"
            raise UsageError(f"there is no mode `{chosen}`", hint=hint)
        return chosen if words else "vector"

    def _encode_image(self, image: ImageSource) -> Floats:
        """An image as a unit vector, (D,)."""
        if isinstance(image, Image.Image):
            square = letterbox(image.convert("RGB"), self.clip.image_px)
        else:
            square = load_square(Path(image), self.clip.image_px)
        vector: Floats = unit(self._images([square]))[0]
        return vector

    def _rows_of(self, product_id: str) -> list[int]:
        with explained(self.uri):
            return self._open.rows(f"product_id = {quoted(_readable(product_id))}")

    def _check_column(self, name: str) -> None:
        if name not in self.columns:
            from furnclip.search.where import no_column

            raise no_column(name, self.columns)


def _given(where: str | None) -> tuple[str, ...]:
    return (where,) if where and where.strip() else ()


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
        hint = f"run `furnclip embed --run {run}`"
        raise ModelMismatchError(f"the vectors of `{uri}` are {made_by}, not by run `{run}`", hint=hint)
    return "base" if model or finetuned is None else "finetuned"


def _readable(text: str) -> str:
    """A query or word as models and LanceDB take it: valid Unicode, not too long."""
    valid = text.encode("utf-8", "replace").decode("utf-8").strip()
    if len(valid) > _LONGEST_QUERY:
        console.note(f"of a text of {len(valid)} characters the first {_LONGEST_QUERY} are used")
    return valid[:_LONGEST_QUERY]
