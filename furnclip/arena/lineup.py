"""What is judged: the queries, and what each model answered to them, fixed before the first vote.

A lineup is computed once from `master_vectors.parquet` and kept in `work/arena/lineups/KEY.json`. The gallery
is every product for which all models have a vector. An image query is not its own answer. Queries from the
test split come with their vectors; those from a text file or an image folder are encoded by the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from furnclip.catalogue import ATTRIBUTES, UNKNOWN, content_hash
from furnclip.config import Config, DataPaths
from furnclip.console import note, printable
from furnclip.errors import InputError, MissingStageError, ModelMismatchError, UsageError
from furnclip.images import open_image
from furnclip.journal import read_json, write_json
from furnclip.relevance import default_caption, known, read_queries
from furnclip.runs import latest_run, read_card
from furnclip.sources import ShopImages
from furnclip.vectors import Floats, VectorTable, column_name, read_provenance, top_k

_Products = Sequence[Mapping[str, str | None]]
_FORMAT = "1"
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
# Words for queries of the test split -> kinds of query.
_FROM_SPLIT = {"images": ("image",), "texts": ("text",), "both": ("image", "text")}


@dataclass(frozen=True)
class Card:
    """A product as a rater sees it."""

    product_id: str
    title: str
    image: str
    detail: str = ""


@dataclass(frozen=True)
class JudgedQuery:
    """What was asked: an image or a text; `category` groups the statistics."""

    query_id: str
    kind: str
    text: str
    image: str = ""
    category: str = ""


@dataclass(frozen=True)
class Lineup:
    """Q queries and each model's answers, as it is stored."""

    key: str
    models: dict[str, str]  # name -> fingerprint
    order: list[str]  # of the names, baseline first
    k: int
    seed: int
    queries: list[JudgedQuery]
    answers: dict[str, list[list[str]]]  # name -> Q lists of at most k product ids, each with a card
    cards: list[Card]

    def duels(self) -> list[tuple[str, str]]:
        """Every two models, the earlier one first."""
        return list(combinations(self.order, 2))

    def differing(self, duel: tuple[str, str]) -> list[int]:
        """Queries to which two models gave different answers, or the same in another order."""
        first, second = (self.answers[model] for model in duel)
        return [index for index in range(len(self.queries)) if first[index] != second[index]]

    def require_difference(self) -> None:
        """Raises `InputError` where all models gave the same answers: there is nothing to judge."""
        if not any(self.differing(duel) for duel in self.duels()):
            raise InputError(
                f"the models gave the same {self.k} answers to all {len(self.queries)} queries",
                hint="train longer, raise `arena.k`, or use other queries with `--queries`",
            )

    def shown(self, model: str, query: int) -> tuple[Card, ...]:
        """The row of results of one model."""
        return tuple(self._card[product_id] for product_id in self.answers[model][query])

    @cached_property
    def _card(self) -> dict[str, Card]:
        return {card.product_id: card for card in self.cards}

    def is_consistent(self) -> bool:
        """Whether everything that is named is there, once."""
        ids = {query.query_id for query in self.queries}
        return (
            len(ids) == len(self.queries) > 0
            and sorted(self.order) == sorted(self.models) == sorted(self.answers)
            and all(len(rows) == len(ids) for rows in self.answers.values())
            and all(self._card.keys() >= {*row} for rows in self.answers.values() for row in rows)
        )


def make_lineup(config: Config, runs: Sequence[str], *, model: str | None = None) -> Lineup:
    """The contest for these settings: read if it was computed before, else computed and kept."""
    contenders = _find_contenders(config, runs)
    if model is not None and model != contenders[0].made_by.name:
        raise ModelMismatchError(
            f"the base vectors were made by `{contenders[0].made_by.name}`, not by `{model}`",
            hint=f"run `furnclip embed --model {model}`, or leave `--model` out",
        )
    arena, source = config.arena, Path(config.arena.queries)
    state = ""  # of the query file or folder
    if arena.queries not in _FROM_SPLIT and source.is_file():
        state = content_hash(source.read_bytes())
    elif arena.queries not in _FROM_SPLIT and source.is_dir():
        state = content_hash(*(path.name for path in _images(source)))
    models = (f"{each.name}:{each.made_by.fingerprint}:{each.table.provenance.key}" for each in contenders)
    settings = map(str, (arena.k, arena.seed, arena.queries, arena.query_limit))
    key = content_hash(_FORMAT, *models, *settings, state)
    path = config.paths.arena / "lineups" / f"{key}.json"
    try:
        kept = read_json(path, Lineup, what="the lineup", hint="remove it")
        if kept.key == key and kept.is_consistent():
            return replace(kept, models={name: kept.models[name] for name in kept.order})
    except (FileNotFoundError, InputError):  # a damaged one can be computed again
        pass
    note("computing the results of each model; they are stored for the next time")
    lineup = _compute_lineup(config, contenders, key)
    write_json(path, asdict(lineup))
    return lineup


