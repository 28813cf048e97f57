"""The service through HTTP: answers, limits, attempts that must fail, a new table under load, its end."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from furnclip import Searcher
from furnclip.config import load_config
from furnclip.relevance import read_queries
from tests.conftest import run_cli
from tests.service import FRACTIONS, Service, answer_of, form, make_shop, replace_table, serving
from tests.training import command

FULL = bool(os.environ.get("FURNCLIP_FULL"))
TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return make_shop(tmp_path_factory.mktemp("serve") / "shop", tiny_clip)


@pytest.fixture(scope="module")
def service(shop: Path) -> Iterator[Service]:
    with serving(shop, "--query-log", reload_s="0.3") as running:
        yield running


@pytest.fixture(scope="module")
def guarded(shop: Path) -> Iterator[Service]:
    """A service with a token and tight limits."""
    limits = {"concurrency": "2", "timeout_s": "1.5", "max_body_mb": "0.05"}
    with serving(shop, "--token", TOKEN, **limits) as running:
        yield running


def photo(shop: Path, number: int = 5) -> bytes:
    return (shop / f"images/{number:05d}.jpg").read_bytes()


def test_hits_are_those_of_a_searcher(service: Service, shop: Path) -> None:
    searcher = Searcher(load_config(shop / "furnclip.toml"))
    asked = {"q": "red chair", "k": 4, "where": "color <> 'blue'", "not": "velvet", "mode": "vector"}
    status, said, _ = service.ask("/search?" + urlencode(asked))
    assert status == 200
    expected = searcher.search("red chair", k=4, where="color <> 'blue'", exclude=["velvet"], mode="vector")
    assert said["hits"] == json.loads(json.dumps([hit.as_dict() for hit in expected]))
    assert said["model"] == searcher.clip.name
    body, headers = form({"q": "chair", "k": "3", "mode": "vector"}, photo(shop))
    status, said, _ = service.ask("/search", method="POST", body=body, headers=headers)
    assert status == 200
    with Image.open(io.BytesIO(photo(shop))) as image:
        wanted = [hit.product_id for hit in searcher.search("chair", image=image, k=3, mode="vector")]
    assert [hit["product_id"] for hit in said["hits"]] == wanted
    product_id = said["hits"][0]["product_id"]
    assert service.ask(f"/products/{product_id}")[1]["product_id"] == product_id
    _, similar, _ = service.ask(f"/products/{product_id}/similar?k=3")
    wanted = [hit.product_id for hit in searcher.similar(product_id, 3)]
    assert [hit["product_id"] for hit in similar["hits"]] == wanted
    counts = service.ask("/facets?columns=color")[1]["facets"]
    assert counts == {"color": searcher.facets(["color"])["color"]}


def test_the_page_finds_what_the_service_finds(service: Service, shop: Path) -> None:
    """By an image without a word of ours, by facets alone without a remark about one."""
    body, headers = form({"k": "24"}, photo(shop))
    said = service.ask("/search", method="POST", body=body, headers=headers)[1]
    sent = service.ask("/", method="POST", body=body, headers=headers)[2]
    page = service.ask(sent["location"])[1].decode()
    assert re.findall(r"like=(P\d+)", page)[:3] == [hit["product_id"] for hit in said["hits"]][:3]
    for shown in (page, service.ask("/?price=1-")[1].decode(), service.ask("/?color=red")[1].decode()):
        assert 'class="card"' in shown
        assert 'class="note"' not in shown


def test_images_come_from_the_shards_and_once(service: Service) -> None:
    status, jpeg, headers = service.ask("/images/P00005")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.size == (224, 224)
    assert service.ask("/images/P00005", headers={"If-None-Match": headers["etag"]})[0] == 304


def test_images_are_those_of_the_newest_shards(shop: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shop, tmp_path / "shop"))
    with serving(copy) as service:
        before = service.ask("/images/P00005")[1]
        shutil.copy(copy / "images/00006.jpg", copy / "images/00005.jpg")
        run_cli("prepare", cwd=copy, env=FRACTIONS).ok()
        status, after, _ = service.ask("/images/P00005")
        assert status == 200
        assert before != after == service.ask("/images/P00006")[1]


def test_states_metrics_and_documentation(service: Service) -> None:
    assert service.ask("/health")[1] == {"status": "ok"}
    assert service.ask("/ready")[1]["status"] == "ready"
    service.ask("/search?q=lamp")
    metrics = service.ask("/metrics")[1].decode()
    assert re.search(r'furnclip_requests_total\{route="search",status="200"\} [1-9]', metrics)
    assert "furnclip_products 24.0" in metrics
    described = service.ask("/openapi.json")[1]
    assert described["openapi"].startswith("3.")
    status, page, headers = service.ask("/docs")
    assert status == 200
    for path in described["paths"]:
        assert path in page.decode()
    assert not re.search(rb'(src|href)="(https?:)?//', page)
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/search", 400, "nothing to search for"),
        ("/search?q=a&k=0", 400, "`k` cannot be `0`"),
        ("/search?q=a&k=1000", 400, "at most 100"),
        ("/search?q=a&k=1&k=2", 400, "given twice"),
        ("/search?q=a&mode=magic", 400, "`mode` cannot be `magic`"),
        ("/search?q=a&wher=b", 400, "did you mean `where`"),
        ("/search?q=" + "a" * 501, 400, "501 characters"),
        ("/search?q=a&sort=nope", 400, "nope"),
        ("/facets?columns=nope", 400, "nope"),
        ("/products/nope", 404, "no product `nope`"),
        ("/products/nope/similar", 404, "no product `nope`"),
        ("/nowhere", 404, "see /docs"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_two_parts(
    service: Service, path: str, status: int, words: str
) -> None:
    found, said, _ = service.ask(path)
    assert (found, set(said)) == (status, {"error", "hint"})
    assert words in f"{said['error']} {said['hint']}"


def test_the_words_are_those_of_the_command(service: Service, shop: Path) -> None:
    where = "colour = 'red'"
    _, said, _ = service.ask("/search?" + urlencode({"q": "a", "where": where}))
    done = command(shop, "search", "a", "--where", where)
    assert f"error: {said['error']}\nhint: {said['hint']}\n" in done.stderr


@pytest.mark.parametrize(
    "where",
    [
        "1 = 1; DROP TABLE products",
        "color = 'x' OR read_text('/etc/passwd') <> ''",
        "color IN (SELECT product_id FROM products)",
        "EXISTS (SELECT 1)",
        "color = (SELECT '/etc/passwd')",
        "color = 'x' UNION SELECT * FROM '/etc/passwd'",
        "vec_clip_base IS NOT NULL",
        "details LIKE '%a%'",
        "regexp_like(title, '(a+)+$')",
        "repeat(title, 1000000000) = 'a'",
        "color = 'a' OR " * 600 + "color = 'b'",
        "(" * 100 + "color = 'a'" + ")" * 100,
        "title LIKE '" + "%a" * 2000 + "'",
        "color = 'red' --",
        "color = ?",
    ],
)
def test_a_filter_reads_columns_and_nothing_else(service: Service, where: str) -> None:
    start = time.monotonic()
    status, said, _ = service.ask("/search?" + urlencode({"q": "chair", "where": where}))
    assert status == 400, said
    assert set(said) == {"error", "hint"}
    assert time.monotonic() - start < 5


def test_a_quoted_value_stays_a_value(service: Service) -> None:
    path = "/?" + urlencode({"q": "chair", "color": "red' OR color <> '"})
    status, page, _ = service.ask(path)
    assert status == 200
    assert b"Nothing matches" in page


def test_no_file_but_images_of_products(service: Service, shop: Path) -> None:
    secret = shop / "furnclip.toml"
    (shop / "images" / "link.jpg").symlink_to(secret)
    names = ["../furnclip.toml", "..%2Ffurnclip.toml", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "link.jpg"]
    names += [quote(str(secret), safe=""), "00005.jpg", "P00005%00", "..%5c..%5cfurnclip.toml"]
    names += ["%252e%252e%252ffurnclip.toml", "..%ef%bc%8ffurnclip.toml", "..%c0%affurnclip.toml"]
    names += ["....//furnclip.toml", "file:///etc/passwd", "P00005/../../../furnclip.toml", "%00"]
    for folder in ("/images/", "/static/", "/uploads/", "/products/", "/"):
        for name in names:
            status, said, _ = service.ask(folder + name)
            assert status in (400, 404), folder + name
            assert b"[model]" not in (said if isinstance(said, bytes) else json.dumps(said).encode())


def bomb() -> bytes:
    """A PNG of 400 million pixels in some hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("image", "words"), [(bomb(), "pixels"), (b"no image", "not an image"), (b"", "no image")]
)
def test_images_that_are_none(service: Service, image: bytes, words: str) -> None:
    for address in ("/search", "/"):
        body, headers = form({}, image)
        status, said, _ = service.ask(address, method="POST", body=body, headers=headers)
        assert status == 400
        assert words in (said["error"] if isinstance(said, dict) else said.decode())


