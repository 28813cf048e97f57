"""The search table as `Searcher` asks it, and what a search gives back.

Row numbers and scores come first, and then the details of the few that are shown.

A row number is LanceDB's `_rowid`. Reading the details of all candidates would take longer than finding
them.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.query import MatchQuery
from PIL import Image

from furnclip.errors import InputError
from furnclip.images import BrokenImage, contact_sheet, encode_jpeg, open_image
from furnclip.journal import write_bytes
from furnclip.search.query import Query
from furnclip.sources import ShopImages
from furnclip.vectors import Floats, index, unit
from furnclip.vectors.index import DETAILS, KEYWORDS, PACKED_FROM, IndexLocation
from furnclip.vectors.parquet import SHOWN, matrix_of
from furnclip.vectors.words import codes_of, name_of

Scores = dict[int, float]  # row -> score, best first
_REFINED = 2  # times as many candidates of a packed index have their vectors read
_SAMPLE = 256  # products that stand for all
_ROW_ID = "_rowid"
_LEAST_PROBES = 20
_EVERY_PARTITION = 1_000_000
NOTHING = "no product has these words; nearest by meaning:"
_CELL_PX = 200  # of the contact sheet
_SHEET_COLUMNS = 5


@dataclass(frozen=True)
class Hit:
    """One product. `score`: cosine, share of what is asked that its words have, or both weighed, by mode."""

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
    variants: int = 1  # products of its group in the table, itself included
    columns: Mapping[str, Any] = field(default_factory=dict)  # the shop's own, by name
    why: Mapping[str, Any] = field(default_factory=dict)
    """`words`: word of the query -> columns that have it; `cosine`; `exact`: columns that equal the query or
    a code in it
    """

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Answer(list[Hit]):
    """The hits of one request, best first, and what to tell about it.

    `understood`: what of the text became a filter or another word, a line each. `note`: why these hits are
    only the nearest, empty where they are what was asked for.
    """

    def __init__(self, hits: Iterable[Hit] = (), *, understood: Sequence[str] = (), note: str = "") -> None:
        super().__init__(hits)
        self.understood = tuple(understood)
        self.note = note


class SearchTable:
    """One version of the table; safe to share between threads."""

    def __init__(self, location: IndexLocation, *, probes: int) -> None:
        self.lance, self.provenance = index.open_index(location)
        self.uri = location.uri
        self.products = int(self.lance.count_rows())
        if self.products == 0:
            raise InputError(f"the search table `{self.uri}` is empty", hint="run `furnclip embed` again")
        self._schema = self.lance.schema  # each look at it waits for LanceDB's own thread
        self.fields = index.fields_of(self._schema)
        self.vocabulary = index.vocabulary_of(self.lance, where=self.uri)
        # A packed index is read fast, and a large one needs it: of a million, 0.998 of the nearest are found.
        part = 2.5 if self.products >= PACKED_FROM else 10
        self._wanted_probes = probes or max(_LEAST_PROBES, int(index.partitions_of(self.products) / part))
        indices = self.lance.list_indices()
        self._packed = {each.columns[0] for each in indices if str(each.index_type).endswith("Rq")}
        # The table does not change, and counting what passes a filter takes as long as a search.
        self._matches = lru_cache(maxsize=1000)(self.lance.count_rows)
        self.middle = cache(self._middle)

    def nearest(self, column: str, vector: Floats, count: int, where: str | None) -> Scores:
        """The `count` rows nearest to a unit vector (D,), by cosine; the best view of a row counts."""
        search = self.lance.search(vector, vector_column_name=column)
        distance = index.distance_of(self._schema.field(column))
        search = search.distance_type(distance).nprobes(self._probes(where))
        if column in self._packed:
            search = search.refine_factor(_REFINED)
        # A distance is 1 - cosine.
        return {row: 1.0 - far for row, far in _found(search, "_distance", count, where)}

    def words(self, words: str, count: int, where: str | None) -> Scores:
        """The `count` rows that have some of the words of the index, by BM25."""
        if not words:
            return {}
        return dict(_found(self.lance.search(_match(words), query_type="fts"), "_score", count, where))

    def compared(
        self, rows: Sequence[int], vectors: Mapping[str, Floats]
    ) -> tuple[dict[int, str], list[Scores]]:
        """The words of the index that each of these rows has, and its cosine to a unit vector (D,) for each
        column of vectors; rows that have none there are left out. Read at once: each look costs milliseconds.
        """
        if not rows:
            return {}, [{} for _ in vectors]
        found = self._take(rows, KEYWORDS, *vectors)
        numbers = found[_ROW_ID].to_pylist()
        texts = dict(zip(numbers, found[KEYWORDS].to_pylist(), strict=True))
        cosines = [_cosines(numbers, found[column], vector) for column, vector in vectors.items()]
        return {row: texts[row] or "" for row in rows}, cosines

    def every_word(self, groups: Sequence[str], where: str | None) -> list[int]:
        """All rows that have one word of each group."""
        if not groups:
            return []
        together = reduce(operator.and_, map(_match, groups))
        search = self.lance.search(together, query_type="fts")
        return [row for row, _ in _found(search, "_score", self.products, where)]

    def vector(self, column: str, row: int) -> Floats | None:
        """The vector of a row, (D,), of several views their mean; None where it has none."""
        value = self._take([row], column)[column].to_pylist()[0]
        return None if value is None else unit(np.mean(np.atleast_2d(value), axis=0)[None])[0]

    def _middle(self, column: str) -> Floats:
        """The mean vector of a sample, (D,): its product with a query is the cosine of any product to it."""
        places = np.unique(np.linspace(0, self.products - 1, _SAMPLE).astype(int)).tolist()
        found = self.lance.take_offsets(places).select([column]).to_arrow()[column].combine_chunks()
        vectors = found.drop_null()
        while pa.types.is_list(vectors.type):
            vectors = vectors.flatten()
        return np.mean(matrix_of(vectors)[0], axis=0) if len(vectors) else np.zeros(1, np.float32)

    def rows(self, where: str | None) -> list[int]:
        """The rows that pass a filter of the table's own SQL."""
        return list(self.values(["product_id"], where)[_ROW_ID].to_pylist())

    def sorted(self, scores: Scores, sort: str) -> Scores:
        """The same rows ordered by a column, with `-` in front descending; empty ones last."""
        name, order = sort.removeprefix("-"), "descending" if sort.startswith("-") else "ascending"
        rank = {row: place for place, row in enumerate(scores)}  # between equals the better one first
        found = self._take(list(scores), name)
        found = found.append_column("_rank", pa.array([rank[row] for row in found[_ROW_ID].to_pylist()]))
        found = found.sort_by([(name, order), ("_rank", "ascending")])
        return {row: scores[row] for row in found[_ROW_ID].to_pylist()}

    def hits(self, scores: Scores, cosines: Mapping[int, float] | None = None) -> list[Hit]:
        """The products of these rows, in their order; `cosines` of some of them are told by their `why`."""
        found = self._take(list(scores), DETAILS)
        details = dict(zip(found[_ROW_ID].to_pylist(), found[DETAILS].to_pylist(), strict=True))
        hits = []
        try:
            for row, score in scores.items():
                product = json.loads(details[row])
                shown: dict[str, Any] = {name: str(product[name]) for name in SHOWN}
                shown |= {"variants": int(product["variants"]), "columns": dict(product["columns"])}
                if cosines and row in cosines:
                    shown["why"] = {"cosine": round(cosines[row], 4)}
                hits.append(Hit(score=float(score), **shown))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(
                f"the search table `{self.uri}` has a damaged product in `{DETAILS}`",
                hint=f"remove `{self.uri}` and run `furnclip embed` again",
            ) from None
        return hits

    def values(
        self, columns: Sequence[str], where: str | None, rows: Sequence[int] | None = None
    ) -> pa.Table:
        """These columns and `_rowid` of the rows, or of everything that passes the filter."""
        if rows is not None:
            return self._take(rows, *columns)
        search = self.lance.search().limit(self.products).select(list(columns)).with_row_id(True)
        return (search.where(where) if where else search).to_arrow()

    def _take(self, rows: Sequence[int], *columns: str) -> pa.Table:
        return self.lance.take_row_ids(list(rows)).select(list(columns)).with_row_id().to_arrow()

    def _probes(self, where: str | None) -> int:
        """Partitions to probe: more behind a filter, where the nearest that pass lie further apart."""
        if where is None:
            return self._wanted_probes
        share = self._matches(where) / self.products
        return _EVERY_PARTITION if share == 0 else math.ceil(self._wanted_probes / math.sqrt(share))


