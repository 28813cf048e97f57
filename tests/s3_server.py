"""A local S3 server as a process, and a proxy before it that breaks what it is told to break.

Both speak real HTTP on the loopback interface; boto3 does not know that it is being tested.
"""

from __future__ import annotations

import atexit
import hashlib
import http.client
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, cast

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server without buckets: one process, which serves one test after the other."""
    address = _moto_server()
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
    yield address


@cache
def _moto_server() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(lambda: (process.kill(), process.wait()))
    _wait_until_open(port)
    return f"http://127.0.0.1:{port}"


def _wait_until_open(port: int, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def create_bucket(server: str, name: str) -> None:
    """Make a bucket; the local server asks for no signature here."""
    request = urllib.request.Request(f"{server}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=60).close()


def make_bucket(server: str, word: str) -> str:
    """A bucket of its own for each word."""
    name = "b" + hashlib.md5(word.encode()).hexdigest()
    create_bucket(server, name)
    return name


@dataclass
class Fault:
    """Something to do to requests that match, `times` times, after letting `after` of them pass."""

    kind: str
    """`status`, `cut_request`, `cut_response`, `slow`, `stall`, `corrupt` or `before`"""
    method: str = "GET"
    """regular expression for the whole method"""
    path: str = ""
    """regular expression that the path with its query must contain"""
    times: int = 10**6
    after: int = 0
    status: int = 500
    code: str = "InternalError"
    message: str = "told to fail"
    body: str = ""
    """instead of the XML of an error"""
    header: str = ""
    """beginning of the name of a header that the request must have"""
    pause_s: float = 0.0
    action: Callable[[], object] = lambda: None
    hits: int = 0


@dataclass
class Proxy:
    """Hands requests on to a server, unless a fault applies; remembers what passed."""

    address: str
    upstream: str
    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def keys(self, method: str) -> list[str]:
        """The keys that requests of this method named, in order, without the bucket."""
        return [path.split("?")[0].split("/", 2)[-1] for seen, path in self.log if seen == method]

    def fault_for(self, method: str, path: str, headers: Iterable[str] = ()) -> Fault | None:
        with self.lock:
            self.log.append((method, path))
            for fault in self.faults:
                if not re.fullmatch(fault.method, method) or not re.search(fault.path, path):
                    continue
                if fault.header and not any(name.lower().startswith(fault.header) for name in headers):
                    continue
                fault.hits += 1
                if fault.after < fault.hits <= fault.after + fault.times:
                    return fault
        return None


@contextmanager
def fault_proxy(upstream: str, *faults: Fault) -> Iterator[Proxy]:
    """A proxy before the S3 server at `upstream`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}", upstream, list(faults))
    server.proxy = proxy  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        proxy: Proxy = cast(Any, self.server).proxy
        fault = proxy.fault_for(self.command, self.path, self.headers)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.kind == "cut_request":
            self.rfile.read(length // 2)
            self._hang_up()
            return
        body = self.rfile.read(length)
        if fault and fault.kind == "status":
            self._refuse(fault)
            return
        if fault and fault.kind == "stall":
            time.sleep(fault.pause_s)
        if fault and fault.kind == "before":
            fault.action()
        self._forward(proxy, body, fault)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def _forward(self, proxy: Proxy, body: bytes, fault: Fault | None) -> None:
        host = proxy.upstream.removeprefix("http://")
        path = self.path
        if path.startswith("http://"):  # asked as the proxy of a browser is; the bucket is in the host name
            name, _, rest = path.removeprefix("http://").partition("/")
            path = f"/{name.partition('.')[0]}/{rest}"
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in ("expect", "host")
        }
        # Closed whatever happens: a bucket that a test stops or kills does not answer.
        with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
            connection.request(self.command, path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header(
            "Content-Length",
            answer.headers.get("Content-Length") or str(len(content))
            if self.command == "HEAD"
            else str(len(content)),
        )
        self.end_headers()
        self._send_body(content, fault)

    def _send_body(self, content: bytes, fault: Fault | None) -> None:
        if self.command == "HEAD":
            return
        kind = fault.kind if fault else ""
        if kind == "corrupt":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if kind == "cut_response":
            self.wfile.write(content[: len(content) // 2])
            self._hang_up()
        elif kind == "slow":
            step = max(1, len(content) // 10)
            for start in range(0, len(content), step):
                self.wfile.write(content[start : start + step])
                time.sleep(fault.pause_s if fault else 0)
        else:
            self.wfile.write(content)

    def _refuse(self, fault: Fault) -> None:
        text = fault.body or f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
        body = b"" if self.command == "HEAD" or not fault.code else text.encode()
        self.send_response_only(fault.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client hung up: that is its right
            self.close_connection = True
