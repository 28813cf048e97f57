"""`furnclip fetch` against a local web server: what it brings and refuses, and what later commands find."""

from __future__ import annotations

import asyncio
import csv
import ipaddress
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pycurl
import pytest

from furnclip.config import FetchConfig
from furnclip.fetch.download import Downloader, Failure, is_public
from furnclip.sources import ShopImages
from tests.conftest import Cli, Outcome, run_here
from tests.image_server import ImageServer, image, image_server
from tests.s3_server import CREDENTIALS, create_bucket, s3_server

FULL = os.environ.get("FURNCLIP_FULL") == "1"
QUICK = {
    "FURNCLIP_FETCH__ALLOW_PRIVATE": "localhost",
    "FURNCLIP_FETCH__ATTEMPTS": "2",
    "FURNCLIP_FETCH__READ_TIMEOUT_S": "1",
    "FURNCLIP_FETCH__TOTAL_TIMEOUT_S": "3",
}


@pytest.fixture
def cli() -> Cli:
    return run_here


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as server:
        yield server


def write_catalogue(folder: Path, cells: Iterable[str]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "products.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("product_id", "title", "image"))
        rows.writerows((f"p{row}", f"Sofa {row}", cell) for row, cell in enumerate(cells, start=1))
    return folder


def fetched(shop: Path, *flags: str, env: Mapping[str, str] = QUICK) -> Outcome:
    return run_here("fetch", *flags, cwd=shop, env=env)


def failures(shop: Path) -> dict[str, str]:
    with (shop / "work/fetch/failed.csv").open(newline="") as file:
        return {row["address"]: row["reason"] for row in csv.DictReader(file)}


def files(shop: Path) -> Counter[bytes]:
    """The images that are there; hidden ones are still being written, or their process was killed."""
    paths = (path for path in (shop / "images").rglob("[!.]*") if path.is_file())
    return Counter(path.read_bytes() for path in paths)


GOOD = ("ok", "plain", "moved", "busy", "tag")
BAD = {
    "stall": "timeout",
    "drip": "timeout",
    "reset": "cut-off",
    "short": "cut-off",
    "garbage": "cut-off",
    "cut": "truncated",
    "html": "not-a-picture",
    "circle": "redirects",
    "home": "private-address",
    "file": "bad-address",
    "later": "http-429",
    "broken": "http-500",
    "gone": "http-404",
    "huge": "too-many-bytes",
    "endless": "too-many-bytes",
}


def test_a_hostile_server_gets_every_address_counted_once_with_its_reason(
    server: ImageServer, tmp_path: Path
) -> None:
    kinds = [*GOOD, *BAD] * 3
    addresses = [f"{server.address}/{kind}/{kind}-{place}.jpg" for place, kind in enumerate(kinds)]
    shop = write_catalogue(tmp_path / "shop", addresses)
    start = time.monotonic()
    found = fetched(shop, "--json").ok().json
    assert time.monotonic() - start < 60
    assert found["addresses"] == len(kinds) == found["fetched"] + sum(found["failed"].values())
    wanted = {address: BAD[kind] for address, kind in zip(addresses, kinds, strict=True) if kind in BAD}
    assert failures(shop) == wanted
    assert found["failed"] == dict(Counter(wanted.values()))
    assert not any(path.startswith("/ok/home") for path in server.asked)  # the redirect was not followed
    asked = server.asked.copy()
    assert fetched(shop, "--json").ok().json["kept"] == 3 * len(GOOD)
    assert all(server.asked[path] == asked[path] for path in asked if path.split("/")[1] in GOOD)


def test_what_is_there_is_not_asked_again_and_what_failed_is(server: ImageServer, tmp_path: Path) -> None:
    cells = [f"{server.address}/ok/1.jpg|{server.address}/ok/2.jpg", f"{server.address}/ok/1.jpg#zoom", ""]
    cells += [f"{server.address}/same/{number}.jpg" for number in (3, 4)]
    shop = write_catalogue(tmp_path / "shop", cells)
    first = fetched(shop, "--json").ok().json
    assert (first["addresses"], first["fetched"], first["failed"]) == (4, 4, {})
    assert set(server.asked.values()) == {1}
    assert files(shop) == Counter([image(1), image(2), image("same")])
    again = fetched(shop).ok()
    assert again.stdout.startswith("nothing to do: all 4 images are in ")
    assert set(server.asked.values()) == {1}
    next((shop / "images").rglob("*.jpg")).unlink()
    assert fetched(shop, "--json").ok().json["fetched"] in (1, 2)
    assert len(files(shop)) == 3


def test_a_refresh_gets_only_what_has_changed(server: ImageServer, tmp_path: Path) -> None:
    shop = write_catalogue(tmp_path / "shop", [f"{server.address}/tag/{number}.jpg" for number in range(3)])
    fetched(shop).ok()
    server.editions["1"] += 1
    found = fetched(shop, "--refresh", "--json").ok().json
    assert (found["changed"], found["unchanged"], found["fetched"]) == (1, 2, 0)
    assert files(shop) == Counter(image(tag) for tag in ('"0-0"', '"1-1"', '"2-0"'))
    assert fetched(shop, "--json").ok().json["kept"] == 3


def test_nothing_to_fetch_says_so(tmp_path: Path) -> None:
    shop = write_catalogue(tmp_path / "shop", ["a.jpg", "b.jpg"])
    assert "the catalogue names no web address" in fetched(shop).ok().stdout
    shop = write_catalogue(tmp_path / "other", ["", ""])
    outcome = fetched(shop)
    assert (outcome.code, outcome.stderr.splitlines()[0]) == (
        1,
        f"error: no row of `{shop / 'products.csv'}` names an image",
    )


def test_nothing_that_could_be_fetched_is_a_failure(server: ImageServer, tmp_path: Path) -> None:
    shop = write_catalogue(tmp_path / "shop", [f"{server.address}/ok/1.jpg"])
    outcome = fetched(shop, env={})
    assert outcome.code == 1
    assert "not one of 1 images could be fetched (1 private-address)" in outcome.stderr
    assert "hint: if the server is yours, name it in `fetch.allow_private`; " in outcome.stderr
    assert not server.asked


def test_a_server_that_is_not_there_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://localhost:{free.getsockname()[1]}"
    shop = write_catalogue(tmp_path / "shop", [f"{address}/{number}.jpg" for number in range(50)])
    outcome = fetched(shop, "--per-host", "2")
    assert outcome.code == 1
    reasons = Counter(failures(shop).values())
    assert reasons.total() == 50
    assert 4 <= reasons["unreachable"] <= 12
    assert reasons["host-down"] == 50 - reasons["unreachable"]


def test_one_server_is_not_asked_by_more_than_the_limit(server: ImageServer, tmp_path: Path) -> None:
    server.latency_s = 0.02
    shop = write_catalogue(tmp_path / "shop", [f"{server.address}/ok/{number}.jpg" for number in range(60)])
    fetched(shop, "--per-host", "3").ok()
    assert server.most_open == 3


def test_no_secret_of_an_address_is_written_down_or_printed(server: ImageServer, tmp_path: Path) -> None:
    secret, host = "s3cr3tsignature0123456789abcdef", server.address.removeprefix("http://")
    query = f"X-Amz-Signature={secret}&X-Amz-Credential={secret}&token={secret}"
    kinds = ("ok/1.jpg", "gone/2.jpg", "html/3.jpg")
    cells = [f"http://user:{secret}@{host}/{kind}?{query}" for kind in kinds]
    shop = write_catalogue(tmp_path / "shop", cells)
    outcome = fetched(shop).ok()
    texts = [path.read_text() for path in (shop / "work").rglob("*") if path.suffix in (".jsonl", ".csv")]
    assert len(texts) == 2
    assert secret not in "".join([outcome.stdout, outcome.stderr, *texts])
    assert any(secret in path for path in server.asked)
    assert all("authorization" in headers for headers in server.headers)
    check = run_here("prepare", "--check", cwd=shop)
    assert secret not in check.stdout + check.stderr


def test_the_setting_of_a_strange_folder_needs_permission(server: ImageServer, tmp_path: Path) -> None:
    shop = write_catalogue(tmp_path / "shop", [f"{server.address}/ok/1.jpg"])
    (shop / "furnclip.toml").write_text("[fetch]\nallow_private = true\n")
    outcome = fetched(shop, env={})
    assert outcome.code == 2
    assert "sets `fetch.allow_private` to `True`" in outcome.stderr
    assert fetched(shop, "--json", env={"FURNCLIP_FETCH__ALLOW_PRIVATE": "true"}).ok().json["fetched"] == 1


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.100.100.200", "192.0.0.192", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
        *("255.255.255.255", "198.18.0.1", "168.63.129.16", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1"),
        *("::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "fe80::1"),
        *("fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
        *("2001:0:53aa:64c::1", "2001:db8::1", "100::1"),
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "151.101.1.1", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"],
)
def test_addresses_of_the_internet_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Pinned(Downloader):
    """Asks no name server: `pins` are what `CURLOPT_RESOLVE` takes."""

    pins: Sequence[str] = ()

    def _new_request(self) -> pycurl.Curl:
        curl = super()._new_request()
        curl.setopt(pycurl.RESOLVE, list(self.pins))
        return curl


def download(address: str, *pins: str, **settings: Any) -> bytes:
    async def get() -> bytes:
        downloader = Pinned(FetchConfig(attempts=1, **settings))
        downloader.pins = pins
        try:
            found = await downloader.get(address, {})
        finally:
            await downloader.close()
        assert found
        return found.content

    return asyncio.run(get())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_every_way_to_write_an_inner_address_is_refused(server: ImageServer, host: str) -> None:
    with pytest.raises(Failure) as caught:
        download(f"http://{host}:{server.port}/ok/1.jpg")
    assert caught.value.reason in ("private-address", "bad-address")
    assert not server.asked


def test_the_address_that_is_connected_to_is_the_one_that_is_checked(server: ImageServer) -> None:
    name = f"shop.example:{server.port}"
    pinned = f"{name}:127.0.0.1"
    assert download(f"http://{name}/ok/1.jpg", pinned, allow_private=("127.0.0.1/32",)) == image(1)
    assert download(f"http://{name}/ok/1.jpg", pinned, allow_private=("shop.example",)) == image(1)
    assert server.headers[0]["host"] == name
    asked = server.asked.copy()
    for addresses in ("10.0.0.1", "127.0.0.1", "127.0.0.2,127.0.0.1"):  # the last but one listens
        with pytest.raises(Failure, match="inside your own network"):
            download(
                f"http://{name}/ok/1.jpg", f"{name}:{addresses}", allow_private=("127.0.0.2", "other.example")
            )
    assert server.asked == asked


def test_addresses_with_what_no_address_may_have_are_asked(server: ImageServer) -> None:
    for path in ("/ok/grüner stuhl.jpg", "/ok/gr%C3%BCner%20stuhl.jpg"):
        download(f"http://localhost:{server.port}{path}?größe=1&v=a b", allow_private=True)
    assert set(server.asked) == {"/ok/gr%C3%BCner%20stuhl.jpg?gr%C3%B6%C3%9Fe=1&v=a%20b"}


# --- TLS and HTTP/2


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    """The address of an HTTPS server, its certificate, and a file with a line a request."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    certificate, key, log = (tmp_path / name for name in ("server.pem", "server.key", "requests.txt"))
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    subprocess.run([*made, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        address = f"https://localhost:{listening.getsockname()[1]}"
        command = [sys.executable, "-m", "hypercorn", "tests.image_server:secure_app"]
        command += ["--certfile", str(certificate), "--keyfile", str(key), "--bind"]
        process = subprocess.Popen(
            [*command, f"fd://{listening.fileno()}"],
            pass_fds=[listening.fileno()],
            env={**os.environ, "REQUESTS": str(log)},
            stderr=subprocess.DEVNULL,
        )
        try:
            yield address, certificate, log
        finally:
            process.terminate()  # it ends its worker; killed it would leave it
            process.wait(timeout=30)


def test_http_2_is_spoken_over_one_connection_and_certificates_are_checked(
    secure: tuple[str, Path, Path], tmp_path: Path
) -> None:
    address, certificate, log = secure
    shop = write_catalogue(tmp_path / "shop", [f"{address}/ok/{number}.jpg" for number in range(30)])
    limits = {**QUICK, "FURNCLIP_FETCH__READ_TIMEOUT_S": "30", "FURNCLIP_FETCH__TOTAL_TIMEOUT_S": "60"}
    outcome = fetched(shop, env=limits)
    assert (outcome.code, set(failures(shop).values())) == (1, {"unreachable"})
    assert not log.exists()
    trusting = {**limits, "SSL_CERT_FILE": str(certificate)}
    assert fetched(shop, "--json", env=trusting).ok().json["fetched"] == 30
    assert files(shop) == Counter(image(number) for number in range(30))
    versions, ports = zip(*map(str.split, log.read_text().splitlines()), strict=True)
    assert (len(versions), set(versions), len(set(ports))) == (30, {"2"}, 1)


# --- killed at any moment


@pytest.mark.parametrize("times", [20 if FULL else 3])
def test_killed_at_any_moment_nothing_is_fetched_twice_or_lost(
    server: ImageServer, tmp_path: Path, times: int
) -> None:
    server.latency_s = 0.05
    names = [f"/ok/{number}.jpg" for number in range(100 * times)]
    shop = write_catalogue(tmp_path / "shop", [server.address + name for name in names])
    chance = random.Random(time.time_ns())
    for _ in range(times):
        before = Counter({path: server.asked[path] for path in kept_paths(shop)})
        process = subprocess.Popen(
            [sys.executable, "-m", "furnclip", "fetch", "--per-host", "4"],
            cwd=shop,
            env={**os.environ, **QUICK},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started, deadline = sum(server.asked.values()), time.monotonic() + 60
        while sum(server.asked.values()) == started and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = {path: (count, server.asked[path]) for path, count in before.items()}
        # of what was on the disk before this run, nothing was asked in it
        assert {path: counts for path, counts in again.items() if counts[0] != counts[1]} == {}
    assert fetched(shop, "--json").ok().json["failed"] == {}
    assert files(shop) == Counter(image(number) for number in range(100 * times))
    assert not [path for path in (shop / "images").rglob(".*") if path.is_file()]


def kept_paths(shop: Path) -> list[str]:
    """What the server calls the images that lie in the folder."""
    contents = files(shop)
    return [f"/ok/{number}.jpg" for number in range(2000) if contents[image(number)]]


def test_ctrl_c_ends_it_and_the_next_run_goes_on(server: ImageServer, tmp_path: Path) -> None:
    cells = [f"{server.address}/{'stall' if number == 5 else 'ok'}/{number}.jpg" for number in range(9)]
    shop = write_catalogue(tmp_path / "shop", cells)
    process = subprocess.Popen(
        [sys.executable, "-m", "furnclip", "fetch"],
        cwd=shop,
        env={**os.environ, **QUICK, "FURNCLIP_FETCH__READ_TIMEOUT_S": "60"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(files(shop)) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert (process.returncode, "error: interrupted" in messages) == (130, True)
    found = fetched(shop, "--json").ok().json
    assert (found["kept"], found["failed"]) == (8, {"timeout": 1})


# --- what comes after


def with_addresses(shop: Path, address: str) -> None:
    """Name the images of a drawn shop by web addresses."""
    text = (shop / "products.csv").read_text()
    with (shop / "products.csv").open(newline="") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    for name in names:
        text = text.replace(name, f"{address}/shop/{name}")
    (shop / "products.csv").write_text(text)


def test_the_next_commands_find_what_was_fetched(cli: Cli, shop: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(shop, plain)
    (shop / "images").rename(tmp_path / "web")
    with image_server(folder=tmp_path / "web") as server:
        with_addresses(shop, server.address)
        check = cli("prepare", "--check", "--json", cwd=shop)
        assert check.json["reasons"] == {"not-fetched": 12}
        assert "run `furnclip fetch`" in json.dumps(check.json)
        fetched(shop).ok()
    for folder in (plain, shop):
        cli("clean", "run", cwd=folder).ok()
        cli("prepare", cwd=folder).ok()
    squares = [sorted((folder / "work/shards").rglob("*.tar")) for folder in (plain, shop)]
    assert [path.name for path in squares[0]] == [path.name for path in squares[1]]
    summary = cli("embed", "--json", cwd=shop).ok().json
    assert summary["products"] == 12
    hits = cli("search", "sofa", "-k", "2", "--preview", "--json", cwd=shop).ok().json
    assert Path(hits["preview"]).is_file()


def test_a_bucket_gives_the_same_shards_as_a_folder(
    cli: Cli, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    other = tmp_path / "other"
    shutil.copytree(shop, other)
    with s3_server() as s3:
        monkeypatch.setenv("FURNCLIP_STORAGE__ENDPOINT_URL", s3)
        create_bucket(s3, "shop")
        from furnclip import S3Manager

        with S3Manager("shop", endpoint_url=s3) as manager:
            manager.upload_dataset(shop / "images", "pictures/of")
        shutil.rmtree(other / "images")
        monkeypatch.setenv("FURNCLIP_STORAGE__BUCKET", "another")  # of the shards, not of the images
        (other / "furnclip.toml").write_text(
            (shop / "furnclip.toml").read_text() + '\n[paths]\nimages = "s3://shop/pictures/of"\n'
        )
        for folder in (shop, other):
            text = (folder / "products.csv").read_text().replace(".jpg", ".JPG?v=1", 3)
            (folder / "products.csv").write_text(text)
            assert "3 image names are not quite those" in cli("clean", "run", cwd=folder).ok().stderr
            cli("prepare", cwd=folder).ok()
        assert shards(shop) == shards(other)
        cli("embed", cwd=other).ok()
        assert Path(cli("search", "sofa", "--preview", "--json", cwd=other).ok().json["preview"]).is_file()


def shards(folder: Path) -> dict[str, bytes]:
    paths = (folder / "work/shards").rglob("*")
    return {path.name: path.read_bytes() for path in paths if path.suffix in (".tar", ".json")}


def test_images_are_fetched_into_a_bucket(
    cli: Cli, server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    shop = write_catalogue(tmp_path / "shop", [f"{server.address}/tag/{number}.jpg" for number in range(5)])
    with s3_server() as s3:
        monkeypatch.setenv("FURNCLIP_STORAGE__ENDPOINT_URL", s3)
        monkeypatch.setenv("FURNCLIP_PATHS__IMAGES", "s3://shop/pictures")
        create_bucket(s3, "shop")
        assert fetched(shop, "--json").ok().json["fetched"] == 5
        assert fetched(shop, "--json").ok().json["kept"] == 5
        assert cli("prepare", "--check", "--json", cwd=shop).ok().json["usable"] == 5
        server.editions["3"] += 1
        assert fetched(shop, "--refresh", "--json").ok().json["changed"] == 1
        from furnclip import S3Manager

        with S3Manager("shop", endpoint_url=s3) as manager:
            assert len(manager.listing("pictures")) == 5


def test_images_of_a_catalogue_are_found_by_address(tmp_path: Path, server: ImageServer) -> None:
    from furnclip.config import load_config

    address = f"{server.address}/ok/1.jpg"
    shop = write_catalogue(tmp_path / "shop", [address])
    (shop / "furnclip.toml").write_text("")
    fetched(shop).ok()
    [found] = ShopImages(load_config(shop / "furnclip.toml")).find([f" {address}#1".strip()])
    assert found.read() == image(1)
