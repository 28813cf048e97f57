"""The gradient of micro-batches is that of the whole batch: for each loss, scenario and dropout."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from furnclip.config import ModelConfig, TrainingConfig
from furnclip.errors import ConfigError
from furnclip.model.clip import quiet
from furnclip.model.loading import load_float32
from furnclip.model.towers import CLIP, SIGLIP, LossName
from furnclip.relevance import positive_mask
from furnclip.runs import PrecisionChoice as Choice
from furnclip.train.encoder import TowerEncoder
from furnclip.train.exact import (
    Chunk,
    Memory,
    NonFiniteLossError,
    chance_loss,
    checked_loss,
    contrastive_loss,
    distillation_loss,
    exact_backward,
    measured,
    storage_addresses,
)
from furnclip.train.loop import dropout_seed
from furnclip.train.scenarios import SCENARIOS, Muon, orthogonalized, unfreeze

SAMPLES = 24
CAPTIONS = [f"a {color} {kind}" for color in ("red", "blue", "green black") for kind in ("chair", "bed")] * 4
GROUPS = [f"group {index // 2}" for index in range(SAMPLES)]
GOLDEN = Path(__file__).parent / "golden" / "loss.txt"
TRAINING = ("linear_probe", "dual_lora", "vision_lora", "text_lora", "full")


class Setting:
    """A tiny model in a scenario, with images and captions, cut into micro-batches at will."""

    def __init__(self, folder: Path, scenario: str, dropout: float) -> None:
        clip = load_float32(str(folder), ModelConfig(device="cpu", precision="fp32"))
        targets = ("q_proj", "v_proj", "fc1")
        config = TrainingConfig(
            scenario=scenario, lora_r=4, lora_alpha=8, lora_dropout=dropout, lora_targets=targets
        )
        self.parameters = unfreeze(clip, config)
        with torch.no_grad():  # adapters start at zero, where their first matrix has no gradient
            for name, parameter in self.parameters.items():
                if ".lora_" in name:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=_generator(1)))
        self.encoder = TowerEncoder(
            clip, SCENARIOS[scenario], torch.device("cpu"), Choice("fp32", "test"), None
        )
        clip.module.train()
        self.images = np.random.default_rng(0).integers(0, 256, (SAMPLES, 32, 32, 3), dtype=np.uint8)

    def chunks(self, bounds: Sequence[int]) -> tuple[list[Chunk], list[Chunk]]:
        clip = self.encoder.clip
        images, texts = [], []
        for start, stop in itertools.pairwise(bounds):
            tokens = clip.tokenize(CAPTIONS[start:stop])
            images.append(self.encoder.live("vision", self.images[start:stop], 0))
            texts.append(self.encoder.live("text", tokens, 0))
        return images, texts

    def gradient(self, bounds: Sequence[int], loss: LossName, *, keep_bytes: int = 0) -> tuple[float, Tensor]:
        module = self.encoder.clip.module
        module.zero_grad()
        scalars: dict[str, Tensor] = {"logit_scale": module.logit_scale}
        scalars["logit_bias"] = torch.tensor(-5.0)
        positive = positives_of(CAPTIONS, GROUPS)

        def value(images: Tensor, texts: Tensor) -> Tensor:
            return contrastive_loss(images, texts, scalars, positive, name=loss)

        images, texts = self.chunks(bounds)
        memory = Memory(keep_bytes, storage_addresses(module))
        total = exact_backward(images, texts, value, memory=memory)
        return float(total), _flat(self.parameters)


def positives_of(*labels: Sequence[Hashable]) -> Tensor:
    """(B, B) booleans: the positives of a batch."""
    return torch.from_numpy(positive_mask(*labels))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flat(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters.values()]
    return torch.cat([part.flatten().double() for part in parts])


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("scenario", TRAINING)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    tiny_clip: Path, scenario: str, loss: LossName
) -> None:
    setting = Setting(tiny_clip, scenario, dropout=0.0)
    whole_loss, whole = setting.gradient([0, SAMPLES], loss)
    for bounds in ([0, 8, 16, 24], [0, 5, 10, 15, 20, 24], range(SAMPLES + 1)):
        found_loss, found = setting.gradient(list(bounds), loss)
        assert found_loss == pytest.approx(whole_loss, rel=1e-6)
        assert _relative_error(found, whole) <= 1e-5


@pytest.mark.parametrize("scenario", ["dual_lora", "vision_lora", "text_lora"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_with_dropout_the_second_pass_draws_what_the_first_drew(
    tiny_clip: Path, scenario: str, loss: LossName
) -> None:
    """One-shot here means one graph over all micro-batches, each with its own dropout."""
    setting = Setting(tiny_clip, scenario, dropout=0.3)
    bounds = [0, 8, 16, 24]
    _, two_passes = setting.gradient(bounds, loss)
    _, one_graph = setting.gradient(bounds, loss, keep_bytes=2**40)
    assert _relative_error(two_passes, one_graph) <= 1e-5
    without, _ = Setting(tiny_clip, scenario, dropout=0.0).gradient(bounds, loss)
    assert setting.gradient(bounds, loss)[0] != pytest.approx(without, rel=1e-6), "dropout did nothing"


def test_summing_micro_batch_losses_is_something_else(tiny_clip: Path) -> None:
    """The rival's way points elsewhere, so the equality above is no accident of the data."""
    setting = Setting(tiny_clip, "full", dropout=0.0)
    _, whole = setting.gradient([0, SAMPLES], "softmax")
    module = setting.encoder.clip.module
    module.zero_grad()
    for start in range(0, SAMPLES, 4):
        images, texts = setting.chunks([start, start + 4])
        rows = slice(start, start + 4)
        positive = positives_of(CAPTIONS[rows], GROUPS[rows])
        scalars = {"logit_scale": module.logit_scale}
        contrastive_loss(images[0](), texts[0](), scalars, positive, name="softmax").backward()
    naive = _flat(setting.parameters)
    assert torch.nn.functional.cosine_similarity(whole, naive, dim=0) < 0.98


