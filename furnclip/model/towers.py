"""The forward pass of each tower, up to and behind its projection, without the work nobody reads.

`pooled` is what a tower says before its projection, (B, W); `features` is behind it, (B, D). Of the
last layer only one position is read (the class token, the end-of-text token), so that layer's
queries, attention output and MLP run for that one position: about 7 % of a 12-layer tower, forwards
and backwards. Captions are padded on the right behind a causal mask, so no padding mask is needed.

Letters: B batch, T tokens or patches, W width of a tower, H heads, D shared dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import normalize

from furnclip.model.attention import attend
from furnclip.model.families import CLIP, Family, Tower

# Before 5.0 the layers took other arguments; the plain forward pass serves those versions.
SHORT_CUT = int(transformers.__version__.split(".")[0]) >= 5


def pooled_images(module: nn.Module, family: Family, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, W), before the projection."""
    vision: Any = module.vision_model
    pixels = pixels.to(next(module.parameters()).device)
    if family is not CLIP or not SHORT_CUT:
        return _pooler_output(vision(pixel_values=pixels))
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))  # (B, T, W)
    for layer in vision.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    first = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    return _as_tensor(vision.post_layernorm(_one_position(vision.encoder.layers[-1], hidden, first, None)))


def pooled_texts(module: nn.Module, family: Family, token_ids: Tensor) -> Tensor:
    """(B, T) token ids -> (B, W), before the projection."""
    text: Any = module.text_model
    token_ids = token_ids.to(next(module.parameters()).device)
    if family is not CLIP:
        hidden = text(input_ids=token_ids).last_hidden_state  # (B, T, W)
        return _as_tensor(hidden[:, -1])
    if not SHORT_CUT:
        return _pooler_output(text(input_ids=token_ids))
    ends = _end_positions(token_ids, text.eos_token_id)
    hidden = text.embeddings(input_ids=token_ids)
    for layer in text.encoder.layers[:-1]:
        hidden = layer(hidden, None, is_causal=True)
    seen = torch.arange(token_ids.shape[1], device=hidden.device) <= ends[:, None]  # (B, T)
    return _as_tensor(text.final_layer_norm(_one_position(text.encoder.layers[-1], hidden, ends, seen)))


def project(module: nn.Module, family: Family, tower: Tower, pooled: Tensor) -> Tensor:
    """(B, W) -> (B, D) unit vectors in float32."""
    path = family.projections.get(tower)
    if path is not None:
        projection: Any = module.get_submodule(path)
        pooled = projection(pooled.to(projection.weight.dtype))
    return normalize(pooled.float(), dim=-1)


def scalars(module: nn.Module, family: Family) -> dict[str, Tensor]:
    """The temperature (as its logarithm) and, for SigLIP, the bias."""
    return {name: getattr(module, name) for name in family.scalars}


def _one_position(layer: Any, hidden: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
    """The layer's output at one position of each sample: (B, T, W) -> (B, W).

    `seen` (B, T) marks the positions that may be attended to; None: all of them.
    """
    attention = layer.self_attn
    rows = torch.arange(len(hidden), device=hidden.device)
    normed = layer.layer_norm1(hidden)

    def heads(projected: Tensor) -> Tensor:
        return projected.view(len(hidden), -1, attention.num_heads, attention.head_dim).transpose(1, 2)

    attended = attend(
        heads(attention.q_proj(normed[rows, positions])),  # (B, H, 1, W / H)
        heads(attention.k_proj(normed)),
        heads(attention.v_proj(normed)),
        scale=attention.scale,
        causal=False,
        seen=None if seen is None else seen[:, None, None, :],
    )
    picked = hidden[rows, positions] + attention.out_proj(attended.transpose(1, 2).flatten(1))
    return _as_tensor(picked + layer.mlp(layer.layer_norm2(picked)))


def _end_positions(token_ids: Tensor, end_id: int) -> Tensor:
    """Position of the first end-of-text token of each row (B,)."""
    if end_id == 2:  # configurations from before 2023 name a wrong id; there the end has the highest id
        return token_ids.argmax(dim=-1)
    return (token_ids == end_id).int().argmax(dim=-1)


def _pooler_output(output: Any) -> Tensor:
    return _as_tensor(output.pooler_output)


def _as_tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
