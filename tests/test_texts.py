"""One rule for what a model is told: captions and queries alike, whatever the tokenizer."""

from __future__ import annotations

import io
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from furnclip.config import ModelConfig
from furnclip.model.clip import Clip
from furnclip.model.inputs import normalize_text
from furnclip.model.loading import load_clip
from tests.drawn_shop import captions
from tests.siglip import build_tiny_siglip

CPU = ModelConfig(device="cpu", precision="fp32")
LETTERS = [*"abcdefghijklmnopqrstuvwxyz<>|/[]_.,!-'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "é", "ø", "²"]
SPECIAL = {
    "clip": ["<|endoftext|>", "<|startoftext|>"],
    "siglip": ["<|endoftext|>", "<|startoftext|>"],
    "cased": ["</s>", "[PAD]", "<s>"],
    "bert": ["[sep]", "[cls]", "[pad]"],
}


def letter_tokenizer(start: str, end: str, pad: str, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that tells cases apart and knows letters only, with the special tokens given."""
    specials = list(dict.fromkeys([start, pad, end]))
    words = ["[UNK]", *LETTERS, *specials]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(" ", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, words.index(start)), (end, words.index(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        unk_token="[UNK]",
        **settings,
    )


def with_tokenizer(source: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The model of `source` with another tokenizer."""
    shutil.copytree(source, folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = tokenizer.eos_token_id
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def clips(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clip]:
    folder = tmp_path_factory.mktemp("models")
    siglip = build_tiny_siglip(folder / "siglip")
    cased = letter_tokenizer("<s>", "</s>", "[PAD]", model_max_length=24)
    bert = letter_tokenizer("[cls]", "[sep]", "[pad]", model_max_length=24)
    folders = {
        "clip": tiny_clip,
        "siglip": siglip,
        "cased": with_tokenizer(tiny_clip, folder / "cased", cased),
        "bert": with_tokenizer(siglip, folder / "bert", bert),
    }
    return {name: load_clip(str(path), CPU) for name, path in folders.items()}


def test_siglips_own_tokenizer_gets_no_punctuation(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="SigLIP's own tokenizer needs it")
    from transformers import SiglipTokenizer  # importable only with sentencepiece

    folder, model = build_tiny_siglip(tmp_path / "siglip"), io.BytesIO()
    text = [*captions(), *["abcdefghijklmnopqrstuvwxyz <>/|[]_!,."] * 3]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer.json").unlink()
    SiglipTokenizer(str(tmp_path / "spiece.model"), model_max_length=24).save_pretrained(folder)
    clip = load_clip(str(folder), CPU)
    plain, typed, special = clip.tokenize(["a red chair", "A Red, chair!", "a red </s> chair"]).tolist()
    assert typed == plain
    assert special.index(clip.tokenizer.eos_token_id) > plain.index(clip.tokenizer.eos_token_id)


@pytest.mark.parametrize("name", ["clip", "siglip", "cased", "bert"])
@pytest.mark.parametrize(
    "typed",
    [
        "A Red  CHAIR",
        "\ta red\u00a0chair\n",
        "a re\u00add chair\ufeff",
        "a red\u200b chair",
        "a\x00red\x07chair",
        "a red\u2003chair ",
    ],
)
def test_case_space_and_invisible_characters_change_nothing(
    clips: dict[str, Clip], name: str, typed: str
) -> None:
    clip = clips[name]
    expected, found = clip.encode_texts(["a red chair"]), clip.encode_texts([typed])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", ["clip", "siglip", "cased", "bert"])
def test_composed_and_decomposed_letters_are_the_same(clips: dict[str, Clip], name: str) -> None:
    composed = "café ørsted"
    vectors = clips[name].encode_texts([composed, unicodedata.normalize("NFD", composed), composed.upper()])
    assert np.array_equal(vectors[0], vectors[1])
    assert np.array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize("name", ["clip", "siglip", "cased", "bert"])
def test_a_special_token_in_a_title_is_text(clips: dict[str, Clip], name: str) -> None:
    clip = clips[name]
    special = set(clip.tokenizer.all_special_ids)
    for token in SPECIAL[name]:
        ids = clip.tokenize([f"red {token} chair"])[0].tolist()
        plain = clip.tokenize(["red chair"])[0].tolist()
        inner = [number for number in ids if number not in special]
        assert len(inner) > len([number for number in plain if number not in special]), token
        assert ids.count(clip.tokenizer.eos_token_id) >= 1
        first_end = ids.index(clip.tokenizer.eos_token_id)
        assert not [number for number in ids[1:first_end] if number in special], token


def test_half_a_surrogate_pair_is_no_error(clips: dict[str, Clip]) -> None:
    assert np.isfinite(clips["clip"].encode_texts(["a red \ud800 chair"])).all()


@given(st.text(max_size=60))
def test_the_rule_is_settled_after_once(text: str) -> None:
    once = normalize_text(text)
    assert normalize_text(once) == once
    assert once == " ".join(once.split())
    once.encode("utf-8")


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_without_punctuation_only_letters_digits_and_spaces_are_left(text: str) -> None:
    assert all(
        character.isalnum() or character == " " for character in normalize_text(text, punctuation=False)
    )
