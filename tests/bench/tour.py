"""What `furnclip demo` teaches the little model: six tours, their scores and their seconds.

    python -m tests.bench.tour [--quick] [--json]

Each seed has splits and training of its own on the bundled catalogue of 1,400 products (`--quick`: one seed,
100 products). Text to image on the test split: each caption is searched among all of the split's images;
products of the same caption or group are positives of each other. Each model is compared with the one
before, query by query: difference, 95 % interval, p. The bootstrap draws variant groups; a group that
several seeds test counts once.

Known bias: the catalogue is drawings in one style, so the numbers say that the machinery works, not how
well furnclip does on photographs. `seconds` means something only where nothing else runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from furnclip.config import Config, load_config
from furnclip.metrics.bootstrap import Floats, bootstrap_interval, paired_test
from furnclip.metrics.retrieval import chance_recall_at_k, ranks
from furnclip.model.loading import load_clip
from furnclip.relevance import positives
from furnclip.shards import ShardDataset
from furnclip.train.data import TrainingData
from tests.bench.measure import parse, report

MODELS = ("zero_shot", "linear_probe", "dual_lora")
SEEDS, PRODUCTS = (0, 1, 2, 3, 4, 5), 1400
QUICK_SEEDS, QUICK_PRODUCTS = (0,), 100


@dataclass(frozen=True)
class Ranked:
    """Rank of the first positive image for each caption, the captions' groups, and recall@1 by chance."""

    first_ranks: Floats
    groups: list[str]
    chance: float

    @classmethod
    def read(cls, config: Config, model: str) -> Ranked:
        clip = load_clip(model, config.model, runs=config.paths.runs)
        dataset = ShardDataset(config.paths.shards, "test")
        data = TrainingData(dataset, clip.preprocessing, config.train)
        captions, groups = data.fixed_captions(), [text.group for text in data.texts]
        models = [sample.fields["model"] for sample in dataset]  # the same in every seed
        answers = positives(captions, groups)
        images = [Image.fromarray(square) for square in data.squares(range(len(data)), epoch=None)]
        found = ranks(clip.encode_texts(captions), clip.encode_images(images), answers)
        chance = chance_recall_at_k([len(right) for right in answers], len(data), 1)
        return cls(found.astype(np.float64), models, chance)


@dataclass
class Tours:
    """One value a query for each model and metric, all seeds in order."""

    groups: list[list[str]] = field(default_factory=list)  # of each seed
    first_ranks: dict[str, list[Floats]] = field(default_factory=dict)
    chances: list[float] = field(default_factory=list)  # recall@1 of a gallery in random order, per seed
    seconds: list[float] = field(default_factory=list)

    def add(self, folder: Path) -> None:
        """Read the models of a finished tour."""
        config = load_config(folder / "furnclip.toml")
        for model in MODELS:
            test = Ranked.read(config, model)
            self.first_ranks.setdefault(model, []).append(test.first_ranks)
        self.groups.append(test.groups)
        self.chances.append(test.chance)

    def values(self, model: str, metric: str, seeds: slice = slice(None)) -> Floats:
        first = np.concatenate(self.first_ranks[model][seeds])
        return 1 / first if metric == "MRR" else (first <= int(metric[-1])).astype(np.float64)

    def steps(self, metric: str, seeds: slice = slice(None)) -> dict[str, str]:
        """How far each model is above the one before."""
        groups = list(chain.from_iterable(self.groups[seeds]))
        steps = {}
        for before, after in pairwise(MODELS):
            test = paired_test(self.values(before, metric, seeds), self.values(after, metric, seeds), groups)
            told = f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f}), p {test.p_value:.4f}"
            steps[f"{metric}, {after} - {before}"] = told
        return steps


def take_tour(folder: Path, *, seed: int, products: int) -> float:
    """`furnclip demo` from the beginning, or from where it was stopped; its seconds."""
    size = ("--seed", str(seed), "--products", str(products))
    command = [sys.executable, "-m", "furnclip", "demo", str(folder), *size, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)["total_seconds"])


def figures_of(tours: Tours) -> dict[str, str]:
    """A line for each model of each seed, each pooled model, and each step from one to the next."""
    metrics = ("recall@1", "recall@5", "MRR")
    figures = {}
    for number, chance in enumerate(tours.chances):
        one = slice(number, number + 1)
        for model in MODELS:
            means = [float(tours.values(model, metric, one).mean()) for metric in metrics]
            text = "  ".join(f"{metric} {mean:.3f}" for metric, mean in zip(metrics, means, strict=True))
            figures[f"seed {number}, {model}"] = f"{text}  {means[0] / chance:.0f}x chance"
        for metric in metrics:
            figures |= {f"seed {number}, {name}": told for name, told in tours.steps(metric, one).items()}
    for metric in metrics:
        for model in MODELS:
            pooled = bootstrap_interval(tours.values(model, metric), list(chain.from_iterable(tours.groups)))
            figures[f"{metric}, {model}"] = f"{pooled.value:.3f} ({pooled.low:.3f} to {pooled.high:.3f})"
        figures |= tours.steps(metric)
    if tours.seconds:
        figures["seconds"] = ", ".join(f"{seconds:.0f}" for seconds in tours.seconds)
    return figures


def measure(root: Path, seeds: Sequence[int], products: int) -> Mapping[str, str]:
    """All tours in `root`, and what they show."""
    tours = Tours()
    for seed in seeds:
        folder = root / f"tour-{seed}"
        tours.seconds.append(take_tour(folder, seed=seed, products=products))
        tours.add(folder)
    return figures_of(tours)


def main() -> None:
    options = parse("tour")
    seeds, products = (QUICK_SEEDS, QUICK_PRODUCTS) if options.quick else (SEEDS, PRODUCTS)
    with tempfile.TemporaryDirectory() as folder:
        report("tour", {}, measure(Path(folder), seeds, products), as_json=options.json)


if __name__ == "__main__":
    main()
