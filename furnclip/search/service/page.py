"""The pages: `/`, made of hits, facets and the address that was asked for, and `/arena`, blind judging.

The contest is another room's and is handed in.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from pydantic import Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from furnclip.errors import FurnclipError, InputError
from furnclip.images import encode_jpeg
from furnclip.relevance import known
from furnclip.search.searcher import Searcher
from furnclip.search.service import asking
from furnclip.search.service.app import Served, Service, cached_jpeg, no_product
from furnclip.search.service.guard import Refused, status_of
from furnclip.search.table import Answer, Hit
from furnclip.vectors.index import quoted

# Parameter of the page -> the column that it filters, and its heading.
FACETS = {
    "type": ("object_type", "Type"),
    "color": ("color", "Color"),
    "material": ("material", "Material"),
    "style": ("style", "Style"),
}
_SHOWN_VALUES = 8  # of each facet
_FIRST_HITS = 24
_SOME = 6  # products that the start shows
_KEPT_IMAGES = 200  # that somebody searches by; some 10 MB
_PRICE_BANDS = 4
# Key, what its button says, and what it means.
KEYS = (
    ("A", "A is better", "row A answers the query better"),
    ("B", "B is better", "row B answers the query better"),
    ("T", "Tie", "both rows are equally good"),
    ("X", "Both bad", "both rows are bad"),
    ("N", "Skip", "you cannot or do not want to judge this one"),
    ("U", "Undo", "take your last vote back and judge it again"),
    ("Q", "Quit", "stop; your votes are kept"),
)


class PageParams(asking.Params):
    """What the page is asked for; nothing: the start."""

    q: str = ""
    type: Annotated[str, Field(max_length=100)] = ""
    color: Annotated[str, Field(max_length=100)] = ""
    material: Annotated[str, Field(max_length=100)] = ""
    style: Annotated[str, Field(max_length=100)] = ""
    price: Annotated[str, Field(pattern="^([0-9]*-[0-9]*)?$", max_length=30)] = ""
    like: Annotated[str, Field(max_length=500)] = ""
    image: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")] = ""
    sort: Literal["", "price", "-price"] = ""
    compare: Literal["", "base"] = ""
    k: Annotated[int, Field(ge=1)] = _FIRST_HITS

    @property
    def is_start(self) -> bool:
        """Whether nothing is asked for."""
        return not (self.q.strip() or self.like or self.image or self.filters)

    @property
    def filters(self) -> dict[str, str]:
        """The facets that are chosen."""
        chosen = {name: getattr(self, name) for name in (*FACETS, "price")}
        return {name: value for name, value in chosen.items() if value and value != "-"}

    def href(self, **changes: object) -> str:
        """The address of this page with other parameters."""
        values = {**self.model_dump(exclude_defaults=True), "k": None, **changes}
        return "/?" + urlencode({name: value for name, value in values.items() if value})


class Uploads:
    """Images that were dropped on the page, by the hash of their pixels; the oldest go."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, image: Image.Image) -> str:
        jpeg = encode_jpeg(image, quality=92)
        name = hashlib.sha256(jpeg).hexdigest()[:32]
        with self._lock:
            self._kept[name] = jpeg
            if len(self._kept) > _KEPT_IMAGES:
                self._kept.popitem(last=False)
        return name

    def jpeg(self, name: str) -> bytes:
        with self._lock:
            if name not in self._kept:
                raise Refused(404, "that image is no longer kept here", hint="drop it on the page once more")
            self._kept.move_to_end(name)
            return self._kept[name]


class Pages:
    """Draws pages from `templates/`; whatever comes from a catalogue is escaped."""

    def __init__(self) -> None:
        loader = PackageLoader("furnclip.search.service")
        self._templates = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.filters.update(quoted=partial(quote, safe=""), known=known)

    def answer(self, template: str, *, status: int = 200, **shown: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(shown), status)


