"""Imports ONNX files as they are: operators, control flow and quantisation untouched.

What is done here is checking: versions, the graph's own rules, and that external data lies in the
model's folder and inside its files. External data is mapped when it is written out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common as common_passes

from aicc.compiler.importers import ImportedModel, Source
from aicc.compiler.importers.files import contained_file, model_root, read_tokenizer
from aicc.runtime.artifact import SourceInfo
from aicc.runtime.errors import IntegrityError, UnsupportedError, first_line

_MOST_NODES = 1_000_000  # of a graph with its functions in place of their calls
# What attributes of words may say. ONNX' checker does not look, and whoever compares with one word takes any other for
# the default.
_AREAS = {"auto_pad": ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")}
_SCATTERS = {"reduction": ("none", "add", "mul", "max", "min")}
_WORDS = {
    "Gelu": {"approximate": ("none", "tanh")},
    "Pad": {"mode": ("constant", "reflect", "edge", "wrap")},
    **dict.fromkeys(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"), _AREAS),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _SCATTERS),
}
_OLDEST_OPSET, _OLDEST_IR = 7, 3  # before these, operators meant other things and shapes were not typed


def import_model(source: Source) -> ImportedModel:
    """Import an ONNX file as a model of tensors.

    Raises:
        IntegrityError: Truncated, breaks ONNX's rules, or names data it may not or cannot have.
        UnsupportedError: A version that is not known.
    """
    proto = _load(source.path)
    _check_versions(proto, source.path)
    _check_functions(proto, source.path)
    data_files = _check_tensors(proto, source.path)
    try:
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, model_root(source.path.parent))
        notes = _normalise(model)
    except Exception as error:  # onnx_ir wraps whatever it meets, node by node; the first cause is the one to tell
        raise IntegrityError(
            f"{source.path} cannot be read: {_first_cause(error)}.", "Export the model again."
        ) from error
    _check_graph(proto, source.path)
    _check_words(model, source.path)
    return ImportedModel(
        graph=model,
        kind="tensors",
        info=SourceInfo(source.name, "onnx", "", source.revision, source.licence),
        tokenizer_json=read_tokenizer(source.path.parent),
        notes=notes,
        weight_files=[source.path, *sorted(data_files)],
    )


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise IntegrityError(f"{path} is not a readable ONNX file: {error}.", "Download or export it again.") from error


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _check_versions(proto: onnx.ModelProto, path: Path) -> None:
    if not _OLDEST_IR <= proto.ir_version <= onnx.IR_VERSION:
        raise UnsupportedError(
            f"{path} has ONNX IR version {proto.ir_version}; {_OLDEST_IR} to {onnx.IR_VERSION} are read.",
            "Export the model again, or update onnx.",
        )
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise UnsupportedError(
            f"{path} uses ONNX opset {opset}; {_OLDEST_OPSET} to {newest} are read.",
            "Export the model with another opset.",
        )


def _check_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call each other twice, and so on, until no memory holds the graph."""
    functions = {(function.domain, function.name): function for function in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(sizes.get((node.domain, node.op_type), 1) for node in nodes)

    # A function's size is right after as many rounds as calls are deep; a cycle is refused where they are inlined.
    for _ in functions:
        found = {key: min(size(function.node), _MOST_NODES + 1) for key, function in functions.items()}
        if found == sizes:
            break
        sizes = found
    if size(proto.graph.node) > _MOST_NODES:
        raise UnsupportedError(
            f"{path} has more than {_MOST_NODES:,} nodes once its functions stand in place of their calls.",
            "Export the model with smaller functions.",
        )


def _check_tensors(proto: onnx.ModelProto, path: Path) -> set[Path]:
    """Check that every constant has the values its shape and type need; returns the external files."""
    files: set[Path] = set()
    for tensor in _tensors(proto):
        where = f"{path}: tensor {tensor.name!r}"
        if any(size < 0 for size in tensor.dims) or tensor.data_type not in _TYPES:
            raise IntegrityError(
                f"{where} has type {tensor.data_type} and shape {list(tensor.dims)}.", "It is damaged."
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            files.add(_check_external(tensor, path, where))
            continue
        needed, held, what = _embedded(tensor)
        if needed != held:
            raise IntegrityError(
                f"{where} {list(tensor.dims)} needs {needed:,} {what} and has {held:,}.",
                "The file is damaged; download or export it again.",
            )
    return files


_TYPES = {int(dtype) for dtype in ir.DataType} - {int(ir.DataType.UNDEFINED)}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def _bytes(tensor: onnx.TensorProto) -> int:
    """Bytes a constant's values take, packed; strings have no such size."""
    dtype = ir.DataType(tensor.data_type)
    return 0 if dtype == ir.DataType.STRING else math.ceil(math.prod(tensor.dims) * dtype.bitwidth / 8)


def _embedded(tensor: onnx.TensorProto) -> tuple[int, int, str]:
    """How much a constant inside the file needs, how much it has, and of what."""
    if tensor.HasField("raw_data"):
        return _bytes(tensor), len(tensor.raw_data), "bytes"
    held = sum(len(getattr(tensor, field)) for field in _TYPED_FIELDS)
    dtype, count = ir.DataType(tensor.data_type), math.prod(tensor.dims)
    if dtype.is_string() or dtype.bitwidth >= 8:
        return count * (2 if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else 1), held, "values"
    return math.ceil(count * dtype.bitwidth / 8), held, "packed bytes"


def _check_external(tensor: onnx.TensorProto, path: Path, where: str) -> Path:
    """Check where a constant's data is, and name it from the model's root with links followed; returns the file."""
    expected = _bytes(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = contained_file(path.parent, entries.get("location", ""), where)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError as error:
        raise IntegrityError(f"{where} has external data at {entries}.", "It is damaged.") from error
    size = file.stat().st_size
    if offset < 0 or length != expected or offset + length > size:
        raise IntegrityError(
            f"{where} needs {expected:,} bytes and names {length:,} at {offset:,} of {file.name}, which has {size:,}.",
            "The files do not belong together or are damaged; download or export the model again.",
        )
    relative = file.resolve().relative_to(model_root(path.parent)).as_posix()
    next(entry for entry in tensor.external_data if entry.key == "location").value = relative
    return file


def _tensors(message: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Every constant of the model: in graphs, functions, and attributes of nodes at any depth."""
    found: list[onnx.TensorProto] = []
    graphs: list[onnx.GraphProto | onnx.FunctionProto] = [message.graph, *message.functions]
    while graphs:
        graph = graphs.pop()
        found += getattr(graph, "initializer", [])
        for sparse in getattr(graph, "sparse_initializer", []):
            found += [sparse.values, sparse.indices]
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.tensors
    return found


def _check_graph(proto: onnx.ModelProto, path: Path) -> None:
    """ONNX' own checker: names, order, attributes and types of operators; ``proto`` loses its external data.

    The checker would look for external data by itself and refuses the hub cache's links; it was
    checked before, so here such a constant only stands for its type.
    """
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0], raw_data=b""))
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise IntegrityError(f"{path} breaks ONNX's rules: {first_line(error)}.", "Export the model again.") from error


def _check_words(model: ir.Model, path: Path) -> None:
    for node in model.graph.all_nodes():
        for name, known in _WORDS.get(node.op_type, {}).items() if node.domain == "" else ():
            if (word := node.attributes.get_string(name, known[0])) not in known:
                raise IntegrityError(
                    f"{path} breaks ONNX' rules: {name} of {node.op_type} ({node.name or node.outputs[0].name}) is "
                    f"{word[:100]!r}; it may be {', '.join(known)}.",
                    "Export the model again.",
                )


def _normalise(model: ir.Model) -> list[str]:
    """Undo two ways of writing a graph that mean nothing to a compiler: default inputs and functions."""
    notes = []
    defaults = [value.name for value in model.graph.inputs if value.name in model.graph.initializers]
    if defaults:
        common_passes.RemoveInitializersFromInputsPass()(model)
        notes.append(f"{len(defaults)} inputs with a default became constants")
    if model.functions:
        notes.append(f"{len(model.functions)} functions were inlined")
        common_passes.InlinePass()(model)
    return notes
