"""`furnclip eval` on a drawn catalogue, through the command line.

The shards and two runs are written directly, so that these tests need neither cleaning nor training:
`first` is the tiny CLIP with other random weights, `second` with yet others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from examples.make_tiny_clip import build_tiny_clip
from furnclip.catalogue import content_hash
from furnclip.config import Config, EvaluationConfig, load_config
from furnclip.evaluate.tasks import Split, build_requests, build_tasks, read_split
from furnclip.images import encode_jpeg
from furnclip.journal import write_json
from furnclip.model.loading import load_clip
from furnclip.shards import Manifest, Sample, ShardDataset, write_manifest
from furnclip.shards.manifest import ShardInfo, SplitInfo
from furnclip.shards.tar import write_shard
from tests import drawn_shop
from tests.conftest import invoke
from tests.forked import Forked
from tests.test_embed_faults import interrupted

PRODUCTS = 40
TASKS = ("text_to_image", "image_to_text", "image_to_image", "image_to_type", "attributes_to_image")
CONFIG = """\
[model]
name = "{model}"
device = "cpu"
precision = "fp32"

[eval]
latency_s = 0
bootstrap_samples = 200
examples = 3
slice_min_queries = 3
"""


def drawn_samples(count: int) -> list[Sample]:
    """Products of a few kinds: several share a caption, and every fourth pair shares a group."""
    samples = []
    for index, row in enumerate(drawn_shop.rows(count)):
        _, color, material, kind = row["title"].split()[:4]
        kind = kind.strip(",")
        fields = {"color": color, "material": material, "object_type": kind, "style": "unknown"}
        samples.append(
            Sample(
                key=row["product_id"],
                image_bytes=encode_jpeg(drawn_shop.draw(row), 90),
                caption=f"a photo of {color} {material} {kind}" + (f" {index}" if index % 3 else ""),
                product_id=row["product_id"],
                group=f"group {index - index % 2 if index % 8 < 2 else index}",
                fields=fields,
                title=f"{color} {kind} <script>alert({index})</script> & more",
            )
        )
    return samples


def write_shards(folder: Path, samples: Sequence[Sample]) -> None:
    splits = {}
    for name in ("train", "validation", "test", "mini_train"):
        part = samples if name == "test" else samples[:2]
        path = folder / name / "shard-000000.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        hashed = [(content_hash(repr(sample)), sample) for sample in part]
        about = write_shard(path, hashed, content=name)
        shard = ShardInfo(f"{name}/{path.name}", about.sha256, about.bytes, len(part), "", 0)
        groups = len({sample.group for sample in part})
        splits[name] = SplitInfo(len(part), groups, (shard,) if part else ())
    write_manifest(folder, Manifest("drawn", splits))


def add_run(folder: Path, name: str, *, seed: int) -> Path:
    run = folder / "work" / "runs" / name
    build_tiny_clip(run / "model", drawn_shop.captions(), seed=seed, image_px=32, width=32)
    write_json(run / "run.json", {"status": "finished", "finished_at": f"2026-01-0{seed}T00:00:00+00:00"})
    return run


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    (folder / "furnclip.toml").write_text(CONFIG.format(model=tiny_clip), encoding="utf-8")
    write_shards(folder / "work" / "shards", drawn_samples(PRODUCTS))
    add_run(folder, "first", seed=1)
    add_run(folder, "second", seed=2)
    return folder


@pytest.fixture
def shop(catalogue: Path, tmp_path: Path) -> Path:
    """A copy to spoil; the models' vectors are there already."""
    return Path(shutil.copytree(catalogue, tmp_path / "copy"))


def run_eval(folder: Path, *args: str) -> Result:
    return invoke("eval", "--config", folder / "furnclip.toml", *args)


