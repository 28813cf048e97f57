"""What fine-tuning gains on a catalogue, against the loop that people write, and what each technique adds.

    python -m tests.bench.quality [--shop DIR] [--model NAME] [--epochs N] [--seeds N] [--only NAME]...
                                  [--processes N] [--quick] [--json]

`--shop`: a folder with `furnclip.toml` in which `furnclip prepare` is done; without it Sweet Home 3D (820
products; the Debian package `sweethome3d-furniture`) is cleaned and prepared. `--model`: the base, else
`furnclip-tiny`. `--random-weights`: like it, but nothing learnt. `--epochs`: for all; else what furnclip
chooses for this catalogue. `--only`: a contestant, several by repeating it. Three seeds (`--quick`: one seed,
one epoch, three contestants). All start from the same base and see the same samples, in batches of 128 or, of
furnclip, as it chooses; every weight trains:

    base                    as it is
    plain loop              AdamW, warmup and cosine, mirrored images, the products' captions, symmetric
                            cross-entropy over the batch; the best of three learning rates on validation
    sentence-transformers   its trainer with `CachedMultipleNegativesSymmetricRankingLoss`, warmup and cosine;
                            the best of three learning rates on validation
    furnclip                `train --scenario full` with its defaults
    dual_lora               `train --scenario dual_lora` with its defaults
    without ..., with ...   `furnclip` with one default changed

Text to image on the test split: captions (each distinct one once; in parentheses each as often as products
have it) and short requests of attributes. Mean over the seeds; the difference to the plain loop with a 95 %
interval by resampling whole groups. One thread a process; runs go to `work/runs/bench-...`. Left out: time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import cross_entropy

from furnclip.config import ModelConfig
from furnclip.metrics.bootstrap import paired_test
from furnclip.metrics.retrieval import ranks
from furnclip.model.clip import Clip
from furnclip.model.loading import load_float32
from furnclip.relevance import attribute_queries, known_attributes, positives
from furnclip.shards import ShardDataset
from furnclip.train.checkpoints import Position
from furnclip.train.data import TrainingData, random_stream
from furnclip.train.finish import finish
from furnclip.train.prepared import Prepared
from furnclip.train.scenarios import learning_rate
from tests.training import loop_of

PLAIN_RATES = (0.25, 0.5, 1.0)  # times furnclip's own
PLAIN_BATCH = 128
CONTESTANTS: dict[str, dict[str, Any]] = {
    "furnclip": {},
    "dual_lora": {"scenario": "dual_lora"},
    "without Muon": {"optimizer": "adamw"},
    "without word dropout": {"word_dropout": 0.0},
    "without short queries": {"attribute_weight": 0.0},
    "without multi-positive": {"multi_positive": False},
    "without WiSE-FT": {"wise_ft": False},
    "with advanced augmentation": {"augment": "advanced"},
    "with layer decay 0.8": {"layer_decay": 0.8},
    "with sampled captions": {"caption_sampling": True},
}
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
    if job.contestant == "base":
        return measure(ready, ready.encoder.clip)
    if job.rate:
        RIVALS[job.contestant](ready, job.rate * ready.config.train.lr)
        return measure(ready, ready.encoder.clip)
    loop.run(Position())
    finish(ready)
    return measure(ready, load_float32(str(ready.folder / "model"), ready.config.model))


def plain_loop(ready: Prepared, rate: float) -> None:
    """The rival: what a good tutorial does, with the epochs of `ready`."""
    module, clip = ready.encoder.clip.module.train(), ready.encoder.clip
    train = ready.config.train.model_copy(update={"lr": rate})
    captions = ready.train.fixed_captions()
    size = min(PLAIN_BATCH, len(captions))
    steps = len(captions) // size
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)
    for step in range(steps * train.epochs):
        epoch, start = divmod(step, steps)
        rows = random_stream(train.seed, epoch).permutation(len(captions))[start * size :][:size]
        squares = ready.train.squares(rows, epoch=epoch)  # mirrored half of the time
        pixels = clip.preprocessing.normalize(squares).to(ready.encoder.device)
        tokens = clip.tokenize([captions[row] for row in rows]).to(ready.encoder.device)
        logits = module(input_ids=tokens, pixel_values=pixels).logits_per_text
        right = torch.arange(len(rows), device=logits.device)
        loss = (cross_entropy(logits, right) + cross_entropy(logits.t(), right)) / 2
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps * train.epochs, train)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), train.max_gradient_norm)
        optimizer.step()
        module.logit_scale.data.clamp_(max=math.log(train.max_logit_scale))
    module.eval()


def sentence_transformers(ready: Prepared, rate: float) -> None:
    """The other rival: as its documentation trains a CLIP, in both directions, on the same schedule."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer import losses

    clip, train, data = ready.encoder.clip, ready.config.train, ready.train
    with tempfile.TemporaryDirectory() as folder:
        clip.save(Path(folder))
        model = SentenceTransformer(folder, device="cpu")
        images = [Image.fromarray(data.squares([row], epoch=None)[0]) for row in range(len(data))]
        arguments = Arguments(
            output_dir=folder,
            num_train_epochs=train.epochs,
            per_device_train_batch_size=PLAIN_BATCH,
            dataloader_drop_last=True,
            learning_rate=rate,
            warmup_ratio=train.warmup_fraction,
            lr_scheduler_type="cosine",
            weight_decay=train.weight_decay,
            seed=train.seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"caption": data.fixed_captions(), "image": images}),
            loss=losses.CachedMultipleNegativesSymmetricRankingLoss(model),
        )
        trainer.train()
        clip.module.load_state_dict(model[0].auto_model.state_dict())
    clip.module.eval()


