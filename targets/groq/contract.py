"""GroqFlow's public contract, and a check of packages against it.

A package is two ONNX graphs beside one file of weights, ``package.json`` that says which nodes go on which chip,
and ``compile.sh`` with the commands of Groq's compiler and assembler. From groqflow's own sources: opset 16 (13 at
least), static shapes, float16 models, chips in powers of two up to 64, about 50 million parameters a chip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx

from aicc.runtime.errors import IntegrityError
from aicc.targets.groq.target import CHIP_BYTES, MAX_CHIPS

OPSET, IR_VERSION = 16, 8
PARAMETERS = 50_000_000
WEIGHTS, PACKAGE, COMMANDS = "weights.bin", "package.json", "compile.sh"
_HALF = onnx.TensorProto.FLOAT16
# float32 is what norms compute in between two casts; integers are tokens, positions and shapes.
_INSIDE = {_HALF, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
_OUTSIDE = {_HALF, onnx.TensorProto.INT64}


class Chip(msgspec.Struct, frozen=True):
    """What one chip of the chain has.

    Attributes:
        first: Index of its first node in the graph.
        last: Index of its last one.
        weight_bytes: Weights that its nodes read; one that two chips read is on both.
        cache_bytes: Keys and values of earlier tokens that its nodes read.
        received_bytes: What comes over the link from the chip before, each run.
        activation_bytes: The most that other tensors take at a time: what it received, makes, and hands on.
    """

    first: int
    last: int
    weight_bytes: int
    cache_bytes: int
    received_bytes: int
    activation_bytes: int


class Program(msgspec.Struct, frozen=True):
    """One graph of the package: its file, its new tokens and its context (0 for tensors), and the chain's chips."""

    graph: str
    tokens: int
    context: int
    chips: tuple[Chip, ...]


class Package(msgspec.Struct, frozen=True):
    """What ``package.json`` says."""

    opset: int
    chip_bytes: int
    programs: tuple[Program, ...]


def check_package(directory: Path) -> Package:
    """Hold a package against the contract, reading the ONNX files themselves.

    Raises:
        IntegrityError: Names the file and everything that is wrong with it.
    """
    package = msgspec.json.decode((directory / PACKAGE).read_bytes(), type=Package)
    for program in package.programs:
        if problems := _problems(directory / program.graph, program.chips):
            raise IntegrityError(
                f"{directory / program.graph} is not what GroqFlow takes: {'; '.join(problems[:5])}.",
                "Compile the model again.",
            )
    return package


def _problems(path: Path, chips: Sequence[Chip]) -> list[str]:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [" ".join(str(error).split())[:300]]
    model = onnx.load(str(path), load_external_data=False)
    graph, found = model.graph, []
    if [(o.domain, o.version) for o in model.opset_import] != [("", OPSET)]:
        found.append(f"its operators are not those of opset {OPSET} alone")
    inside = {v.name: v.type.tensor_type for v in graph.value_info}
    outside = {v.name: v.type.tensor_type for v in [*graph.input, *graph.output]}
    for name, tensor in (inside | outside).items():
        if any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
            found.append(f"{name} has no fixed shape")
        if tensor.elem_type not in (_OUTSIDE if name in outside else _INSIDE):
            found.append(f"{name} is {onnx.TensorProto.DataType.Name(tensor.elem_type)}")
    made = {name for node in graph.node for name in node.output if name}
    found += [f"{name} has no shape" for name in sorted(made - set(inside) - set(outside))]
    found += [
        f"weight {t.name} is not float16" for t in graph.initializer if math.prod(t.dims) > 256 and t.data_type == 1
    ]
    if len(chips) & (len(chips) - 1) or not 1 <= len(chips) <= MAX_CHIPS:
        found.append(f"{len(chips)} chips are no power of two up to {MAX_CHIPS}")
    if [c.first for c in chips] != [0, *(c.last + 1 for c in chips[:-1])] or chips[-1].last + 1 != len(graph.node):
        found.append("its chips do not have every node once")
    return found + _memory(graph, chips)


def _memory(graph: onnx.GraphProto, chips: Sequence[Chip]) -> list[str]:
    """Chips that would hold more than there is room for at some node, counted from the graph."""
    sizes = {t.name: math.prod(t.dims) * _width(t.data_type) for t in graph.initializer}
    held = set(sizes) | {value.name for value in graph.input}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        sizes[value.name] = math.prod(d.dim_value for d in tensor.shape.dim) * _width(tensor.elem_type)
    last = {name: index for index, node in enumerate(graph.node) for name in [*node.output, *node.input]}
    outputs = {value.name for value in graph.output}
    found, before = [], set[str]()
    for number, chip in enumerate(chips):
        nodes = graph.node[chip.first : chip.last + 1]
        resident = sum(sizes[name] for name in {name for node in nodes for name in node.input} & held)
        alive, most = {name for name in before if last[name] >= chip.first}, 0
        for index, node in enumerate(nodes, chip.first):
            alive |= {name for name in node.output if name}
            most = max(most, sum(sizes.get(name, 0) for name in alive))
            alive = {name for name in alive if last[name] > index or (name in outputs and name not in before)}
        before |= {name for node in nodes for name in node.output if name}
        if resident + most > CHIP_BYTES:
            found.append(f"chip {number} would hold {resident + most:,} bytes of {CHIP_BYTES:,}")
    return found


def _width(dtype: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)
