"""From texts to token ids: the one rule for captions and queries, per tokenizer.

Both families of base models were trained on lower-case text, and so are furnclip's captions. SigLIP's own
tokenizer was trained without punctuation. A special token spelled out in a title is text: the tokenizer is
told to split it.

Without torch until a text becomes a tensor, since a search without torch goes by the same rule.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from furnclip.model.towers import Family

_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphen, zero-width space, word joiner, BOM
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FEWEST_TOKENS = 4


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
        declared = tokenizer.init_kwargs.get("tokenizer_class") or type(tokenizer).__name__
        # "canonicalize" is open_clip's word for it, which a converted model keeps
        drops = (
            str(declared).startswith("SiglipTokenizer")
            or tokenizer.init_kwargs.get("clean") == "canonicalize"
        )
        self.punctuation = not drops

    def __call__(self, texts: Sequence[str]) -> Tensor:
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
