"""Facts read off a graph without reading a weight: signatures, bytes by layer, cache size."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import get_args

import onnx_ir as ir

from aicc.compiler.coverage import PREPARES
from aicc.compiler.graph_file import INLINE_BYTES
from aicc.compiler.quantization.blockwise import match_blockwise
from aicc.compiler.report import LayerRecord
from aicc.runtime.artifact import LlmFacts, Signature, TensorSpec
from aicc.runtime.errors import UnsupportedError, UsageError
from aicc.runtime.manifest import DtypeName
from aicc.runtime.target import Target

_BYTES = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1}
_SMALL_BYTES = 16_384  # weights without a layer's number in their name are told apart from here on
_BATCH_TOKENS = 512  # tokens a symbolic dimension is taken to have, as in one chunk of a prefill
_LIVE_TENSORS = 4  # intermediate tensors of the largest size alive at the same time
_SCALE_BYTES = {"uint8": 8, "int8": 4}  # of a quantised cache row: a float32 scale, and uint8 has a zero point too


def graph_signatures(model: ir.Model) -> dict[str, Signature]:
    """The one signature an imported graph has, as ``default``."""
    return {"default": Signature(_specs(model.graph.inputs), _specs(model.graph.outputs))}


def _specs(values: list[ir.Value]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in values)


def _spec(value: ir.Value) -> TensorSpec:
    tensor = isinstance(value.type, ir.TensorType)
    name = _dtype_name(value.dtype) if tensor and value.dtype is not None else None
    if value.type is not None and name not in get_args(DtypeName):
        raise UnsupportedError(
            f"the graph's {value.name} is {name or 'a sequence or an optional value'}; "
            "an artifact takes and gives tensors of numbers.",
            "Cut the graph behind it, or convert it in the graph.",
        )
    if name is None or value.shape is None:
        raise UnsupportedError(
            f"the graph's {value.name} has no known type and rank.", "Run shape inference on the model first."
        )
    shape = []
    for axis, dim in enumerate(value.shape):
        known = isinstance(dim, int) and dim >= 0  # some exporters write -1 or ? for a size they do not know
        symbol = str(getattr(dim, "value", None) or "?")
        shape.append(dim if known else f"{value.name}.{axis}" if symbol == "?" else symbol)
    return TensorSpec(value.name, name, tuple(shape))


def _dtype_name(dtype: ir.DataType) -> str:
    """As numpy calls it, with the one it lacks."""
    if dtype == ir.DataType.BFLOAT16 or dtype.is_string():
        return dtype.name.lower()
    return str(dtype.numpy())


def kv_dtype(model: ir.Model, target: Target) -> str:
    """Type of the KV cache: the target's first choice, but full precision for full-precision weights.

    Args:
        model: The quantised graph.
        target: Its KV types.
    """
    quantised = any(match_blockwise(node.outputs[0]) for node in model.graph)
    if not quantised and "float32" in target.kv_dtypes:
        return "float32"
    return target.kv_dtypes[0]


def check_kv_choice(kind: str, kv: str) -> None:
    """Refuse a choice of the KV cache that would have no effect.

    Args:
        kind: Of the model.
        kv: What was asked for.

    Raises:
        UsageError: The model is no decoder.
    """
    if kv != "auto" and kind != "decoder":
        raise UsageError("only decoders have a KV cache.", "Leave --kv out.")


def lacks_cache(kind: str, target: Target) -> str:
    """What to say if a model of that kind needs a KV cache and the target has none, without a full stop; else empty."""
    if kind != "decoder" or target.kv_dtypes:
        return ""
    return f"{target.name} has no KV cache, so it cannot run a decoder"


def kv_bytes_per_token(llm: LlmFacts, dtype: str) -> int:
    """Bytes each cached token takes over all layers, keys and values.

    Args:
        llm: Layers, KV heads and head size.
        dtype: Type of the cache, see :func:`kv_dtype`.
    """
    row = llm.head_dim * _BYTES[dtype] + _SCALE_BYTES.get(dtype, 0)
    return 2 * llm.layers * llm.kv_heads * row


def weight_layers(model: ir.Model) -> list[LayerRecord]:
    """Stored bytes of the initializers, by the part of the model their names say they belong to."""
    sizes: dict[str, int] = defaultdict(int)
    formats: dict[str, set[str]] = defaultdict(set)
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            continue
        layer = _layer_of(name, value.const_value.nbytes)
        sizes[layer] += value.const_value.nbytes
        if len(value.const_value.shape) > 1 and not name.endswith((".scales", ".zero_points", ".minimum")):
            formats[layer].add(value.const_value.dtype.numpy().name)
    return [LayerRecord(name, size, ", ".join(sorted(formats[name])) or "float32") for name, size in sizes.items()]


def _layer_of(name: str, size: int) -> str:
    """``layers.3`` for anything in block 3, else the name's first telling part; ``other`` for what is small."""
    if block := re.search(r"(?:^|[./])(?:layers?|h|blocks?)\.(\d+)\.", name):
        return f"layers.{block.group(1)}"
    for part in ("embed", "lm_head", "norm", "rotary"):
        if part in name:
            return {"embed": "embeddings", "lm_head": "lm_head", "norm": "norms", "rotary": "rotary"}[part]
    return re.split(r"[./]", name.strip("./"))[0] if size >= _SMALL_BYTES else "other"


def activation_bytes(model: ir.Model) -> int:
    """A few of the largest intermediate tensors, symbolic dimensions at one chunk of tokens.

    The first dimension, which is the batch where it is symbolic, counts once, and no tensor is larger
    than tokens by tokens: of more unknown dimensions some are one, such as a mask's heads. Decompressed weights
    are no intermediates: targets multiply with the stored form.
    """
    largest = 0
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        if node.op_type in PREPARES and any(_is_weight(value) for value in node.inputs):
            continue
        for value in node.outputs:
            if value.shape is None or value.dtype is None or value in outputs:
                continue
            known = math.prod(dim for dim in value.shape if isinstance(dim, int))
            unknown = sum(not isinstance(dim, int) for dim in value.shape[1:])
            largest = max(largest, int(value.dtype.itemsize * known) * _BATCH_TOKENS ** min(unknown, 2))
    return _LIVE_TENSORS * largest


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a weight or one on its way to be decompressed."""
    while value is not None:
        if value.const_value is not None and value.const_value.nbytes > INLINE_BYTES:
            return True
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and producer.op_type in PREPARES else None
    return False
