"""Runs the towers for training: live ones micro-batch by micro-batch, frozen ones from their cache.

Validation during training is a gallery of the validation split alone, so its figures are higher than those
of a whole catalogue; they are for comparing epochs. `furnclip eval` measures the test split.

Letters: b micro-batch, N samples of a split, W width of a tower, D shared dimension, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnclip.catalogue import content_hash
from furnclip.config import TrainingConfig
from furnclip.features import FeatureStore, Keys, feature_keys
from furnclip.metrics.retrieval import mean_reciprocal_rank, ranks, recall_at_k
from furnclip.model.clip import Clip
from furnclip.model.towers import TOWERS, Tower, pooled_images, pooled_texts, project
from furnclip.runs import PrecisionChoice
from furnclip.shards import ShardDataset
from furnclip.train.data import Rows, Squares, TrainingData
from furnclip.train.exact import Chunk, free_bytes, measured, storage_addresses
from furnclip.train.scenarios import Scenario
from furnclip.vectors import unit_mean

Inputs = Squares | Tensor  # images (b, H, W, 3) or tokens (b, T)
_FILL_CHUNK = 128
_FROZEN_CHUNK = 1 << 14
_MEASURED, _USED_SHARE = 8, 0.5  # samples and share of memory, for the largest micro-batch


@dataclass
class TowerEncoder:
    """The model in training: which towers run, and the cached features of the frozen ones."""

    clip: Clip
    scenario: Scenario
    device: torch.device
    choice: PrecisionChoice
    cache: Path | None
    stores: dict[Tower, FeatureStore] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for tower in TOWERS:
            if not self.scenario.is_live(tower):
                store = FeatureStore(self.cache, self.clip.fingerprint, tower, self.choice.precision)
                self.stores[tower] = store

    def place(self) -> None:
        """Move the model; frozen weights take the narrow type, training weights stay float32."""
        self.clip.module.to(self.device)
        if self.choice.precision == "bf16":
            for parameter in self.clip.module.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)

    def live(self, tower: Tower, inputs: Inputs, seed: int) -> Chunk:
        """A micro-batch through the tower and projected."""

        def encode() -> Tensor:
            torch.manual_seed(seed)  # the same dropout on both passes
            return self._project(tower, self._pooled(tower, inputs))

        return encode

    def frozen(self, tower: Tower, keys: Keys) -> Chunk:
        """Any number of samples from the cache, projected."""
        pooled = torch.from_numpy(self.stores[tower].rows(keys)).to(self.device)
        return lambda: self._project(tower, pooled)

    def fill(
        self,
        tower: Tower,
        data: TrainingData,
        captions: Sequence[str] | None = None,
        *,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> Keys:
        """Encode what the frozen tower has not seen; the keys of all images, or of the captions."""
        texts = data.fixed_captions() if captions is None else captions
        keys = data.image_keys if tower == "vision" else feature_keys(map(content_hash, texts))

        def encode(rows: list[int]) -> NDArray[np.float32]:
            with torch.no_grad():
                pooled = self._pooled(tower, self._as_prepared(tower, data, rows, texts)).float()
            advance(len(rows))
            return pooled.cpu().numpy()

        self.stores[tower].fill(keys, encode, chunk_size=_FILL_CHUNK)
        return keys

    @torch.no_grad()
    def vectors(self, tower: Tower, data: TrainingData) -> NDArray[np.float32]:
        """(N, D): the whole split as evaluation sees it; of several images their unit mean."""
        was_training = self.clip.module.training
        self.clip.module.eval()
        if tower in self.stores:
            keys = self.fill(tower, data)
            chunks = np.split(keys, range(_FROZEN_CHUNK, len(keys), _FROZEN_CHUNK))
            parts = [self.frozen(tower, chunk)() for chunk in chunks]
        else:
            captions, parts = data.fixed_captions(), []
            count = len(data.image_keys) if tower == "vision" else len(data)
            for start in range(0, count, _FILL_CHUNK):
                rows = range(start, min(start + _FILL_CHUNK, count))
                parts.append(self.live(tower, self._as_prepared(tower, data, rows, captions), seed=0)())
        self.clip.module.train(was_training)
        vectors = torch.cat(parts).float().cpu().numpy()
        return unit_mean(vectors, data.image_counts) if tower == "vision" else vectors

    def _as_prepared(self, tower: Tower, data: TrainingData, rows: Rows, captions: Sequence[str]) -> Inputs:
        """What the tower reads of these images, or of these captions."""
        if tower == "vision":
            return data.image_squares(rows)
        return self.clip.tokenize([captions[row] for row in rows])

    def _pooled(self, tower: Tower, inputs: Inputs) -> Tensor:
        is_bf16 = self.choice.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bf16):
            if isinstance(inputs, Tensor):
                return pooled_texts(self.clip.module, self.clip.family, inputs)
            pixels = self.clip.preprocessing.normalize(inputs).to(self.device)
            return pooled_images(self.clip.module, self.clip.family, pixels.bfloat16() if is_bf16 else pixels)

    def _project(self, tower: Tower, pooled: Tensor) -> Tensor:
        # in float32 for live and cached towers alike: a rounded vector moves the whole loss
        with torch.autocast(self.device.type, enabled=False):
            return project(self.clip.module, self.clip.family, tower, pooled)


@dataclass
class Teacher:
    """A model that is not trained, and what it says of the split that is trained on."""

    encoder: TowerEncoder
    dataset: ShardDataset
    config: TrainingConfig
    _keys: dict[Tower, Keys] = field(default_factory=dict, init=False)

    def read(self, advance: Callable[[int], None] = lambda rows: None) -> dict[Tower, Keys]:
        """(N,) of each sample's main image and of its caption; all are encoded when this is first asked."""
        if not self._keys:
            data = TrainingData(self.dataset, self.encoder.clip.preprocessing, self.config)
            keys = {tower: self.encoder.fill(tower, data, advance=advance) for tower in TOWERS}
            main = data.drawn_images(range(len(data)), epoch=None)
            self._keys = {**keys, "vision": keys["vision"][main]}
        return self._keys

    @torch.no_grad()
    def logits(self, indices: Rows) -> Tensor:
        """(B, B): of the main image of a row and the caption of a column."""
        images, texts = (self.encoder.frozen(tower, self.read()[tower][indices])() for tower in TOWERS)
        scale: Tensor = self.encoder.clip.module.logit_scale
        return images @ texts.t() * scale.exp()


