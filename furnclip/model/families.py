"""What differs between the families of base models that furnclip trains.

CLIP ends each tower in a bias-free projection, reads the text at its end-of-text token and was
trained with the softmax loss. SigLIP reads the text at the last, usually padded, position, so its
captions are always padded to full length; it has a projection on the text side only and was trained
with the sigmoid loss. Mixing them up trains without an error message and to no good
(open_clip#1076, transformers#28578), therefore the pairing is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from furnclip.errors import ModelError

Tower = Literal["vision", "text"]
TOWERS: tuple[Tower, ...] = ("vision", "text")


@dataclass(frozen=True)
class Family:
    """Names and habits of one family; paths are module paths inside the Hugging Face model."""

    name: str
    loss: Literal["softmax", "sigmoid"]
    projections: dict[Tower, str]  # only the towers that have one
    scalars: tuple[str, ...]  # trained with the projections
    pads_to_longest: bool

    def tower(self, name: Tower) -> str:
        return f"{name}_model"


CLIP = Family(
    name="clip",
    loss="softmax",
    projections={"vision": "visual_projection", "text": "text_projection"},
    scalars=("logit_scale",),
    pads_to_longest=True,
)
SIGLIP = Family(
    name="siglip",
    loss="sigmoid",
    projections={"text": "text_model.head"},
    scalars=("logit_scale", "logit_bias"),
    pads_to_longest=False,
)
_FAMILIES = {"clip": CLIP, "siglip": SIGLIP}


def family_of(model_type: str, *, name: str) -> Family:
    """The family of a Hugging Face `model_type`; `ModelError` when it is neither CLIP nor SigLIP."""
    if model_type not in _FAMILIES:
        raise ModelError(
            f"`{name}` is a `{model_type}` model, not CLIP or SigLIP",
            hint="choose a CLIP or SigLIP checkpoint, e.g. `openai/clip-vit-base-patch32`",
        )
    return _FAMILIES[model_type]