def raw(service: Service, *pieces: bytes) -> tuple[int, bytes]:
    """Status and body for bytes that are sent as they are, until the service hangs up."""
    where = urlsplit(service.address)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            assert len(pieces) > 1
        response = HTTPResponse(connection)
        try:
            response.begin()
        except ConnectionError:  # what was not read any more
            return 413, b""
        return response.status, response.read()


def test_a_body_of_two_gigabytes_is_refused_at_once(service: Service) -> None:
    head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    assert raw(service, head + b"Content-Length: 2147483648\r\n\r\n")[0] == 413
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    begun = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(part) + part + b"\r\n"
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    assert raw(service, begun, *[chunk] * 40)[0] == 413


HEAD = "GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 5\r\nContent-Length: 61\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 5, 61\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\r\n folded\r\nHost: evil.example\r\n",
        f"X: {'a' * 100_000}\r\n",
    ],
)
def test_no_request_hides_in_another(service: Service, headers: str) -> None:
    hidden = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    where = urlsplit(service.address)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as connection:
        connection.sendall(f"{HEAD}{headers}\r\n0\r\n\r\n{hidden}".encode())
        connection.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                said += part
    assert b"furnclip_requests" not in said, said
    assert service.ask("/health")[0] == 200


def test_whoever_sends_a_request_slowly_is_hung_up_on(guarded: Service) -> None:
    where = urlsplit(guarded.address)
    start = time.monotonic()
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as connection:
        connection.settimeout(0.3)
        said = None
        while said is None and time.monotonic() - start < 15:
            with contextlib.suppress(TimeoutError):
                try:
                    connection.sendall(b"X")
                    said = connection.recv(100)
                except (ConnectionResetError, BrokenPipeError):  # it hung up just before
                    said = b""
    assert said == b""
    assert time.monotonic() - start > 1


