"""What fine-tuning gains on a catalogue, against how people do it, and what each technique adds.

    python -m tests.bench.quality [--catalogue DIR_OR_TAR [--size N]... | --shop DIR [--model NAME]]
                                  [--base trained|random]... [--epochs N] [--seeds N] [--only NAME]...
                                  [--cache DIR] [--processes N] [--quick] [--json]

`--catalogue`: `products.csv` (product_id, title, image, category, type, color) and images. A base is trained
on the products of `--base-category` (Apparel), once, and fine-tuned on shops of the others: `--size` 1000,
4000 and 0, all there are; 2,000 products or more are held out (`tools/testbed.py`; kept in `--cache`). On a
small machine: `--base-size small`.
`--shop`: a folder with `furnclip.toml` in which `furnclip prepare` is done, with the base `--model`
(furnclip-tiny). Without either, Sweet Home 3D (820 products; the Debian package `sweethome3d-furniture`).

`--base random`: of the same layout, but nothing learnt; without `--base` both. `--epochs`: for all; else
what furnclip chooses for this catalogue. `--only`: a contestant, several by repeating it. Three seeds
(`--quick`: the smallest base and shop, one seed, one epoch, three contestants). All start from the same base
and see the same samples, in batches of 128 or, of furnclip, as it chooses; every weight trains:

    base                    as it is
    plain loop              AdamW, warmup and cosine, mirrored images, the products' captions, symmetric
                            cross-entropy over the batch; the best of three learning rates on validation
    sentence-transformers   its trainer with `CachedMultipleNegativesSymmetricRankingLoss`, warmup and cosine;
                            the best of three learning rates on validation
    furnclip                `train --scenario full` with its defaults
    dual_lora               `train --scenario dual_lora` with its defaults
    without ..., with ...   `furnclip` with one default changed

Text to image on the test split: captions, each distinct one once (`prod.`: as often as products have it), and
short requests of attributes. Mean over the seeds; differences to the better rival with a 95 % interval by
resampling whole groups; CPU seconds of a training with its measuring. One thread a process. A finished
training is kept in the shop's `work/quality.jsonl` and not repeated: remove the file after a change of code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from furnclip.config import ModelConfig
from furnclip.journal import Journal, read_journal
from furnclip.metrics.bootstrap import paired_test
from furnclip.metrics.retrieval import ranks
from furnclip.model.clip import Clip
from furnclip.model.loading import load_float32
from furnclip.relevance import attribute_queries, known_attributes, positives
from furnclip.shards import ShardDataset, read_manifest
from furnclip.train import finish
from furnclip.train.data import TrainingData
from furnclip.train.loop import Loop
from furnclip.train.prepared import Prepared
from furnclip.train.records import Position
from tests.bench.tools.rivals import RATES, RIVALS
from tests.bench.tools.testbed import BASES, Testbed, hashed
from tests.training import loop_of

CONTESTANTS: dict[str, dict[str, Any]] = {
    "furnclip": {},
    "dual_lora": {"scenario": "dual_lora"},
    "batch 128": {"effective_batch_size": 128},
    "without Muon": {"optimizer": "adamw"},
    "without word dropout": {"word_dropout": 0.0},
    "without short queries": {"attribute_weight": 0.0},
    "without multi-positive": {"multi_positive": False},
    "without WiSE-FT": {"wise_ft": False},
    "with advanced augmentation": {"augment": "advanced"},
    "with layer decay 0.8": {"layer_decay": 0.8},
    "with sampled captions": {"caption_sampling": True},
}
KEPT = "quality.jsonl"  # in the shop's work folder: every finished training, for the next call
RANKED = ("titles", "requests")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """One training; `rate`: of a rival, times furnclip's own; 0: furnclip itself."""

    shop: Path
    model: str
    contestant: str
    seed: int
    rate: float = 0.0
    epochs: int = 0


