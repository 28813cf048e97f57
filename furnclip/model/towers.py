"""The two families of base models, and the forward pass of each tower up to and behind its projection.

CLIP ends each tower in a bias-free projection, reads the text at its end-of-text token and was trained with
the softmax loss. SigLIP reads the text at the last, usually padded, position, so its captions are always
padded to full length; it has a projection on the text side only and was trained with the sigmoid loss.
Mixing them up trains without an error message and to no good (open_clip#1076, transformers#28578),
therefore the pairing is checked.

`pooled` is a tower's output before its projection, (B, W); behind it are the vectors (B, D). CLIP's towers
run here layer by layer, with the layers of Hugging Face's model, and leave out

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
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint
from transformers.activations import QuickGELUActivation

QUICK_GELU = 1.702
_LONGEST_PLAIN_ATTENTION = 256
_ROWS_STEP = 32

LossName = Literal["softmax", "sigmoid"]
Tower = Literal["vision", "text"]
TOWERS: tuple[Tower, ...] = ("vision", "text")


@dataclass(frozen=True)
class Family:
    """Names and habits of one family; paths are module paths inside the Hugging Face model."""

    name: str
    loss: LossName
    projections: dict[Tower, str]  # only the towers that have one
    scalars: tuple[str, ...]  # trained with the projections
    pads_to_longest: bool


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
        return as_tensor(vision(pixel_values=pixels).pooler_output)
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))  # (B, T, W)
    grid = Grid(*hidden.shape[:2])
    first = torch.arange(0, grid.size * grid.length, grid.length, device=hidden.device)
    return as_tensor(vision.post_layernorm(_encoded(vision.encoder, hidden, grid, first, causal=False)))


def pooled_texts(module: nn.Module, family: Family, token_ids: Tensor) -> Tensor:
    """(B, T) token ids -> (B, W), before the projection."""
    text: Any = module.text_model
    token_ids = token_ids.to(next(module.parameters()).device)
    if family is not CLIP:
        return as_tensor(text(input_ids=token_ids).last_hidden_state[:, -1])  # of (B, T, W)
    if text.eos_token_id == 2:  # configurations from before 2023 name a wrong id; the end has the highest
        ends = token_ids.argmax(dim=-1)
    else:
        ends = (token_ids == text.eos_token_id).int().argmax(dim=-1)  # the first end of each text (B,)
    hidden = text.embeddings(input_ids=token_ids)
    last = (ends + 1).cumsum(0) - 1
    grid = Grid.until(ends, token_ids.shape[1])
    return as_tensor(text.final_layer_norm(_encoded(text.encoder, hidden, grid, last, causal=True)))


def project(module: nn.Module, family: Family, tower: Tower, pooled: Tensor) -> Tensor:
    """(B, W) -> (B, D) unit vectors in float32."""
    path = family.projections.get(tower)
    if path is not None:
        projection: Any = module.get_submodule(path)
        pooled = projection(pooled.to(projection.weight.dtype))
    return normalize(pooled.float(), dim=-1)


def _encoded(encoder: Any, hidden: Tensor, grid: Grid, read: Tensor, *, causal: bool) -> Tensor:
    """All layers: (B, T, W) -> (B, W), the output of the last at the rows `read` (B,)."""
    rows = grid.gather(hidden)
    for layer in encoder.layers[:-1]:
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            rows = as_tensor(checkpoint(_layer, layer, rows, grid, causal, use_reentrant=False))
        else:
            rows = _layer(layer, rows, grid, causal)
    # of the last layer only the rows `read` ask, over all positions of their sample
    layer = encoder.layers[-1]
    normed = layer.layer_norm1(rows)
    queries = layer.self_attn.q_proj(normed.index_select(0, read))[:, None]  # (B, 1, W)
    mixed = _attended(layer.self_attn, queries, normed, grid, causal=False)
    return _behind_attention(layer, rows.index_select(0, read), mixed[:, 0])


def _layer(layer: Any, rows: Tensor, grid: Grid, causal: bool) -> Tensor:
    """(N, W) -> (N, W)."""
    normed = layer.layer_norm1(rows)
    queries = grid.spread(layer.self_attn.q_proj(normed))
    mixed = _attended(layer.self_attn, queries, normed, grid, causal=causal)
    return _behind_attention(layer, rows, grid.gather(mixed))


def _attended(attention: Any, queries: Tensor, normed: Tensor, grid: Grid, *, causal: bool) -> Tensor:
    """(B, Q, W) queries over the keys and values of all rows (N, W) -> (B, Q, W).

    Short rows in bfloat16 on a CPU go by plain products, where torch's fused kernel is slow backwards: 50
    patches or 20 tokens, forwards and backwards, on one core with AVX512-BF16 take 8 ms instead of 32 ms
    (torch 2.13), for 16 samples of 12 heads. In float32, on GPUs and for long rows the fused kernel stays.
    """

    def heads(projected: Tensor) -> Tensor:
        return projected.view(grid.size, -1, attention.num_heads, attention.head_dim).transpose(1, 2)

    query = heads(queries)  # (B, H, Q, E)
    key, value = heads(grid.spread(attention.k_proj(normed))), heads(grid.spread(attention.v_proj(normed)))
    seen = None if causal or grid.seen is None else grid.seen[:, None, None, :]
    if query.dtype != torch.bfloat16 or query.is_cuda or grid.length > _LONGEST_PLAIN_ATTENTION:
        mixed = scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=causal, scale=attention.scale
        )
        return mixed.transpose(1, 2).flatten(2)
    scores = torch.matmul(query * attention.scale, key.transpose(-1, -2))  # (B, H, Q, T)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2).flatten(2)


def _behind_attention(layer: Any, rows: Tensor, mixed: Tensor) -> Tensor:
    rows = rows + layer.self_attn.out_proj(mixed)
    inner = layer.mlp.fc1(layer.layer_norm2(rows))
    if isinstance(layer.mlp.activation_fn, QuickGELUActivation):
        inner = silu(inner * QUICK_GELU).mul_(1 / QUICK_GELU)  # = y * sigmoid(1.702 y)
    else:
        inner = layer.mlp.activation_fn(inner)
    return as_tensor(rows + layer.mlp.fc2(inner))


def as_tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