@pytest.mark.parametrize("keep_mb", [0, 0.2, 1, 1000])
def test_kept_graphs_change_no_bit(tiny_clip: Path, keep_mb: float) -> None:
    setting = Setting(tiny_clip, "dual_lora", dropout=0.2)
    bounds = [0, 6, 12, 18, 24]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, without = setting.gradient(bounds, "softmax")
        _, kept = setting.gradient(bounds, "softmax", keep_bytes=int(keep_mb * 2**20))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(without, kept)


def test_graphs_are_kept_in_every_step_and_freed_after_it(tiny_clip: Path) -> None:
    setting = Setting(tiny_clip, "dual_lora", dropout=0.0)
    memory = Memory(2**30, storage_addresses(setting.encoder.clip.module))
    calls: list[int] = []

    def counted(chunk: Chunk) -> Chunk:
        def encode() -> Tensor:
            calls.append(1)
            return chunk()

        return encode

    for step in (1, 2):
        images, texts = ([counted(chunk) for chunk in chunks] for chunks in setting.chunks([0, 8, 16, 24]))
        exact_backward(images, texts, lambda a, b: (a @ b.t()).square().sum(), memory=memory)
        assert len(calls) == 6 * step


def test_a_micro_batch_is_encoded_again_when_the_graph_before_it_is_gone() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    encoded: list[weakref.ref[Tensor]] = []

    def chunk() -> Tensor:
        assert all(before() is None for before in encoded)
        vectors = torch.softmax(weight * 2, dim=1)
        if vectors.requires_grad:
            encoded.append(weakref.ref(vectors))
        return vectors

    exact_backward([chunk] * 3, [chunk] * 2, lambda a, b: a.square().sum() + b.sum())
    assert len(encoded) == 5


def test_a_graph_that_is_measured_and_thrown_away_leaves_nothing_behind() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    kept: list[weakref.ref[Tensor]] = []

    def chunk() -> Tensor:
        inner = torch.softmax(weight * 2, dim=1)  # its node keeps its own output
        kept.append(weakref.ref(inner))
        return inner.square()

    size = measured(chunk, frozenset({weight.untyped_storage().data_ptr()}))[1]
    assert size > 0
    assert kept[0]() is None


def test_bf16_accumulates_to_the_one_shot_gradient_of_bf16(tiny_clip: Path) -> None:
    setting = Setting(tiny_clip, "dual_lora", dropout=0.0)
    setting.encoder.choice = Choice("bf16", "test")
    setting.encoder.place()
    _, whole = setting.gradient([0, SAMPLES], "softmax")
    _, parts = setting.gradient([0, 8, 16, 24], "softmax")
    assert _relative_error(parts, whole) <= 0.02
    assert all(p.dtype == torch.float32 for p in setting.parameters.values())