class _Contender:
    """One model and its vectors, which have the column suffix `label` in the file at `path`."""

    def __init__(self, name: str, path: Path, label: str) -> None:
        self.name, self._label, self.table = name, label, VectorTable(path)
        if label not in self.table.provenance.models:
            raise MissingStageError(f"{path}: {label} vectors", command="furnclip embed")
        self.made_by = self.table.provenance.models[label]

    def align(self, products: _Products) -> None:
        """From here on rows are those of `products`, whatever order this file has."""
        place = {product["product_id"]: row for row, product in enumerate(self.table.products)}
        self._rows = np.array([place.get(each["product_id"], -1) for each in products], dtype=np.int64)

    def present(self, kind: str) -> npt.NDArray[np.bool_]:
        """Which products have such a vector, (N,)."""
        there = self.table.present(column_name(kind, self._label))
        found: npt.NDArray[np.bool_] = (self._rows >= 0) & there[self._rows]
        return found

    def vectors(self, kind: str) -> Floats:
        """A row for each product, (N, D)."""
        matrix = self.table.matrix(column_name(kind, self._label))
        return matrix if np.array_equal(self._rows, np.arange(len(matrix))) else matrix[self._rows]

    def encode(self, queries: list[JudgedQuery], config: Config) -> Floats:
        """Queries of one kind as vectors, (Q, D), by the model that made the file's."""
        from furnclip.model.loading import load_clip  # torch takes seconds to import, and few need it

        note(f"encoding the queries with `{self.made_by.name}`")
        clip = load_clip(self.made_by.name, config.model, runs=config.paths.runs)
        self.table.provenance.require(self._label, clip.fingerprint, where=self.table.path)
        if queries[0].kind == "text":
            return clip.encode_texts([query.text for query in queries])
        side_px = 2 * clip.image_px
        return clip.encode_images([open_image(Path(query.image), longest_px=side_px) for query in queries])


def _find_contenders(config: Config, runs: Sequence[str]) -> list[_Contender]:
    """The base model and the chosen runs, whose vectors `furnclip embed` keeps beside the master file.

    Without `runs`, the one in the master file. Raises `MissingStageError` when a run has none,
    `ModelMismatchError` when it was trained again since.
    """
    master = config.paths.vectors
    models = read_provenance(master).models
    if not runs and "finetuned" not in models:
        command = "furnclip embed" if latest_run(config.paths.runs) else "furnclip train"
        raise MissingStageError(f"{master}: fine-tuned vectors", command=command)
    wanted = list(dict.fromkeys(runs)) or [Path(models["finetuned"].name).name]
    if "base" in wanted:
        hint = "rename its folder and run `furnclip embed --run NAME`"
        raise UsageError("a run called `base` clashes with the base model's name in the votes", hint=hint)
    return [_Contender("base", master, "base"), *(_find_run(run, config.paths) for run in wanted)]


def _find_run(run: str, paths: DataPaths) -> _Contender:
    master, card = paths.vectors, read_card(paths.runs / run)
    for path in (master, master.with_name(f"{run}.parquet")):
        made_by = read_provenance(path).models.get("finetuned") if path.exists() else None
        if made_by is not None and Path(made_by.name).name == run:
            if card is not None and card.model_fingerprint not in ("", made_by.fingerprint):
                raise ModelMismatchError(
                    f"the run `{run}` was trained again after `{path}` was made",
                    hint=f"run `furnclip embed --run {run}`",
                )
            return _Contender(run, path, "finetuned")
    raise MissingStageError(f"{master.parent}: vectors of run {run}", command=f"furnclip embed --run {run}")