def retrieval_figures(encoder: TowerEncoder, data: TrainingData) -> dict[str, float]:
    """recall@1, recall@5 and MRR both ways, and `score`, their mean: recall alone is too coarse."""
    images, texts = encoder.vectors("vision", data), encoder.vectors("text", data)
    relevant = data.positives()
    figures: dict[str, float] = {}
    for way, queries, gallery in (("text_to_image", texts, images), ("image_to_text", images, texts)):
        first = ranks(queries, gallery, relevant)
        figures[f"{way}_recall@1"] = recall_at_k(first, 1)
        figures[f"{way}_recall@5"] = recall_at_k(first, 5)
        figures[f"{way}_mrr"] = mean_reciprocal_rank(first)
    return {"score": float(np.mean(list(figures.values()))), **figures}


def largest_micro_batch(encoder: TowerEncoder, *, limit: int, texts: int, tokens: int) -> int:
    """A power of two, at most `limit`; `texts`: of each product; `tokens`: the longest text expected."""
    live = [tower for tower in TOWERS if encoder.scenario.is_live(tower)]
    if not live or limit <= _MEASURED:
        return limit
    clip = copy.copy(encoder.clip)
    clip.module = copy.deepcopy(clip.module).train()
    scratch = replace(encoder, clip=clip, cache=None)
    positions = int(clip.module.config.text_config.max_position_embeddings)
    length = min(tokens, positions) if clip.family.pads_to_longest else positions
    captions = torch.zeros((_MEASURED * texts, length), dtype=torch.long)
    captions[:, -1] = clip.tokenizer.eos_token_id  # what comes behind the end would cost nothing
    blank = np.zeros((_MEASURED, clip.image_px, clip.image_px, 3), dtype=np.uint8)
    inputs: dict[Tower, Inputs] = {"vision": blank, "text": captions}
    weights, graph_bytes = storage_addresses(clip.module), 0
    for tower in live:
        graph_bytes += measured(scratch.live(tower, inputs[tower], seed=0), weights)[1]
    fitting = int(free_bytes(encoder.device) * _USED_SHARE / graph_bytes * _MEASURED)
    return min(limit, 1 << max(0, fitting.bit_length() - 1))
