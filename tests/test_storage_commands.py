"""`prepare --upload` and `train --s3-bucket`: a second machine trains from what the first one sent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from furnclip import S3Manager
from tests.conftest import Cli
from tests.s3_server import CREDENTIALS, create_bucket, s3_server


def test_one_machine_prepares_and_another_trains(
    cli: Cli, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as server:
        monkeypatch.setenv("FURNCLIP_STORAGE__ENDPOINT_URL", server)
        create_bucket(server, "shop")
        cli("clean", "run", cwd=shop).ok()
        sent = cli("prepare", "--upload", "--s3-bucket", "shop", "--json", cwd=shop).ok().json["upload"]
        assert (sent["to"], sent["kept"]) == ("s3://shop/furnclip/shards", 0)
        again = cli("prepare", "--upload", "--s3-bucket", "shop", "--json", cwd=shop).ok().json["upload"]
        assert (again["sent"], again["kept"]) == (0, sent["sent"])

        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(shop / "furnclip.toml", other)
        flags = ("--scenario", "linear_probe", "--epochs", "1", "--s3_bucket", "shop", "--upload")
        card = cli("train", *flags, "--json", cwd=other).ok().json
        assert card["status"] == "finished"
        with S3Manager("shop", endpoint_url=server) as manager:
            check_run_in_bucket(manager, other / "work" / "runs" / card["run"], tmp_path / "run")


def check_run_in_bucket(manager: S3Manager, run: Path, back: Path) -> None:
    for name in ("model", "adapter", "checkpoints/last"):
        manager.download_checkpoint(f"furnclip/runs/{run.name}/{name}", back / name)
    for name in ("README.md", "metrics.jsonl", "run.json"):
        manager.download_checkpoint(f"furnclip/runs/{run.name}/{name}", back / name)
    for name in ("model/model.safetensors", "checkpoints/last/state.safetensors", "run.json"):
        assert (back / name).read_bytes() == (run / name).read_bytes()


def test_the_bucket_is_looked_at_before_the_work(cli: Cli, shop: Path) -> None:
    outcome = cli("prepare", "--upload", cwd=shop)
    assert outcome.code == 2
    assert outcome.stderr.startswith("error: no bucket is set\nhint: pass `--s3-bucket NAME`")
    assert not (shop / "work" / "shards").exists()
