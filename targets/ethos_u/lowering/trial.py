"""What the chip has no form for, told before there are scales: each operator is tried with made-up ones.

The same handlers say yes or no that translate a calibrated graph, so a check and a compile agree; no weight is read.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import Refusal
from aicc.compiler.passes.static_shapes import StaticShapes
from aicc.compiler.quantization.static import folds
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.ethos_u.lowering.node import Node, Refused, Tensor, tensor
from aicc.targets.ethos_u.lowering.operators import OPERATORS
from aicc.targets.ethos_u.lowering.program import Program

_SCALE = 1 / 32  # any that functions such as exp bear


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """Nodes without a form on the chip, in a graph that is not calibrated yet."""
    model, program, found = imported.graph.clone(), Program(), []
    known: dict[ir.Value, Tensor] = {}
    try:
        StaticShapes({})(model)
        known.update((value, tensor(value, target, program, _SCALE, 0)) for value in model.graph.inputs)
    except UnsupportedError as error:
        return [Refusal("", "", error.message.rstrip("."), error.remedy)]
    varying = set(model.graph.inputs)  # values that are not known before any input is
    for node in model.graph:
        if varying.isdisjoint(node.inputs):
            continue
        varying.update(node.outputs)
        if folds(node):
            if node.inputs[0] in known:  # else what is before it has been refused
                known[node.outputs[0]] = known[node.inputs[0]]
            continue
        try:
            for value in node.outputs:
                known[value] = tensor(value, target, program, _SCALE, 0)
            if node.op_type not in OPERATORS:
                raise Refused("it has no TOSA form here")
            operands = [_operand(value, known) for value in node.inputs]
            with np.errstate(all="ignore"):  # in tables, whose numbers nobody looks at
                OPERATORS[node.op_type](_Trial(node, program, operands, known[node.outputs[0]], varying))
        except (Refused, ValueError) as error:
            found.append(Refusal(node.name or str(node.outputs[0].name), node.op_type, str(error)))
        except UnsupportedError as error:
            found.append(Refusal(node.name or str(node.outputs[0].name), node.op_type, error.message.rstrip(".")))
    return found


class _Trial(Node):
    """An operator before it is quantised: constants are looked at by their shapes alone.

    Args:
        varying: Values that are not constant.
    """

    def __init__(
        self, node: ir.Node, program: Program, inputs: list[Tensor | None], output: Tensor, varying: set[ir.Value]
    ) -> None:
        super().__init__(node, program, inputs, output)
        self._varying = varying

    def weight(self, index: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        if (value := self.node.inputs[index]) in self._varying:
            raise Refused("its weights are no constants")
        return np.ones([int(size) for size in value.shape], np.int8), np.ones(1)

    def bias(self, index: int, channels: int) -> NDArray[np.int32]:
        if len(self.node.inputs) > index and self.node.inputs[index] in self._varying:
            raise Refused("its bias is no constant")
        return np.zeros(channels, np.int32)


def _operand(value: ir.Value | None, known: dict[ir.Value, Tensor]) -> Tensor | None:
    """A tensor of the program, or a constant of ones; None of weights' other forms and what holds no floats."""
    if value is None or value in known:
        return known.get(value) if value is not None else None
    if value.dtype is not None and not value.dtype.is_floating_point():
        return None
    shape = tuple(int(size) for size in value.shape)
    return Tensor(str(value.name), shape, _SCALE, 0, np.ones(shape, np.int8))
