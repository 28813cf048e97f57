"""Whether the techniques of training pay, on real furniture, with a tiny CLIP from scratch.

    python -m tests.bench.quality [--quick] [--json]

Sweet Home 3D (about 820 products; the Debian package `sweethome3d-furniture`), every weight trained,
equal epochs and learning rate, three seeds (`--quick`: one, and three epochs). Recall of text to image
on the test split, each of its captions searched among all of its pictures; products with the same
caption or group are right answers of each other. Each row adds to the one above:

    naive        losses of micro-batches of 32 summed up to the effective batch, fixed captions
    exact        one loss over the whole effective batch of 128
    + positives  products that share a caption or a group are right answers
    + captions   captions sampled anew each epoch
    + wise_ft    the share of the trained change chosen on validation

Known bias: 128-pixel renderings of generic things, a random start (so WiSE-FT interpolates towards
noise) and a test split of about 80 products: one product is worth a point.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from furnclip.config import Config, load_config
from furnclip.metrics import ranks, recall_at_k
from furnclip.model import build_tiny_clip
from furnclip.model.loading import load_float32
from furnclip.shards import ShardDataset
from furnclip.train import run as room
from furnclip.train.checkpoints import Position, load_checkpoint
from furnclip.train.data import TrainingData
from furnclip.train.finish import finish
from furnclip.train.loop import Loop
from furnclip.train.losses import contrastive_loss, right_answers
from furnclip.train.processes import Processes
from furnclip.train.steps import Step
from furnclip.train.validation import answer_sets
from tests.bench.measure import parse, report

EFFECTIVE, MICRO, EPOCHS = 128, 32, 30
EXACT: dict[str, Any] = {"multi_positive": False, "caption_sampling": False, "wise_ft": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "naive": EXACT,
    "exact": EXACT,
    "+ positives": {**EXACT, "multi_positive": True},
    "+ captions": {**EXACT, "multi_positive": True, "caption_sampling": True},
    "+ wise_ft": {"multi_positive": True, "caption_sampling": True, "wise_ft": True},
}


class NaiveLoop(Loop):
    """The usual accumulation: each micro-batch contrasts with itself alone."""

    def _backward(self, step: Step, number: int) -> float:
        module = self.encoder.clip.module
        images, texts = self.maker.image_chunks(step, number), self.maker.text_chunks(step, number)
        total = 0.0
        for rows, image, text in zip(step.micro_batches, images, texts, strict=True):
            right = right_answers(range(len(step.indices[rows])))
            scalars = {"logit_scale": module.logit_scale}
            loss = contrastive_loss(image(), text(), scalars, right, name="softmax") / len(images)
            torch.autograd.backward(loss)
            total += float(loss)
        return total


@dataclass(frozen=True)
class Shop:
    """The prepared catalogue."""

    folder: Path

    def config(self, **train: Any) -> Config:
        flags = {
            "scenario": "full",
            "lr": 1e-3,
            "effective_batch_size": EFFECTIVE,
            "micro_batch_size": MICRO,
            "patience": 0,
            "layer_decay": 1.0,
            "checkpoint_interval_s": 3600,
            **train,
        }
        model = {"name": str(self.folder / "tiny"), "device": "cpu", "precision": "fp32"}
        return load_config(self.folder / "furnclip.toml", {"train": flags, "model": model})


def prepare(folder: Path) -> Shop:
    """The catalogue through `clean` and `prepare`, and a tiny CLIP with random weights."""
    root = Path(__file__).parents[2]
    for argv in (
        [str(root / "examples" / "sweethome3d.py"), str(folder)],
        ["-m", "furnclip", "clean", "run"],
        ["-m", "furnclip", "prepare"],
    ):
        subprocess.run([sys.executable, *argv], cwd=folder, check=True, capture_output=True)
    captions = [sample.caption for sample in ShardDataset(folder / "work" / "shards", "train")]
    build_tiny_clip(folder / "tiny", captions, image_px=64, width=128, layers=3)
    return Shop(folder)


def recalls(shop: Shop, variant: str, *, seed: int, epochs: int) -> tuple[float, float]:
    """recall@1 and @5 on the test split of one training."""
    config = shop.config(seed=seed, epochs=epochs, **VARIANTS[variant])
    run = config.paths.runs / f"{variant.replace('+ ', '')}-{seed}"
    ready = room._prepare(config, run, Processes())
    optimiser = room.build_optimiser(ready.parameters, config.train, layers=ready.encoder.clip.layers)
    loop = room._loop(ready, optimiser, run / "checkpoints")
    if variant == "naive":
        loop = NaiveLoop(
            **{name: getattr(loop, name) for name in Loop.__dataclass_fields__ if name[0] != "_"}
        )
    loop.run(Position())
    for tracker in loop.trackers:
        tracker.close()
    load_checkpoint(run / "checkpoints" / "best", ready.parameters)
    finish(run, ready.encoder, ready.validation, config)
    return _on_test(config, run)


def _on_test(config: Config, run: Path) -> tuple[float, float]:
    clip = load_float32(str(run / "model"), config.model)
    data = TrainingData(ShardDataset(config.paths.shards, "test"), clip.preprocessing, config.train)
    pictures = [Image.fromarray(square) for square in data.squares(range(len(data)), epoch=None)]
    answers = answer_sets(data.fixed_captions(), [text.group for text in data.texts])
    first = ranks(clip.encode_texts(data.fixed_captions()), clip.encode_images(pictures), answers)
    return recall_at_k(first, 1), recall_at_k(first, 5)


def figures_of(found: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Mean and spread (standard deviation over seeds) of both recalls for each variant."""
    figures = {}
    for variant, pairs in found.items():
        for name, values in zip(("recall@1", "recall@5"), zip(*pairs, strict=True), strict=True):
            figures[f"{variant} {name}"] = statistics.mean(values)
            figures[f"{variant} {name} sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return figures


def main() -> None:
    options = parse("quality")
    seeds, epochs = ((0,), 3) if options.quick else ((0, 1, 2), EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        shop = prepare(Path(folder))
        found = {
            variant: [recalls(shop, variant, seed=seed, epochs=epochs) for seed in seeds]
            for variant in VARIANTS
        }
    report("quality", {}, figures_of(found), as_json=options.json)


if __name__ == "__main__":
    main()