class Shop:
    """The catalogue as the page shows it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.uploads = Uploads()

    def view(self, served: Served, params: PageParams) -> dict[str, Any]:
        """Everything `search.html` needs. Raises what a search raises."""
        searcher = served.searcher
        numbers = [name for name, kind in searcher.columns.items() if kind == "number" and "price" in name]
        price = min(numbers, key=len, default=None)
        where = _where(params, price)
        view: dict[str, Any] = {**self.empty(served, params), "price": partial(self._price, column=price)}
        view["facets"] = _facets(searcher, params, where, price)
        if params.like:
            view["like"] = searcher.product(params.like)
            if view["like"] is None:
                raise no_product(params.like)
        if params.is_start:
            some = searcher.search("furniture", k=_SOME, mode="vector")
            return {**view, "hits": [hit for hit in some if hit.image]}
        view["hits"] = hits = self._hits(searcher, params, where, price)
        view["notes"] = [*hits.understood, *filter(None, [hits.note])] if params.q else []
        view["has_price"] = price is not None
        if params.compare:
            if self._service.blind:
                hint = "compare when `furnclip serve` runs without `--arena`"
                raise Refused(403, "models are not compared while they are judged blind", hint=hint)
            view["base_hits"] = self._hits(self._service.table.base(served), params, where, price)
            view["names"] = [made.name for made in searcher.provenance.models.values()][::-1]
        return view

    def empty(self, served: Served, params: PageParams) -> dict[str, Any]:
        """The page without an answer."""
        chips = [(name, value, params.href(**{name: ""})) for name, value in params.filters.items()]
        return {
            **{"params": params, "chips": chips, "facets": [], "hits": None, "base_hits": None, "like": None},
            **{"names": [], "notes": [], "has_price": False, "price": str, "error": None},
            "has_base": served.has_base and not self._service.blind,
            "label": self._label,
            "products": served.searcher.table.count_rows(),
            "most": self._service.limits.max_k,
        }

    def _hits(self, searcher: Searcher, params: PageParams, where: str, price: str | None) -> Answer:
        k = min(params.k, self._service.limits.max_k)
        if params.like and not params.q:
            return searcher.similar(params.like, k, where=where)
        image = Image.open(io.BytesIO(self.uploads.jpeg(params.image))) if params.image else None
        sort = f"-{price}" if params.sort == "-price" else price if params.sort else None
        if params.q or image:
            return searcher.search(params.q, image=image, k=k, where=where, sort=sort)
        # facets alone: what is typical of them comes first
        chosen = " ".join(params.filters[name] for name in FACETS if name in params.filters)
        return searcher.search(chosen or "furniture", mode="vector", k=k, where=where, sort=sort)

    def _label(self, facet: str, value: str) -> str:
        """A facet's value for people: the price `100-250` is "€100 to €250"."""
        if facet != "price":
            return value
        low, high = (edge and f"{self._service.limits.currency}{int(edge):,}" for edge in value.split("-"))
        return f"{low} to {high}" if low and high else f"under {high}" if high else f"{low} and more"

    def _price(self, hit: Hit, column: str | None) -> str:
        value = hit.columns.get(column) if column else None
        return f"{self._service.limits.currency}{value:,.2f}" if isinstance(value, int | float) else ""


def _where(params: PageParams, price: str | None) -> str:
    conditions = []
    for name, value in params.filters.items():
        if name in FACETS:
            conditions.append(f"{FACETS[name][0]} = {quoted(value)}")
        elif price:
            low, _, high = value.partition("-")
            conditions += [f"{price} >= {low}"] if low else []
            conditions += [f"{price} < {high}"] if high else []
    return " AND ".join(conditions)


def _facets(searcher: Searcher, params: PageParams, where: str, price: str | None) -> list[dict[str, Any]]:
    """Each facet with its values, counts and the address of a click on each."""
    columns = [column for column, _ in FACETS.values()] + ([price] if price else [])
    counts = searcher.facets(columns, params.q or None, where=where)
    if params.q and sum(counts["object_type"].values()) < _FIRST_HITS:  # most are found by meaning alone
        counts = searcher.facets(columns, where=where)
    values = {
        (name, heading): [pair for pair in counts[column].items() if known(pair[0])][:_SHOWN_VALUES]
        for name, (column, heading) in FACETS.items()
    }
    values["price", "Price"] = _bands(counts[price]) if price else []
    facets = []
    for (name, heading), pairs in values.items():
        chosen = params.filters.get(name)
        shown = [
            {
                "value": value,
                "count": count,
                "chosen": value == chosen,
                "start": params.href(**{name: value, "q": ""}),
                "href": params.href(**{name: "" if value == chosen else value}),
            }
            for value, count in pairs
        ]
        facets.append({"name": name, "heading": heading, "values": shown})
    return [facet for facet in facets if facet["values"]]


