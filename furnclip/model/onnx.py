"""The towers of a `Clip` as ONNX files, written operator by operator from its layers.

    text      token_ids (B, T) int64 -> vectors (B, D) float32
    vision    pixels (B, S, S, 3) bytes of RGB squares -> vectors (B, D) float32

B and T are free; what `towers` does, and the normalization of pixels, is inside. All operators are of the
ONNX standard (opset 17). torch's own exporter takes seconds and two more packages for a dozen operators a
layer.

8-bit: each linear layer's weight has one scale a column, its input one scale a row, found when it runs,
since CLIP's first position is far larger than the others. Both are unsigned bytes around 128: processors
without VNNI add up products of signed with unsigned bytes in 16 bits, which overflow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from transformers.activations import GELUTanh, QuickGELUActivation

from furnclip import __version__
from furnclip.errors import ModelError
from furnclip.model.clip import Clip
from furnclip.model.towers import CLIP, QUICK_GELU, Tower

_OPSET = 17
_IR_VERSION = 8  # the first for this opset
_ZERO = 128  # of unsigned bytes
_Array = npt.NDArray[Any]
INPUTS: dict[Tower, str] = {"text": "token_ids", "vision": "pixels"}
OUTPUT = "vectors"


def write_tower(clip: Clip, tower: Tower, path: Path, *, int8: bool = False) -> None:
    """Write `path` and, beside it, its weights, `NAME.onnx.data`. The towers have to be in float32."""
    graph = _Graph(int8=int8)
    if tower == "text":
        vectors = _text(graph, clip)
        given = helper.make_tensor_value_info(INPUTS["text"], TensorProto.INT64, ["batch", "length"])
    else:
        vectors = _vision(graph, clip)
        shape: list[str | int] = ["batch", clip.image_px, clip.image_px, 3]
        given = helper.make_tensor_value_info(INPUTS["vision"], TensorProto.UINT8, shape)
    graph.op("Identity", vectors, name=OUTPUT)
    made = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", clip.dimension])
    model = helper.make_model(
        helper.make_graph(graph.nodes, f"{clip.name} {tower}", [given], [made], graph.tensors),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="furnclip",
        producer_version=__version__,
        ir_version=_IR_VERSION,
    )
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")


class _Graph:
    """Nodes and weights so far; values are called by name."""

    def __init__(self, *, int8: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.int8 = int8

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """One operator; the name of what it gives."""
        made = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [made], **attributes))
        return made

    def weight(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant, the name of which is returned."""
        name = f"weight_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def integers(self, *values: int) -> str:
        return self.weight(list(values), np.int64)

    def norm(self, rows: str, layer: Any) -> str:
        scale, shift = self.weight(_array(layer.weight)), self.weight(_array(layer.bias))
        return self.op("LayerNormalization", rows, scale, shift, epsilon=layer.eps, axis=-1)

    def linear(self, rows: str, layer: Any, *, scale: float = 1.0) -> str:
        """A layer with a weight (V, W), both times `scale`: rows (..., W) -> (..., V)."""
        bias = None if layer.bias is None else _array(layer.bias) * scale
        return self.product(rows, _array(layer.weight) * scale, bias)

    def product(self, rows: str, weight: _Array, bias: _Array | None) -> str:
        if self.int8:
            product = self._int8_product(rows, weight.T)
        else:
            product = self.op("MatMul", rows, self.weight(weight.T))
        return product if bias is None else self.op("Add", product, self.weight(bias))

    def _int8_product(self, rows: str, weight: _Array) -> str:
        """`rows` (..., W) times `weight` (W, V)."""
        packed, scale = _packed(weight, axis=0)  # (W, V), (1, V)
        zero = self.weight(_ZERO, np.uint8)
        largest = self.op("ReduceMax", self.op("Abs", rows), axes=[-1], keepdims=1)
        step = self.op("Max", self.op("Mul", largest, self.weight(1 / 127)), self.weight(1e-12))
        near = self.op("Add", self.op("Round", self.op("Div", rows, step)), self.weight(_ZERO))
        asked = self.op("Cast", near, to=TensorProto.UINT8)
        product = self.op("MatMulInteger", asked, self.weight(packed, np.uint8), zero, zero)
        scaled = self.op("Mul", self.op("Cast", product, to=TensorProto.FLOAT), step)
        return self.op("Mul", scaled, self.weight(scale[0]))

    def rows_of(self, table: _Array, ids: str) -> str:
        """`table` (V, W), ids (B, T) -> (B, T, W)."""
        if not self.int8:
            return self.op("Gather", self.weight(table), ids)
        packed, scale = _packed(table, axis=1)  # (V, W), (V, 1)
        found = self.op("Cast", self.op("Gather", self.weight(packed, np.uint8), ids), to=TensorProto.FLOAT)
        steps = self.op("Gather", self.weight(scale), ids)
        return self.op("Mul", self.op("Sub", found, self.weight(_ZERO)), steps)

    def activation(self, rows: str, function: Any) -> str:
        if isinstance(function, QuickGELUActivation):
            return self.op("Mul", rows, self.op("Sigmoid", self.op("Mul", rows, self.weight(QUICK_GELU))))
        if isinstance(function, GELUTanh):
            cube = self.op("Mul", self.op("Mul", self.op("Mul", rows, rows), rows), self.weight(0.044715))
            inner = self.op("Mul", self.op("Add", rows, cube), self.weight((2 / np.pi) ** 0.5))
            share = self.op("Tanh", inner)
        elif type(function).__name__ == "GELUActivation":
            share = self.op("Erf", self.op("Mul", rows, self.weight(0.5**0.5)))
        else:
            raise ModelError(
                f"the activation `{type(function).__name__}` cannot be written as ONNX",
                hint="known: quick_gelu, gelu and gelu_pytorch_tanh",
            )
        half = self.op("Mul", rows, self.weight(0.5))
        return self.op("Mul", half, self.op("Add", share, self.weight(1.0)))

    def unit(self, rows: str) -> str:
        length = self.op("ReduceL2", rows, axes=[-1], keepdims=1)
        return self.op("Div", rows, self.op("Max", length, self.weight(1e-12)))

    def heads(self, rows: str, count: int) -> str:
        """(B, T, W) -> (B, H, T, E)."""
        split = self.op("Reshape", rows, self.integers(0, 0, count, -1))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def attended(self, query: str, key: str, value: str, heads: int, mask: str | None) -> str:
        """Queries (B, Q, W), already scaled, over keys and values (B, T, W) -> (B, Q, W)."""
        turned = self.op("Transpose", self.heads(key, heads), perm=[0, 1, 3, 2])
        scores = self.op("MatMul", self.heads(query, heads), turned)  # (B, H, Q, T)
        if mask:
            scores = self.op("Add", scores, mask)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), self.heads(value, heads))
        return self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.integers(0, 0, -1))

    def mlp(self, rows: str, mlp: Any) -> str:
        return self.linear(self.activation(self.linear(rows, mlp.fc1), mlp.activation_fn), mlp.fc2)

    def encoder(self, rows: str, layers: Any, *, mask: str | None = None, read: str | None = None) -> str:
        """All layers (B, T, W) -> (B, T, W); of the last only the positions `read` (B, 1), -> (B, W)."""
        for number, layer in enumerate(layers):
            attention = layer.self_attn
            normed = self.norm(rows, layer.layer_norm1)
            query = self.linear(normed, attention.q_proj, scale=float(attention.scale))
            key, value = self.linear(normed, attention.k_proj), self.linear(normed, attention.v_proj)
            mixed = self.attended(query, key, value, attention.num_heads, mask)
            if read and number == len(layers) - 1:
                rows, mixed = (self.op("GatherND", part, read, batch_dims=1) for part in (rows, mixed))
            rows = self.op("Add", rows, self.linear(mixed, attention.out_proj))
            rows = self.op("Add", rows, self.mlp(self.norm(rows, layer.layer_norm2), layer.mlp))
        return rows