def test_gradient_checkpointing_changes_nothing_but_time(tiny_clip: Path) -> None:
    setting = Setting(tiny_clip, "dual_lora", dropout=0.2)
    _, plain = setting.gradient([0, 12, 24], "softmax")
    with quiet():
        setting.encoder.clip.module.gradient_checkpointing_enable({"use_reentrant": False})
    _, recomputed = setting.gradient([0, 12, 24], "softmax")
    assert _relative_error(recomputed, plain) <= 1e-6


def test_a_cached_tower_trains_as_a_live_one(tiny_clip: Path) -> None:
    setting = Setting(tiny_clip, "linear_probe", dropout=0.0)
    _, live = setting.gradient([0, 8, 24], "softmax")
    encoder = setting.encoder
    with torch.no_grad():
        pooled = {
            "vision": encoder._pooled("vision", setting.images),
            "text": encoder._pooled("text", encoder.clip.tokenize(CAPTIONS)),
        }
    keys = np.arange(SAMPLES, dtype=np.uint64)
    chunks = []
    for tower in ("vision", "text"):
        encoder.stores[tower].fill(keys, lambda rows, tower=tower: pooled[tower][rows], chunk_size=7)
        chunks.append([encoder.frozen(tower, keys)])
    encoder.clip.module.zero_grad()
    scalars = {"logit_scale": encoder.clip.module.logit_scale}
    positive = positives_of(CAPTIONS, GROUPS)
    exact_backward(*chunks, lambda a, b: contrastive_loss(a, b, scalars, positive, name="softmax"))
    assert _relative_error(_flat(setting.parameters), live) <= 1e-5


def test_a_poisoned_sample_is_named_before_any_gradient(tiny_clip: Path) -> None:
    vectors = nn.Parameter(torch.nn.functional.normalize(torch.randn(6, 4), dim=1))
    poison = torch.ones(6, 1)
    poison[4] = math.nan
    with pytest.raises(NonFiniteLossError) as caught:
        exact_backward([lambda: vectors * poison], [lambda: vectors], lambda a, b: (a * b).sum())
    assert caught.value.rows == [4]
    assert vectors.grad is None


def test_positives_are_shared_captions_and_groups() -> None:
    captions, groups = ["a", "b", "a", "c"], ["1", "1", "2", "3"]
    expected = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert positives_of(captions, groups).int().tolist() == expected
    assert positives_of(range(3)).int().tolist() == torch.eye(3).int().tolist()


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=12),
    seed=st.integers(0, 1000),
    scale=st.floats(0, 4),
)
def test_losses_agree_with_a_slow_obvious_version(labels: list[int], seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    images, texts = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for vectors in random.standard_normal((2, len(labels), 5))
    )
    logits = images @ texts.T * math.exp(scale)
    softmax, sigmoid = 0.0, 0.0
    for row, label in enumerate(labels):
        answers = [other for other in range(len(labels)) if labels[other] == label]
        for line in (logits[row], logits[:, row]):
            total = math.log(np.exp(line - line.max()).sum()) + line.max()
            softmax += sum(total - line[answer] for answer in answers) / len(answers) / (2 * len(labels))
        for other in range(len(labels)):
            sign = 1 if labels[other] == label else -1
            sigmoid += np.logaddexp(0, -sign * (logits[row, other] - 3)) / len(labels)
    scalars = {"logit_scale": torch.tensor(scale), "logit_bias": torch.tensor(-3.0)}
    positive = positives_of(labels)
    for name, expected in (("softmax", softmax), ("sigmoid", sigmoid)):
        found = contrastive_loss(
            torch.from_numpy(images), torch.from_numpy(texts), scalars, positive, name=name
        )
        assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 8), seed=st.integers(0, 1000), scale=st.floats(0, 4))
def test_distillation_agrees_with_a_slow_obvious_version(size: int, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    images, texts = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for vectors in random.standard_normal((2, size, 5))
    )
    teacher, student = 9 * random.standard_normal((size, size)), images @ texts.T * math.exp(scale)
    expected = 0.0
    for of_teacher, of_student in ((teacher, student), (teacher.T, student.T)):
        for wanted, found in zip(of_teacher, of_student, strict=True):
            weights = np.exp(wanted - wanted.max())
            total = math.log(np.exp(found - found.max()).sum()) + found.max()
            expected += float(weights @ (total - found) / weights.sum()) / (2 * size)
    tensors = [torch.from_numpy(each) for each in (images, texts, np.array(scale), teacher)]
    assert float(distillation_loss(*tensors)) == pytest.approx(expected, rel=1e-6)