def _bands(counts: Mapping[Any, int]) -> list[tuple[str, int]]:
    """Ranges of prices with about as many products each, between round numbers, and their products."""
    prices = sorted((float(value), count) for value, count in counts.items() if float(value) >= 0)
    total, passed, edges = sum(count for _, count in prices), 0, list[int]()
    for value, count in prices:
        passed += count
        if passed >= total * (len(edges) + 1) / _PRICE_BANDS and len(edges) < _PRICE_BANDS - 1:
            # up to two digits and zeros: 1,234 is 1,300
            step = 10 ** max(0, math.floor(math.log10(value)) - 1) if value >= 1 else 1
            edges.append(int(-(-value // step) * step))
    found = []
    limits = [0, *sorted(set(edges) - {0}), math.inf]
    for low, high in pairwise(limits):
        count = sum(each for value, each in prices if low <= value < high)
        if count:
            found.append((f"{low or ''}-{'' if high == math.inf else high}", count))
    return found if len(found) > 1 else []


def page_routes(service: Service, pages: Pages) -> list[BaseRoute]:
    """The addresses for people."""
    shop, limits = Shop(service), service.limits

    def refused(error: FurnclipError, params: PageParams) -> Response:
        view = {**shop.empty(service.table.current, params), "error": error}
        return pages.answer("search.html", status=status_of(error), **view)

    async def page(request: Request) -> Response:
        params = PageParams()
        try:
            params = asking.read(request.query_params, PageParams, limits)
            view = await service.work(shop.view, service.table.current, params)
            return pages.answer("search.html", **view)
        except FurnclipError as error:
            return refused(error, params)

    async def drop_image(request: Request) -> Response:
        try:
            name = shop.uploads.keep(await service.uploaded(request))
        except InputError as error:
            return refused(error, PageParams())
        return RedirectResponse(PageParams().href(image=name), 303)

    async def uploaded_image(request: Request) -> Response:
        return cached_jpeg(request, shop.uploads.jpeg(request.path_params["name"]))

    async def docs(request: Request) -> Response:
        return pages.answer("docs.html", api=asking.openapi(limits))

    return [
        Route("/", page, methods=["GET"]),
        Route("/", drop_image, methods=["POST"]),
        Route("/uploads/{name}", uploaded_image, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
        Mount("/static", StaticFiles(packages=[("furnclip.search.service", "static")]), name="static"),
    ]


class Contest(Protocol):
    """Blind judging by several raters."""

    def ballot(self, rater: str) -> Mapping[str, Any]:
        """What a rater is asked now."""

    def press(self, rater: str, key: str, ballot: str) -> None:
        """One of `KEYS`, pressed while that ballot was shown."""

    def image(self, name: str) -> bytes:
        """The JPEG of an image on a ballot."""

    def close(self) -> None:
        """End every rater's session."""


class RaterParams(asking.Params):
    """Who judges."""

    rater: Annotated[str, Field(max_length=100)] = ""
    over: bool = False


class KeyParams(RaterParams):
    """A key that was pressed."""

    key: Annotated[str, Field(pattern="^[ABTXNUQ]$")]
    ballot: Annotated[str, Field(max_length=64)] = ""


def contest_routes(service: Service, pages: Pages, contest: Contest) -> list[BaseRoute]:
    """The addresses for raters."""
    nothing: dict[str, Any] = {"rater": "", "over": False, "ballot": None, "error": None, "keys": KEYS}

    def refused(error: FurnclipError) -> Response:
        return pages.answer("arena.html", status=status_of(error), **{**nothing, "error": error})

    async def arena(request: Request) -> Response:
        try:
            params = asking.read(request.query_params, RaterParams, service.limits)
            shown: dict[str, Any] = {"rater": " ".join(params.rater.split()), "over": params.over}
            if shown["rater"] and not params.over:
                shown["ballot"] = await service.work(contest.ballot, shown["rater"])
            return pages.answer("arena.html", **{**nothing, **shown})
        except FurnclipError as error:
            return refused(error)

    async def press(request: Request) -> Response:
        try:
            params = asking.read(await request.form(max_files=0, max_fields=10), KeyParams, service.limits)
            rater = " ".join(params.rater.split())
            await service.work(contest.press, rater, params.key, params.ballot)
        except FurnclipError as error:
            return refused(error)
        over = {"over": "true"} if params.key == "Q" else {}
        return RedirectResponse(f"/arena?{urlencode({'rater': rater, **over})}", 303)

    async def arena_image(request: Request) -> Response:
        return await service.image(request, contest.image, "name")

    return [
        Route("/arena", arena, methods=["GET"]),
        Route("/arena", press, methods=["POST"]),
        Route("/arena/images/{name}", arena_image, methods=["GET"]),
    ]
