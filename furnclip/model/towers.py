"""The forward pass of each tower, up to and behind its projection, without the work nobody reads.

`pooled` is what a tower says before its projection, (B, W); `features` is behind it, (B, D). CLIP's
towers run here layer by layer, with the layers of Hugging Face's model, and leave out

* padding: all but attention runs on the rows of real tokens alone, a third of the work where captions
  differ in length; captions are padded on the right behind a causal mask, so attention needs no other;
* all positions but one of the last layer: only the class token or the end-of-text token is read, about
  7 % of a 12-layer tower, forwards and backwards;
* two of the three tensors that a graph keeps for OpenAI's quick GELU, the widest of all.

Letters: B batch, T tokens or patches, N rows (real positions of all samples, one after
another, and a few more), W width of a tower, H heads, E width of a head, D shared dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu
from torch.utils.checkpoint import checkpoint
from transformers.activations import QuickGELUActivation

from furnclip.model.attention import attend
from furnclip.model.families import CLIP, Family, Tower

_QUICK_GELU = 1.702
_ROWS_STEP = 32


@dataclass(frozen=True)
class Grid:
    """Where the rows (N, W) lie among (B, T) places: `seen` are the real ones; None: all of them.

    Behind the real rows come a few of the places that nothing looks at, up to a multiple of `_ROWS_STEP`:
    oneDNN compiles its products anew for every number of rows and keeps what it compiled, a megabyte each.
    """

    size: int
    length: int
    seen: Tensor | None = None  # (B, T) booleans
    places: Tensor | None = None  # (N,) of B * T, the real ones first

    @classmethod
    def until(cls, ends: Tensor, length: int) -> Grid:
        """Each sample has the places up to its end."""
        seen = torch.arange(length, device=ends.device) <= ends[:, None]  # (B, T)
        real = seen.flatten().nonzero().squeeze(1)
        idle = (~seen).flatten().nonzero().squeeze(1)[: -len(real) % _ROWS_STEP]
        return cls(len(ends), length, seen, torch.cat([real, idle]))

    def spread(self, rows: Tensor) -> Tensor:
        """(N, W) -> (B, T, W), zero where nothing is."""
        if self.places is not None:
            rows = rows.new_zeros(self.size * self.length, rows.shape[1]).index_copy(0, self.places, rows)
        return rows.view(self.size, self.length, -1)

    def gather(self, spread: Tensor) -> Tensor:
        """(B, T, W) -> (N, W)."""
        flat = spread.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)


def pooled_images(module: nn.Module, family: Family, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, W), before the projection."""
    vision: Any = module.vision_model
    pixels = pixels.to(next(module.parameters()).device)
    if family is not CLIP:
        return _as_tensor(vision(pixel_values=pixels).pooler_output)
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))  # (B, T, W)
    grid = Grid(*hidden.shape[:2])
    first = torch.arange(0, grid.size * grid.length, grid.length, device=hidden.device)
    return _as_tensor(vision.post_layernorm(_encoded(vision.encoder, hidden, grid, first, causal=False)))


def pooled_texts(module: nn.Module, family: Family, token_ids: Tensor) -> Tensor:
    """(B, T) token ids -> (B, W), before the projection."""
    text: Any = module.text_model
    token_ids = token_ids.to(next(module.parameters()).device)
    if family is not CLIP:
        hidden = text(input_ids=token_ids).last_hidden_state  # (B, T, W)
        return _as_tensor(hidden[:, -1])
    ends = _end_positions(token_ids, text.eos_token_id)
    hidden = text.embeddings(input_ids=token_ids)
    last = (ends + 1).cumsum(0) - 1
    grid = Grid.until(ends, token_ids.shape[1])
    return _as_tensor(text.final_layer_norm(_encoded(text.encoder, hidden, grid, last, causal=True)))


def project(module: nn.Module, family: Family, tower: Tower, pooled: Tensor) -> Tensor:
    """(B, W) -> (B, D) unit vectors in float32."""
    path = family.projections.get(tower)
    if path is not None:
        projection: Any = module.get_submodule(path)
        pooled = projection(pooled.to(projection.weight.dtype))
    return normalize(pooled.float(), dim=-1)


def _encoded(encoder: Any, hidden: Tensor, grid: Grid, read: Tensor, *, causal: bool) -> Tensor:
    """All layers: (B, T, W) -> (B, W), what the last says at the rows `read` (B,)."""
    rows = grid.gather(hidden)
    for layer in encoder.layers[:-1]:
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            rows = _as_tensor(checkpoint(_layer, layer, rows, grid, causal, use_reentrant=False))
        else:
            rows = _layer(layer, rows, grid, causal)
    return _last_layer(encoder.layers[-1], rows, grid, read)


def _layer(layer: Any, rows: Tensor, grid: Grid, causal: bool) -> Tensor:
    """(N, W) -> (N, W)."""
    normed = layer.layer_norm1(rows)
    queries = grid.spread(layer.self_attn.q_proj(normed))
    mixed = _attended(layer.self_attn, queries, normed, grid, causal=causal)
    return _behind_attention(layer, rows, grid.gather(mixed))


def _last_layer(layer: Any, rows: Tensor, grid: Grid, read: Tensor) -> Tensor:
    """(N, W) -> (B, W): only the rows `read` ask, over all positions of their sample."""
    normed = layer.layer_norm1(rows)
    queries = layer.self_attn.q_proj(normed.index_select(0, read))[:, None]  # (B, 1, W)
    mixed = _attended(layer.self_attn, queries, normed, grid, causal=False)
    return _behind_attention(layer, rows.index_select(0, read), mixed[:, 0])


def _attended(attention: Any, queries: Tensor, normed: Tensor, grid: Grid, *, causal: bool) -> Tensor:
    """(B, Q, W) queries over the keys and values of all rows (N, W) -> (B, Q, W)."""

    def heads(projected: Tensor) -> Tensor:
        return projected.view(grid.size, -1, attention.num_heads, attention.head_dim).transpose(1, 2)

    mixed = attend(
        heads(queries),  # (B, H, Q, E)
        heads(grid.spread(attention.k_proj(normed))),
        heads(grid.spread(attention.v_proj(normed))),
        scale=attention.scale,
        causal=causal,
        seen=None if causal or grid.seen is None else grid.seen[:, None, None, :],
    )
    return mixed.transpose(1, 2).flatten(2)


def _behind_attention(layer: Any, rows: Tensor, mixed: Tensor) -> Tensor:
    rows = rows + layer.self_attn.out_proj(mixed)
    inner = layer.mlp.fc1(layer.layer_norm2(rows))
    if isinstance(layer.mlp.activation_fn, QuickGELUActivation):
        inner = silu(inner * _QUICK_GELU).mul_(1 / _QUICK_GELU)  # = y * sigmoid(1.702 y)
    else:
        inner = layer.mlp.activation_fn(inner)
    return _as_tensor(rows + layer.mlp.fc2(inner))


def _end_positions(token_ids: Tensor, end_id: int) -> Tensor:
    """Position of the first end-of-text token of each row (B,)."""
    if end_id == 2:  # configurations from before 2023 name a wrong id; there the end has the highest id
        return token_ids.argmax(dim=-1)
    return (token_ids == end_id).int().argmax(dim=-1)


def _as_tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