def test_a_teacher_that_knows_the_positives_is_the_contrastive_loss() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=_generator(0)), dim=-1)
    scalars, positive = {"logit_scale": torch.tensor(2.0)}, torch.eye(6, dtype=torch.bool)
    plain = contrastive_loss(*vectors, scalars, positive, name="softmax")
    assert torch.allclose(distillation_loss(*vectors, scalars["logit_scale"], 1e4 * positive), plain)


def test_chance_is_the_loss_of_a_model_that_knows_nothing() -> None:
    vectors = torch.nn.functional.normalize(torch.ones(16, 4), dim=1)
    positive = positives_of([index // 3 for index in range(16)])
    loss = contrastive_loss(vectors, vectors, {"logit_scale": torch.tensor(2.0)}, positive, name="softmax")
    assert float(loss) == pytest.approx(chance_loss(16, "softmax"), rel=1e-6)
    assert chance_loss(16, "sigmoid") is None


def test_loss_and_base_are_a_checked_pair() -> None:
    assert checked_loss("auto", CLIP) == "softmax"
    assert checked_loss("auto", SIGLIP) == "sigmoid"
    with pytest.raises(ConfigError, match="sigmoid loss does not fit a clip base"):
        checked_loss("sigmoid", CLIP)
    with pytest.raises(ConfigError, match="softmax loss does not fit a siglip base"):
        checked_loss("softmax", SIGLIP)


def test_dropout_seeds_differ_by_step_tower_and_place() -> None:
    seeds = {
        dropout_seed(0, step=step, tower=tower, start=start)
        for step in range(4)
        for tower in ("vision", "text")
        for start in (0, 64)
    }
    assert len(seeds) == 16


def golden_losses(model: Path) -> list[float]:
    """Twenty steps of AdamW on one batch, in micro-batches of 8."""
    setting = Setting(model, "dual_lora", dropout=0.0)
    optimizer = torch.optim.AdamW(setting.parameters.values(), lr=3e-3)
    found = []
    for _ in range(20):
        found.append(setting.gradient([0, 8, 16, 24], "softmax")[0])
        optimizer.step()
    return found


def test_the_first_twenty_losses_are_the_golden_ones(tiny_clip: Path) -> None:
    """A change to `golden/loss.txt` needs a reason in the commit message."""
    golden = [float(line) for line in GOLDEN.read_text(encoding="ascii").split()]
    found = golden_losses(tiny_clip)
    assert found[-1] < 0.9 * found[0]
    assert np.allclose(found, golden, rtol=1e-3)


@pytest.mark.parametrize("shape", [(24, 48), (16, 64), (64, 16)])
def test_an_orthogonalized_matrix_keeps_its_directions_and_loses_their_sizes(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = orthogonalized(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.t() @ found @ right.t()  # diagonal where no direction is lost or mixed
    assert torch.allclose(turned, torch.diag(turned.diagonal()), atol=1e-4)
    assert 0.6 < turned.diagonal().min() <= turned.diagonal().max() < 1.3
    assert orthogonalized(torch.zeros(shape)).abs().max() == 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_matrices_are_stepped_as_torch_does_and_the_rest_by_adamw() -> None:
    draw = torch.Generator().manual_seed(5)
    start = [torch.randn(shape, generator=draw) for shape in [(48, 32), (32,)]]
    mine, theirs = ([nn.Parameter(each.clone()) for each in start] for _ in range(2))
    groups = [{"params": [each], "orthogonal": each.ndim == 2} for each in mine]
    chosen = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = Muon(groups, **chosen)
    references = [
        torch.optim.Muon(theirs[:1], momentum=0.95, adjust_lr_fn="match_rms_adamw", **chosen),
        torch.optim.AdamW(theirs[1:], **chosen),
    ]
    for _ in range(4):
        for ours, reference in zip(mine, theirs, strict=True):
            ours.grad = torch.randn(ours.shape, generator=draw)
            reference.grad = ours.grad.clone()
        optimizer.step()
        for reference_optimizer in references:
            reference_optimizer.step()
    assert torch.equal(mine[1], theirs[1])
    moved = [(after[0].detach() - start[0]).flatten() for after in (mine, theirs)]
    assert torch.cosine_similarity(*moved, dim=0) > 0.999  # torch's own works in bfloat16
    assert float(moved[0].norm() / moved[1].norm()) == pytest.approx(1, rel=0.02)
