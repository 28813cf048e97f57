"""The REST service: each address to one call of a `Searcher`, and its answer as JSON.

A request takes the current table once and keeps it, so that all of its answer comes from one. A new table is
opened and asked before it takes over; one that cannot be opened leaves the old one in its place.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from furnclip import console
from furnclip.config import Config
from furnclip.errors import FurnclipError, InputError, MissingStageError, StorageError, UsageError
from furnclip.images import BrokenImage, open_image
from furnclip.journal import MANIFEST_NAME, encode_event, utc_now
from furnclip.search.searcher import Searcher
from furnclip.search.service import asking
from furnclip.search.service.guard import FAULT, Guard, Metrics, Refused, told
from furnclip.search.table import Answer
from furnclip.shards import Manifest, ProductImages, open_shards
from furnclip.vectors.index import KEYWORDS, explained, index_location, open_index

T = TypeVar("T")
_DECODERS = 2  # images decoded at a time: one may take hundreds of megabytes
_KEPT_PX = 512  # longest side of an image that is searched by
_LOOK_AGAIN_S = 60
_SEARCHES_FIRST = 2  # before shoppers ask: with the second the text tower is opened to stay


@dataclass(frozen=True)
class Served:
    """One version of the table, with the models that are asked for it."""

    searcher: Searcher
    version: str
    base: list[Searcher] = field(default_factory=list)  # the base model's, once somebody compares

    @property
    def has_base(self) -> bool:
        """Whether there is another model to compare with."""
        return self.searcher.label != "base" and "base" in self.searcher.provenance.models


class LiveTable:
    """What is served: `current`, looked for anew by `refresh`."""

    def __init__(self, config: Config, metrics: Metrics, *, run: str | None, model: str | None) -> None:
        self._config, self._run, self._model, self._metrics = config, run, model, metrics
        self._location = index_location(config)
        self._failed = ""
        self._comparing = threading.Lock()
        self.current = self._open()

    def refresh(self) -> None:
        """Take over a new table, if there is one that is complete."""
        found = ""
        try:
            table, provenance = open_index(self._location)
            found = _version(table, provenance.key)
            with explained(self._location.uri):
                if found in (self.current.version, self._failed) or not _is_complete(table):
                    return
                served = self._open()
                if not _is_complete(served.searcher.table):  # another one was begun meanwhile
                    return
            self.current = served
            self._metrics.reloads.labels("done").inc()
            console.note(f"serving the new table, {served.version}")
        except FurnclipError as error:
            if found and found != self._failed:  # a table that is being written cannot be opened either
                self._failed = found
                self._metrics.reloads.labels("failed").inc()
                console.warn(f"the new table is not served: {error.message}; {error.hint}")

    def base(self, served: Served) -> Searcher:
        """The base model's searcher of the same table. Raises `UsageError` where there is none."""
        if not served.has_base:
            hint = "run `furnclip embed` with a finished training run"
            raise UsageError("there is only one model to search with", hint=hint)
        with self._comparing:
            if not served.base:
                name = served.searcher.provenance.models["base"].name
                searcher = Searcher(self._config, model=name)
                if _version(searcher.table, searcher.provenance.key) != served.version:
                    raise StorageError("the table was replaced just now", hint="ask again in a few seconds")
                served.base.append(searcher)
        return served.base[0]

    def _open(self) -> Served:
        searcher = Searcher(self._config, run=self._run, model=self._model)
        for _ in range(_SEARCHES_FIRST):
            searcher.search("furniture", k=1, mode="vector")
        self._metrics.products.set(searcher.table.count_rows())
        return Served(searcher, _version(searcher.table, searcher.provenance.key))


def _is_complete(table: Any) -> bool:
    """Whether `embed` is done with it: the index on the words comes last."""
    return any(KEYWORDS in index.columns for index in table.list_indices())


def _version(table: Any, key: str) -> str:
    return f"{key[:12]}-{table.version}"


