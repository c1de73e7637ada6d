"""Which format each weight gets: the ``quantize`` phase.

``auto`` keeps a quantised source exactly as published wherever the target multiplies with that
format, and stores other decoder weights as int8 by row; tensor models are left as they are, and
so are the floats of targets that multiply with nothing else.
``int4`` and ``int8`` ask for at most that many bits (a source that is already there is kept,
unless a group size is asked for too); embeddings and output projections never go below 8 bits,
where small models lose most. ``fp8`` is e4m3 with a scale for each row. ``fp32``, ``bf16`` and
``fp16`` undo quantisation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from aicc.compiler.importers import ImportedModel
from aicc.compiler.quantization.blockwise import BlockwiseWeight, add_blockwise, match_blockwise
from aicc.compiler.quantization.convert import Floats, lazy_quantized, reader, to_float16
from aicc.runtime.errors import UnsupportedError, UsageError
from aicc.runtime.target import Target

Quant = Literal["auto", "fp32", "bf16", "fp16", "fp8", "int8", "int4"]
QUANTS: tuple[Quant, ...] = ("auto", "fp32", "bf16", "fp16", "fp8", "int8", "int4")
DEFAULT_INT4_GROUP = 32
_FORMATS: dict[str, tuple[int, str]] = {  # bits, and what a target calls the type
    "int4": (4, ""),
    "int8": (8, ""),
    "fp8": (8, "float8e4m3"),
    "fp16": (16, ""),
    "bf16": (16, "bfloat16"),
    "fp32": (32, ""),
}
_FLOATS = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_POSITIONAL = {"RotaryEmbedding", "Split", "VariadicSplit"}  # what uses looked-up cosines and sines
_MIN_ELEMENTS = 4096  # smaller matrices are not worth a format of their own


@dataclass(frozen=True, slots=True)
class WeightUse:
    """A float ``[N, K]`` matrix and how the graph uses it."""

    value: ir.Value
    blockwise: BlockwiseWeight | None
    is_table: bool  # rows are gathered (embedding), possibly tied to the output projection


def quantize(imported: ImportedModel, target: Target, quant: Quant, group_size: int | None) -> str:
    """Give every weight matrix its format, in place.

    Args:
        imported: Model whose graph is changed; weights stay lazy.
        target: Its weight formats decide what is kept.
        quant: What was asked for.
        group_size: Values that share a scale; None is the default of the format.

    Returns:
        A description of the result, such as ``uint4 group 32, int8 group 32 embeddings``.

    Raises:
        UsageError: The target has no such format, or the group size makes no sense.
        UnsupportedError: No weight can be given the format that was asked for.
    """
    if group_size is not None and (quant not in ("int8", "int4") or group_size < 1):
        raise UsageError(
            f"a group size of {group_size} makes no sense with --quant {quant}.", "Use it with int8 or int4."
        )
    asked = _FORMATS.get(quant)
    if asked and not any((f.bits, f.dtype) == asked for f in target.weight_formats):
        raise UsageError(f"{target.name} has no {quant} weights.", "See `aicc targets --json` for its formats.")
    widths = {f.bits for f in target.weight_formats}
    if quant == "auto" and min(widths) >= 16:
        quant = "fp32" if 32 in widths else "fp16"
    described: Counter[str] = Counter()
    for use in find_weights(imported.graph):
        described[_convert(imported, use, target, quant, group_size)] += 1
    if asked and quant != "fp32" and not described:
        raise UnsupportedError(
            f"no weight of this graph can become {quant}: only matrices of {_MIN_ELEMENTS} values and more that are "
            "multiplied through a Transpose, or looked up, are converted.",
            "Compile with --quant auto, which leaves them as they are.",
        )
    RemoveUnusedNodesPass()(imported.graph)
    return ", ".join(name for name, _ in described.most_common()) or "as in the source"


def find_weights(model: ir.Model) -> list[WeightUse]:
    """Weight matrices ``[N, K]`` that are multiplied through a ``Transpose``, or gathered from."""
    found: dict[str, WeightUse] = {}
    for node in model.graph.all_nodes():
        if node.op_type == "Transpose" and _feeds_product(node):
            value, table = node.inputs[0], False
        elif node.op_type == "Gather" and _looks_up_embedding(node):
            value, table = node.inputs[0], True
        else:
            continue
        blockwise = match_blockwise(value)
        if (blockwise is None and not _is_float_matrix(value)) or value.is_graph_output():
            continue
        table = table or (value.name in found and found[value.name].is_table)
        found[value.name] = WeightUse(value, blockwise, table)
    return list(found.values())


def _feeds_product(transpose: ir.Node) -> bool:
    users = list(transpose.outputs[0].uses())
    return bool(users) and all(u.node.op_type == "MatMul" and u.idx == 1 for u in users)


def _looks_up_embedding(gather: ir.Node) -> bool:
    """Whether rows of a table become activations; cosines and sines of positions do not."""
    users = {u.node.op_type for u in gather.outputs[0].uses()}
    return gather.attributes.get_int("axis", 0) == 0 and not users & _POSITIONAL


def _is_float_matrix(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.const_value is not None
        and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        and len(value.const_value.shape) == 2
        and value.const_value.size >= _MIN_ELEMENTS
    )


def _convert(imported: ImportedModel, use: WeightUse, target: Target, quant: Quant, group_size: int | None) -> str:
    kept = use.blockwise
    if quant in _FLOATS:
        if kept is None and (quant == "fp32" or use.value.dtype == _FLOATS[quant]):
            return _describe_float(use)
        return _to_float(imported.graph.graph, use, _FLOATS[quant])
    if quant == "auto" and kept is None and imported.kind == "tensors":
        return _describe_float(use)
    kind = quant if quant == "fp8" or (quant == "int4" and not use.is_table) else "int8"
    few = kept is not None and kept.bits <= _FORMATS[kind][0] and (kept.dtype == _FORMATS[kind][1])
    wanted = kept is not None and (quant == "auto" or few) and group_size is None
    if wanted and target.accepts_weight(kept.bits, _row_as_zero(kept), kept.offset, kept.dtype):
        return f"{kept.values.dtype.numpy().name} group {kept.group_size}{_table(use)}"
    return _to_blocks(imported, use, target, kind, group_size)


def _to_float(graph: ir.Graph, use: WeightUse, dtype: ir.DataType) -> str:
    """Replace a weight by a lazy float initializer; one of 16 bits gets a ``Cast`` behind it."""
    read, shape = _reader(use)
    name = use.value.name

    def stored_as() -> ir.TensorProtocol:
        matrix = read()
        return ir.tensor(to_float16(matrix, name) if dtype == ir.DataType.FLOAT16 else matrix.astype(dtype.numpy()))

    half = dtype != ir.DataType.FLOAT
    tensor = ir.LazyTensor(stored_as, dtype=dtype, shape=ir.Shape(shape))
    stored = ir.Value(
        name=f"{name}.{dtype.numpy().name}", type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor
    )
    graph.register_initializer(stored)
    new = stored
    if half:
        cast = ir.node("Cast", [stored], attributes={"to": int(ir.DataType.FLOAT)})
        new = cast.outputs[0]
        new.name, new.type, new.shape = f"{name}.float", ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        graph.insert_before(graph[0], cast)
    _replace(graph, use.value, new)
    return f"{dtype.numpy().name}{_table(use)}"


def _to_blocks(imported: ImportedModel, use: WeightUse, target: Target, kind: str, group_size: int | None) -> str:
    """Replace a weight by one with scales, of :data:`_FORMATS`' kinds of 4 and 8 bits."""
    bits, dtype = _FORMATS[kind]
    graph = imported.graph.graph
    read, shape = _reader(use)
    asked = group_size or (DEFAULT_INT4_GROUP if bits == 4 else shape[1])
    group = asked if shape[1] % asked == 0 else _divisor(shape[1], asked)
    if group != asked:
        imported.notes.append(f"{use.value.name}: rows of {shape[1]} do not divide by {asked}, so the group is {group}")
    if not target.accepts_weight(bits, 0 if group == shape[1] else group, "integer" if bits == 4 else "none", dtype):
        sizes = sorted({size for f in target.weight_formats if f.bits == bits for size in f.group_sizes})
        raise UsageError(
            f"{target.name} does not multiply with {kind} weights in groups of {group}.",
            f"Its group sizes are {', '.join(map(str, sizes))} (0 is a whole row).",
        )
    tensors = lazy_quantized(read, shape, kind, group, use.value.name)
    name = f"{use.value.name}.{kind}"
    new = add_blockwise(graph, name, tensors.values, tensors.scales, group, zero_points=tensors.zero_points)
    _replace(graph, use.value, new)
    size = "by row" if group == shape[1] else f"group {group}"
    return f"{tensors.values.dtype.numpy().name} {size}{_table(use)}"


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand for ``old``, in the type the graph computes in."""
    if old.dtype != new.dtype:
        cast = ir.node("Cast", [new], attributes={"to": int(old.dtype)})
        cast.outputs[0].name = f"{new.name}.{old.dtype.numpy().name}"
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(old.dtype), new.shape
        graph.insert_after(new.producer(), cast) if new.producer() else graph.insert_before(graph[0], cast)
        new = cast.outputs[0]
    ir.convenience.replace_all_uses_with(old, new)


def _reader(use: WeightUse) -> tuple[Callable[[], Floats], tuple[int, int]]:
    if use.blockwise is not None:
        rows, columns = (int(d) for d in use.blockwise.values.shape)
        return reader(use.blockwise), (rows, columns)
    tensor = use.value.const_value
    rows, columns = (int(d) for d in tensor.shape)
    return (lambda: tensor.numpy().astype(np.float32, copy=False)), (rows, columns)


def _divisor(columns: int, asked: int) -> int:
    """The largest usual group that divides the columns and is not above what was asked."""
    return next((g for g in (256, 128, 64, 32, 16) if g <= asked and columns % g == 0), columns)


def _row_as_zero(weight: BlockwiseWeight) -> int:
    return 0 if weight.group_size == int(weight.values.shape[1]) else weight.group_size


def _describe_float(use: WeightUse) -> str:
    if use.blockwise is not None:
        return f"{use.blockwise.values.dtype.numpy().name} group {use.blockwise.group_size}{_table(use)}"
    return f"{use.value.dtype.numpy().name}{_table(use)}"


def _table(use: WeightUse) -> str:
    return " embeddings" if use.is_table else ""
