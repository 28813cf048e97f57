"""From `master_vectors.parquet` to a lineup: whose vectors, which queries, and both models' answers.

The gallery is every product for which all models have a vector, so that no model is compared on
products it has no vector of. An image query is not its own answer. Queries from the test split come with
their vectors; those from a text file or an image folder are encoded by the models themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from furnclip.arena.lineup import Card, Lineup, Query, read_lineup
from furnclip.catalogue import ATTRIBUTES, content_hash
from furnclip.config import Config, DataPaths
from furnclip.console import note, printable
from furnclip.errors import InputError, MissingStageError, ModelMismatchError
from furnclip.images import open_image
from furnclip.journal import read_text, write_json
from furnclip.relevance import default_caption, known
from furnclip.runs import read_card
from furnclip.vectors import VectorTable, column_name, read_provenance, read_vectors, top_k

if TYPE_CHECKING:
    from furnclip.model import Clip

Floats = npt.NDArray[np.float32]
_FORMAT = "1"
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_FROM_SPLIT = {"images": ("image",), "texts": ("text",), "both": ("image", "text")}
"""Words for queries of the test split -> kinds of query."""


@dataclass(frozen=True)
class Contender:
    """One model and where its vectors are: column suffix `label` in `table`."""

    name: str
    model: str
    fingerprint: str
    table: VectorTable
    label: str


@dataclass(frozen=True)
class EncodedQueries:
    """Queries with one matrix (Q, D) a contender; `own_rows` (Q,) is the query's own product, or -1."""

    queries: list[Query]
    vectors: list[Floats]
    own_rows: npt.NDArray[np.int64]


def find_contenders(config: Config, runs: Sequence[str]) -> list[Contender]:
    """The base model and the chosen runs; without `runs`, the one in the master file.

    `furnclip embed` keeps the vectors of every run beside the master file, as `RUN.parquet`. Raises
    `MissingStageError` when a run has none, `ModelMismatchError` when it was trained again since.
    """
    master = config.paths.vectors
    provenance = read_provenance(master)
    if not runs and "finetuned" not in provenance.models:
        raise MissingStageError(f"{master}: fine-tuned vectors", command="furnclip embed")
    wanted = list(dict.fromkeys(runs)) or [Path(provenance.models["finetuned"].name).name]
    return [_contender("base", master, "base"), *(_find_run(run, config.paths) for run in wanted)]


def _contender(name: str, path: Path, label: str) -> Contender:
    table = read_vectors(path)
    made_by = table.provenance.models.get(label)
    if made_by is None:
        raise MissingStageError(f"{path}: {label} vectors", command="furnclip embed")
    return Contender(name, made_by.name, made_by.fingerprint, table, label)


def _find_run(run: str, paths: DataPaths) -> Contender:
    master = paths.vectors
    card = read_card(paths.runs / run)
    for path in (master, master.with_name(f"{run}.parquet")):
        made_by = read_provenance(path).models.get("finetuned") if path.is_file() else None
        if made_by is not None and Path(made_by.name).name == run:
            if card is not None and card.model_fingerprint not in ("", made_by.fingerprint):
                raise ModelMismatchError(
                    f"the run `{run}` was trained again after `{path}` was made",
                    hint=f"run `furnclip embed --run {run}`",
                )
            return _contender(run, path, "finetuned")
    raise MissingStageError(f"{master.parent}: vectors of run {run}", command=f"furnclip embed --run {run}")


def make_lineup(config: Config, runs: Sequence[str], *, model: str | None = None) -> Lineup:
    """The contest for these settings: read if it was worked out before, else worked out and kept."""
    contenders = find_contenders(config, runs)
    if model is not None and model != contenders[0].model:
        raise ModelMismatchError(
            f"the base vectors were made by `{contenders[0].model}`, not by `{model}`",
            hint=f"run `furnclip embed --model {model}`, or leave `--model` out",
        )
    arena = config.arena
    key = content_hash(
        _FORMAT,
        *(f"{each.name}:{each.fingerprint}:{each.table.provenance.key}" for each in contenders),
        *(str(value) for value in (arena.k, arena.seed, arena.queries, arena.query_limit)),
        "" if arena.queries in _FROM_SPLIT else _fingerprint_of(Path(arena.queries)),
    )
    path = config.paths.arena / "lineups" / f"{key}.json"
    if (kept := read_lineup(path, key)) is not None:
        return kept
    note("computing the results of each model; they are stored for the next time")
    lineup = _compute_lineup(config, contenders, key)
    write_json(path, lineup.as_json())
    return lineup


