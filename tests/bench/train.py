"""Training throughput and memory on ViT-B/32 against the loop that most people write.

    python -m tests.bench.train [--quick] [--json]

Random weights, 224-pixel images, captions of about 20 tokens. The rival is Hugging Face's `CLIPModel`
with PEFT's adapters on the same layers, `padding="max_length"` (77), float32, the loss of each
micro-batch summed up; it gets its pixels normalized and its tokens padded beforehand. furnclip starts
from bytes and strings and contrasts the whole effective batch. Both take AdamW steps. Samples per
second of one optimizer step of 64 samples in micro-batches of 32 (16 in one with `--quick`); for frozen
towers after the pass that fills the cache.

`dual_lora_no_graph_kept`: the same where memory is too small to keep any graph between the two passes,
so that every micro-batch is encoded twice. A large batch on a machine with memory lies in between.

`peak_memory` is the peak resident memory of a process that takes one exact step of 1024 samples in
micro-batches of 32, keeping no graphs, over its peak after a lone step of 32 before (32 in micro-batches of
16 with `--quick`); what the large one has more is its images, as bytes (`images_mb`), and the (B, B)
similarities. In the precision that furnclip chooses for the machine.
Known bias: random weights are as fast as trained ones, but nothing here says how well it learns.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPConfig, CLIPModel

from examples.make_tiny_clip import learn_tokenizer
from furnclip.config import CleaningConfig, TrainingConfig
from furnclip.model.clip import Clip
from furnclip.model.inputs import Preprocessing
from furnclip.model.precision import choose_precision
from furnclip.model.towers import CLIP
from furnclip.relevance import positive_mask
from furnclip.train.encoder import TowerEncoder
from furnclip.train.exact import (
    Chunk,
    Memory,
    contrastive_loss,
    exact_backward,
    kept_activations_bytes,
    peak_memory_mb,
    storage_addresses,
)
from furnclip.train.scenarios import SCENARIOS, unfreeze
from tests.bench.measure import median_s, parse, report

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
RANK, ALPHA = 16, 32
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workload:
    """One effective batch: images as bytes, captions as strings."""

    images: np.ndarray
    captions: list[str]
    micro: int


def workload(samples: int, micro: int) -> Workload:
    random, known = np.random.default_rng(0), CleaningConfig()
    vocabularies = (known.styles, known.colors, known.materials, known.object_types)

    def words() -> str:
        style, color, material, kind = (random.choice(np.array(words)) for words in vocabularies)
        other = random.choice(np.array(known.materials))
        return (
            f"a photo of a {style} {color} {material} {kind} with {other} legs, for the living room, "
            f"number {random.integers(100)}"
        )

    images = random.integers(0, 256, (samples, 224, 224, 3), dtype=np.uint8)
    captions = sorted((words() for _ in range(samples)), key=len)  # alike in length, as furnclip batches
    return Workload(images, captions, micro)


def vit_b32(captions: Sequence[str]) -> Clip:
    """ViT-B/32 with the same random weights each time, in float32."""
    first = first_vit_b32(tuple(captions))
    clip = copy.copy(first)
    clip.module = copy.deepcopy(first.module)
    return clip


@cache
def first_vit_b32(captions: tuple[str, ...]) -> Clip:
    """The one that the others are copies of."""
    tokenizer = learn_tokenizer(captions, size=4096)
    config = CLIPConfig()
    config.text_config.bos_token_id = tokenizer.bos_token_id
    config.text_config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    return Clip(CLIPModel(config), tokenizer, name="ViT-B/32", family=CLIP, preprocessing=Preprocessing(224))


class Ours:
    """furnclip's optimizer step."""

    def __init__(self, scenario: str, work: Workload, clip: Clip, *, keep_mb: int) -> None:
        choice = choose_precision("auto", clip.module, CPU)
        config = TrainingConfig(scenario=scenario, lora_r=RANK, lora_alpha=ALPHA, lora_targets=TARGETS)
        self.parameters = unfreeze(clip, config)
        self.encoder = TowerEncoder(clip, SCENARIOS[scenario], CPU, choice, None)
        self.encoder.place()
        clip.module.train()
        self.memory = Memory(kept_activations_bytes(keep_mb, CPU), storage_addresses(clip.module))
        self.take(work)

    def take(self, work: Workload) -> None:
        """Step on this workload from now on, by a new optimizer."""
        self.work = work
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-5)
        self.positive = torch.from_numpy(positive_mask(work.captions))
        self.keys = np.arange(len(work.captions), dtype=np.uint64)
        for tower in self.encoder.stores:
            self.encoder.stores[tower].fill(self.keys, partial(self._pooled, tower), chunk_size=32)

    def _pooled(self, tower: str, rows: list[int]) -> NDArray[np.float32]:
        inputs = (
            self.work.images[rows]
            if tower == "vision"
            else self.encoder.clip.tokenize([self.work.captions[row] for row in rows])
        )
        with torch.no_grad():
            pooled = self.encoder._pooled("vision" if tower == "vision" else "text", inputs)
        return pooled.float().cpu().numpy()

    def warm_up(self) -> None:
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        scalars = {"logit_scale": self.encoder.clip.module.logit_scale}
        exact_backward(
            self.chunks("vision"),
            self.chunks("text"),
            lambda images, texts: contrastive_loss(images, texts, scalars, self.positive, name="softmax"),
            memory=self.memory,
        )
        self.optimizer.step()

    def chunks(self, tower: str) -> list[Chunk]:
        if tower in self.encoder.stores:
            return [self.encoder.frozen("vision" if tower == "vision" else "text", self.keys)]
        starts = range(0, len(self.keys), self.work.micro)
        parts = [slice(start, start + self.work.micro) for start in starts]
        if tower == "vision":
            return [self.encoder.live("vision", self.work.images[rows], 0) for rows in parts]
        tokens = [self.encoder.clip.tokenize(self.work.captions[rows]) for rows in parts]
        return [self.encoder.live("text", each, 0) for each in tokens]