@dataclass(frozen=True)
class Measured:
    """Reciprocal ranks of the captions and the requests of the test split; validation chooses the rate."""

    validation_mrr: float
    titles: Floats
    products: NDArray[np.int64]  # how many have each caption
    requests: Floats
    groups: list[str]  # of the captions
    cpu_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Ranks are whole numbers, which a line of JSON keeps exactly."""
        ranks = {name: np.rint(1 / getattr(self, name)).astype(int).tolist() for name in RANKED}
        rest = {"products": self.products.tolist(), "groups": self.groups}
        return {"validation_mrr": self.validation_mrr, "cpu_s": round(self.cpu_s, 1), **ranks, **rest}

    @classmethod
    def restored(cls, row: Mapping[str, Any]) -> Measured:
        titles, requests = (1 / np.array(row[name], dtype=float) for name in RANKED)
        products = np.array(row["products"])
        return cls(row["validation_mrr"], titles, products, requests, row["groups"], row["cpu_s"])


def prepared_shop(folder: Path) -> Path:
    """Sweet Home 3D through `clean` and `prepare`."""
    root = Path(__file__).parents[2]
    for argv in (
        [str(root / "examples" / "sweethome3d.py"), str(folder)],
        ["-m", "furnclip", "clean", "run"],
        ["-m", "furnclip", "prepare"],
    ):
        subprocess.run([sys.executable, *argv], cwd=folder, check=True, capture_output=True)
    return folder


def run(job: Job) -> Measured:
    """Train one contestant and measure it."""
    torch.set_num_threads(1)
    flags = {
        "scenario": "full",
        "seed": job.seed,
        "epochs": job.epochs,
        "checkpoint_interval_s": 3600,
        **CONTESTANTS.get(job.contestant, {}),
    }
    name = f"bench-{job.contestant}-{job.rate}-{job.seed}".replace(" ", "-")
    ready, loop = loop_of(job.shop, name, model={"name": job.model, "precision": "fp32"}, **flags)
    key, kept = key_of(job, ready), job.shop / "work" / KEPT
    for row in read_journal(kept):
        if row["key"] == key:
            return Measured.restored(row)
    started = time.process_time()
    measured = trained(job, ready, loop)
    measured = dataclasses.replace(measured, cpu_s=time.process_time() - started)
    names = ("contestant", "rate", "seed", "model")
    with Journal(kept, wait_s=60) as journal:
        journal.append({"key": key, **{name: getattr(job, name) for name in names}, **measured.as_json()})
    return measured


def key_of(job: Job, ready: Prepared) -> str:
    """Names everything that decides what the run gives, but the code."""
    settings = {**ready.card.identity, "scenario": ready.config.train.scenario}
    if job.contestant == "base":
        settings = {"base": settings["base model"]}
    elif job.rate:
        rate, names = job.rate * ready.config.train.lr, ("epochs", "weight_decay", "warmup_fraction", "seed")
        settings = {name: settings[f"train.{name}"] for name in names} | {
            "rate": rate,
            "rival": job.contestant,
        }
    settings |= {"base": ready.card.base["fingerprint"], "data": ready.card.data_hash}
    return hashed(settings)


def trained(job: Job, ready: Prepared, loop: Loop) -> Measured:
    """Train one contestant and measure it."""
    if job.contestant == "base":
        return measure(ready, ready.encoder.clip)
    if job.rate:
        RIVALS[job.contestant](ready, job.rate * ready.config.train.lr)
        return measure(ready, ready.encoder.clip)
    loop.run(Position())
    finish(ready)
    return measure(ready, load_float32(str(ready.folder / "model"), ready.config.model))


def measure(ready: Prepared, clip: Clip) -> Measured:
    """The model on both held-out splits."""
    clip.module.to(ready.encoder.device)
    validation = measured_on(ready, clip, "validation").titles
    return dataclasses.replace(measured_on(ready, clip, "test"), validation_mrr=float(validation.mean()))


def measured_on(ready: Prepared, clip: Clip, split: str) -> Measured:
    """Every distinct caption and every short request, searched among the split's images."""
    dataset = ShardDataset(ready.config.paths.shards, split)
    data = TrainingData(dataset, clip.preprocessing, ready.config.train)
    captions, groups = data.fixed_captions(), [text.group for text in data.texts]
    images = clip.encode_images(
        [Image.fromarray(data.squares([row], epoch=None)[0]) for row in range(len(data))]
    )
    rows = [captions.index(caption) for caption in dict.fromkeys(captions)]
    relevant = positives(captions, groups)
    first = ranks(clip.encode_texts([captions[row] for row in rows]), images, [relevant[row] for row in rows])
    attributes = known_attributes([text.fields for text in data.texts])
    queries = attribute_queries(attributes)
    asked = ranks(
        clip.encode_texts([query.text for query in queries]),
        images,
        [query.answers(attributes) for query in queries],
    )
    products = np.array([captions.count(captions[row]) for row in rows])
    return Measured(0.0, 1 / first, products, 1 / asked, [groups[row] for row in rows])


