"""ONNX operators converted so that the plugins' fusions fire.

The stock conversion of these operators is correct but hides what the plugin looks for: RMS
normalisation and rotary embedding are fused into one kernel each only in the plain forms below,
and attention has to become the paged operator, which takes flat tokens.

For a decoder the graph is fed one token a batch row, ``[tokens, 1]``: then no transpose is needed
between ``[tokens, heads * size]`` and ``[tokens, heads, 1, size]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension

from aicc.runtime.errors import UnsupportedError

Converter = Callable[[NodeContext], list[ov.Output]]
_ELSEWHERE = "Compile for --target reference."


@dataclass(slots=True)
class PagedAttention:
    """One attention of a decoder: its stand-in in the OpenVINO graph and what the kernel needs.

    The paged-attention operator has no serialised form, so the stored graph has a stand-in of the
    same shapes, ``VariadicSplit(Concat(query, key, value))``, which the provider replaces at load.
    """

    stand_in: ov.Node
    kv_heads: int
    head_size: int
    scale: float


@dataclass(slots=True)
class DecoderConversions:
    """Conversions for a decoder; collects its attentions in graph order."""

    attentions: list[PagedAttention] = field(default_factory=list)

    @property
    def operators(self) -> dict[str, Converter]:
        """The conversions by operator."""
        return {
            "RMSNormalization": rms_normalization,
            "RotaryEmbedding": rotary_embedding,
            "Attention": self.attention,
        }

    def extensions(self) -> list[ConversionExtension]:
        """What to register with the ONNX frontend."""
        return [ConversionExtension(operator, convert) for operator, convert in self.operators.items()]

    def attention(self, node: NodeContext) -> list[ov.Output]:
        """``Attention`` over past and present keys, as a stand-in for the paged kernel."""
        query, key, value = (node.get_input(i) for i in range(3))
        query_heads = _heads(query, node.get_attribute("q_num_heads", 0))
        kv_heads = _heads(key, node.get_attribute("kv_num_heads", 0))
        width = _width(query)
        head_size = width // query_heads
        if _width(value) != _width(key):
            raise UnsupportedError("an Attention has value heads of another size than its key heads.", _ELSEWHERE)
        flat = [
            op.reshape(x, _ints(-1, w), False)
            for x, w in zip((query, key, value), (width, _width(key), _width(value)), strict=True)
        ]
        stand_in = op.variadic_split(op.concat(flat, 1), _int(1), _ints(width, _width(key), _width(value)))
        scale = node.get_attribute("scale", 0.0) or head_size**-0.5
        self.attentions.append(PagedAttention(stand_in, kv_heads, head_size, scale))
        rows = op.reshape(stand_in.output(0), _ints(-1, 1, width), False)
        return [rows.output(0), stand_in.output(1), stand_in.output(2)]


def rms_normalization(node: NodeContext) -> list[ov.Output]:
    """``RMSNormalization`` over the last axis: ``x / sqrt(mean(x^2) + epsilon) * scale``."""
    x, weight = node.get_input(0), node.get_input(1)
    if node.get_attribute("axis", -1) != -1:
        raise UnsupportedError(
            "an RMSNormalization over more than the last axis cannot be lowered to OpenVINO.", _ELSEWHERE
        )
    square = op.power(x, _float(2))
    mean = op.reduce_mean(square, _ints(-1), keep_dims=True)
    root = op.sqrt(op.add(mean, _float(node.get_attribute("epsilon", 1e-5))))
    return op.multiply(op.divide(x, root), weight).outputs()


def rotary_embedding(node: NodeContext) -> list[ov.Output]:
    """``RotaryEmbedding`` on ``[tokens, 1, heads * size]`` or ``[tokens, heads, 1, size]``."""
    if node.get_attribute("interleaved", 0):
        raise UnsupportedError("an interleaved RotaryEmbedding cannot be lowered to OpenVINO.", _ELSEWHERE)
    x, cos, sin = (node.get_input(i) for i in range(3))
    if node.get_input_size() > 3:
        positions = node.get_input(3)
        cos, sin = op.gather(cos, positions, _int(0)), op.gather(sin, positions, _int(0))
    flat = len(x.get_partial_shape()) == 3
    heads = node.get_attribute("num_heads", 0) if flat else _heads(x, 0)
    size = _width(x) // heads
    rotated = node.get_attribute("rotary_embedding_dim", 0) or size
    half = rotated // 2
    split = op.reshape(x, _ints(-1, heads, 1, size), False) if flat else x
    rest = None
    if rotated != size:
        split, rest = op.variadic_split(split, _int(3), _ints(rotated, size - rotated)).outputs()
    cos4, sin4 = (op.reshape(op.concat([t, t], -1), _ints(-1, 1, 1, rotated), False) for t in (cos, sin))
    low = op.slice(split, _ints(0), _ints(half), _ints(1), _ints(3))
    # The plugin's pattern wants this open end and the axis counted from the back to see a rotation.
    high = op.slice(split, _ints(half), _ints(np.iinfo(np.int32).max), _ints(1), _ints(3))
    turned = op.concat([op.multiply(high, _float(-1)), low], -1)
    out = op.add(op.multiply(split, cos4), op.multiply(turned, sin4))
    if rest is not None:
        out = op.concat([out, rest], -1)
    return (op.reshape(out, _ints(-1, 1, heads * size), False) if flat else out).outputs()


def _heads(x: ov.Output, attribute: int) -> int:
    return int(attribute or x.get_partial_shape()[1].get_length())


def _width(x: ov.Output) -> int:
    """Values a token has: the last axis, times the heads for a rank-4 ``[tokens, heads, 1, size]``."""
    shape = x.get_partial_shape()
    last = int(shape[len(shape) - 1].get_length())
    return last * int(shape[1].get_length()) if len(shape) == 4 else last


def _int(value: int) -> ov.Node:
    return op.constant(np.int64(value))


def _ints(*values: int) -> ov.Node:
    return op.constant(np.array(values, np.int64))


def _float(value: float) -> ov.Node:
    return op.constant(np.float32(value))
