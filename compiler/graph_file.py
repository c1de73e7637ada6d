"""The portable graph of an artifact: ``model.onnx``, its large tensors in the weights file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from aicc.compiler.lowering import WeightStore
from aicc.compiler.weights import tensor_bytes
from aicc.runtime.artifact import GRAPH_PATH, TENSOR_ALIGNMENT, WEIGHTS_PATH, Artifact
from aicc.runtime.errors import IntegrityError, UnsupportedError, UsageError

INLINE_BYTES = 1024  # tensors up to this stay in the graph file: shapes, scalars, axes
_MAX_GRAPH_BYTES = (1 << 31) - 1  # of a protobuf message


def encode_graph(model: ir.Model, weights: WeightStore, location: str = WEIGHTS_PATH) -> bytes:
    """Serialise a graph, moving its large tensors into the weights file one at a time.

    The model is as it was when this returns, lazy tensors included.

    Args:
        model: The graph.
        weights: Gets every tensor over ``INLINE_BYTES``.
        location: What the graph calls the weights file.

    Returns:
        A ``ModelProto``; equal models give equal bytes.

    Raises:
        UnsupportedError: A constant has no value, or is of a kind the format cannot hold.
    """
    slots = list(_tensor_slots(model))
    try:
        for slot in slots:
            if _is_large(slot.tensor):
                slot.put(_stored(slot, weights, location))
            elif isinstance(slot.tensor, ir.ExternalTensor):
                slot.put(ir.Tensor(slot.tensor.numpy().copy(), dtype=slot.tensor.dtype, name=slot.name))
        return ir.to_proto(model).SerializeToString(deterministic=True)
    finally:
        for slot in slots:
            slot.put(slot.tensor)


def large_tensor_bytes(model: ir.Model) -> int:
    """Bytes of all tensors that :func:`encode_graph` moves out, duplicates counted each time."""
    return sum(slot.tensor.nbytes for slot in _tensor_slots(model) if _is_large(slot.tensor))


def load_graph(artifact: Artifact) -> ir.Model:
    """Read the portable graph back; its large tensors are views of the mapped weights file.

    Raises:
        UsageError: The artifact has none.
        IntegrityError: The graph is damaged, or refers to anything but the weights file.
    """
    if not artifact.has(GRAPH_PATH):
        raise UsageError(
            f"{artifact.path} has no portable graph: it was compiled without, or its source was not ONNX.",
            "Compile the source itself for the target you want.",
        )
    path = artifact.file(GRAPH_PATH)
    artifact.verify([GRAPH_PATH])
    if path.stat().st_size > _MAX_GRAPH_BYTES:
        raise IntegrityError(f"{path} is larger than an ONNX file can be.", "Compile the model again.")
    try:
        model = ir.from_proto(onnx.load_model_from_string(path.read_bytes()))
        slots = list(_tensor_slots(model))
        _check_scopes(model)
    except Exception as error:  # protobuf and onnx_ir raise whatever a malformed message makes them trip over
        raise IntegrityError(f"{path} is not a readable ONNX graph: {error}.", "Compile the model again.") from error
    weights = np.frombuffer(artifact.weights(), np.uint8)
    for slot in slots:
        if isinstance(slot.tensor, ir.ExternalTensor):
            slot.put(_mapped(slot.tensor, weights, f"{path}: tensor {slot.name!r}"))
    return model


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place in a model that holds a tensor."""

    name: str
    tensor: ir.TensorProtocol
    put: Callable[[ir.TensorProtocol], None]


def _tensor_slots(model: ir.Model) -> Iterator[_Slot]:
    """Every initializer and tensor attribute, those of subgraphs and functions included."""
    functions = list(model.functions.values())
    for graph in [*model.graphs(), *(graph for function in functions for graph in function.subgraphs())]:
        for name, value in graph.initializers.items():
            if value.const_value is None:
                raise UnsupportedError(f"initializer {name!r} has no value.", "Export the model with its weights.")
            yield _Slot(name, value.const_value, partial(setattr, value, "const_value"))
    for root in [model.graph, *functions]:
        for node in ir.traversal.RecursiveGraphIterator(root):
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                where = f"{node.name or node.op_type}.{attribute.name}"
                if attribute.type == ir.AttributeType.TENSOR:
                    yield _Slot(where, attribute.value, partial(_put_attribute, node, attribute))
                elif attribute.type == ir.AttributeType.TENSORS:
                    raise UnsupportedError(f"attribute {where} is a list of tensors, which an artifact cannot hold.")


def _check_scopes(model: ir.Model) -> None:
    """Raise ValueError if a value is used that nothing defines; onnx_ir only logs it."""
    for root in [model.graph, *model.functions.values()]:
        graphs = [root, *root.subgraphs()]
        used = [value for node in ir.traversal.RecursiveGraphIterator(root) for value in node.inputs]
        for value in [*used, *(value for graph in graphs for value in graph.outputs)]:
            if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
                raise ValueError(f"{value.name!r} is used and nothing defines it")


def _put_attribute(node: ir.Node, attribute: ir.Attr, tensor: ir.TensorProtocol) -> None:
    is_same = tensor is attribute.value
    node.attributes[attribute.name] = attribute if is_same else ir.AttrTensor(attribute.name, tensor)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes > INLINE_BYTES


def _stored(slot: _Slot, weights: WeightStore, location: str) -> ir.ExternalTensor:
    """The tensor's place in the weights file, after its bytes were put there."""
    tensor = slot.tensor
    try:
        data = tensor_bytes(tensor)
    except (OSError, ValueError) as error:
        raise IntegrityError(f"tensor {slot.name!r} cannot be read: {error}.", "Fetch the model again.") from error
    if len(data) != tensor.nbytes:
        raise IntegrityError(
            f"tensor {slot.name!r} has {len(data)} bytes, and its type and shape say {tensor.nbytes}.",
            "Fetch the model again.",
        )
    return ir.ExternalTensor(
        location, weights.add(data), len(data), tensor.dtype, shape=ir.Shape(tensor.shape),
        name=tensor.name or slot.name, doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def _mapped(tensor: ir.ExternalTensor, weights: np.ndarray, where: str) -> ir.TensorProtocol:
    """A view of the weights file in place of a reference to it."""
    offset, length = tensor.offset or 0, tensor.length
    dimensions = tensor.shape.numpy()
    inside = offset >= 0 and offset % TENSOR_ALIGNMENT == 0 and offset + tensor.nbytes <= len(weights)
    if str(tensor.location) != WEIGHTS_PATH or length != tensor.nbytes or not inside or any(d < 0 for d in dimensions):
        raise IntegrityError(
            f"{where} claims bytes {offset} to {offset}+{length} of {str(tensor.location)!r} for shape {dimensions}, "
            f"and {WEIGHTS_PATH} has {len(weights)}.",
            "Compile the model again.",
        )
    data = weights[offset : offset + length]
    keep = {"name": tensor.name, "doc_string": tensor.doc_string, "metadata_props": dict(tensor.metadata_props)}
    if tensor.dtype.bitwidth < 8:
        return ir.PackedTensor(data, tensor.dtype, shape=tensor.shape, **keep)
    return ir.Tensor(data.view(tensor.dtype.numpy()).reshape(dimensions), dtype=tensor.dtype, **keep)
