"""Whether the techniques of training pay, on real furniture, with the small CLIP that comes along.

    python -m tests.bench.quality [--quick] [--json]

Sweet Home 3D (820 products; the Debian package `sweethome3d-furniture`), every weight of `furnclip-tiny`
trained, equal epochs and learning rate, three seeds (`--quick`: one seed, one epoch). Recall of text to
image on the test split, each of its fixed captions searched among all of its images; products with
the same caption or group are positives of each other. Mean and standard deviation over the seeds.

    base                 furnclip-tiny as it is
    naive                losses of micro-batches of 32 summed up to the effective batch, fixed captions
    exact                one loss over the whole effective batch of 128
    positives            exact, and products that share a caption or a group are positives
    captions             exact, and captions sampled anew each epoch
    positives captions   both
    ... + wise_ft        any of these, with the share of the trained change chosen on validation

Each training keeps its best epoch by validation. One process a core, one thread each. Known bias:
128-pixel renderings of generic things, a base that has seen drawn shapes alone, and a test split of about
80 products: one product is worth a point.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from furnclip.metrics.retrieval import ranks, recall_at_k
from furnclip.model.clip import Clip
from furnclip.model.loading import load_float32
from furnclip.model.towers import TOWERS
from furnclip.relevance import positives
from furnclip.shards import ShardDataset
from furnclip.train.batches import Batch
from furnclip.train.checkpoints import Position, load_checkpoint
from furnclip.train.data import TrainingData
from furnclip.train.exact import Loss, contrastive_loss
from furnclip.train.finish import finish
from furnclip.train.loop import Loop
from furnclip.train.prepared import Prepared
from tests.bench.measure import parse
from tests.training import loop_of

EFFECTIVE, MICRO, EPOCHS, RATE = 128, 32, 12, 3e-4
MODEL = {"name": "furnclip-tiny", "device": "cpu", "precision": "fp32"}
VARIANTS: dict[str, dict[str, bool]] = {
    "naive": {},
    "exact": {},
    "positives": {"multi_positive": True},
    "captions": {"caption_sampling": True},
    "positives captions": {"multi_positive": True, "caption_sampling": True},
}
Recalls = tuple[float, float]  # at 1 and at 5


class NaiveLoop(Loop):
    """The usual accumulation: each micro-batch contrasts with itself alone."""

    def _backward(self, batch: Batch, position: Position, loss_of: Loss) -> float:
        encoder, seed = self.ready.encoder, self.config.seed
        images, texts = (batch.chunks(encoder, tower, seed=seed, step=position.step) for tower in TOWERS)
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        scalars = {"logit_scale": encoder.clip.module.logit_scale}
        total = 0.0
        for rows, image, text in zip(batch.micro_batches, images, texts, strict=True):
            positive = torch.eye(len(batch.indices[rows]))
            loss = contrastive_loss(image(), text(), scalars, positive, name="softmax") / len(images)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total


@dataclass(frozen=True)
class Job:
    """One training."""

    shop: Path
    variant: str
    seed: int
    epochs: int

    def flags(self) -> dict[str, Any]:
        return {
            "scenario": "full",
            "lr": RATE,
            "seed": self.seed,
            "epochs": self.epochs,
            "effective_batch_size": EFFECTIVE,
            "micro_batch_size": MICRO,
            "patience": 0,
            "layer_decay": 1.0,
            "checkpoint_interval_s": 3600,
            "multi_positive": False,
            "caption_sampling": False,
            **VARIANTS[self.variant],
        }


def prepare(folder: Path) -> Path:
    """The catalogue through `clean` and `prepare`."""
    root = Path(__file__).parents[2]
    for argv in (
        [str(root / "examples" / "sweethome3d.py"), str(folder)],
        ["-m", "furnclip", "clean", "run"],
        ["-m", "furnclip", "prepare"],
    ):
        subprocess.run([sys.executable, *argv], cwd=folder, check=True, capture_output=True)
    return folder


def trained(job: Job) -> dict[str, Recalls]:
    """Recalls on the test split of one training, without and with the share chosen on validation."""
    torch.set_num_threads(1)
    ready, loop = loop_of(job.shop, f"{job.variant.replace(' ', '-')}-{job.seed}", model=MODEL, **job.flags())
    found = {"base": on_test(ready, load_float32(MODEL["name"], ready.config.model))}
    if job.variant == "naive":
        loop = NaiveLoop(ready)
    loop.run(Position())
    load_checkpoint(loop.checkpoints / "best", ready.parameters)
    for name, wise_ft in ((job.variant, False), (f"{job.variant} + wise_ft", True)):
        train = ready.config.train.model_copy(update={"wise_ft": wise_ft})
        config = ready.config.model_copy(update={"train": train})
        finish(replace(ready, config=config))
        found[name] = on_test(ready, load_float32(str(ready.folder / "model"), config.model))
    return found


def on_test(ready: Prepared, clip: Clip) -> Recalls:
    """recall@1 and @5 of a model on the test split."""
    config = ready.config
    data = TrainingData(ShardDataset(config.paths.shards, "test"), clip.preprocessing, config.train)
    pictures = [Image.fromarray(square) for square in data.squares(range(len(data)), epoch=None)]
    answers = positives(data.fixed_captions(), [text.group for text in data.texts])
    first = ranks(clip.encode_texts(data.fixed_captions()), clip.encode_images(pictures), answers)
    return recall_at_k(first, 1), recall_at_k(first, 5)


def measured(jobs: Sequence[Job]) -> dict[str, list[Recalls]]:
    """The recalls of every variant, each told on stderr as it comes."""
    found: dict[str, list[Recalls]] = defaultdict(list)
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        running = {pool.submit(trained, job): job for job in jobs}
        for done in as_completed(running):
            job = running[done]
            for name, recalls in done.result().items():
                found[name].append(recalls)
                shown = ", ".join(f"{recall:.3f}" for recall in recalls)
                print(f"seed {job.seed}, {name}: recall@1 and @5 {shown}", file=sys.stderr, flush=True)
    order = ["base", *(name for key in VARIANTS for name in (key, f"{key} + wise_ft"))]
    return {name: found[name] for name in order}


def figures_of(found: Mapping[str, Sequence[Recalls]]) -> dict[str, float]:
    """Mean and spread (standard deviation over seeds) of both recalls for each variant."""
    figures = {}
    for variant, pairs in found.items():
        for name, values in zip(("recall@1", "recall@5"), zip(*pairs, strict=True), strict=True):
            figures[f"{variant} {name}"] = statistics.mean(values)
            figures[f"{variant} {name} sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return figures


def show(figures: Mapping[str, float], variants: Sequence[str]) -> None:
    """The table."""
    print(f"\n{'':<30}{'recall@1':>18}{'recall@5':>18}")
    for variant in variants:
        cells = [
            f"{figures[f'{variant} {name}']:.3f} ± {figures[f'{variant} {name} sd']:.3f}"
            for name in ("recall@1", "recall@5")
        ]
        print(f"{variant:<30}{cells[0]:>18}{cells[1]:>18}")


def main() -> None:
    options = parse("quality")
    seeds, epochs = ((0,), 1) if options.quick else ((0, 1, 2), EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        shop = prepare(Path(folder))
        found = measured([Job(shop, variant, seed, epochs) for seed in seeds for variant in VARIANTS])
    figures = figures_of(found)
    if options.json:
        print(json.dumps({"topic": "quality", "ratios": {}, "figures": figures}))
    else:
        show(figures, list(found))


if __name__ == "__main__":
    main()