@pytest.mark.parametrize(
    "path",
    [
        "/search?q=a&k=nan",
        "/search?q=a&k=1e999",
        "/search?q=a&k=99999999999999999999",
        "/search?" + "&".join(f"not={number}" for number in range(5000)),
        "/search?" + "&".join(f"p{number}=1" for number in range(5000)),
        "/?price=" + "9" * 400 + "-",
        "/products/a%0d%0aSet-Cookie:%20a=b",
        "/?like=a%0d%0aSet-Cookie:%20a=b",
        "/images/%0d%0aX-Ours:%201",
    ],
)
def test_odd_values_are_refused(service: Service, path: str) -> None:
    status, _, headers = service.ask(path)
    assert status in (400, 404)
    assert not headers.keys() & {"set-cookie", "x-ours"}


def test_an_image_is_kept_as_pixels_alone(service: Service, shop: Path) -> None:
    """What else was in the file, a page or a script, is never sent back; parts of it are not either."""
    kept = []
    for image in (photo(shop), b"GIF89a" + photo(shop)[6:]):
        body, headers = form({}, image + b"<html><script>alert(1)</script>")
        status, _, headers = service.ask("/", method="POST", body=body, headers=headers)
        kept += [headers["location"].removeprefix("/?image=")] if status == 303 else []
    assert len(kept) == 1
    status, jpeg, headers = service.ask(f"/uploads/{kept[0]}", headers={"Range": "bytes=0-1,1-2"})
    assert (status, headers["content-type"], headers["x-content-type-options"]) == (
        200,
        "image/jpeg",
        "nosniff",
    )
    assert b"<script>" not in jpeg
    assert service.ask("/static/page.css", headers={"Range": "bytes=" + "0-1," * 5000})[0] < 500


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:80", "a b"]
)
def test_other_names_are_refused(service: Service, host: str) -> None:
    status, said = raw(service, f"GET /search?q=a HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert status in (400, 421)
    assert b"hits" not in said


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
)
def test_posts_of_other_sites_are_refused(service: Service, shop: Path, headers: dict[str, str]) -> None:
    for address in ("/", "/search", "/arena"):
        body, kind = form({}, photo(shop))
        status, said, _ = service.ask(address, method="POST", body=body, headers={**kind, **headers})
        assert (status, set(said)) == (403, {"error", "hint"})