def _compute_lineup(config: Config, contenders: list[_Contender], key: str) -> Lineup:
    products = contenders[0].table.products
    for contender in contenders:
        contender.align(products)
    common = np.logical_and.reduce([contender.present("vec") for contender in contenders])
    if not common.any():
        hint = "run `furnclip embed` for each run on the same catalogue"
        raise InputError("the vector files of these models have no product in common", hint=hint)
    queries, vectors, own_rows = _encode_queries(config, contenders, products)
    if not queries:
        hint = "use a text file with a query a line, a folder of images, or a larger test split"
        raise InputError(f"no queries found in `{config.arena.queries}`", hint=hint)
    k = config.arena.k
    answers: dict[str, list[list[int]]] = {}  # rows of products, best first
    for contender, encoded in zip(contenders, vectors, strict=True):
        _, found = top_k(encoded, contender.vectors("vec"), k + 1, present=common)
        pairs = zip(found.tolist(), own_rows, strict=True)
        answers[contender.name] = [[row for row in rows if row != own][:k] for rows, own in pairs]
    used, images = {row for rows in answers.values() for answer in rows for row in answer}, ShopImages(config)
    cards = {row: _card(products[row], images) for row in sorted(used)}
    return Lineup(
        key=key,
        models={contender.name: contender.made_by.fingerprint for contender in contenders},
        order=[contender.name for contender in contenders],
        k=k,
        seed=config.arena.seed,
        queries=queries,
        answers={
            name: [[cards[r].product_id for r in row] for row in rows] for name, rows in answers.items()
        },
        cards=list(cards.values()),
    )


def _card(product: Mapping[str, str | None], images: ShopImages) -> Card:
    words = [product.get(name) or "" for name in ("color", "material", "style", "object_type")]
    image = product.get("image") or ""
    return Card(
        product_id=str(product["product_id"]),
        title=product.get("clean_title") or product.get("title") or str(product["product_id"]),
        image=str(images.local(image, str(product["product_id"]))) if image else "",
        detail=", ".join(word for word in words if known(word)),
    )


# Queries, each contender's vectors of them (Q, D), and each query's own row in the gallery, or -1.
_Encoded = tuple[list[JudgedQuery], list[Floats], list[int]]


def _encode_queries(config: Config, contenders: list[_Contender], products: _Products) -> _Encoded:
    wanted, limit = config.arena.queries, config.arena.query_limit
    path, queries = Path(wanted).expanduser(), list[JudgedQuery]()
    if wanted in _FROM_SPLIT:
        return _split_queries(config, contenders, products)
    if path.is_dir():
        for file in _images(path)[:limit]:
            query_id = f"picture:{content_hash(file.name)}"
            queries.append(JudgedQuery(query_id, "image", file.stem, str(file), "picture folder"))
    elif path.is_file():
        for text in read_queries(path)[:limit]:
            queries.append(JudgedQuery(f"text:{content_hash(text)}", "text", text, category="text file"))
    else:
        hint = "use `images`, `texts`, `both`, a text file with a query a line, or a folder of images"
        raise InputError(f"`arena.queries` is `{wanted}`, which is neither a file nor a folder", hint=hint)
    vectors = [contender.encode(queries, config) for contender in contenders] if queries else []
    return queries, vectors, [-1] * len(queries)


def _split_queries(config: Config, contenders: list[_Contender], products: _Products) -> _Encoded:
    """A seeded draw from the test split, or from everything where nothing is marked as test."""
    in_test = np.array([product.get("split") == "test" for product in products])
    eligible = in_test if in_test.any() else np.ones_like(in_test)
    choices: list[tuple[str, int]] = []
    for kind in _FROM_SPLIT[config.arena.queries]:
        present = [contender.present(kind) for contender in contenders]
        rows = np.flatnonzero(np.logical_and.reduce([eligible, *present]))
        choices += [(kind, row) for row in rows.tolist()]
    order = np.random.default_rng(config.arena.seed).permutation(len(choices))
    drawn = [choices[place] for place in order[: config.arena.query_limit]]
    vectors = []
    for contender in contenders:
        matrices = {kind: contender.vectors(kind) for kind in {kind for kind, _ in drawn}}
        vectors.append(np.array([matrices[kind][row] for kind, row in drawn], dtype=np.float32))
    queries, images = [], ShopImages(config)
    for kind, row in drawn:
        card = _card(products[row], images)
        fields = {name: value or "" for name, value in products[row].items()}
        is_image, category = kind == "image", fields.get(ATTRIBUTES[-1], "") or UNKNOWN
        text = card.title if is_image else default_caption(fields, title=fields.get("title", ""))
        image = card.image if is_image else ""
        queries.append(JudgedQuery(f"{kind}:{card.product_id}", kind, text, image, category))
    return queries, vectors, [row if kind == "image" else -1 for kind, row in drawn]


def _images(folder: Path) -> list[Path]:
    """The image files of a folder; their names go into files of ours, which are UTF-8."""
    found = sorted(path.absolute() for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
    for path in found:
        if str(path).encode("utf-8", "replace").decode() != str(path):
            raise InputError(f"the name of image `{printable(str(path))}` is not UTF-8", hint="rename it")
    return found
