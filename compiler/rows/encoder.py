"""Encoders as row programs: token ids, types and a mask ``[batch, length]`` in, rows of activations out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from aicc.compiler.importers import ImportedModel
from aicc.compiler.passes.attention_mask import HIDDEN
from aicc.compiler.rows import program as rows
from aicc.compiler.rows.builder import Builder, Refused
from aicc.compiler.rows.constants import evaluate, graph_inputs, is_constant
from aicc.compiler.rows.matrix import Matrix
from aicc.compiler.rows.program import Port, Program

_LONGEST = 512  # tokens of a sequence, where no table of positions says how many
_MOST_PORTS = 8  # AICC_MAX_PORTS


class EncoderBuilder(Builder):
    """Makes the program of a model whose inputs are integers for each token and whose outputs rows."""

    def __init__(self, imported: ImportedModel, family: str, head_multiple: int) -> None:
        super().__init__(_with_shapes(imported.graph), Program(0, 0), family, head_multiple)
        self.inputs = list(self.model.graph.inputs)
        self.masks: dict[ir.Value | None, int] = {}

    def operations(self) -> None:
        """From the inputs to every output."""
        outputs = list(self.model.graph.outputs)
        self._check_inputs()
        self.program.inputs = [Port(str(v.name), _sizes(v)) for v in self.inputs]
        self.compute(outputs)
        for number, value in enumerate(outputs):
            if value not in self.made:
                raise Refused(_maker(value, self.model), f"the output {value.name} is not made of rows of activations")
            made, name = self.made[value], str(value.name)
            self.program.outputs.append(Port(name, (-1, -1, made.width)))
            self.program.ops.append(rows.Result(name, None, made, number))
        self.program.context = self.program.context or _LONGEST

    def _check_inputs(self) -> None:
        """Raise for an input or output the C interface has no place for."""
        first = next(iter(self.model.graph), None)
        for value in self.inputs:
            if value.dtype != ir.DataType.INT64 or value.shape is None or len(value.shape) != 2:
                node = next((user for user, _ in value.uses()), first)
                raise Refused(node, f"the input {value.name} is not int64 [batch, length]")
        for value in self.model.graph.outputs:
            if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != 3:
                raise Refused(
                    _maker(value, self.model), f"the output {value.name} is not float32 [batch, length, width]"
                )
        if not self.inputs or max(len(self.inputs), len(self.model.graph.outputs)) > _MOST_PORTS:
            raise Refused(first, f"a model of tensors has 1 to {_MOST_PORTS} inputs, of token ids")

    def begins(self, node: ir.Node) -> bool:
        """Looking up rows of a weight by input or position does."""
        if node.op_type != "Gather" or not is_constant(node.inputs[0]) or is_constant(node.inputs[1]):
            return False
        return node.outputs[0].dtype == ir.DataType.FLOAT

    def looked_up(self, node: ir.Node) -> tuple[Matrix, int | None]:
        """A table and an input, whose limit is noted; or its rows from that of position 0 on."""
        table, index = self.matrix(node, node.inputs[0]), _without_casts(node.inputs[1])
        if index in self.inputs:
            number = self.inputs.index(index)
            port = self.program.inputs[number]
            port.limit = min(port.limit or table.rows, table.rows)
            return table, number
        first = self._rows_of(node, 1)
        begin = int(first[0]) if first is not None else 0
        length = table.rows - begin
        found = self._rows_of(node, length) if length > 0 else None
        if found is None or not np.array_equal(found, np.arange(begin, begin + length)):
            raise Refused(node, "which rows it looks up depends on more than one input or the position of a token")
        self.program.context = min(self.program.context or length, length)
        return table.part(begin, length), None

    def _rows_of(self, node: ir.Node, length: int) -> NDArray[np.int64] | None:
        """The rows that ``length`` tokens look up; None if their values or neighbours matter."""
        index, found = node.inputs[1], []
        inputs = [v for v in self.inputs if v in graph_inputs(index)]
        for batch, filling in ((1, 0), (2, 1)):
            feeds = {str(v.name): np.full((batch, length), filling) for v in inputs}
            value = evaluate(inputs, index, feeds)
            if value.shape not in ((length,), (1, length), (batch, length)):
                return None
            found.append(np.broadcast_to(value, (batch, length))[-1])
        return found[0] if np.array_equal(*found) else None

    def visible(self, node: ir.Node) -> tuple[bool, int]:
        """Every token looks at all others but those that one input hides."""
        if any(v is not None for v in node.inputs[4:6]):
            raise Refused(node, "it has keys and values of earlier tokens, and the model is no decoder")
        if node.attributes.get_int("is_causal", 0):
            raise Refused(node, "it is causal, and the model is no decoder")
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask not in self.masks:
            self.masks[mask] = -1 if mask is None else self._hiding_input(node, mask)
        if len(set(self.masks.values())) > 1:
            raise Refused(node, "its mask is another than that of the attention before it")
        self.program.mask = self.masks[mask]
        return False, 0

    def _hiding_input(self, node: ir.Node, mask: ir.Value) -> int:
        """The number of the input that is 0 where the mask hides a key."""
        inputs = [v for v in self.inputs if v in graph_inputs(mask)]
        pattern = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]])
        for value in inputs:
            if all(
                _hides(evaluate(inputs, mask, _filled(inputs, pattern, filling) | {str(value.name): pattern}), pattern)
                for filling in (0, 1)
            ):
                return self.inputs.index(value)
        raise Refused(node, "its mask is something else than an input that is 0 where a token is hidden")


def _with_shapes(model: ir.Model) -> ir.Model:
    """The model, or where shapes are missing a copy with those that ONNX can infer."""
    if all(value.shape is not None for node in model.graph for value in node.outputs):
        return model
    copy = model.clone()
    ShapeInferencePass()(copy)
    return copy


def _filled(inputs: list[ir.Value], like: NDArray[Any], filling: int) -> dict[str, NDArray[Any]]:
    return {str(v.name): np.full_like(like, filling) for v in inputs}


def _hides(mask: NDArray[Any], pattern: NDArray[Any]) -> bool:
    """Whether a mask ``[batch, heads, queries, keys]`` hides exactly the keys where a pattern is 0."""
    batch, length = pattern.shape
    allowed = mask if mask.dtype == np.bool_ else mask == 0
    if mask.dtype != np.bool_ and (mask[~allowed] > HIDDEN).any():
        return False
    try:
        every = np.broadcast_to(allowed, (batch, allowed.shape[-3] if allowed.ndim > 2 else 1, length, length))
    except ValueError:
        return False
    return bool((every == (pattern != 0)[:, None, None]).all())


def _sizes(value: ir.Value) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) and d >= 0 else -1 for d in value.shape)


def _without_casts(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Identity"):
        value = node.inputs[0]
        node = value.producer()
    return value


def _maker(value: ir.Value, model: ir.Model) -> ir.Node | None:
    """The node to name for an output."""
    return value.producer() or next(iter(model.graph), None)
