"""What stands in front of every request: who may ask, how much, how long, and what is written down of it.

Nothing here reads what is asked for. A refusal is a `Refused`, told like any other error.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
import time
import traceback
from urllib.parse import urlsplit

import anyio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from furnclip import console
from furnclip.config import ServeConfig
from furnclip.errors import FurnclipError, InputError, UsageError
from furnclip.journal import utc_now

_OPEN_PATHS = ("/health", "/ready")  # asked by load balancers, which have no token
_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # not `no-referrer`, with which browsers hide the origin of our own forms as well
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Refused(UsageError):
    """A request that is not answered; `status` is that of HTTP."""

    def __init__(self, status: int, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.status = status


FAULT = Refused(500, "this is a fault of the service", hint="its log has the details")


class Metrics:
    """What `/metrics` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own, by = self.registry, ("route", "status")
        self.requests = Counter(
            "furnclip_requests", "Requests answered, by route and status", by, registry=own
        )
        self.seconds = Histogram("furnclip_request_seconds", "Time to answer", ("route",), registry=own)
        self.in_flight = Gauge("furnclip_requests_in_flight", "Requests being answered", registry=own)
        self.reloads = Counter("furnclip_reloads", "New tables, by result", ("result",), registry=own)
        self.products = Gauge("furnclip_products", "Products in the table", registry=own)


def status_of(error: FurnclipError) -> int:
    """What an error of furnclip is in HTTP: the caller's mistake, or something that is not there now."""
    if isinstance(error, Refused):
        return error.status
    return 400 if isinstance(error, UsageError | InputError) else 503


def told(error: FurnclipError) -> JSONResponse:
    """An error in the command's own words."""
    said = {"error": console.one_line(error.message), "hint": console.one_line(error.hint)}
    login = {"www-authenticate": 'Basic realm="furnclip", charset="UTF-8"'}
    status = status_of(error)
    return JSONResponse(said, status, {401: login, 503: {"retry-after": "1"}}.get(status))


def is_local(host: str) -> bool:
    """Whether nobody but this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """The outermost ASGI layer. `draining`: the service is about to stop, so connections are not kept."""

    def __init__(self, app: ASGIApp, serve: ServeConfig, metrics: Metrics, *, token: str = "") -> None:
        self._app = app
        self._serve = serve
        self._metrics = metrics
        self._token = token.encode()
        self._names = {n.lower() for n in ("localhost", socket.gethostname(), serve.host, *serve.hosts)}
        self._active = 0
        self._most_bytes = int(serve.max_body_mb * 2**20)
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        answer = _Answer(send, draining=self.draining)
        start = time.perf_counter()
        self._active += 1
        self._metrics.in_flight.inc()
        try:
            self._check(scope)
            with anyio.fail_after(self._serve.timeout_s):
                await self._app(scope, self._limited(receive), answer)
        except FurnclipError as error:
            await answer.instead(error, scope, receive)
        except TimeoutError:
            waited = f"the answer took more than {self._serve.timeout_s:g} s"
            await answer.instead(Refused(503, waited, hint="ask for less, or again later"), scope, receive)
        except ClientDisconnect:
            pass
        except Exception:
            console.note(traceback.format_exc())
            await answer.instead(FAULT, scope, receive)
        finally:
            self._active -= 1
            self._metrics.in_flight.dec()
            self._record(scope, answer, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        headers, length = Headers(scope=scope), Headers(scope=scope).get("content-length", "0")
        if self._active > self._serve.concurrency:
            raise Refused(503, "too many requests at a time", hint="ask again in a second")
        host = headers.get("host", "")
        if not self._is_ours(host):
            unknown = f"this service is not known as `{host[:80] or 'no name'}`"
            raise Refused(421, unknown, hint="add the name to `serve.hosts`")
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            is_foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
            if is_foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                hint = "send it from a page of this service"
                raise Refused(403, "another site's page sent this", hint=hint)
        if self._token and scope["path"] not in _OPEN_PATHS:
            given = _given_token(headers.get("authorization", ""))
            if not hmac.compare_digest(given, self._token):
                hint = "send it after `Bearer` in `Authorization`, or as the password of a browser's login"
                raise Refused(401, "the token is missing or wrong", hint=hint)
        if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may take the other
            raise Refused(400, "the request tells two lengths", hint="send `Content-Length` alone")
        if not length.isdecimal() or int(length) > self._most_bytes:
            raise self._too_large()

    def _is_ours(self, host: str) -> bool:
        """Names only, an address cannot be made to lead to another machine."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
            return name in self._names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _too_large(self) -> Refused:
        hint = "send a smaller image, or raise `serve.max_body_mb`"
        return Refused(413, f"the body has more than {self._serve.max_body_mb:g} MB", hint=hint)

    def _limited(self, receive: Receive) -> Receive:
        read_bytes = 0

        async def limited() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > self._most_bytes:
                raise self._too_large()
            return message

        return limited

    def _record(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "static" if scope.get("endpoint") else "none")
        self._metrics.requests.labels(route, answer.status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._serve.access_log:
            about = {"time": utc_now(), "method": scope["method"], "path": scope["path"], "route": route}
            about |= {"status": answer.status, "ms": round(seconds * 1000, 1), "bytes": answer.bytes}
            console.record(about)


class _Answer:
    """Sends an answer on, with our headers; knows what was sent."""

    def __init__(self, send: Send, *, draining: bool) -> None:
        self._send = send
        self._draining = draining
        self.status = 0
        self.bytes = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
            if self._draining or self.status in (400, 413):  # what is left of the body is not read
                headers["connection"] = "close"
        self.bytes += len(message.get("body", b""))
        await self._send(message)

    async def instead(self, error: FurnclipError, scope: Scope, receive: Receive) -> None:
        """Tell the error, unless an answer has begun already."""
        if not self.status:
            await told(error)(scope, receive, self)


def _given_token(authorization: str) -> bytes:
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return value.strip().encode() if kind.lower() == "bearer" else b""
