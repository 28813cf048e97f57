"""A machine with nothing but `furnclip.toml` trains, embeds and measures from the shards in a bucket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from furnclip.arena import ArenaApp
from furnclip.config import load_config
from furnclip.shards import ProductImages, read_manifest
from tests.conftest import invoke
from tests.drawn_shop import write_shop
from tests.forked import Forked
from tests.s3_server import CREDENTIALS, Fault, Proxy, create_bucket, fault_proxy, s3_server
from tests.service import serving
from tests.test_embed import add_run

SECRET = "not-for-any-message"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A bucket `shop` behind a proxy that counts."""
    for name, value in {**CREDENTIALS, "AWS_SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FURNCLIP_STORAGE__BUCKET", "shop")
    monkeypatch.setenv("FURNCLIP_EVAL__LATENCY_S", "0")
    with s3_server() as server, fault_proxy(server) as proxy:
        create_bucket(server, "shop")
        monkeypatch.setenv("FURNCLIP_STORAGE__ENDPOINT_URL", proxy.address)
        yield proxy


@pytest.fixture
def sender(proxy: Proxy, tmp_path: Path, tiny_clip: Path) -> Path:
    """The shop of the machine that prepares; its shards are in the bucket."""
    shop = write_shop(tmp_path / "sender", products=40, model=tiny_clip)
    toml = shop / "furnclip.toml"
    toml.write_text(toml.read_text().replace("[prepare]\n", "[prepare]\nshard_samples = 8\n"))
    furnclip(shop, "prepare", "--upload")
    return shop


@pytest.fixture
def receiver(sender: Path, tmp_path: Path) -> Path:
    """Another machine: a folder with the settings alone."""
    other = tmp_path / "receiver"
    other.mkdir()
    shutil.copy(sender / "furnclip.toml", other)
    return other


def furnclip(shop: Path, *words: str, code: int = 0) -> str:
    done = invoke(*words, "--json", "--config", shop / "furnclip.toml")
    assert done.exit_code == code, done.output
    assert SECRET not in done.output
    return done.output


TRAIN = ("train", "--scenario", "linear_probe", "--epochs", "1")


def tars(proxy: Proxy) -> Counter[str]:
    return Counter(key for key in proxy.keys("GET") if key.endswith(".tar"))


def test_each_shard_comes_once(proxy: Proxy, sender: Path, receiver: Path) -> None:
    proxy.log.clear()
    for words in (TRAIN, ("embed",), ("eval",), TRAIN, ("embed",), ("eval", "--force")):
        furnclip(receiver, *words)
    splits = read_manifest(sender / "work/shards").splits
    names = [shard.name for name in splits if name != "mini_train" for shard in splits[name].shards]
    assert len(names) >= 8
    assert tars(proxy) == Counter(f"furnclip/shards/{name}" for name in names)
    assert not (receiver / "work/shards").exists()
    assert not list((receiver / "work/cache/shards").glob("*.part"))
    furnclip(sender, *TRAIN)
    furnclip(sender, "embed")
    mine, theirs = (shop / "work/embeddings/master_vectors.parquet" for shop in (receiver, sender))
    assert mine.read_bytes() == theirs.read_bytes()


def test_a_change_in_the_bucket_is_noticed_and_comes_alone(
    proxy: Proxy, sender: Path, receiver: Path, tmp_path: Path
) -> None:
    furnclip(receiver, "embed")
    lines = (sender / "products.csv").read_text().splitlines()
    lines[1] = lines[1].replace(lines[1].split(",")[1], "a changed chair")
    (sender / "products.csv").write_text("\n".join(lines) + "\n")
    proxy.faults.append(Fault("status", "PUT", r"manifest\.json", status=403, code="AccessDenied"))
    furnclip(sender, "prepare", "--upload", code=1)  # shards are new, the manifest is not
    shutil.copytree(receiver, tmp_path / "new", ignore=shutil.ignore_patterns("work"))
    assert "is not what was uploaded" in furnclip(tmp_path / "new", "embed", code=1)
    proxy.faults.clear()
    furnclip(sender, "prepare", "--upload")
    proxy.log.clear()
    said = json.loads(furnclip(receiver, "embed").splitlines()[-1])
    assert (said["up_to_date"], len(tars(proxy))) == (False, 1)


def test_images_are_shown_from_the_bucket_one_by_one(
    proxy: Proxy, sender: Path, receiver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has the vectors and the table, but neither pictures nor shards."""
    add_run(receiver, "tuned", seed=1)
    furnclip(receiver, "embed")
    other = Path(shutil.copytree(receiver, tmp_path / "other", ignore=shutil.ignore_patterns("cache")))
    with serving(other) as service:
        status, jpeg, _ = service.ask("/images/P00005")
        assert (status, jpeg) == (200, ProductImages(sender / "work/shards").image_bytes("P00005"))
        assert service.ask("/images/none")[0] == 404
    words = ("search", "red chair", "-k", "5", "--preview")
    preview = Path(json.loads(furnclip(other, *words).splitlines()[-1])["preview"])
    shown = preview.read_bytes()
    with ArenaApp(load_config(other / "furnclip.toml"), rater="anna") as app:
        for card in app.lineup.cards:
            Image.open(card.image).verify()
    assert not list(other.glob("work/cache/shards/*.tar"))
    monkeypatch.setenv("FURNCLIP_STORAGE__ENDPOINT_URL", "http://127.0.0.1:9")
    answer = furnclip(other, *words)  # a bucket that cannot be reached takes the images, not the answer
    assert len(json.loads(answer.splitlines()[-1])["hits"]) == 5
    empty = preview.read_bytes()
    monkeypatch.setenv("FURNCLIP_STORAGE__BUCKET", "")
    furnclip(other, *words)
    assert preview.read_bytes() == empty != shown


def test_a_killed_download_goes_on(proxy: Proxy, receiver: Path) -> None:
    proxy.log.clear()
    proxy.faults.append(Fault("stall", path=r"train/.*\.tar", after=3, pause_s=60))
    with Path(os.devnull).open("wb") as silent:
        process = Forked(TRAIN, receiver, os.environ, silent, silent)
    while len(list((receiver / "work").glob("cache/shards/*.tar"))) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name for path in receiver.glob("work/cache/shards/*.tar")}
    proxy.faults.clear()
    proxy.log.clear()
    furnclip(receiver, *TRAIN)
    now = {path.name for path in receiver.glob("work/cache/shards/*.tar")}
    assert kept < now
    assert tars(proxy).total() == len(now - kept)
    assert not list(receiver.glob("work/cache/shards/.*"))


def test_what_is_wrong_is_told_with_what_to_do(proxy: Proxy, receiver: Path) -> None:
    proxy.faults.append(Fault("status", "GET", r"manifest\.json", status=404, code="NoSuchKey"))
    told = furnclip(receiver, *TRAIN, code=2)
    assert "`s3://shop/furnclip/shards/manifest.json` does not exist yet" in told
    assert "run `furnclip prepare --upload` first" in told
    proxy.faults[:] = [Fault("status", "GET", r"\.parquet", status=403, code="AccessDenied")]
    furnclip(receiver, "eval", code=1)
    proxy.faults[:] = [Fault("corrupt", "GET", r"\.tar")]
    assert "is not what was uploaded" in furnclip(receiver, "embed", code=1)
    (receiver / "work/shards").mkdir()  # `prepare` was killed here: what is in the bucket may be older
    assert "run `furnclip prepare` first" in furnclip(receiver, "eval", code=2)
