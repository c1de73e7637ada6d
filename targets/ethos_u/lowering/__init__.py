"""The compile half: a calibrated graph becomes a TOSA 1.0 program of integers, and Vela compiles that.

Everything between a ``DequantizeLinear`` and a ``QuantizeLinear`` is one operator on integers; what
turns the model's own float inputs and outputs into integers and back stays on the host.
"""

from __future__ import annotations

from collections import Counter
from importlib import metadata
from pathlib import Path

import msgspec
import onnx_ir as ir

from aicc.compiler.coverage import refuse_operators
from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import LoweredVariant, WeightStore
from aicc.compiler.passes.static_shapes import StaticShapes
from aicc.compiler.report import OpCoverage
from aicc.runtime.errors import MismatchError, UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.ethos_u.layout import (
    COMMANDS_FILE,
    INSTALL,
    LAYERS_FILE,
    PORTS_FILE,
    PROGRAM_FILE,
    SUMMARY_FILE,
    Port,
    Ports,
)

try:
    from aicc.targets.ethos_u.lowering.node import Node, Refused, Tensor, array, tensor, unsupported
    from aicc.targets.ethos_u.lowering.operators import OPERATORS
    from aicc.targets.ethos_u.lowering.program import Program
    from aicc.targets.ethos_u.lowering.trial import refusals
except ModuleNotFoundError as _missing:
    if _missing.name != "tosa_serializer":
        raise
    raise MismatchError("compiling for Ethos-U needs tosa-tools.", INSTALL) from _missing
from aicc.targets.ethos_u.lowering.vela import compile_program, version

version()  # of Vela, or nothing is compiled
__all__ = ["lower", "refusals"]


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write the program, have it compiled, and say what runs where.

    Raises:
        UnsupportedError: A node has no form on the chip, or a size is not fixed; it is named.
        ResourceError: The program needs more memory than the chip's system has.
    """
    refuse_operators(imported.graph, target)
    model = imported.graph.clone()
    StaticShapes({})(model)
    program, ports, names = _translate(model, target)
    (directory / PROGRAM_FILE).write_bytes(program.serialize())
    (directory / PORTS_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(ports)))
    estimate = compile_program(directory, target)
    if estimate.on_host:
        raise UnsupportedError(
            f"Vela leaves {len(estimate.on_host)} operators of the program to the host, the first is "
            f"{estimate.on_host[0]}, and nothing runs them there.",
            "Cut the graph there, or compile for another variant.",
        )
    imported.notes.append(estimate.note)
    tosa = metadata.version("tosa-tools")
    return LoweredVariant(
        files=[PROGRAM_FILE, PORTS_FILE, COMMANDS_FILE, SUMMARY_FILE, LAYERS_FILE],
        requires={"tosa": "1.0", "tosa-tools": tosa},
        producer={"tosa-tools": tosa, "ethos-u-vela": version()},
        options={"system-config": estimate.system, "memory-mode": estimate.memory_mode},
        coverage=[OpCoverage(op, delegated=count) for op, count in sorted(names.items())]
        + [
            OpCoverage("QuantizeLinear", 0, fallback=len(ports.inputs), reason="float inputs become integers"),
            OpCoverage("DequantizeLinear", 0, fallback=len(ports.outputs), reason="integers become float outputs"),
        ],
    )


def _translate(model: ir.Model, target: Target) -> tuple[Program, Ports, Counter[str]]:
    """The program of a graph, how the host calls it, and how many nodes of each operator are in it."""
    program, known, names = Program(), {}, Counter[str]()
    inputs = []
    for node in model.graph:
        if node.op_type == "DequantizeLinear" or array(node.outputs[0]) is not None:
            continue
        if node.op_type == "QuantizeLinear":
            source = node.inputs[0]
            if source.is_graph_input():
                known[node.outputs[0]] = result = _quantised(node, target, program)
                program.input(result.name, result.stored)
                inputs.append(Port(str(source.name), result.scale, result.zero))
            elif source.producer().op_type == "DequantizeLinear":
                before, result = known[source.producer().inputs[0]], _quantised(node, target, program)
                known[node.outputs[0]] = result
                factors, zeros = [before.scale / result.scale], (before.zero, result.zero)
                program.rescale(result.name, before.name, result.stored, factors, zeros, ("int8", "int8"))
            continue
        handler = OPERATORS.get(node.op_type)
        if handler is None:
            raise unsupported(node, target.name, "it has no TOSA form here")
        quantize = next((use.node for use in node.outputs[0].uses() if use.node.op_type == "QuantizeLinear"), None)
        if quantize is None or len(node.outputs) != 1:
            raise unsupported(node, target.name, "its result is not quantised")
        known[quantize.outputs[0]] = result = _quantised(quantize, target, program)
        try:
            handler(Node(node, program, [_operand(value, known) for value in node.inputs], result))
        except (Refused, ValueError) as error:
            raise unsupported(node, target.name, str(error)) from error
        names[node.op_type] += 1
    outputs = []
    for value in model.graph.outputs:
        producer = value.producer()
        if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] not in known:
            raise UnsupportedError(f"{target.name} cannot give {value.name}: it is not quantised.", "Cut the graph.")
        tensor = known[producer.inputs[0]]
        program.output(tensor.name)
        outputs.append(Port(str(value.name), tensor.scale, tensor.zero))
    return program, Ports(tuple(inputs), tuple(outputs)), names


def _quantised(quantize: ir.Node, target: Target, program: Program) -> Tensor:
    """The tensor a ``QuantizeLinear`` makes, named after what it quantises."""
    source = quantize.inputs[0]
    scale, zero = (array(value) for value in quantize.inputs[1:3])
    return tensor(source, target, program, float(scale), int(zero))


def _operand(value: ir.Value | None, known: dict[ir.Value, Tensor]) -> Tensor | None:
    """The int8 tensor behind an operand; None of weights, biases, and what is not quantised."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    if producer.inputs[0] in known:
        return known[producer.inputs[0]]
    values, scale, zero = (array(each) for each in producer.inputs[:3])
    if values is None or scale.size != 1 or str(values.dtype) != "int8":
        return None
    return Tensor(str(value.name), values.shape, float(scale.reshape(())), int(zero.reshape(())), values)