def evaluated(folder: Path, *args: str) -> Any:
    result = run_eval(folder, *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def settings_of(folder: Path) -> Config:
    return load_config(folder / "furnclip.toml")


def test_the_report_has_the_agreed_shape(catalogue: Path) -> None:
    report = evaluated(catalogue, "--run", "first")
    assert (report["gallery_size"], report["queries"]) == (PRODUCTS, PRODUCTS)
    assert report["labels"] == ["base", "finetuned"]
    for model in report["models"].values():
        for task in TASKS:
            scores = model[task]
            assert scores["accuracy@1"] == scores["recall@1"]
            assert scores["accuracy@5"] == scores["recall@5"]
            assert scores["recall@1"] <= scores["recall@5"] <= scores["recall@10"]
            assert scores["recall@1"] <= scores["mrr"] <= 1
            for metric, (low, high) in scores["intervals"].items():
                assert 0 <= low <= scores[metric] <= high <= 1
            assert scores["queries"] > 0
            assert scores["gallery_size"] == PRODUCTS - (task in ("image_to_image", "image_to_type"))
    assert Path(report["report"]).is_file()


def test_numbers_equal_a_plain_recomputation(catalogue: Path) -> None:
    report = evaluated(catalogue, "--run", "first")
    config = settings_of(catalogue)
    clip = load_clip("first", config.model, runs=config.paths.runs)
    split = read_split(config)
    images = clip.encode_images([split.image(index) for index in range(len(split))])
    captions = clip.encode_texts(split.captions)
    ranks = []
    for query, caption, group in zip(captions, split.captions, split.groups, strict=True):
        scores = images @ query
        right = [
            caption == other or group == others_group
            for other, others_group in zip(split.captions, split.groups, strict=True)
        ]
        best = max(score for score, is_right in zip(scores, right, strict=True) if is_right)
        ahead = [score >= best - 1e-6 for score, is_right in zip(scores, right, strict=True) if not is_right]
        ranks.append(1 + sum(ahead))
    scores = report["models"]["finetuned"]["text_to_image"]
    for k in (1, 5, 10):
        assert scores[f"recall@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    assert scores["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert scores["median_rank"] == np.median(ranks)


def test_differences_are_those_of_the_models(catalogue: Path) -> None:
    report = evaluated(catalogue, "--run", "first")
    before, after = (report["models"][label] for label in report["labels"])
    for task, tests in report["paired"]["finetuned"].items():
        for metric, test in tests.items():
            assert test["difference"] == pytest.approx(after[task][metric] - before[task][metric])
            assert test["low"] <= test["difference"] <= test["high"]


def test_a_second_run_does_nothing_and_says_so(shop: Path) -> None:
    first = evaluated(shop)
    before = snapshot(shop)
    again = run_eval(shop, "--json")
    assert "nothing to do" in again.stderr
    assert json.loads(again.stdout) == first
    assert snapshot(shop) == before
    forced = run_eval(shop, "--force")
    assert forced.exit_code == 0
    assert "nothing to do" not in forced.stderr
    assert snapshot(shop) != before


def test_a_changed_setting_measures_again_from_the_same_vectors(shop: Path) -> None:
    evaluated(shop)
    vectors = snapshot(shop / "work" / "cache")
    toml = shop / "furnclip.toml"
    toml.write_text(toml.read_text().replace("examples = 3", "examples = 2"), encoding="utf-8")
    assert evaluated(shop)["settings"]["examples"] == 2
    assert snapshot(shop / "work" / "cache") == vectors


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_several_runs_stand_side_by_side(catalogue: Path) -> None:
    report = evaluated(catalogue, "--run", "second", "--run", "first")
    assert report["labels"] == ["base", "second", "first"]
    assert set(report["paired"]) == {"first", "second"}
    fingerprints = {model["fingerprint"] for model in report["models"].values()}
    assert len(fingerprints) == 3
    again = run_eval(catalogue, "--run", "second", "--run", "first")
    lines = [line.split()[0] for line in again.stdout.splitlines() if " (0." in line and "MRR" not in line]
    assert lines == ["base", "second", "first"]


def test_the_latest_run_is_the_default(catalogue: Path) -> None:
    assert evaluated(catalogue)["models"]["finetuned"]["name"] == "second"


def test_without_a_run_the_base_is_measured_alone(shop: Path) -> None:
    shutil.rmtree(shop / "work" / "runs")
    result = run_eval(shop, "--json")
    assert "measuring the base model alone" in result.stderr
    report = json.loads(result.stdout)
    assert report["labels"] == ["base"]
    assert report["paired"] == {}
    assert "Where the base model stands" in Path(report["report"]).read_text(encoding="utf-8")


def test_a_perfect_copy_is_no_gain(shop: Path, tiny_clip: Path) -> None:
    run = add_run(shop, "copy", seed=3)
    shutil.rmtree(run / "model")
    shutil.copytree(tiny_clip, run / "model")
    report = evaluated(shop, "--run", "copy")
    test = report["paired"]["finetuned"]["text_to_image"]["mrr"]
    assert (test["difference"], test["p_value"]) == (0.0, 1.0)
    said = run_eval(shop, "--run", "copy").stdout
    assert "copy is not yet known to be better or worse than the base: of 100 searches, 0 more find" in said
    assert "too alike to tell apart" in said
    assert "finetuned" not in said  # a run has one name


def test_latency_is_measured_when_asked(shop: Path) -> None:
    toml = shop / "furnclip.toml"
    toml.write_text(toml.read_text().replace("latency_s = 0", "latency_s = 0.01"), encoding="utf-8")
    shutil.rmtree(shop / "work" / "runs")
    latency = evaluated(shop)["models"]["base"]["latency"]
    figures = [latency["search"], *latency["texts"].values(), *latency["images"].values()]
    assert len(figures) == 5
    for times in figures:
        assert 0 < times["p50_ms"] <= times["p95_ms"]
    assert "Speed" in (shop / "work" / "eval" / "report.html").read_text(encoding="utf-8")


# --- what a user can get wrong ---


@pytest.mark.parametrize(
    ("args", "code", "message", "hint"),
    [
        (("--run", "third"), 2, "there is no run `third` under", "known here: first, second"),
        (("--split", "train"), 2, "`eval.split` cannot be", "see `eval.split` in"),
        (("--model", "/nowhere"), 1, "there is no model folder `/nowhere`", "give a folder"),
    ],
)
def test_mistakes_are_explained(
    catalogue: Path, args: tuple[str, ...], code: int, message: str, hint: str
) -> None:
    result = run_eval(catalogue, *args)
    assert result.exit_code == code
    assert f"error: {message}" in result.stderr
    assert f"hint: {hint}" in result.stderr
    assert "Traceback" not in result.output


def test_no_shards_yet(shop: Path) -> None:
    (shop / "work" / "shards" / "manifest.json").unlink()
    result = run_eval(shop)
    assert result.exit_code == 2
    assert "hint: run `furnclip prepare` first" in result.stderr


def test_an_empty_split(shop: Path) -> None:
    write_shards(shop / "work" / "shards", [])
    result = run_eval(shop)
    assert result.exit_code == 1
    assert "error: the test split holds no products" in result.stderr


def test_an_unfinished_run(shop: Path) -> None:
    write_json(shop / "work" / "runs" / "first" / "run.json", {"status": "running"})
    result = run_eval(shop, "--run", "first")
    assert result.exit_code == 1
    assert "the run `first` is not finished" in result.stderr


def test_a_run_from_another_base_is_refused(shop: Path) -> None:
    card = {"status": "finished", "base": {"name": "other/clip", "fingerprint": "0123456789abcdef"}}
    write_json(shop / "work" / "runs" / "first" / "run.json", card)
    result = run_eval(shop, "--run", "first")
    assert result.exit_code == 1
    assert "error: the run `first` was trained from `other/clip`, not from" in result.stderr
    assert "hint: measure it against its own base with `--model other/clip`" in result.stderr


def test_a_run_on_other_shards_is_a_warning_on_the_page(shop: Path) -> None:
    card = {"status": "finished", "data_hash": "other"}
    write_json(shop / "work" / "runs" / "first" / "run.json", card)
    result = run_eval(shop, "--run", "first", "--json")
    assert "warning: the run `first` was trained on other shards than these" in result.stderr
    report = json.loads(result.stdout)
    assert len(report["warnings"]) == 1
    assert "it has seen some of the products" in Path(report["report"]).read_text(encoding="utf-8")
    write_json(
        shop / "work" / "runs" / "first" / "run.json", {**card, "data_hash": "drawn"}
    )  # the manifest's
    assert evaluated(shop, "--run", "first")["warnings"] == []


def test_a_tiny_split_and_the_validation_split_are_warned_about(shop: Path) -> None:
    report = evaluated(shop, "--split", "validation")
    assert report["warnings"] == [
        "the validation split holds 2 products: differences between models mean little",
        "training chooses its settings on the validation split, so these numbers flatter",
    ]


def test_a_model_that_gives_no_numbers(shop: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = shop / "work" / "runs" / "first" / "model" / "model.safetensors"
    weights = load_file(path)
    weights["text_projection.weight"] = np.full_like(weights["text_projection.weight"], np.nan)
    save_file(weights, path, metadata={"format": "pt"})
    result = run_eval(shop, "--run", "first")
    assert result.exit_code == 1
    assert "`text_projection.weight` is not finite" in result.stderr


def test_damaged_vectors_are_made_again(shop: Path) -> None:
    expected = evaluated(shop, "--run", "first")["models"]
    for path in (shop / "work" / "cache" / "features").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    (shop / "work" / "eval" / "report.json").write_text("{", encoding="utf-8")
    result = run_eval(shop, "--run", "first", "--json")
    assert result.exit_code == 0
    assert "is damaged and is made again" in result.stderr
    assert json.loads(result.stdout)["models"] == expected


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_evaluation_keeps_the_models_it_is_done_with(shop: Path) -> None:
    shutil.rmtree(shop / "work" / "cache", ignore_errors=True)
    shutil.rmtree(shop / "work" / "eval", ignore_errors=True)
    words = ["eval", "--run", "first", "--run", "second"]
    with Path(os.devnull).open("wb") as silent:
        process = Forked(words, shop, os.environ, silent, silent)
    cache = shop / "work" / "cache" / "features"
    deadline = time.monotonic() + 120
    while not list(cache.glob("*.npy")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {str(path): path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    assert done
    assert evaluated(shop, "--run", "first", "--run", "second")["labels"] == ["base", "first", "second"]
    after = snapshot(cache)
    assert {path: after[path] for path in done} == done


# --- what is asked of a model ---


def split_of(tmp_path: Path, products: Sequence[tuple[str, str, str, str]]) -> Split:
    """A split of products given as (caption, group, colour, type)."""
    template = drawn_samples(1)[0]
    samples = [
        replace(
            template,
            key=f"{index:06d}",
            product_id=str(index),
            caption=caption,
            group=group,
            fields={"color": color, "object_type": kind},
        )
        for index, (caption, group, color, kind) in enumerate(products)
    ]
    write_shards(tmp_path / "work" / "shards", samples)
    config = load_config(None, {"paths": {"work": str(tmp_path / "work")}})
    return read_split(config)


def test_a_shared_caption_or_group_is_a_right_answer(tmp_path: Path) -> None:
    split = split_of(
        tmp_path,
        [
            ("red chair", "a", "red", "chair"),
            ("red chair", "b", "red", "chair"),
            ("blue chair", "b", "blue", "chair"),
            ("a lamp", "c", "", "lamp"),
        ],
    )
    tasks = build_tasks(split, build_requests(split, EvaluationConfig()))
    relevant = [found.tolist() for found in tasks["text_to_image"].relevant]
    assert relevant == [[0, 1], [0, 1, 2], [1, 2], [3]]
    # products 0 to 2 hang together by caption and group, so they are one unit of the bootstrap
    assert len(set(tasks["text_to_image"].units[:3])) == 1
    assert len(set(tasks["text_to_image"].units)) == 2
    # picture to picture asks only where another picture of the group exists, and never for itself
    siblings = tasks["image_to_image"]
    assert siblings.rows.tolist() == [1, 2]
    assert [found.tolist() for found in siblings.relevant] == [[2], [1]]
    assert siblings.exclude is not None
    assert siblings.exclude.tolist() == [1, 2]
    alike = tasks["image_to_type"]  # the lamp is the only one of its type and does not ask
    assert alike.rows.tolist() == [0, 1, 2]
    assert [found.tolist() for found in alike.relevant] == [[1, 2], [0, 2], [0, 1]]


def test_grades_follow_the_attributes(tmp_path: Path) -> None:
    split = split_of(
        tmp_path,
        [
            ("red chair", "a", "red", "chair"),
            ("red chair too", "b", "red", "chair"),
            ("blue chair", "c", "blue", "chair"),
            ("red lamp", "d", "red", "lamp"),
            ("thing", "e", "", "unknown"),
        ],
    )
    task = build_tasks(split, [])["text_to_image"]
    gains = task.gains(slice(0, 5))
    assert gains[0].tolist() == [7, 3, 1, 0, 0]
    assert gains[4].tolist() == [0, 0, 0, 0, 7]  # nothing known is like nothing else
    assert task.gains(slice(0, 1))[:, 2:4].tolist() == [[1, 0]]


def test_requests_are_answerable_and_not_trivial(tmp_path: Path) -> None:
    split = split_of(
        tmp_path,
        [
            ("1", "a", "red", "chair"),
            ("2", "b", "red", "chair"),
            ("3", "c", "red", "chair"),
            ("4", "d", "blue", "chair"),
            ("5", "e", "unknown", "lamp"),
        ],
    )
    requests = build_requests(split, EvaluationConfig())
    assert [request.text for request in requests] == ["blue chair"]  # "red chair" fits most products
    assert requests[0].answers(split.attributes).tolist() == [3]
    task = build_tasks(split, requests)["attributes_to_image"]
    assert task.gains(slice(0, 1)).tolist() == [[1, 1, 1, 7, 0]]


def test_a_shopper_query_asks_for_the_products_it_was_written_for(shop: Path) -> None:
    rows = [  # group, color, type, queries
        ("a", "red", "chair", "red chair | comfy seat"),
        ("b", "red", "chair", "red chair | "),
        ("b", "blue", "chair", ""),
        ("d", "red", "lamp", "reading light | Reading  light"),
    ]
    samples = [
        replace(
            sample, caption=sample.key, group=group,
            fields={"color": color, "object_type": kind, "queries": queries},
        )
        for sample, (group, color, kind, queries) in zip(drawn_samples(len(rows)), rows, strict=True)
    ]  # fmt: skip
    write_shards(shop / "work" / "shards", samples)
    split = read_split(settings_of(shop))
    assert split.queries == {"comfy seat": [0], "reading light": [3], "red chair": [0, 1]}
    task = build_tasks(split, [])["query_to_image"]
    assert [found.tolist() for found in task.relevant] == [[0], [3], [0, 1, 2]]
    assert task.gains(slice(0, 3)).tolist() == [[7, 3, 1, 0], [0, 0, 0, 7], [7, 7, 7, 0]]
    answered = evaluated(shop, "--run", "first")["models"]["base"]["query_to_image"]
    assert answered["queries"] == 3
    assert 0 < answered["ndcg@10"] <= 1
    validation = read_split(load_config(shop / "furnclip.toml", {"eval": {"split": "validation"}}))
    assert not validation.queries, "training may have read them"


def test_queries_of_shoppers_are_measured_where_they_say_what_is_right(shop: Path) -> None:
    kinds = [("red", "chair"), ("blue", "chair"), ("red", "floor lamp"), ("unknown", "floor lamp")]
    samples = [
        replace(sample, group=sample.key, fields={"color": color, "object_type": kind})
        for sample, (color, kind) in zip(drawn_samples(len(kinds)), kinds, strict=True)
    ]
    write_shards(shop / "work" / "shards", samples)
    asked = ["Red floor lamps", "chair blue", "red", "chair for reading", "green chair", "floor lamp", ""]
    log = shop / "queries.jsonl"  # as `furnclip serve` writes it
    log.write_text("".join(f"{json.dumps({'at': 'now', 'query': text, 'hits': 3})}\n" for text in asked))
    plain = shop / "queries.txt"
    plain.write_text("\n".join(asked), encoding="utf-8")
    for path in (log, plain):
        settings = EvaluationConfig(queries=str(path))
        found = {each.text: each.wanted for each in build_requests(read_split(settings_of(shop)), settings)}
        assert found == {
            "chair blue": {"color": "blue", "object_type": "chair"},
            "floor lamp": {"object_type": "floor lamp"},
            "red floor lamps": {"color": "red", "object_type": "floor lamp"},
        }
    done = evaluated(shop, "--run", "first", "--queries", str(log))["models"]["base"]["attributes_to_image"]
    assert done["queries"] == 3
    log.write_text('{"query": "chair blue"}\n')  # another log at the same place is measured anew
    done = evaluated(shop, "--run", "first", "--queries", str(log))["models"]["base"]["attributes_to_image"]
    assert done["queries"] == 1


@pytest.mark.parametrize("content", [None, "", "a seat for grandma\n", '{"query": 5}\n'])
def test_queries_that_cannot_be_measured_are_told(shop: Path, content: str | None) -> None:
    path = shop / "asked.jsonl" if content and content.startswith("{") else shop / "asked.txt"
    if content is not None:
        path.write_text(content)
    result = run_eval(shop, "--queries", str(path))
    assert result.exit_code in (1, 2)
    assert "error: " in result.stderr
    assert path.name in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


def test_a_split_without_attributes_says_what_is_not_measured(shop: Path) -> None:
    samples = [replace(s, fields={}, group=s.product_id) for s in drawn_samples(6)]
    write_shards(shop / "work" / "shards", samples)
    report = evaluated(shop, "--run", "first")
    assert set(report["not_measured"]) == {
        "image_to_image", "image_to_type", "attributes_to_image", "query_to_image",
    }  # fmt: skip
    page = Path(report["report"]).read_text(encoding="utf-8")
    assert "is not measured: no two products of this split share a group" in page


def test_the_split_reads_its_shards(catalogue: Path) -> None:
    split = read_split(settings_of(catalogue))
    dataset = ShardDataset(catalogue / "work" / "shards", "test")
    assert split.captions == tuple(sample.caption for sample in dataset)
    assert set(split.attributes["style"]) == {""}  # "unknown" is no style


# --- damaged files and interrupts


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def changed(path: Path) -> None:
    """Another number in the report, as a hand would write it."""
    report = json.loads(path.read_text(encoding="utf-8"))
    report["models"]["base"]["text_to_image"]["recall@1"] = 0.999
    path.write_text(json.dumps(report), encoding="utf-8")


def without_models(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    del report["models"]
    path.write_text(json.dumps(report), encoding="utf-8")


@pytest.mark.parametrize(
    "spoil",
    [
        piped,
        changed,
        without_models,
        lambda path: path.write_text("[1]"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_bytes(b"\xff\xfe"),
    ],
)
def test_a_damaged_report_is_made_again(shop: Path, spoil: Callable[[Path], object]) -> None:
    expected = evaluated(shop)["models"]
    spoil(shop / "work/eval/report.json")
    result = run_eval(shop, "--json")
    assert result.exit_code == 0, result.output
    assert "it is made again" in result.stderr
    assert json.loads(result.stdout)["models"] == expected


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
def test_an_interrupt_at_any_moment_is_one_line(shop: Path) -> None:
    start = time.monotonic()
    interrupted(shop, ("eval", "--run", "first"), after_s=300)
    whole_s = time.monotonic() - start
    for moment in range(25) if os.environ.get("FURNCLIP_FULL") == "1" else (1, 3):
        code, stdout, stderr = interrupted(
            shop,
            ("eval", "--run", "first", "--force"),
            after_s=whole_s * (moment % 4 + 0.5 + moment / 100) / 4,
        )
        assert code in (130, 0), (code, stderr)
        assert "Traceback" not in stdout + stderr
        assert stderr.count("error: ") == (1 if code else 0), stderr
