"""`furnclip serve`: the search as a REST service and as a page, and blind judging beside them.

It asks a `Searcher` and reads the shards; it writes nothing but, where that is wished, the log of queries.
Here: from a socket to the end of the last request.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from furnclip import console
from furnclip.config import Config
from furnclip.errors import UsageError
from furnclip.search.service.app import Api, Service, build
from furnclip.search.service.guard import Guard, is_local
from furnclip.search.service.page import Contest, Pages, contest_routes, page_routes

_SHORTEST_TOKEN = 16
_DRAIN_S = 1.0  # in which clients that keep connections are told, and load balancers ask `/ready`
_BACKLOG = 2048
_LOOK_S = 0.5  # between looks for connections on which nothing is asked


def serve(
    config: Config,
    *,
    run: str | None = None,
    model: str | None = None,
    token: str = "",
    contest: Contest | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was accepted and return.

    `started` is called with the address as soon as it can be asked. Raises `UsageError` for an address that
    needs a `token`, or cannot be listened to.
    """
    host = config.serve.host
    is_plain = token.isascii() and token.isprintable() and " " not in token
    if token and (len(token) < _SHORTEST_TOKEN or not is_plain):
        hint = "make one with `openssl rand -hex 24`"
        raise UsageError(f"the token is not {_SHORTEST_TOKEN} or more letters and digits", hint=hint)
    if not token and not is_local(host):
        hint = "give one with `--token-file`, or leave `--host` out"
        raise UsageError(f"whoever reaches `{host}` could ask, so that needs a token", hint=hint)
    with _bound(host, config.serve.port) as listening:
        service, pages = Service(config, run=run, model=model, blind=contest is not None), Pages()
        routes = [*page_routes(service, pages), *Api(service).routes()]
        if contest:
            routes += contest_routes(service, pages, contest)
        guard, _ = build(service, routes, token=token)
        port = listening.getsockname()[1]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _Server(guard, lambda: started(address), config.serve.timeout_s).run([listening])


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        return listening
    except OSError as error:
        raise UsageError(
            f"cannot listen at `{host}` port {port}: {(error.strerror or str(error)).lower()}",
            hint="choose another `--port` or `--host`",
        ) from None


class _Server(uvicorn.Server):
    """uvicorn, with our way to stop: first connections are no longer kept, then none is taken.

    And it hangs up where no whole request came for `timeout_s`.
    """

    def __init__(self, guard: Guard, started: Callable[[], None], timeout_s: float) -> None:
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(guard, lifespan="on", backlog=_BACKLOG, **quiet))
        self._guard, self._started, self._timeout_s = guard, started, timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        tasks = [loop.create_task(work) for work in (self._drain(stop), self._hang_up())]

        def end() -> None:
            self.force_exit = stop.is_set()  # the second time: at once
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        yield
        for task in tasks:
            task.cancel()

    async def _drain(self, stop: asyncio.Event) -> None:
        await stop.wait()
        console.note("stopping: answering what was asked")
        self._guard.draining = True
        await asyncio.sleep(_DRAIN_S)
        self.should_exit = True

    async def _hang_up(self) -> None:
        """uvicorn waits for ever for the end of a request's headers, and the guard begins only there."""
        waiting: dict[tuple[Any, Any], float] = {}  # connection and its last request -> since when
        while True:
            await asyncio.sleep(_LOOK_S)
            now, connections = time.monotonic(), list(self.server_state.connections)
            requests: list[tuple[Any, Any]] = [(each, getattr(each, "cycle", None)) for each in connections]
            idle = [pair for pair in requests if pair[1] is None or pair[1].response_complete]
            waiting = {pair: waiting.get(pair, now) for pair in idle}
            for (connection, _), since in waiting.items():
                if now - since > self._timeout_s:
                    connection.transport.close()
