"""`furnclip train` through its command: scenarios, runs, kills, ranks, mistakes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from furnclip.config import ModelConfig, TrainingConfig
from furnclip.errors import ConfigError, InputError, ModelError
from furnclip.journal import read_journal
from furnclip.model.clip import quiet
from furnclip.model.loading import load_clip, load_float32
from furnclip.runs import latest_run
from furnclip.train import verdict
from furnclip.train.records import Position
from furnclip.train.scenarios import SCENARIOS, unfreeze
from tests.conftest import Cli
from tests.forked import run_ranks
from tests.training import command, loop_of, losses, run_train, start_train, wait_for_events, weights_of

CPU = ModelConfig(device="cpu", precision="fp32")
KILLS = 20 if os.environ.get("FURNCLIP_FULL") else 2

EXPECTED = {
    "zero_shot": set(),
    "linear_probe": {"projections"},
    "dual_lora": {"projections", "vision", "text"},
    "vision_lora": {"projections", "vision"},
    "text_lora": {"projections", "text"},
}


def _part(name: str) -> str:
    if "projection" in name:
        return "projections"
    if name == "logit_scale":
        return name
    return name.split("_model.")[0]


@pytest.mark.parametrize("scenario", [*EXPECTED, "full"])
def test_the_last_trained_state_differs_precisely_where_the_scenario_trains(
    ready: Path, scenario: str
) -> None:
    run, loop = loop_of(ready, scenario, scenario=scenario, epochs=1)
    before = weights_of(run)
    loop.run(Position())
    after = weights_of(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapters = {name for name in before if ".lora_" in name}
    if scenario == "full":
        assert changed == set(before)
        return
    targets = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    assert all(name.split(".lora_")[0].endswith(targets) for name in adapters)
    assert {_part(name) for name in adapters} == EXPECTED[scenario] - {"projections"}
    projections = {"visual_projection.weight", "text_projection.weight", "logit_scale"}
    assert changed == adapters | (projections if EXPECTED[scenario] else set())


@pytest.mark.parametrize("scenario", EXPECTED)
def test_the_merged_model_differs_from_its_base_only_there_too(
    ready: Path, tiny_clip: Path, scenario: str
) -> None:
    run_train(ready, scenario=scenario, wise_ft=False, epochs=2, lr=3e-3)
    before = CLIPModel.from_pretrained(tiny_clip).state_dict()
    after = CLIPModel.from_pretrained(ready / "work" / "runs" / scenario / "model").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    targets = tuple(f"{layer}.weight" for layer in layers)
    wanted = {
        name
        for name in before
        if _part(name) in EXPECTED[scenario] and (_part(name) == "projections" or name.endswith(targets))
    }
    wanted |= {"logit_scale"} if EXPECTED[scenario] else set()
    assert changed == wanted


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_trainable_parameters_are_those_of_the_table(tiny_clip: Path, scenario: str) -> None:
    clip = load_float32(str(tiny_clip), CPU)
    names = unfreeze(clip, TrainingConfig(scenario=scenario))
    adapters = {name for name in names if ".lora_" in name}
    towers = {name.split("_model.")[0] for name in adapters}
    assert towers == set(SCENARIOS[scenario].lora)
    if scenario not in ("zero_shot", "full"):
        rest = set(names) - adapters
        assert rest == {"logit_scale", "visual_projection.weight", "text_projection.weight"}


def test_a_finished_run_is_a_plain_model_with_card_adapter_and_figures(ready: Path, tiny_clip: Path) -> None:
    card = run_train(ready, scenario="dual_lora")
    run = ready / "work" / "runs" / "dual_lora"
    assert card == {**json.loads((run / "run.json").read_text()), "already_done": False}
    assert card["status"] == "finished"
    assert card["parity"] >= 0.9999
    assert latest_run(run.parent) == "dual_lora"
    assert set(card["wise_ft"]) == {str(share / 10) for share in range(11)}
    best = card["validation"]["finetuned"]["score"]
    assert best == max(card["wise_ft"].values())
    assert best >= card["validation"]["base"]["score"]
    CLIPProcessor.from_pretrained(run / "model")
    readme = (run / "README.md").read_text()
    assert card["data_hash"] in readme
    assert "license" in readme.lower()
    merged = load_clip("dual_lora", CPU, runs=run.parent)
    assert merged.fingerprint == card["model_fingerprint"]
    adapted = load_float32(str(tiny_clip), CPU)
    with quiet():
        adapted.module = PeftModel.from_pretrained(adapted.module, run / "adapter").base_model.model.eval()
    texts = ["a red chair", "a blue bed"]
    assert np.sum(merged.encode_texts(texts) * adapted.encode_texts(texts), axis=1).min() >= 0.9999
    assert not [path for path in run.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl", ".npy")]


def test_a_run_that_learnt_nothing_says_so_and_keeps_the_base(ready: Path) -> None:
    done = command(ready, "train", "--scenario", "linear_probe", "--lr", "1e-12", "--epochs", "1").ok()
    assert "nothing was learnt" in " ".join(done.stdout.split("next:")[-1].split())
    run = ready / "work" / "runs" / "linear_probe"
    card = json.loads((run / "run.json").read_text())
    assert card["share"] == 0
    assert "nothing was learnt" in card["verdict"]
    assert card["verdict"] in (run / "README.md").read_text()
    assert run_train(ready, scenario="zero_shot")["verdict"] == ""  # it was not to learn anything


def test_a_run_that_was_best_at_its_end_says_that_more_epochs_may_help() -> None:
    config = TrainingConfig(epochs=20, lr=1e-3)
    assert "--epochs 40" in verdict(config, Position(epoch=20, best_epoch=20), share=0.8)
    assert not verdict(config, Position(epoch=20, best_epoch=15), share=0.8)


def test_metrics_say_what_happened_in_each_step(ready: Path) -> None:
    run_train(ready, scenario="dual_lora", epochs=1)
    events = list(read_journal(ready / "work" / "runs" / "dual_lora" / "metrics.jsonl"))
    assert [event["event"] for event in events[:2]] == ["validation", "step"]
    step = events[1]
    assert {"loss", "chance", "lr", "samples_per_s", "data_wait", "memory_mb", "logit_scale"} <= set(step)
    assert set(step["gradient_norm"]) == {"all", "projections", "scalars", "text_lora", "vision_lora"}
    assert step["chance"] == pytest.approx(np.log(12), abs=0.2)


def test_a_second_run_does_nothing_and_says_so(ready: Path) -> None:
    first = command(ready, "train", "--scenario", "linear_probe", "--json").ok()
    weights = ready / "work" / "runs" / "linear_probe" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    second = command(ready, "train", "--scenario", "linear_probe").ok()
    assert first.json["already_done"] is False
    assert "nothing to do" in second.stdout
    assert weights.stat().st_mtime_ns == before


def test_a_frozen_tower_runs_once_and_is_kept_on_disk(ready: Path) -> None:
    run_train(ready, scenario="linear_probe", run="first")
    files = sorted((ready / "work" / "cache" / "features").glob("*.npy"))
    assert {path.name.split("-")[1] for path in files} == {"text", "vision"}
    rows = {path: len(np.load(path)) for path in files}
    run_train(ready, scenario="linear_probe", run="second")
    assert {path: len(np.load(path)) for path in files} == rows
    runs = ready / "work" / "runs"
    assert losses(runs / "first") == losses(runs / "second")
    for path in files:
        path.write_bytes(b"damaged")
    run_train(ready, scenario="linear_probe", run="third")
    assert losses(runs / "first") == losses(runs / "third")


def test_other_settings_or_data_are_refused_with_what_changed(ready: Path) -> None:
    run_train(ready, scenario="linear_probe", epochs=1)
    with pytest.raises(ConfigError) as caught:
        run_train(ready, scenario="linear_probe", epochs=1, lr=0.5)
    assert caught.value.message.endswith("was started differently: `train.lr` was 0.01, is 0.5")
    assert "--run NAME" in caught.value.hint
    run_train(ready, scenario="linear_probe", epochs=1, lr=0.5, resume=False)
    manifest = ready / "work" / "shards" / "manifest.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**value, "data_hash": "other"}))
    with pytest.raises(ConfigError, match="`data` was"):
        run_train(ready, scenario="linear_probe", epochs=1, lr=0.5)


def test_a_teacher_counts_as_its_weight_says_and_is_named(ready: Path) -> None:
    run_train(ready, scenario="full", run="teacher", epochs=3, lr=3e-3, wise_ft=False)
    teacher = ready / "work" / "runs" / "teacher" / "model"
    first = {}
    for weight in (0, 1, 3):
        flags = {"teacher": str(teacher), "teacher_weight": weight, "lora_dropout": 0, "attribute_weight": 0}
        flags |= {"wise_ft": False}
        run_train(ready, run=f"weight-{weight}", scenario="dual_lora", epochs=1, **flags)
        first[weight] = losses(ready / "work" / "runs" / f"weight-{weight}")[0][1]
    distance = 2 * first[1] - first[0]
    assert first[3] == pytest.approx((first[0] + 3 * distance) / 4, rel=1e-5)
    assert abs(distance - first[0]) > 1e-3  # the teacher says something of its own
    argv = ["train", "--scenario", "dual_lora", "--epochs", "1", "--teacher"]
    command(ready, *argv, teacher).ok()
    identity = json.loads((ready / "work" / "runs" / "dual_lora" / "run.json").read_text())["identity"]
    assert identity["train.teacher"] == str(teacher)
    assert identity["teacher"] != identity["base model"]
    teacher.rename(ready / "moved")
    assert f"`{teacher}`" in command(ready, *argv, teacher).stderr.replace("\n", "")
    assert "`train.teacher` was" in command(ready, *argv, ready / "moved").stderr


def test_harmless_settings_may_change_and_change_no_bit(ready: Path) -> None:
    run_train(ready, scenario="vision_lora", run="a", kept_activations_mb=0, image_cache_mb=0)
    run_train(ready, scenario="vision_lora", run="b", kept_activations_mb=500, feature_cache=False)
    runs = ready / "work" / "runs"
    assert losses(runs / "a") == losses(runs / "b")
    assert _weights(runs / "a") == _weights(runs / "b")


def _weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def _killed(folder: Path, run: str, *, after_events: int, delay_s: float) -> bool:
    """Start the run and SIGKILL it once its metrics have grown; False when it ended before."""
    process = start_train(folder, "--run", run)
    wait_for_events(process, folder / "work" / "runs" / run, after_events)
    time.sleep(delay_s)
    ended = process.poll() is not None
    process.kill()
    return not ended


def test_killed_again_and_again_a_run_equals_the_uninterrupted_one_bit_for_bit(ready: Path, cli: Cli) -> None:
    cli("train", "--run", "whole", cwd=ready).ok()
    chance = random.Random(0)
    events = len(list(read_journal(ready / "work" / "runs" / "whole" / "metrics.jsonl")))
    killed = 0
    for kill in range(KILLS):
        run = f"torn{kill % 10}"  # several runs, so that every stretch of a run is hit
        moment = chance.randrange(1, events + 1)
        killed += _killed(ready, run, after_events=moment, delay_s=chance.random() * 0.3)
    runs = ready / "work" / "runs"
    for torn in sorted(runs.glob("torn*")):
        cli("train", "--run", torn.name, cwd=ready).ok()
        assert losses(torn) == losses(runs / "whole")
        assert _weights(torn) == _weights(runs / "whole")
    assert killed


def test_two_ranks_have_the_gradient_of_one(tiny_clip: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        words = [str(tiny_clip), str(tmp_path / str(count))]
        run_ranks(count, words, Path(__file__).parents[1], module="tests.train_ranks")
    one, two = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    flat = [torch.cat([part[name].flatten() for name in sorted(one)]) for part in (one, two)]
    assert (flat[0] - flat[1]).norm() <= 1e-5 * flat[0].norm()


def test_torchrun_trains_one_run_and_writes_it_once(ready: Path, cli: Cli) -> None:
    flags = ["train", "--lora-dropout", "0", "--epochs", "2"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*launcher, "-m", "furnclip", *flags, "--run-name", "two"],
        cwd=ready,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=True,
        capture_output=True,
        timeout=200,
    )
    cli(*flags, "--run", "one", cwd=ready).ok()
    runs = ready / "work" / "runs"
    one, two = losses(runs / "one"), losses(runs / "two")
    assert [step for step, _ in one] == [step for step, _ in two]
    assert np.allclose([loss for _, loss in one], [loss for _, loss in two], rtol=1e-4)


def test_a_poisoned_weight_stops_before_the_step_and_names_samples(ready: Path) -> None:
    run, loop = loop_of(ready, "poisoned")
    before = weights_of(run)
    run.encoder.clip.module.vision_model.post_layernorm.weight.data[0] = float("nan")
    poisoned = "vision_model.post_layernorm.weight"
    with pytest.raises(InputError, match=r"the loss of step 0 is not finite; samples: `P\d+`"):
        loop.run(Position(best_score=0.0))
    after = weights_of(run)
    assert all(torch.equal(before[name], after[name]) for name in before if name != poisoned)


STUCK: dict[str, Any] = {"lr": 1e-12, "epochs": 40, "effective_batch_size": 12, "checkpoint_interval_s": 600}


def test_a_loss_that_stays_at_chance_stops_with_a_diagnosis(ready: Path) -> None:
    with pytest.raises(ModelError, match="the loss has stayed at") as caught:
        run_train(ready, scenario="linear_probe", run="stuck", **STUCK)
    assert "chance (ln" in caught.value.message
    assert "--lr" in caught.value.hint


def test_a_teacher_that_knows_nothing_is_no_reason_to_stop(ready: Path, tiny_clip: Path) -> None:
    card = run_train(ready, scenario="linear_probe", teacher=str(tiny_clip), **STUCK)
    assert card["epochs_done"] == 40


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--micro-batch-size", "64", "--effective-batch-size", "16"], 2, "is larger than"),
        (["--effective-batch-size", "1"], 2, "cannot be 1"),
        (["--loss", "sigmoid"], 2, "sigmoid loss does not fit a clip base"),
        (["--lr", "nan"], 2, "`train.lr` cannot be NaN"),
        (["--lr", "-1"], 2, "`train.lr` cannot be -1"),
        (["--epochs", "-1"], 2, "`train.epochs` cannot be -1"),
        (["--scenario", "dual"], 2, "`train.scenario` cannot be"),
        (["--run", "../elsewhere"], 2, "cannot be a run's name"),
        (["--run", "base"], 2, "cannot be a run's name"),
        (["--run", "master_vectors"], 2, "but not `base` or `master_vectors`"),
        (["--upload"], 2, "there is no bucket"),
        (["--model", "nowhere/at/all"], 1, "there is no model folder"),
    ],
)
def test_mistakes_are_told_before_any_work(ready: Path, flags: list[str], code: int, message: str) -> None:
    outcome = command(ready, "train", *flags)
    assert outcome.code == code, outcome.stderr
    assert message in outcome.stderr
    assert "hint: " in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not list((ready / "work" / "runs").glob("[!.]*"))


def test_training_before_preparing_names_the_command(shop: Path) -> None:
    outcome = command(shop, "train")
    assert outcome.code == 2
    assert "run `furnclip prepare` first" in outcome.stderr


def test_help_explains_each_scenario(cli: Cli, tmp_path: Path) -> None:
    text = cli("train", "--help", cwd=tmp_path).ok().stdout
    for scenario in (*SCENARIOS, "all"):
        assert f"{scenario}:" in text


def test_the_ablation_gives_one_row_for_each_scenario(ready: Path) -> None:
    result = command(ready, "train", "--scenario", "all", "--epochs", "1", "--json").ok().json
    rows = {row["scenario"]: row for row in result["ablation"]}
    assert set(rows) == set(EXPECTED)
    for row in rows.values():
        value, low, high = row["recall@1"]
        assert 0 <= low <= value <= high <= 1
    assert rows["zero_shot"]["trainable_parameters"] == 0
    assert rows["linear_probe"]["trainable_parameters"] == 2 * 32 * 32 + 1


def test_the_ablation_refuses_torchrun(cli: Cli, tmp_path: Path) -> None:
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    outcome = cli("train", "--scenario", "all", cwd=tmp_path, env={**launched, **address})
    assert outcome.code == 2
    assert "error: `--scenario all` runs in one process" in outcome.stderr