def untrained(model: str, folder: Path, seed: int) -> str:
    """A folder with the base's layout and tokenizer, and random weights."""
    clip = load_float32(model, ModelConfig())
    torch.manual_seed(seed)
    clip.module = type(clip.module)(clip.module.config)
    clip.save(folder / f"random-weights-{seed}")
    return str(folder / f"random-weights-{seed}")


def results(jobs: Sequence[Job], processes: int) -> dict[str, list[Measured]]:
    """Of every contestant one result a seed; of a rival that of its best rate."""
    found: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        for done in as_completed(running):
            job, measured = running[done], done.result()
            found[job.contestant, job.seed].append(measured)
            rate = f", {job.rate:g} times the rate" if job.rate else ""
            print(
                f"seed {job.seed}, {job.contestant}{rate}: MRR of captions {measured.titles.mean():.3f}, "
                f"of requests {measured.requests.mean():.3f}, {measured.cpu_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    by_name: dict[str, list[Measured]] = defaultdict(list)
    for (name, _), tried in sorted(found.items(), key=lambda item: item[0][1]):
        by_name[name].append(max(tried, key=lambda measured: measured.validation_mrr))
    return by_name


def figures_of(found: Mapping[str, list[Measured]]) -> dict[str, dict[str, Any]]:
    """Of every contestant its means, and [difference, low, high] to the better rival."""
    values = {name: values_of(seeds) for name, seeds in found.items()}
    weights, groups = found["base"][0].products, found["base"][0].groups
    rival = max((name for name in found if name in RIVALS), key=lambda name: values[name]["MRR"].mean())
    figures: dict[str, dict[str, Any]] = {}
    for name, own in values.items():
        row: dict[str, Any] = {metric: float(each.mean()) for metric, each in own.items()}
        for metric in ("@1", "MRR"):
            row[f"{metric} prod."] = float(np.average(own[metric], weights=weights))
            test = paired_test(values[rival][metric], own[metric], groups)
            row[f"{metric} to {rival}"] = [test.difference, test.low, test.high]
        row["requests"] = float(np.mean([each.requests for each in found[name]]))
        row["cpu_s"] = float(np.mean([each.cpu_s for each in found[name]]))
        figures[name] = row
    return figures


def values_of(seeds: Sequence[Measured]) -> dict[str, Floats]:
    """One value a caption, the mean over the seeds."""
    inverse = np.array([each.titles for each in seeds])  # (seeds, captions)
    return {"@1": (inverse == 1).mean(0), "@10": (inverse > 1 / 10.5).mean(0), "MRR": inverse.mean(0)}


def show(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """One table."""
    columns = ("@1", "@10", "MRR", "@1 prod.", "MRR prod.", "requests")
    differences = [name for name in figures["base"] if " to " in name]
    rival = differences[0].partition(" to ")[2]
    print(f"{'':<27}" + "".join(f"{head:>10}" for head in columns) + f"   s   against {rival}: @1, MRR")
    for name, row in figures.items():
        values = "".join(f"{row[column]:>10.3f}" for column in columns)
        against = ", ".join(
            f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
            for value, low, high in [row[each] for each in differences]
        )
        print(f"{name:<27}{values}{row['cpu_s']:>6.0f}  {against if name != rival else ''}")


def contests(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[Path, str, bool]]:
    """Each shop with each base: a folder or a name, and whether its weights are to be drawn anew."""
    if options.catalogue:
        recipe = BASES["quick" if options.quick else options.base_size]
        if options.base_category:
            recipe = dataclasses.replace(recipe, categories=tuple(options.base_category))
        sizes = options.size or [1000, 4000, 0][: 1 if options.quick else 3]
        testbed = Testbed.opened(options.catalogue, options.cache, recipe)
        shops, model = [testbed.shop(size) for size in sizes], str(testbed.base())
    else:
        shops, model = [options.shop.resolve() if options.shop else prepared_shop(scratch)], options.model
    for shop in shops:
        for kind in options.base or ["trained", "random"]:
            yield shop, model, kind == "random"


def contest(options: argparse.Namespace, shop: Path, bases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The figures of one shop; a base for each seed."""
    names = options.only or ["sentence-transformers", *CONTESTANTS]
    rates: Sequence[float] = RATES
    epochs = options.epochs
    if options.quick:
        names, epochs, rates = ["furnclip"], 1, RATES[1:2]
    order = ["base", "plain loop", *names]
    jobs = [
        Job(shop, base, name, seed, rate, epochs)
        for seed, base in enumerate(bases)
        for name in order
        for rate in (rates if name in RIVALS else (0.0,))
    ]
    found = results(jobs, options.processes)
    return figures_of({name: found[name] for name in order})


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quality")
    parser.add_argument("--catalogue", type=Path, help="a folder or tar file: products.csv and images")
    parser.add_argument("--size", type=int, action="append", help="products to train on; 0: all")
    parser.add_argument("--cache", type=Path, default=Path("build/quality"), help="where the parts are kept")
    parser.add_argument("--base-category", action="append", help="of the products that make the base")
    parser.add_argument("--base-size", default="large", choices=BASES, help="hours, minutes or nothing much")
    parser.add_argument("--shop", type=Path, help="a folder with furnclip.toml, prepared")
    parser.add_argument("--model", default="furnclip-tiny", help="the base of --shop")
    parser.add_argument("--base", action="append", choices=("trained", "random"), help="else both")
    parser.add_argument("--epochs", type=int, default=0, help="for all contestants")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--only", action="append", help="this contestant, beside base and plain loop")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="trainings at once")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, three contestants")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main() -> None:
    options = parser().parse_args()
    seeds = range(1 if options.quick else options.seeds)
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shop, model, is_random in contests(options, Path(folder)):
            bases = [untrained(model, Path(folder), seed) if is_random else model for seed in seeds]
            title = f"{shop.name}, {'random weights' if is_random else model}, {len(seeds)} seeds"
            figures = tables[title] = contest(options, shop, bases)
            best = max(row["MRR"] for name, row in figures.items() if name in RIVALS)
            ratios |= {f"{title}, {name}": row["MRR"] / best for name, row in figures.items()}
            if not options.json:
                print(f"\n{title}: {described(shop, model)}")
                show(figures)
    if options.json:
        print(json.dumps({"topic": "quality", "ratios": ratios, "figures": tables}))


def described(shop: Path, model: str) -> str:
    """Sizes of the splits and of the base."""
    sizes = {name: split.samples for name, split in read_manifest(shop / "work" / "shards").splits.items()}
    module = load_float32(model, ModelConfig()).module
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return (
        f"{sizes['train']:,} products to train on, {sizes['validation']:,} to validate, "
        f"{sizes['test']:,} to test, {parameters / 1e6:.1f} million parameters"
    )


if __name__ == "__main__":
    main()