def _text(graph: _Graph, clip: Clip) -> str:
    text, ids = clip.module.text_model, INPUTS["text"]
    length = graph.op("Slice", graph.op("Shape", ids), graph.integers(1), graph.integers(2))  # (1,)
    zero, axis_0 = graph.integers(0), graph.integers(0)
    places = graph.weight(_array(text.embeddings.position_embedding.weight))  # (P, W)
    words = graph.rows_of(_array(text.embeddings.token_embedding.weight), ids)
    rows = graph.op("Add", words, graph.op("Slice", places, zero, length, axis_0))
    if clip.family is not CLIP:
        batch = graph.op("Slice", graph.op("Shape", ids), zero, graph.integers(1))
        one = graph.integers(1)
        last = graph.op("Expand", graph.op("Sub", length, one), graph.op("Concat", batch, one, axis=0))
        pooled = graph.encoder(rows, text.encoder.layers, read=last)
    else:
        if text.eos_token_id == 2:  # see `towers.pooled_texts`
            marks = ids
        else:
            end = graph.op("Equal", ids, graph.integers(text.eos_token_id))
            marks = graph.op("Cast", end, to=TensorProto.INT32)
        ends = graph.op("ArgMax", marks, axis=-1, keepdims=1)  # the first of the highest
        positions = text.embeddings.position_embedding.num_embeddings
        behind = np.triu(np.full((positions, positions), -np.inf, dtype=np.float32), k=1)
        rows_seen = graph.op("Slice", graph.weight(behind), zero, length, axis_0)
        mask = graph.op("Slice", rows_seen, zero, length, graph.integers(1))  # (T, T)
        pooled = graph.encoder(rows, text.encoder.layers, mask=mask, read=ends)
    return _projected(graph, clip, "text", graph.norm(pooled, text.final_layer_norm))