def test_titles_cannot_write_html(service: Service) -> None:
    page = service.ask("/?" + urlencode({"q": "chair <b>bold</b>", "like": "P00003"}))[1].decode()
    assert "<script>document" not in page
    assert 'onerror="' not in page
    assert "<b>bold" not in page
    assert "&lt;script&gt;" in page


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


def test_the_token(guarded: Service, shop: Path) -> None:
    status, said, headers = guarded.ask("/metrics")
    assert (status, set(said)) == (401, {"error", "hint"})
    assert headers["www-authenticate"].startswith("Basic")
    assert "***" not in said["hint"]
    for wrong in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ü"):
        for header in (f"Bearer {wrong}", basic(wrong), wrong):
            value = header.encode().decode("latin-1")
            assert guarded.ask("/search?q=a", headers={"Authorization": value})[0] == 401, header
    for header in (f"Bearer {TOKEN}", basic(TOKEN)):
        assert guarded.ask("/search?q=a", headers={"Authorization": header})[0] == 200
    assert guarded.ask("/health")[0] == 200
    command = Path(f"/proc/{guarded.process.pid}/cmdline")
    if command.exists():
        assert TOKEN.encode() not in command.read_bytes()
    assert TOKEN not in "".join(guarded.log)


def test_others_need_a_token(shop: Path, tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.touch()
    for flags, words in (
        (("--host", "0.0.0.0"), "needs a token"),
        (("--host", "0.0.0.0", "--token", "short"), "16 or more"),
        (("--token-file", str(empty)), "is empty"),
        (("--token-file", str(tmp_path / "none")), "cannot be read"),
        (("--host", "no such host", "--token", TOKEN), "cannot listen"),
    ):
        done = command(shop, "serve", *flags)
        assert done.code in (1, 2), flags
        assert words in done.stderr


def test_more_at_a_time_than_allowed_and_too_slow(guarded: Service) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: guarded.ask(f"/search?q=chair+{n}", headers=headers), range(48)))
    assert {status for status, _, _ in found} <= {200, 503}
    busy = [(said, headers) for status, said, headers in found if status == 503]
    assert busy
    assert all(set(said) == {"error", "hint"} and "retry-after" in headers for said, headers in busy)
    head = f"POST /search HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9\r\n\r\n"
    status, said = raw(guarded, head.encode())
    assert status == 503
    assert b"took more than 1.5 s" in said


def test_the_query_log_is_read_by_the_arena(service: Service, shop: Path) -> None:
    service.ask("/search?" + urlencode({"q": "  a green velvet lamp ", "where": "color = 'green'"}))
    lines = [json.loads(line) for line in (shop / "work/serve/queries.jsonl").read_text().splitlines()]
    assert lines[-1]["query"] == "a green velvet lamp"
    assert set(lines[-1]) == {"at", "query", "mode", "where", "hits", "ms"}
    assert "127.0.0.1" not in (shop / "work/serve/queries.jsonl").read_text()
    assert "a green velvet lamp" in read_queries(shop / "work/serve/queries.jsonl")
    log = [json.loads(line) for line in service.log if line.startswith("{")]
    assert log
    assert not any("velvet" in json.dumps(line) for line in log)


