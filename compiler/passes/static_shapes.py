"""Every tensor gets one shape, for chips that run no other.

The inputs are given their sizes, arithmetic on shapes is folded away, and ONNX's shape inference
follows the sizes through the graph. A graph whose sizes depend on values (``NonZero``, a
``Reshape`` to computed sizes) is refused by the first node that makes such a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass

from aicc.compiler.passes.fold_constants import fold_shapes
from aicc.runtime.errors import UnsupportedError, UsageError

SEQUENCE = 128  # tokens of an encoder's texts, and of a chunk of a decoder's prompt, where nobody says how many
_ROUNDS = 3  # of inference and folding: each may need what the other found


class StaticShapes(InPlacePass):
    """Fix the shapes of a graph.

    Args:
        shapes: Of the inputs of the graph, by name; those that are fixed already may be left out.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes

    def call(self, model: ir.Model) -> PassResult:
        """Set the inputs' shapes and infer all others.

        Raises:
            UnsupportedError: Names the first node that has an output of no fixed shape.
        """
        for value in model.graph.inputs:
            value.shape = ir.Shape(self.shapes.get(str(value.name), value.shape))
        if (unknown := _settle(model)) is not None:
            raise UnsupportedError(
                f"{unknown.op_type} ({unknown.name or unknown.outputs[0].name}) makes a tensor whose size is known "
                "only when it runs, and the target runs fixed shapes alone.",
                "Export the model with fixed sizes, or compile it for --target openvino:cpu.",
            )
        return PassResult(model, modified=True)


def fix_outputs(model: ir.Model) -> None:
    """Give the outputs of a graph the shapes that follow from its inputs', as far as shape inference can tell."""
    settled = model.clone()
    _settle(settled)
    for output, found in zip(model.graph.outputs, settled.graph.outputs, strict=True):
        if is_static(found):
            output.shape = found.shape


def is_static(value: ir.Value) -> bool:
    """Whether every size of a value is a number."""
    return value.shape is not None and all(isinstance(dim, int) for dim in value.shape)


def input_shapes(graph: ir.Graph, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of each input, with a number for each of its symbols.

    Args:
        graph: Its inputs have a rank.
        sizes: By symbol; a dimension without one is called ``<input>.<axis>``. A first dimension that is not
            in it is 1, one called ``sequence…`` is :data:`SEQUENCE`.

    Raises:
        UsageError: A size is needed that was not given, or given and is none of this graph.
    """
    found: dict[str, tuple[int, ...]] = {}
    known, missing, inputs = set(), [], []
    for value in graph.inputs:
        shape, shown = [], []
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int) and dim >= 0:
                shape.append(dim)
                shown.append(str(dim))
                continue
            symbol = str(getattr(dim, "value", None) or "?")
            symbol = f"{value.name}.{axis}" if symbol == "?" else symbol  # which exporters write, too
            known.add(symbol)
            shown.append(symbol)
            default = 1 if axis == 0 else SEQUENCE if symbol.startswith("seq") else None
            size = sizes.get(symbol, default)
            if size is None:
                missing.append(symbol)
            shape.append(size or 0)
        found[str(value.name)] = tuple(shape)
        inputs.append(f"{value.name} [{', '.join(shown)}]")
    if small := [name for name, size in sizes.items() if size < 1]:
        raise UsageError(f"the size {small[0]} is {sizes[small[0]]}.", "Sizes are whole numbers from 1 on.")
    if missing:
        raise UsageError(
            "the target runs fixed shapes alone, and the model leaves these sizes open: "
            f"{', '.join(dict.fromkeys(missing))}. Its inputs are {', '.join(inputs)}.",
            f"Give each its number: --size {missing[0]}=N",
        )
    if unknown := [name for name in sizes if name not in known]:
        raise UsageError(
            f"the model has no size called {unknown[0]!r}.", f"It has: {', '.join(sorted(known)) or 'none left open'}."
        )
    return found


def _settle(model: ir.Model) -> ir.Node | None:
    """Infer all shapes from those of the inputs; the first node that has none then, None if all have."""
    for _ in range(_ROUNDS):
        _infer(model)
        fold_shapes(model)
        if _first_unknown(model) is None:
            return None
    _infer(model)
    return _first_unknown(model)


def _infer(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        value.shape = value.const_value.shape  # a folded one has that of before its sizes were known
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not is_static(value):
                value.shape = None  # a symbol would be taken for a size that is known already
    ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _first_unknown(model: ir.Model) -> ir.Node | None:
    """The first node with a used output that has no fixed shape."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if (value.uses() or value.is_graph_output()) and not is_static(value):
                return node
    return None
