"""What a model reads: texts to token ids, images to pixels, by one rule for training and searching.

Texts are lower case, as both families of base models were trained; SigLIP's own tokenizer without
punctuation. A special token spelled out in a title is text. Images: the shards hold squares that
`images.letterbox` made, so resizing a square is all that Hugging Face's processor would do;
`tests/test_model.py` holds the two equal.

Without torch until a tensor is made, since a search without torch goes by the same rules.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, FiniteFloat, PositiveInt

from furnclip.errors import ModelError
from furnclip.images import letterbox
from furnclip.journal import parse_json

if TYPE_CHECKING:
    import torch

    from furnclip.model.towers import Family

_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphen, zero-width space, word joiner, BOM
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FEWEST_TOKENS = 4
# Means and deviations that OpenAI trained with; Hugging Face writes them into every CLIP folder.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_KNOWN_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_HINT = "restore `preprocessor_config.json` from the model's own repository, or choose another model"
_Sides = PositiveInt | dict[str, PositiveInt | None]
_Positive = Annotated[FiniteFloat, Field(gt=0)]
_Three = Field(min_length=3, max_length=3)


def normalize_text(text: str, *, punctuation: bool = True) -> str:
    """The text as every model of furnclip reads it: NFC, lower case, single spaces, nothing invisible."""
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text to a tokenizer
    text = _CONTROL.sub(" ", _INVISIBLE.sub("", unicodedata.normalize("NFC", text))).lower()
    if not punctuation:
        text = text.translate(_NO_PUNCTUATION)
    return " ".join(text.split())


class TextInput:
    """Turns texts into token ids for one model: its tokenizer, its padding and its length."""

    def __init__(self, tokenizer: Any, family: Family, *, positions: int) -> None:
        self.tokenizer = tokenizer
        self.length = int(min(positions, tokenizer.model_max_length))
        self.pads_to_longest = family.pads_to_longest
        given = tokenizer.init_kwargs
        declared = str(given.get("tokenizer_class") or type(tokenizer).__name__)
        is_siglip = declared.startswith("SiglipTokenizer")
        # "canonicalize" is open_clip's word for it, which a converted model keeps
        self.punctuation = not is_siglip and given.get("clean") != "canonicalize"

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, T) token ids, cut at `length`."""
        from furnclip.model.towers import as_tensor

        encoded = self.tokenizer(
            [normalize_text(text, punctuation=self.punctuation) for text in texts],
            padding="longest" if self.pads_to_longest else "max_length",
            truncation=True,
            max_length=self.length,
            split_special_tokens=True,
            return_tensors="pt",
        )
        return as_tensor(encoded["input_ids"])


def tokenizer_problem(text_input: TextInput, family: Family, text_config: Any) -> str:
    """Why the tokenizer does not belong to the model, or the towers cannot read it; empty: they fit."""
    tokenizer = text_input.tokenizer
    if family.name == "clip" and tokenizer.padding_side != "right":
        return "pads on the left, and CLIP reads captions from the left"
    if text_input.length < _FEWEST_TOKENS:
        return f"cuts every caption at `model_max_length` = {text_input.length} tokens"
    if max(tokenizer.get_vocab().values(), default=0) >= text_config.vocab_size:
        return f"has more tokens than the {text_config.vocab_size} that the text tower knows"
    chair, sofa = text_input(["chair", "sofa"]).tolist()
    if chair == sofa:
        return "has no vocabulary: `chair` and `sofa` are the same to it"
    end = text_config.eos_token_id
    if end == 2:  # see `towers.pooled_texts`
        end = max(chair)
    if family.name == "clip" and chair[-1] != end:
        return f"does not end texts with the token {end} that the text tower looks for (`eos_token_id`)"
    return ""


@dataclass(frozen=True)
class _Settings:
    """`preprocessor_config.json`, as far as it decides what becomes of a square image."""

    size: _Sides | None = None
    crop_size: _Sides | None = None
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    rescale_factor: _Positive = 1 / 255
    image_mean: Annotated[tuple[FiniteFloat, ...], _Three] = _CLIP_MEAN
    image_std: Annotated[tuple[_Positive, ...], _Three] = _CLIP_STD
    resample: Literal[0, 1, 2, 3, 4, 5] = 3

    def problem(self, image_px: int) -> str:
        """Why the tower's squares cannot be made as asked for; empty: they can."""
        for key in ("size", "crop_size") if self.do_center_crop else ("size",):
            asked = getattr(self, key)
            sides = set(asked.values()) - {None} if isinstance(asked, dict) else {asked}
            if asked is not None and sides != {image_px}:
                return f"`{key}` is {asked}, and the vision tower reads squares of {image_px} px"
        if not self.do_resize:
            return "`do_resize` is off, and product images come in all sizes"
        if self.resample not in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            name = Image.Resampling(self.resample).name.lower()
            return f"`resample` is {self.resample} ({name}); only 2 (bilinear) and 3 (bicubic) are known"
        return ""


@dataclass(frozen=True)
class Preprocessing:
    """Side in pixels and the per-channel mean and deviation (of values from 0 to 1) of one model."""

    image_px: int
    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD
    resample: int = field(default=Image.Resampling.BICUBIC, repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, image_px: int, name: str) -> Preprocessing:
        """Read from `preprocessor_config.json` of the model `name`, for a tower that reads `image_px`.

        Raises `InputError` for values of the wrong kind, `ModelError` for steps that would not be done.
        """
        what = f"the preprocessing of `{name}`"
        given = {key: value for key, value in config.items() if value is not None}
        settings = parse_json(json.dumps(given), _Settings, what=what, hint=_HINT)
        asked = {key for key, value in given.items() if value is True and key.startswith(("do_", "rescale_"))}
        unknown = sorted(asked - _KNOWN_STEPS) + [key for key in ("crop_pct",) if key in given]
        problem = f"`{unknown[0]}` is not supported" if unknown else settings.problem(image_px)
        if problem:
            raise ModelError(f"{what} cannot be done: {problem}", hint=_HINT)
        # mean and deviation of values from 0 to 1, whatever they are given for
        unit = 255 * settings.rescale_factor if settings.do_rescale else 255.0
        asked_for = (settings.image_mean, settings.image_std)
        used = asked_for if settings.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        mean, std = (tuple(value / unit for value in values) for values in used)
        return cls(image_px, mean, std, settings.resample)

    def to_config(self) -> dict[str, Any]:
        """What goes into `preprocessor_config.json`."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.image_px},
            "resample": int(self.resample),
            "do_center_crop": True,
            "crop_size": {"height": self.image_px, "width": self.image_px},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def square(self, image: Image.Image) -> Image.Image:
        """The image as an RGB square of the model's side; other shapes are letterboxed on white."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        if image.width != image.height:
            return letterbox(image, self.image_px)
        if image.width != self.image_px:
            return image.resize((self.image_px, self.image_px), Image.Resampling(self.resample))
        return image

    def normalize(self, squares: NDArray[np.uint8]) -> torch.Tensor:
        """(B, H, W, 3) bytes -> (B, 3, H, W) float32, as the tower reads it."""
        import torch  # here, because a search without torch makes its squares by this class

        mean, std = (torch.tensor(values).mul(255) for values in (self.mean, self.std))
        return torch.from_numpy(squares).float().sub_(mean).div_(std).permute(0, 3, 1, 2)

    def squares(self, images: Sequence[Image.Image]) -> NDArray[np.uint8]:
        """Images of any size -> (B, H, W, 3) bytes."""
        return np.stack([np.asarray(self.square(image)) for image in images])

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images of any size -> (B, 3, H, W) float32."""
        return self.normalize(self.squares(images))
