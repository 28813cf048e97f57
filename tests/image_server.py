"""A local web server with images, in a thread or as a process, that misbehaves as the path says.

`/ok/7.jpg` is image 7. What comes first in the path decides what happens; see the methods. How often each
path was asked for is counted: `asked` in the thread; `/counts` says it over HTTP, with the time between the
first request and the last answer.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HTML = b"<!doctype html><title>login</title><p>please log in"


@lru_cache
def _photo(size_bytes: int) -> bytes:
    """A JPEG of about this size."""
    side_px = max(16, int((size_bytes / 0.71) ** 0.5))
    pixels = np.random.default_rng(0).integers(0, 255, (side_px, side_px, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def image(number: int | str, size_bytes: int = 2000) -> bytes:
    """Image `number`: the same pixels each, another comment."""
    comment = f"image {number}".encode()
    photo = _photo(size_bytes)
    return photo[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + photo[2:]


class ImageServer:
    """Listens on the loopback; `host` is how catalogues name it."""

    def __init__(
        self,
        *,
        size_bytes: int = 2000,
        latency_s: float = 0.0,
        folder: Path = Path(),
        host: str = "localhost",
    ) -> None:
        self.size_bytes, self.latency_s, self.folder, self.host = size_bytes, latency_s, folder, host
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.editions: Counter[str] = Counter()  # of `/tag/`: raise one to change an image
        self.open = self.most_open = 0  # requests
        self.first_s = self.last_s = 0.0

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while request := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = request.decode("latin-1").split("\r\n")
                headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
                self.open += 1
                self.most_open = max(self.open, self.most_open)
                try:
                    if not await self._answer(first.split(" ")[1], headers, writer):
                        break
                finally:
                    self.open -= 1
        writer.close()

    async def _answer(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        if path == "/counts":
            answer = {"asked": self.asked, "seconds": self.last_s - self.first_s}
            writer.write(_response(200, json.dumps(answer).encode()))
            return True
        self.asked[path] += 1
        self.first_s = self.first_s or time.monotonic()
        self.headers.append(headers)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        kind, _, rest = path.lstrip("/").partition("/")
        number = rest.partition(".")[0]
        async for piece in getattr(self, f"_{kind}", self._gone)(number, headers):
            if piece is None:  # a reset instead of an end
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return False
            writer.write(piece)
            await writer.drain()
        self.last_s = time.monotonic()
        return kind not in ("short", "endless")

    # --- what happens, by the first part of the path

    async def _ok(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(200, image(number, self.size_bytes))

    async def _shop(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(200, (self.folder / f"{number}.jpg").read_bytes())

    async def _same(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(200, image("same", self.size_bytes))

    async def _tag(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        tag = f'"{number}-{self.editions[number]}"'
        if headers.get("if-none-match") == tag:
            yield _response(304, b"", f"ETag: {tag}")
        else:
            yield _response(200, image(tag, self.size_bytes), f"ETag: {tag}")

    async def _plain(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(200, image(number, self.size_bytes), "Content-Type: text/html")

    async def _moved(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(302, b"over there", f"Location: ../ok/{number}.jpg")

    async def _stall(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        await asyncio.sleep(3600)
        yield None

    async def _drip(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        whole = _response(200, image(number, self.size_bytes))
        for place in range(len(whole)):
            yield whole[place : place + 1]
            await asyncio.sleep(0.2)

    async def _reset(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(200, image(number, self.size_bytes))[:700]
        yield None

    async def _short(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        content = image(number, self.size_bytes)
        yield _response(200, content, length=len(content) + 100)

    async def _cut(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        content = image(number, self.size_bytes)
        yield _response(200, content[: len(content) // 2])

    async def _html(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(200, HTML, "Content-Type: image/jpeg")

    async def _circle(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(301, b"", f"Location: /circle/{number}.jpg")

    async def _home(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(302, b"", f"Location: http://127.0.0.1:{self.port}/ok/{number}.jpg")

    async def _file(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(302, b"", "Location: file:///etc/passwd")

    async def _busy(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        if self.asked[f"/busy/{number}.jpg"] == 1:
            yield _response(429, b"", "Retry-After: 1")
        else:
            yield _response(200, image(number, self.size_bytes))

    async def _later(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(429, b"", "Retry-After: 86400")

    async def _broken(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(500, b"oops")

    async def _gone(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(404, b"there is nothing here")

    async def _huge(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield _response(200, image(number, self.size_bytes), length=10**10)

    async def _endless(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield b"HTTP/1.1 200 OK\r\n\r\n" + image(number, self.size_bytes)
        while True:
            yield bytes(1 << 16)

    async def _garbage(self, number: str, headers: dict[str, str]) -> AsyncIterator[bytes | None]:
        yield bytes(range(256)) * 4 + b"\r\n\r\n"


def _response(status: int, content: bytes, *headers: str, length: int | None = None) -> bytes:
    length = len(content) if length is None else length
    lines = [f"HTTP/1.1 {status} .", *headers, f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode() + content


async def secure_app(scope: Any, receive: Any, send: Any) -> None:
    """The images as an ASGI app; the HTTP version and the port of each request go into `$REQUESTS`."""
    if scope["type"] != "http":
        return
    with Path(os.environ["REQUESTS"]).open("a") as log:
        log.write(f"{scope['http_version']} {scope['client'][1]}\n")
    content = image(Path(scope["path"]).stem)
    await asyncio.sleep(0.05)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": content})


@contextmanager
def image_server(**settings: object) -> Iterator[ImageServer]:
    """A server in a thread."""
    server, loop = ImageServer(**settings), asyncio.new_event_loop()  # type: ignore[arg-type]
    listening = loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


async def _main(size_bytes: int, latency_s: float) -> None:
    server = ImageServer(size_bytes=size_bytes, latency_s=latency_s)
    listening = await server.start()
    print(server.port, flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2])))