class Crowd:
    """Clients that ask without a pause over connections they keep; what went wrong and what was said."""

    def __init__(self, service: Service, clients: int = 8) -> None:
        self._service = service
        self._over = threading.Event()
        self.failed: list[str] = []
        self.answers: list[tuple[int, Any]] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{len(self.answers)} answers"
            time.sleep(0.02)

    def wait_for_table(self, mark: str) -> None:
        self.wait_for(lambda: any(said["table"].startswith(mark) for _, said in self.answers[-8:]))

    def _ask(self, number: int) -> None:
        connection = self._service.connect()
        while not self._over.is_set():
            try:
                connection.connect() if connection.sock is None else None
            except OSError:
                break  # nobody listens any longer: this request was never taken
            try:
                connection.request("GET", f"/search?q=a+red+chair+{number}&k=24")
                status, said, _ = answer_of(connection)
                self.answers.append((status, said))
            except (OSError, HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()
        connection.close()


def test_a_new_table_under_load(tiny_clip: Path, tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "shop", tiny_clip)
    replace_table(shop, "first")
    with serving(shop, reload_s="0.2") as service, Crowd(service) as crowd:
        for mark in ("second", "third"):
            replace_table(shop, mark)
            crowd.wait_for(
                lambda mark=mark: crowd.answers[-1:] and crowd.answers[-1][1]["table"].startswith(mark)
            )  # type: ignore[misc]
        enough = len(crowd.answers) + (10_000 if FULL else 50)
        crowd.wait_for(lambda: len(crowd.answers) >= enough, seconds=900)
    assert crowd.failed == []
    assert {status for status, _ in crowd.answers} == {200}
    for _, said in crowd.answers:
        mark = said["table"].split("-")[0]
        assert len(said["hits"]) == len({hit["product_id"] for hit in said["hits"]}) > 3
        assert all(hit["title"].startswith(mark) for hit in said["hits"])
    assert {said["table"].split("-")[0] for _, said in crowd.answers} == {"first", "second", "third"}
    assert service.process.returncode is not None


def test_sigterm_under_load_answers_what_was_taken(shop: Path) -> None:
    with serving(shop) as service:
        with Crowd(service) as crowd:
            crowd.wait_for(lambda: len(crowd.answers) > 20)
            assert service.stop() == 0
        # A request on a kept connection can arrive just when the server closes it: it was never taken.
        assert [error for error in crowd.failed if "Connection" not in error] == []
        assert {status for status, _ in crowd.answers} == {200}
    answered = [line for line in service.log if line.startswith("{") and "/search" in line]
    assert len(answered) == len(crowd.answers)
    assert not any("Traceback" in line for line in service.log)


texts = st.text(max_size=40) | st.sampled_from(
    ["", "a'b", "%", "\x00", "0", "-1", "1e999", "null", "red chair"]
)


@st.composite
def requests(draw: st.DrawFn, described: dict[str, Any]) -> tuple[str, str, bytes, dict[str, str]]:
    """A request about one address of the description, rarely a good one."""
    path = draw(st.sampled_from(sorted(described["paths"])))
    method = draw(st.sampled_from(sorted(described["paths"][path])))
    operation = described["paths"][path][method]
    names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
    known = st.sampled_from(names) if names else texts
    given_pairs = draw(st.lists(st.tuples(known | texts, texts), max_size=4))
    target = path.replace("{product_id}", quote(draw(texts | st.just("P00005")), safe=""))
    target += "?" + urlencode(given_pairs) if given_pairs else ""
    if method == "get":
        return "GET", target, b"", {}
    fields = draw(st.dictionaries(known | st.sampled_from(["q", "k", "where"]), texts, max_size=3))
    simple = {name: value.replace("\r", "").replace("\n", "") for name, value in fields.items()}
    body, headers = form(simple, draw(st.none() | st.binary(max_size=200)))
    cut = draw(st.integers(0, len(body)))
    return "POST", target, draw(st.sampled_from([body, body[:cut], draw(st.binary(max_size=60))])), headers


def test_malformed_requests_are_never_a_fault(service: Service) -> None:
    described = service.ask("/openapi.json")[1]

    @settings(
        max_examples=1000 if FULL else 60,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(described))
    def attempt(request: tuple[str, str, bytes, dict[str, str]]) -> None:
        method, target, body, headers = request
        status, said, _ = service.ask(target, method=method, body=body, headers=headers)
        assert status < 500, (request, said)
        if status >= 400:
            assert set(said) == {"error", "hint"}, request

    attempt()
    assert not any("Traceback" in line for line in service.log)
    assert service.ask("/ready")[0] == 200
