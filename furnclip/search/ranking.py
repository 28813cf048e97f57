"""Rows for a request, best first: words and meaning, each on a scale from 0 to 1, weighed against each other.

    words      as by BM25, of the most that it could be for this query
    meaning    cosine, from what any product has (0) to what the nearest has (1)

What is the query exactly, an id, a barcode, a brand, leads, and so does a code in it. Words are trusted the
more the less the model understands of the catalogue: by 1.16 - 0.8 times the precision of short requests
that `embed` measured on validation. The two numbers were chosen on a drawn shop and on a part of a catalogue
of clothes, where 0.65 and 1 were best; others judged (tests/bench/relevance.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

from furnclip.search.query import Query
from furnclip.search.table import Scores, SearchTable
from furnclip.vectors import Floats, column_name

Mode = Literal["vector", "keyword", "hybrid"]
_UNMEASURED_TRUST = 0.9  # in words
_NAMES_TRUST = 0.98  # at least
_LEAST_TRUST, _MOST_TRUST = 0.5, 0.999  # between equals meaning decides
_RARE = 0.002  # share of products that have a word: a name
_EXACT = 1.0  # what an id or a brand adds: it leads


@dataclass(frozen=True)
class Request:
    """What is looked for: words, their vector and that of an image, (D,) each, as far as they count."""

    query: Query = field(default_factory=lambda: Query(""))
    text: Floats | None = None
    image: Floats | None = None
    image_weight: float = 0.5


@dataclass(frozen=True)
class Ranking:
    """The scores of rows, best first, and what they are made of."""

    scores: Scores
    cosines: Scores = field(default_factory=dict)


class Ranker:
    """Ranks the rows of a table by the vectors of one model."""

    def __init__(self, table: SearchTable, label: str) -> None:
        self._table, self._label = table, label
        self._beside = ThreadPoolExecutor()  # LanceDB looks up meaning while it looks up words
        precision = table.provenance.models[label].request_precision
        trust = _UNMEASURED_TRUST if precision is None else 1.16 - 0.8 * precision
        self._trust = min(_MOST_TRUST, max(_LEAST_TRUST, trust))

    def ranked(self, request: Request, mode: Mode, count: int, where: str | None) -> Ranking:
        """The best `count` rows that pass the filter."""
        if mode == "vector":
            meaning = self._meaning(request, count, where)
            return Ranking(meaning, meaning)
        query, has_meaning = request.query, mode == "hybrid"
        trust = self.trust_in_words(query) if has_meaning else 1.0
        if has_both := request.text is not None and request.image is not None:
            # A text that says what is looked for leaves less to the image than "red". As far as it is
            # looked for as words, it is not in the cosine a second time.
            says_kind = any(term.is_kind for term in query.terms)
            share = request.image_weight ** (1 + says_kind)
            trust *= 1 - share
            request = replace(request, image_weight=share / max(1 - trust, 1e-6))
        found = self._beside.submit(self._meaning, request, count, where) if has_meaning else None
        rows = self._table.words(query.words, count, where)
        if len(rows) == count:  # the most frequent words may have been left out
            rows |= self._table.words(query.kinds, count, where)
        meaning = found.result() if found else {}
        if has_both and query.groups:  # of all that have the words those that look like the image
            meaning |= self._meaning(request, count, " AND ".join(filter(None, (where, query.condition))))
        together = [*rows, *(row for row in meaning if row not in rows)]
        texts, cosines = self._compared(request if has_meaning else Request(), together, meaning)
        exact = _having(query.exact, texts) or _having(query.articles, texts)
        usual = self._usual(request) if cosines else 0.0
        span = max(max(cosines.values(), default=0.0) - usual, 1e-6)
        scores = {}
        for row, share in query.shares(texts).items():
            near = min(1.0, max(0.0, (cosines.get(row, usual) - usual) / span))
            scores[row] = _EXACT * (row in exact) + trust * share + (1 - trust) * near
        return Ranking(_best(scores, count), cosines)

    def trust_in_words(self, query: Query) -> float:
        """The weight of words against meaning, 0 to 1, for this query."""
        vocabulary = self._table.vocabulary
        known = [term for term in query.terms if term.stems]
        if not known:
            return 0.0
        rare = max(1.0, _RARE * vocabulary.products)
        names = all(vocabulary.stems[stem] <= rare for term in known for stem in term.stems)
        share = sum(term.weight for term in known) / sum(term.weight for term in query.terms)
        # What words miss is left to meaning as far as the model understands the catalogue; a name is
        # what was meant, whatever stands beside it ("ikea billy" where no product says whose it is).
        share += (1 - share) * (1.0 if names else (self._trust - _LEAST_TRUST) / (1 - _LEAST_TRUST))
        # Models read no sizes.
        has_sizes = any(term.word[0].isdigit() and len(term.word) > 1 for term in known)
        is_for_words = names or len(query.terms) == 1 or has_sizes
        return share * max(self._trust, _NAMES_TRUST * is_for_words)

    def surprise(self, request: Request, ranking: Ranking) -> float:
        """How much nearer than any product the nearest is, as a cosine."""
        return max(ranking.cosines.values(), default=0.0) - self._usual(request)

    def _sides(self, request: Request) -> list[tuple[str, Floats, float]]:
        """What the cosine is made of: text to fused vectors, image to image vectors; each with its weight."""
        text, image, weight = request.text, request.image, request.image_weight
        columns = [column_name(kind, self._label) for kind in ("vec", "image")]
        if text is None or image is None:
            given = zip(columns, (text, image), strict=True)
            return [(column, vector, 1.0) for column, vector in given if vector is not None]
        sides = [(columns[0], text, 1 - weight), (columns[1], image, weight)]
        return [side for side in sides if side[2] > 0]

    def _meaning(self, request: Request, count: int, where: str | None) -> Scores:
        sides = self._sides(request)
        found = [self._table.nearest(column, vector, count, where) for column, vector, _ in sides]
        if len(found) == 1:
            return found[0]
        _, cosines = self._compared(request, list({row for scores in found for row in scores}), {})
        return _best(cosines, count)

    def _compared(
        self, request: Request, rows: Sequence[int], known: Scores
    ) -> tuple[dict[int, str], Scores]:
        """The words of each of these rows, and the cosine of each that has vectors; those `known` stay."""
        sides = self._sides(request)
        texts, cosines = self._table.compared(rows, {column: vector for column, vector, _ in sides})
        sums: Scores = {}
        for scores, (_, _, share) in zip(cosines, sides, strict=True):
            for row, cosine in scores.items():
                sums[row] = sums.get(row, 0.0) + share * cosine
        return texts, sums | known

    def _usual(self, request: Request) -> float:
        """The mean cosine of any product."""
        return sum(
            share * float(self._table.middle(column) @ vector)
            for column, vector, share in self._sides(request)
        )


def _having(words: Sequence[str], texts: Mapping[int, str]) -> set[int]:
    """The rows that have one of these words of the index."""
    return {row for row, text in texts.items() if not set(words).isdisjoint(text.split())} if words else set()


def _best(scores: Mapping[int, float], count: int) -> Scores:
    return dict(sorted(scores.items(), key=lambda item: -item[1])[:count])
