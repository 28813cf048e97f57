"""`furnclip train` where it adapts: memory, SigLIP, Weights & Biases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from furnclip.journal import read_journal
from furnclip.train import encoder
from furnclip.train.encoder import TowerEncoder
from tests.conftest import run_here
from tests.siglip import build_tiny_siglip
from tests.training import command, losses, run_train


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_missing_shards_are_told_before_a_base_is_loaded(tmp_path: Path) -> None:
    outcome = run_here("train", "--model", "shop.example/nowhere", cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "work/shards/manifest.json` does not exist yet" in outcome.stderr


def test_the_micro_batch_that_is_found_trains_as_if_it_had_been_given(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "free_bytes", lambda device: 8 * 2**20)  # as on a very small machine
    flags = ["train", "--effective-batch-size", "39", "--epochs", "1", "--json"]

    def card_of(*more: str) -> Any:
        return command(ready, *flags, *more).ok().json

    found = card_of("--run", "found", "--micro-batch-size", "0")["batch"]["micro"]
    assert found == 8  # a caption and a short query each
    assert card_of("--run", "given", "--micro-batch-size", "8")["batch"]["micro"] == 8
    assert card_of("--run", "found", "--micro-batch-size", "0")["already_done"]
    runs = ready / "work" / "runs"
    assert losses(runs / "found") == losses(runs / "given")
    assert weights(runs / "found") == weights(runs / "given")


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_train(ready, run="small", micro_batch_size=2, epochs=1)
    pooled = TowerEncoder._pooled

    def crowded(self: TowerEncoder, tower: Any, inputs: NDArray[np.uint8] | Tensor) -> Tensor:
        products = len(inputs) // 2 if tower == "text" else len(inputs)  # a caption and a short query each
        if self.clip.module.training and products > 3:
            torch.empty(2**60, dtype=torch.uint8)  # what torch's own allocator says when it is full
        return pooled(self, tower, inputs)

    monkeypatch.setattr(TowerEncoder, "_pooled", crowded)
    flags = ("--run", "large", "--micro-batch-size", "12", "--epochs", "1")
    outcome = command(ready, "train", *flags).ok()
    assert re.findall(r"micro-batches of (\d+) instead of (\d+)", outcome.stderr) == [("5", "10"), ("2", "5")]
    runs = ready / "work" / "runs"
    assert losses(runs / "large") == losses(runs / "small")
    assert weights(runs / "large") == weights(runs / "small")


def test_a_step_of_single_samples_that_does_not_fit_fails_as_memory(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TowerEncoder, tower: Any, inputs: Tensor) -> Tensor:
        if self.clip.module.training:
            raise torch.OutOfMemoryError("full")
        return torch.ones(len(inputs), 32)

    monkeypatch.setattr(TowerEncoder, "_pooled", full)
    with pytest.raises(torch.OutOfMemoryError):
        run_train(ready, run="full", epochs=1)


def test_a_siglip_trains_with_its_own_loss_and_no_other(ready: Path, tmp_path: Path) -> None:
    base = build_tiny_siglip(tmp_path / "siglip")
    flags = ["train", "--model", str(base), "--run", "siglip", "--micro-batch-size", "0", "--json"]
    refused = command(ready, *flags, "--loss", "softmax")
    assert refused.code == 2
    assert "the softmax loss does not fit a siglip base" in refused.stderr
    card = command(ready, *flags).ok().json
    assert card["parity"] >= 0.9999
    run = ready / "work" / "runs" / "siglip"
    assert card["base"]["name"] == str(base)
    steps = [event for event in read_journal(run / "metrics.jsonl") if event["event"] == "step"]
    assert {step["chance"] for step in steps} == {None}
    epoch = len(steps) // 3
    assert sum(step["loss"] for step in steps[-epoch:]) < sum(step["loss"] for step in steps[:epoch])
    state = load_file(run / "checkpoints" / "last" / "state.safetensors")
    trained = {name.removeprefix("weight/") for name in state if name.startswith("weight/")}
    assert {"logit_scale", "logit_bias", "text_model.head.weight", "text_model.head.bias"} <= trained


@pytest.mark.parametrize("artifacts", [False, True])
def test_wandb_gets_the_figures_and_the_model_offline(
    ready: Path, monkeypatch: pytest.MonkeyPatch, artifacts: bool
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_train(
        ready, scenario="linear_probe", epochs=1, wandb="offline", wandb_artifacts=artifacts, run="watched"
    )
    folder = ready / "work" / "runs" / "watched"
    logged = b"".join(path.read_bytes() for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")))
    assert b"step/gradient_norm/projections" in logged
    assert (b"watched-model" in logged) == artifacts
    assert (b"model.safetensors" in logged) == artifacts


STRANGERS = {
    "address": "[default]\nbase_url = http://127.0.0.1:9\n",
    "look-alike": "[default]\nbase_url = https://api.wandb.ai.example.com\n",
    "proxy": "[default]\nentity = shop\nhttps_proxy = http://127.0.0.1:9\n",
    "another section": "[default]\nproject = p\n[more]\napi_key = stranger\n",
    "no settings": "just words\n",
    "twice": "[default]\nproject = a\nproject = b\n",
}


@pytest.mark.parametrize("case", STRANGERS)
def test_wandb_settings_of_a_strangers_folder_are_refused(
    case: str, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(ready)
    (ready / "wandb").mkdir()
    (ready / "wandb" / "settings").write_text(STRANGERS[case])
    outcome = command(ready, "train", "--scenario", "linear_probe", "--epochs", "1", "--wandb", "offline")
    assert outcome.code == 2
    assert "wandb/settings`" in outcome.stderr
    assert "hint: move" in outcome.stderr


def test_wandb_settings_that_wandb_itself_writes_are_taken(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(ready)
    (ready / "wandb").mkdir()
    settings = "[default]\nentity = shop\nproject = sofas\nbase_url = https://api.wandb.ai\n"
    (ready / "wandb" / "settings").write_text(settings)
    command(ready, "train", "--scenario", "linear_probe", "--epochs", "1", "--wandb", "offline").ok()
