"""Each image is read once, by `prepare`, counted at the bucket that holds it; all others read the shards."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import boto3
import pytest

from tests.conftest import invoke
from tests.drawn_shop import write_shop
from tests.prepare_shop import draw
from tests.s3_server import CREDENTIALS, create_bucket, fault_proxy, s3_server

PRODUCTS = 2000 if os.environ.get("FURNCLIP_FULL") == "1" else 48


def test_each_image_is_read_once(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    shop = write_shop(tmp_path / "shop", products=PRODUCTS, model=tiny_clip)
    with s3_server() as server, fault_proxy(server) as proxy:
        create_bucket(server, "shop")
        bucket = boto3.client("s3", endpoint_url=server)
        for number, image in enumerate(sorted((shop / "images").iterdir())):
            draw(image, number)
            bucket.put_object(Bucket="shop", Key=f"images/{image.name}", Body=image.read_bytes())
            image.unlink()
        monkeypatch.setenv("FURNCLIP_STORAGE__ENDPOINT_URL", proxy.address)
        monkeypatch.setenv("FURNCLIP_PATHS__IMAGES", "s3://shop/images")
        monkeypatch.setenv("FURNCLIP_EVAL__LATENCY_S", "0")
        for words in (
            ("prepare",),
            ("train", "--scenario", "linear_probe", "--epochs", "1"),
            ("embed",),
            ("eval",),
            ("prepare",),
        ):
            done = invoke(*words, "--json", "--config", shop / "furnclip.toml")
            assert done.exit_code == 0, done.output
        reads = Counter(key for key in proxy.keys("GET") if key.endswith(".jpg"))
    assert len(reads) == PRODUCTS
    assert set(reads.values()) == {1}