class LiveImages:
    """The images of the shards that are there now; of a bucket, it is looked after once a minute."""

    def __init__(self, config: Config) -> None:
        self._config, self._manifest = config, config.paths.shards / MANIFEST_NAME
        self._opened: tuple[float, Manifest, ProductImages] | None = None
        with suppress(FurnclipError):  # which the first image is told
            self._open()

    def jpeg(self, product_id: str) -> bytes:
        """The product's first image. Raises `BrokenImage` where the shards have none."""
        images = self._open()
        try:
            return images.image_bytes(product_id)
        except StorageError:  # a shard has been replaced
            self._opened = None
            raise

    def _open(self) -> ProductImages:
        is_here, before = self._manifest.exists(), self._opened
        changed = self._manifest.stat().st_mtime_ns if is_here else time.monotonic() // _LOOK_AGAIN_S
        if before and before[0] == changed:
            return before[2]
        place = open_shards(self._config)
        is_same = before is not None and before[1] == place.manifest
        images = before[2] if before and is_same else ProductImages(place)
        self._opened = changed, place.manifest, images
        return images


class Service:
    """What the addresses share: the table, the images, and how work is done beside the event loop.

    `blind`: people judge here, so nothing may show them what one model finds and the other does not.
    """

    def __init__(
        self, config: Config, *, run: str | None = None, model: str | None = None, blind: bool = False
    ) -> None:
        self.config, self.limits, self.blind = config, config.serve, blind
        self.metrics = Metrics()
        self.table = LiveTable(config, self.metrics, run=run, model=model)
        self.images = LiveImages(config)
        self._queries = threading.Lock()
        self._threads = anyio.CapacityLimiter(self.limits.concurrency)
        self._decoders = anyio.CapacityLimiter(_DECODERS)

    async def work(self, function: Callable[..., T], *given: Any, decodes: bool = False, **named: Any) -> T:
        """What the function returns, from a thread; a request that is given up does not wait for it."""
        limiter = self._decoders if decodes else self._threads
        return await anyio.to_thread.run_sync(
            partial(function, *given, **named), abandon_on_cancel=True, limiter=limiter
        )

    async def uploaded(self, request: Request) -> Image.Image:
        """The image of a form. Raises `BrokenImage` for one that cannot be read."""
        async with request.form(max_files=1, max_fields=40, max_part_size=10_000) as form:
            file = form.get("image")
            data = await file.read() if isinstance(file, UploadFile) else b""
        if not data:
            raise BrokenImage("missing", "there is no image in the form", hint="send it as the file `image`")
        return await self.work(open_image, data, longest_px=_KEPT_PX, decodes=True)

    async def image(self, request: Request, jpeg: Callable[[str], bytes], name: str) -> Response:
        """The image that a part of the address names. Raises `Refused` where there is none."""
        try:
            return cached_jpeg(request, await self.work(jpeg, request.path_params[name]))
        except (InputError, MissingStageError) as error:
            raise Refused(404, error.message, hint=error.hint) from None

    def search(
        self, served: Served, params: asking.SearchParams, image: Image.Image | None = None
    ) -> dict[str, Any]:
        """The answer as the command prints it with `--json`."""
        start = time.perf_counter()
        wished = params.model_dump(exclude={"q", "k"})
        hits = served.searcher.search(params.q, image=image, k=self.hits_wanted(params.k), **wished)
        payload = self.answer(served, hits, start=start)
        mode = (params.mode or self.config.search.mode) if params.q.strip() else "vector"
        if self.limits.query_log and params.q.strip():
            about = {"at": utc_now(), "query": params.q.strip(), "mode": mode, "where": params.where}
            found, ms = [hit.product_id for hit in hits[:10]], round(payload["seconds"] * 1000)
            path = self.config.paths.queries
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._queries, path.open("ab") as file:
                file.write(encode_event({**about, "hits": found, "ms": ms}))
        return {"query": params.q, "mode": mode, **payload}

    def hits_wanted(self, k: int | None) -> int:
        """Without a wish what the settings say."""
        return k or min(self.config.search.k, self.limits.max_k)

    def answer(self, served: Served, hits: Answer, *, start: float) -> dict[str, Any]:
        """Hits for JSON, and which model and table gave them."""
        return {
            "model": served.searcher.clip.name,
            "table": served.version,
            "products": served.searcher.table.count_rows(),
            "seconds": round(time.perf_counter() - start, 4),
            "understood": list(hits.understood),
            "note": hits.note,
            "hits": [hit.as_dict() for hit in hits],
        }