def _vision(graph: _Graph, clip: Clip) -> str:
    vision, steps = clip.module.vision_model, clip.preprocessing
    mean, deviation = (graph.weight(np.array(values) * 255) for values in (steps.mean, steps.std))
    squares = graph.op("Sub", graph.op("Cast", INPUTS["vision"], to=TensorProto.FLOAT), mean)
    pixels = graph.op("Transpose", graph.op("Div", squares, deviation), perm=[0, 3, 1, 2])
    patch = vision.embeddings.patch_embedding
    kernel = [graph.weight(_array(patch.weight))]
    kernel += [] if patch.bias is None else [graph.weight(_array(patch.bias))]
    grid = graph.op("Conv", pixels, *kernel, strides=list(patch.stride), kernel_shape=list(patch.kernel_size))
    rows = graph.op("Transpose", graph.op("Reshape", grid, graph.integers(0, 0, -1)), perm=[0, 2, 1])
    batch = graph.op("Slice", graph.op("Shape", rows), graph.integers(0), graph.integers(1))
    ones = graph.integers(1, 1)
    each = graph.op("Concat", batch, ones, axis=0)  # (B, 1, 1)
    places = graph.weight(_array(vision.embeddings.position_embedding.weight))
    if clip.family is CLIP:
        first = graph.weight(_array(vision.embeddings.class_embedding)[None, None])
        rows = graph.op("Concat", graph.op("Expand", first, each), rows, axis=1)
        rows = graph.norm(graph.op("Add", rows, places), vision.pre_layrnorm)
        read = graph.op("Expand", graph.integers(0), graph.op("Concat", batch, graph.integers(1), axis=0))
        pooled = graph.encoder(rows, vision.encoder.layers, read=read)
        return _projected(graph, clip, "vision", graph.norm(pooled, vision.post_layernorm))
    rows = graph.encoder(graph.op("Add", rows, places), vision.encoder.layers)
    return graph.unit(_pooled(graph, vision.head, graph.norm(rows, vision.post_layernorm), each))


def _pooled(graph: _Graph, head: Any, rows: str, each: str) -> str:
    """SigLIP's attention of one learned query over all patches: (B, T, W) -> (B, W)."""
    attention = head.attention
    weights = np.split(_array(attention.in_proj_weight), 3)
    biases = np.split(_array(attention.in_proj_bias), 3)
    scale = (weights[0].shape[0] / attention.num_heads) ** -0.5
    probe = _array(head.probe)[0] @ weights[0].T + biases[0]  # (1, W), the same for every image
    query = graph.op("Expand", graph.weight(probe[None] * scale), each)
    key, value = (graph.product(rows, weights[part], biases[part]) for part in (1, 2))
    mixed = graph.linear(graph.attended(query, key, value, attention.num_heads, None), attention.out_proj)
    mixed = graph.op("Add", mixed, graph.mlp(graph.norm(mixed, head.layernorm), head.mlp))
    return graph.op("Squeeze", mixed, graph.integers(1))


def _projected(graph: _Graph, clip: Clip, tower: Tower, pooled: str) -> str:
    if path := clip.family.projections.get(tower):
        pooled = graph.linear(pooled, clip.module.get_submodule(path))
    return graph.unit(pooled)


def _array(parameter: Any) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = parameter.detach().float().cpu().numpy()
    return array


def _packed(matrix: _Array, *, axis: int) -> tuple[_Array, _Array]:
    """As bytes around 128, and the size of one step along the other axis."""
    step = np.maximum(np.abs(matrix).max(axis=axis, keepdims=True) / 127, 1e-12)
    return np.rint(matrix / step + _ZERO).astype(np.uint8), step.astype(np.float32)