def _fingerprint_of(queries: Path) -> str:
    """Changes when the query file or folder does."""
    if queries.is_file():
        return content_hash(queries.read_bytes())
    return content_hash(*(path.name for path in _images(queries))) if queries.is_dir() else ""


def _compute_lineup(config: Config, contenders: list[Contender], key: str) -> Lineup:
    gallery = _Gallery(contenders)
    encoded = _encode_queries(config, contenders, gallery)
    if not encoded.queries:
        raise InputError(
            f"no queries found in `{config.arena.queries}`",
            hint="use a text file with a query a line, a folder of images, or a larger test split",
        )
    rows_of = [
        gallery.answers(contender, vectors, encoded.own_rows, config.arena.k)
        for contender, vectors in zip(contenders, encoded.vectors, strict=True)
    ]
    used = sorted({row for rows in rows_of for answer in rows for row in answer})
    names = {row: str(gallery.products[row]["product_id"]) for row in used}
    return Lineup(
        key=key,
        models={contender.name: contender.fingerprint for contender in contenders},
        k=config.arena.k,
        seed=config.arena.seed,
        queries=encoded.queries,
        answers={
            contender.name: [[names[row] for row in answer] for answer in rows]
            for contender, rows in zip(contenders, rows_of, strict=True)
        },
        cards={names[row]: _card(gallery.products[row], config) for row in used},
    )


class _Gallery:
    """The products that every contender has a vector of, in the master file's order."""

    def __init__(self, contenders: list[Contender]) -> None:
        self.products = contenders[0].table.products
        ids = [product["product_id"] for product in self.products]
        self._places = {each.name: _places(each.table, ids) for each in contenders}
        known = [
            (places >= 0) & each.table.present(column_name("vec", each.label))[places]
            for each, places in ((each, self._places[each.name]) for each in contenders)
        ]
        self.common: npt.NDArray[np.bool_] = np.logical_and.reduce(known)
        if not self.common.any():
            raise InputError(
                "the vector files of these models have no product in common",
                hint="run `furnclip embed` for each run on the same catalogue",
            )

    def vectors(self, contender: Contender, kind: str) -> Floats:
        """A contender's vectors in the order of `products`, (N, D)."""
        matrix = contender.table.matrix(column_name(kind, contender.label))
        places = self._places[contender.name]
        in_order = len(places) == len(matrix) and bool((places == np.arange(len(places))).all())
        return matrix if in_order else matrix[places]

    def present(self, contender: Contender, kind: str) -> npt.NDArray[np.bool_]:
        """Which of `products` have such a vector, (N,)."""
        places = self._places[contender.name]
        there = contender.table.present(column_name(kind, contender.label))
        found: npt.NDArray[np.bool_] = (places >= 0) & there[places]
        return found

    def answers(
        self, contender: Contender, queries: Floats, own_rows: npt.NDArray[np.int64], k: int
    ) -> list[list[int]]:
        """The best `k` rows for each query (Q, D), best first, without the query's own product."""
        _, found = top_k(queries, self.vectors(contender, "vec"), k + 1, present=self.common)
        return [
            [row for row in rows if row != own][:k]
            for rows, own in zip(found.tolist(), own_rows.tolist(), strict=True)
        ]


