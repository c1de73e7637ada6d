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

OPSET, IR_VERSION = 16, 8
CHIP_BYTES = 220 << 20
PARAMETERS = 50_000_000
MAX_CHIPS = 64
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
    """

    first: int
    last: int
    weight_bytes: int
    cache_bytes: int
    received_bytes: int


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
    """Chips that hold more than there is room for, counted from the graph."""
    sizes = {
        t.name: math.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in graph.initializer
    }
    for value in graph.input:
        tensor = value.type.tensor_type
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
        sizes[value.name] = math.prod(d.dim_value for d in tensor.shape.dim) * width
    found = []
    for index, chip in enumerate(chips):
        used = {name for node in graph.node[chip.first : chip.last + 1] for name in node.input}
        held = sum(sizes[name] for name in used & set(sizes))
        if held > CHIP_BYTES:
            found.append(f"chip {index} would hold {held:,} bytes of {CHIP_BYTES:,}")
    return found