def _cosines(rows: Sequence[int], column: pa.ChunkedArray, vector: Floats) -> Scores:
    """The cosine of each row that has vectors; of several views the best one's."""
    if pa.types.is_fixed_size_list(column.type):
        matrix, present = matrix_of(column)
        cosines = (matrix @ vector).tolist()
        return {row: cosine for row, cosine, known in zip(rows, cosines, present, strict=True) if known}
    return {
        row: float(np.max(np.vstack(views) @ vector))
        for row, views in zip(rows, column.to_numpy(), strict=True)
        if views is not None
    }


def _match(words: str) -> Any:
    # Not the bare text: LanceDB would take quotes for a phrase, which the index does not know.
    match: Any = MatchQuery  # whose defaults mypy cannot see
    return match(words, KEYWORDS)


def _found(search: Any, score: str, count: int, where: str | None) -> list[tuple[int, float]]:
    if where:
        search = search.where(where, prefilter=True)
    found = search.with_row_id(True).select([score]).limit(count).to_arrow()
    return list(zip(found[_ROW_ID].to_pylist(), found[score].to_pylist(), strict=True))


def explain(hit: Hit, query: Query, table: SearchTable) -> dict[str, Any]:
    """The `why` of a hit, with the words of the query and where it has them."""
    words, exact, product = dict[str, list[str]](), list[str](), {**vars(hit), **hit.columns}
    fields = sorted(table.fields, key=lambda field_: field_.kind == "code")  # an id says least of all
    for field_ in fields:
        texts = field_.texts(product)
        told = {f"@{name_of(text)}" for text in texts} | {
            f"={code}" for text in texts for code in codes_of(text)
        }
        if told.intersection(query.exact + query.articles):
            exact += [field_.column] * (field_.kind in ("code", "name"))
        tokens = {token for text in texts for token in table.vocabulary.tokens(text)}
        for term in query.terms:
            if tokens & set(term.stems):
                words.setdefault(term.word, []).append(field_.column)
    return {name: value for name, value in (("words", words), ("exact", exact)) if value} | dict(hit.why)


def write_preview(hits: Sequence[Hit], images: ShopImages, target: Path) -> Path:
    """A contact sheet of the hits' images with rank and title at `target`; its path.

    An image that cannot be read is an empty frame.
    """
    cells: list[tuple[Image.Image | None, str]] = []
    for place, hit in enumerate(hits, start=1):
        image = None
        with suppress(BrokenImage):
            if hit.image:
                image = open_image(images.read(hit.image, hit.product_id), longest_px=_CELL_PX)
        cells.append((image, f"{place}. {hit.clean_title or hit.title}"))
    rows = [cells[start : start + _SHEET_COLUMNS] for start in range(0, len(cells), _SHEET_COLUMNS)]
    write_bytes(target, encode_jpeg(contact_sheet(rows, cell_px=_CELL_PX), quality=90))
    return target