class Plain:
    """The usual loop: one loss a micro-batch, full padding, float32."""

    def __init__(self, scenario: str, work: Workload, clip: Clip) -> None:
        self.model, lora = clip.module, SCENARIOS[scenario].lora
        self.model.requires_grad_(False)
        if lora:
            paths = [
                name
                for name, _ in self.model.named_modules()
                if name.endswith(TARGETS) and name.startswith(tuple(f"{tower}_model" for tower in lora))
            ]
            config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=paths)
            inject_adapter_in_model(config, self.model)
        for part in (self.model.visual_projection, self.model.text_projection):
            part.requires_grad_(True)
        self.model.logit_scale.requires_grad_(True)
        self.model.train()
        self.pixels = clip.preprocessing.normalize(work.images)
        tokens = clip.tokenizer(
            work.captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        self.tokens, self.mask = tokens["input_ids"], tokens["attention_mask"]
        self.micro = work.micro
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-5)

    def warm_up(self) -> None:
        """A few samples: it has nothing to compile or to choose."""
        self.step(4)

    def step(self, samples: int | None = None) -> None:
        self.optimizer.zero_grad()
        samples = samples or len(self.pixels)
        for start in range(0, samples, self.micro):
            rows = slice(start, min(start + self.micro, samples))
            output = self.model(
                pixel_values=self.pixels[rows],
                input_ids=self.tokens[rows],
                attention_mask=self.mask[rows],
                return_loss=True,
            )
            output.loss.backward()
        self.optimizer.step()


def throughput(scenario: str, work: Workload, *, repeats: int, strict: bool = False) -> dict[str, float]:
    """Median samples per second of furnclip (`ours`, `strict`: no graph kept) and the plain loop, in turn."""
    clip = partial(vit_b32, work.captions)
    loops: dict[str, Ours | Plain] = {"ours": Ours(scenario, work, clip(), keep_mb=-1)}
    loops["plain"] = Plain(scenario, work, clip())
    if strict:
        loops["strict"] = Ours(scenario, work, clip(), keep_mb=0)
    for loop in loops.values():
        loop.warm_up()
    rounds = [{name: median_s(loop.step, 1) for name, loop in loops.items()} for _ in range(repeats)]
    return {name: len(work.captions) / median(each[name] for each in rounds) for name in loops}


def peak_memory(samples: int, micro: int) -> tuple[float, float]:
    """Peak MB of an exact step of `samples`, and of a lone micro-batch.

    As the process itself reports it: no short peak is missed.
    """
    argv = [sys.executable, "-m", "tests.bench.train", "child", str(samples), str(micro)]
    finished = subprocess.run(argv, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    lone_mb, exact_mb = map(float, finished.stdout.split())
    return exact_mb, lone_mb


def child(samples: int, micro: int) -> None:
    """What `peak_memory` asks: the peaks in MB after a lone step and after an exact one, no graph kept."""
    clip = first_vit_b32(tuple(workload(samples, micro).captions))
    ours = Ours("dual_lora", workload(micro, micro), clip, keep_mb=0)
    for size in (micro, samples):
        ours.take(workload(size, micro))
        ours.step()
        mebibytes = peak_memory_mb(CPU)
        assert mebibytes is not None
        print(mebibytes * 2**20 / 1e6)


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(int(sys.argv[2]), int(sys.argv[3]))
        return
    options = parse("train")
    repeats, samples, micro, large, lone = (1, 16, 16, 32, 16) if options.quick else (3, 64, 32, 1024, 32)
    work = workload(samples, micro)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for scenario in ("dual_lora", "vision_lora", "text_lora", "linear_probe"):
        strict = scenario == "dual_lora" and not options.quick
        rates = throughput(scenario, work, repeats=repeats, strict=strict)
        ratios[scenario] = rates["ours"] / rates["plain"]
        if strict:
            ratios["dual_lora_no_graph_kept"] = rates["strict"] / rates["plain"]
        figures.update({f"{scenario}_{name}_samples_s": rate for name, rate in rates.items()})
        print(f"{scenario}: {ratios[scenario]:.2f}", file=sys.stderr, flush=True)
    exact_mb, lone_mb = peak_memory(large, lone)
    ratios["peak_memory"] = exact_mb / lone_mb
    images_mb = workload(large - lone, lone).images.nbytes / 1e6
    figures.update({f"exact_{large}_mb": exact_mb, f"lone_{lone}_mb": lone_mb, "images_mb": images_mb})
    report("train", ratios, figures, as_json=options.json)


if __name__ == "__main__":
    main()