RIVALS = {"plain loop": plain_loop, "sentence-transformers": sentence_transformers}


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
    """Of every contestant one result a seed; of the plain loop that of its best rate."""
    found: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        for done in as_completed(running):
            job, measured = running[done], done.result()
            found[job.contestant, job.seed].append(measured)
            rate = f", {job.rate:g} times the rate" if job.rate else ""
            print(
                f"seed {job.seed}, {job.contestant}{rate}: MRR of titles {measured.titles.mean():.3f}, "
                f"of requests {measured.requests.mean():.3f}",
                file=sys.stderr,
                flush=True,
            )
    by_name: dict[str, list[Measured]] = defaultdict(list)
    for (name, _), tried in sorted(found.items(), key=lambda item: item[0][1]):
        by_name[name].append(max(tried, key=lambda measured: measured.validation_mrr))
    return by_name


def figures_of(found: dict[str, list[Measured]]) -> dict[str, float]:
    """Means over seeds and queries, and the difference of the titles' MRR to the plain loop's."""
    plain = np.mean([each.titles for each in found["plain loop"]], axis=0)
    figures: dict[str, float] = {}
    for name, seeds in found.items():
        titles = np.mean([each.titles for each in seeds], axis=0)
        for k in (1, 5, 10):
            figures[f"{name} recall@{k}"] = float(np.mean([each.titles >= 1 / k for each in seeds]))
        figures[f"{name} mrr"] = float(titles.mean())
        figures[f"{name} mrr by product"] = float(np.average(titles, weights=seeds[0].products))
        figures[f"{name} requests mrr"] = float(np.mean([each.requests for each in seeds]))
        test = paired_test(plain, titles, seeds[0].groups)
        figures |= {
            f"{name} minus plain": test.difference,
            f"{name} minus plain low": test.low,
            f"{name} minus plain high": test.high,
        }
    return figures


def show(figures: dict[str, float], names: Sequence[str]) -> None:
    """The table."""
    columns = ("recall@1", "recall@5", "recall@10", "mrr", "mrr by product", "requests mrr")
    heads = ("@1", "@5", "@10", "MRR", "(prod.)", "requests")
    print(f"\n{'':<26}" + "".join(f"{head:>9}" for head in heads) + "   MRR against the plain loop")
    for name in names:
        values = "".join(f"{figures[f'{name} {column}']:>9.3f}" for column in columns)
        interval = f"{figures[f'{name} minus plain low']:+.3f} to {figures[f'{name} minus plain high']:+.3f}"
        print(f"{name:<26}{values}   {figures[f'{name} minus plain']:+.3f} ({interval})")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quality")
    parser.add_argument("--shop", type=Path, help="a folder with furnclip.toml, prepared")
    parser.add_argument("--model", default="furnclip-tiny", help="the base")
    parser.add_argument("--random-weights", action="store_true", help="as the base, but nothing learnt")
    parser.add_argument("--epochs", type=int, default=0, help="for all contestants")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--only", action="append", help="this contestant, beside base and plain loop")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="trainings at once")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, three contestants")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    names = options.only or ["sentence-transformers", *CONTESTANTS]
    seeds, epochs, rates = range(options.seeds), options.epochs, PLAIN_RATES
    if options.quick:
        names, seeds, epochs, rates = ["furnclip"], range(1), 1, PLAIN_RATES[1:2]
    order = ["base", "plain loop", *names]
    with tempfile.TemporaryDirectory() as folder:
        shop = options.shop.resolve() if options.shop else prepared_shop(Path(folder))
        bases = [
            untrained(options.model, Path(folder), seed) if options.random_weights else options.model
            for seed in seeds
        ]
        jobs = [
            Job(shop, base, name, seed, rate, epochs)
            for seed, base in zip(seeds, bases, strict=True)
            for name in order
            for rate in (rates if name in RIVALS else (0.0,))
        ]
        found = results(jobs, options.processes)
    figures = figures_of({name: found[name] for name in order})
    ratio = {name: figures[f"{name} mrr"] / figures["plain loop mrr"] for name in names}
    if options.json:
        print(json.dumps({"topic": "quality", "ratios": ratio, "figures": figures}))
    else:
        show(figures, order)


if __name__ == "__main__":
    main()