class Api:
    """The addresses for programs."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._limits = service.limits

    def routes(self) -> list[BaseRoute]:
        """Each address and method with what answers it."""
        return [
            Route("/search", self.search, methods=["GET"]),
            Route("/search", self.search_by_image, methods=["POST"]),
            # an id may have slashes
            Route("/products/{product_id:path}/similar", self.similar, methods=["GET"]),
            Route("/products/{product_id:path}", self.product, methods=["GET"]),
            Route("/images/{product_id:path}", self.image, methods=["GET"]),
            Route("/facets", self.facets, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]

    async def search(self, request: Request) -> Response:
        params = asking.read(request.query_params, asking.SearchParams, self._limits)
        service = self._service
        return JSONResponse(await service.work(service.search, service.table.current, params))

    async def search_by_image(self, request: Request) -> Response:
        service, image = self._service, await self._service.uploaded(request)
        params = asking.read(await request.form(), asking.ImageParams, self._limits)
        return JSONResponse(await service.work(service.search, service.table.current, params, image))

    async def product(self, request: Request) -> Response:
        asking.read(request.query_params, asking.ProductParams, self._limits)
        product_id, searcher = request.path_params["product_id"], self._service.table.current.searcher
        found = await self._service.work(searcher.product, product_id)
        if found is None:
            raise no_product(product_id)
        return JSONResponse(found.as_dict())

    async def similar(self, request: Request) -> Response:
        params = asking.read(request.query_params, asking.SimilarParams, self._limits)
        service, product_id, start = self._service, request.path_params["product_id"], time.perf_counter()
        served = service.table.current
        if await service.work(served.searcher.product, product_id) is None:
            raise no_product(product_id)
        k = service.hits_wanted(params.k)
        hits = await service.work(served.searcher.similar, product_id, k, where=params.where)
        return JSONResponse(service.answer(served, hits, start=start))

    async def image(self, request: Request) -> Response:
        return await self._service.image(request, self._service.images.jpeg, "product_id")

    async def facets(self, request: Request) -> Response:
        params = asking.read(request.query_params, asking.FacetParams, self._limits)
        served, columns = self._service.table.current, [name.strip() for name in params.columns.split(",")]
        counts = await self._service.work(served.searcher.facets, columns, params.q, where=params.where)
        return JSONResponse({"table": served.version, "facets": counts})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if request.app.state.guard.draining:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ready", "table": self._service.table.current.version})

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(asking.openapi(self._limits))


def no_product(product_id: str) -> Refused:
    """The error for an id that the table does not have."""
    return Refused(404, f"there is no product `{product_id[:80]}`", hint="ids stand in the hits of a search")


def cached_jpeg(request: Request, jpeg: bytes) -> Response:
    """An image, sent once: a browser that has it is told so."""
    tag = f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, max-age=3600"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


def build(service: Service, routes: list[BaseRoute], *, token: str) -> tuple[Guard, Starlette]:
    """The whole service as an ASGI application, guarded."""

    async def reload_for_ever() -> None:
        while True:
            await asyncio.sleep(service.limits.reload_s)
            await anyio.to_thread.run_sync(service.table.refresh, abandon_on_cancel=True)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        reloading = asyncio.create_task(reload_for_ever())
        yield
        reloading.cancel()

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, FurnclipError):
            return told(error)
        if not isinstance(error, HTTPException):  # the guard writes it down
            return told(FAULT)
        status = error.status_code
        what = {404: "there is nothing at this address", 405: "this address is not asked by this method"}
        return told(Refused(status, what.get(status, error.detail), hint="see /docs for what can be asked"))

    handlers: Any = {FurnclipError: refuse, HTTPException: refuse, Exception: refuse}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.guard = guard = Guard(app, service.limits, service.metrics, token=token)
    return guard, app
