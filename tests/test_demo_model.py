"""furnclip-tiny as it comes with the package: small, offline, and better than chance on what it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import furnclip
from examples.drawn_shop.drawing import draw, new_design
from examples.drawn_shop.pieces import KINDS
from furnclip.config import ModelConfig
from furnclip.model.clip import Clip
from furnclip.model.loading import load_clip

FOLDER = Path(furnclip.__file__).parent / "demo" / "furnclip_tiny"


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("furnclip-tiny", ModelConfig(device="cpu", precision="fp32"))


def test_it_is_small_and_says_what_it_is() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10e6
    assert not list(FOLDER.glob("*.bin"))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for heading in ("## What it is for", "## What it cannot do", "## How it was made"):
        assert heading in card


def test_it_is_a_few_million_parameters(clip: Clip) -> None:
    assert 3e6 < sum(parameter.numel() for parameter in clip.module.parameters()) < 6e6
    assert (clip.image_px, clip.dimension) == (96, 192)


def test_it_spells_any_text(clip: Clip) -> None:
    vectors = clip.encode_texts(["canapé 沙发 🛋", "", "a" * 500])
    assert vectors.shape == (3, 192)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_it_names_pieces_in_a_drawing_style_it_was_not_trained_on(clip: Clip) -> None:
    """The first word that comes to its mind is right far more often than by chance (1 in 23)."""
    designs = [new_design(990_001, number) for number in range(115)]
    pictures = clip.encode_images([draw(design, "ink", image_px=96) for design in designs])
    kinds = list(KINDS)
    texts = clip.encode_texts([f"a photo of a {KINDS[kind].names[0].lower()}" for kind in kinds])
    named = [kinds[index] for index in (pictures @ texts.T).argmax(axis=1)]
    right = np.mean([name == design.kind for name, design in zip(named, designs, strict=True)])
    assert right > 5 / len(kinds)