def _places(table: VectorTable, ids: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """The row of each product in `table`, -1 where it is not there."""
    rows = {product["product_id"]: row for row, product in enumerate(table.products)}
    return np.array([rows.get(product_id, -1) for product_id in ids], dtype=np.int64)


def _card(product: Mapping[str, str | None], config: Config) -> Card:
    words = [product.get(name) or "" for name in ("color", "material", "style", "object_type")]
    image = product.get("image") or ""
    return Card(
        product_id=str(product["product_id"]),
        title=product.get("clean_title") or product.get("title") or str(product["product_id"]),
        image=str(config.paths.images / image) if image else "",
        detail=", ".join(word for word in words if known(word)),
    )


def _encode_queries(config: Config, contenders: list[Contender], gallery: _Gallery) -> EncodedQueries:
    queries = config.arena.queries
    if queries in _FROM_SPLIT:
        return _split_queries(config, contenders, gallery)
    path = Path(queries).expanduser()
    if path.is_dir():
        return _image_queries(config, contenders, _images(path)[: config.arena.query_limit])
    if path.is_file():
        content = read_text(path, what="the queries file", hint="save it as UTF-8 text, one query a line")
        lines = content.removeprefix("\ufeff").splitlines()
        texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        return _text_queries(config, contenders, texts[: config.arena.query_limit])
    raise InputError(
        f"`arena.queries` is `{queries}`, which is neither a file nor a folder",
        hint="use `images`, `texts`, `both`, a text file with a query a line, or a folder of images",
    )


def _split_queries(config: Config, contenders: list[Contender], gallery: _Gallery) -> EncodedQueries:
    """A seeded draw from the test split, or from everything where nothing is marked as test."""
    kinds = _FROM_SPLIT[config.arena.queries]
    in_test = np.array([product.get("split") == "test" for product in gallery.products])
    eligible = in_test if in_test.any() else np.ones_like(in_test)
    choices = [
        (kind, int(row))
        for kind in kinds
        for row in np.flatnonzero(
            np.logical_and.reduce([eligible, *(gallery.present(each, kind) for each in contenders)])
        )
    ]
    order = np.random.default_rng(config.arena.seed).permutation(len(choices))
    drawn = [choices[place] for place in order[: config.arena.query_limit]]
    return EncodedQueries(
        queries=[_split_query(kind, gallery.products[row], config) for kind, row in drawn],
        vectors=[_gathered(gallery, contender, drawn) for contender in contenders],
        own_rows=np.array([row if kind == "image" else -1 for kind, row in drawn], dtype=np.int64),
    )


def _gathered(gallery: _Gallery, contender: Contender, drawn: list[tuple[str, int]]) -> Floats:
    matrices = {kind: gallery.vectors(contender, kind) for kind in {kind for kind, _ in drawn}}
    return np.array([matrices[kind][row] for kind, row in drawn], dtype=np.float32)


def _split_query(kind: str, product: Mapping[str, str | None], config: Config) -> Query:
    card = _card(product, config)
    fields = {name: value or "" for name, value in product.items()}
    return Query(
        query_id=f"{kind}:{card.product_id}",
        kind=kind,
        text=card.title if kind == "image" else default_caption(fields, title=fields.get("title", "")),
        image=card.image if kind == "image" else "",
        category=fields.get(ATTRIBUTES[-1], "") or "unknown",
    )


def _text_queries(config: Config, contenders: list[Contender], texts: list[str]) -> EncodedQueries:
    queries = [Query(f"text:{content_hash(text)}", "text", text, category="text file") for text in texts]
    vectors = [_clip(each, config).encode_texts(texts) for each in contenders] if texts else []
    return EncodedQueries(queries, vectors, np.full(len(queries), -1, dtype=np.int64))


def _image_queries(config: Config, contenders: list[Contender], paths: list[Path]) -> EncodedQueries:
    queries = [
        Query(f"picture:{content_hash(path.name)}", "image", path.stem, str(path), "picture folder")
        for path in paths
    ]
    vectors: list[Floats] = []
    for contender in contenders if paths else []:
        clip = _clip(contender, config)
        images = [open_image(path, longest_px=2 * clip.image_px) for path in paths]
        vectors.append(clip.encode_images(images))
    return EncodedQueries(queries, vectors, np.full(len(queries), -1, dtype=np.int64))


def _images(folder: Path) -> list[Path]:
    """The image files of a folder; their names go into files of ours, which are UTF-8."""
    found = sorted(path.absolute() for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
    for path in found:
        if str(path).encode("utf-8", "replace").decode() != str(path):
            raise InputError(f"the name of image `{printable(str(path))}` is not UTF-8", hint="rename it")
    return found


def _clip(contender: Contender, config: Config) -> Clip:
    """The contender's model, checked to be the one that made its vectors."""
    from furnclip.model import load_clip  # torch takes seconds to import, and most contests need no model

    note(f"encoding the queries with `{contender.model}`")
    clip = load_clip(contender.model, config.model, runs=config.paths.runs)
    contender.table.provenance.require(contender.label, clip.fingerprint, where=contender.table.path)
    return clip
