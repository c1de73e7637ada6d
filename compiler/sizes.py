"""The sizes a model is compiled for, on targets that run fixed shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import onnx_ir as ir

from aicc.compiler.importers import ImportedModel
from aicc.compiler.passes.static_shapes import input_shapes, is_static
from aicc.runtime.errors import UsageError
from aicc.runtime.target import Target

_CONTEXT = 1024  # tokens of a decoder, cached and new, where nobody says how many
Sizes = Mapping[str, int | Sequence[int]]  # several numbers for the contexts of a decoder alone


def fix_sizes(imported: ImportedModel, target: Target, sizes: Sizes) -> None:
    """Give the inputs of a model their shapes, or a decoder its contexts; a note says which.

    Args:
        imported: Changed in place, unless the target takes any shapes.
        target: What it is compiled for.
        sizes: What was asked for: the model's own symbols, or ``context`` for a decoder: a number, or several.

    Raises:
        UsageError: A size is missing, or there is none of that name to choose.
    """
    if _any_sizes(imported, target, sizes):
        if sizes:
            raise UsageError(f"{target.name} takes any sizes when it runs.", "Leave --size out.")
        return
    if imported.llm is None:
        single = {name: size for name, size in sizes.items() if isinstance(size, int)}
        if several := [name for name in sizes if name not in single]:
            raise UsageError(
                f"the size {several[0]} is given several numbers, which only the context of a decoder can have.",
                f"Give it one, or compile an artifact for each: --size {several[0]}=N",
            )
        shapes = input_shapes(imported.graph.graph, single)
        for value in imported.graph.graph.inputs:
            value.shape = ir.Shape(shapes[str(value.name)])
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        imported.notes.append(f"compiled for inputs of fixed sizes: {listed}; --size chooses others")
        return
    if unknown := [name for name in sizes if name != "context"]:
        raise UsageError(f"a decoder has no size called {unknown[0]!r}.", "It has: context.")
    longest, asked = imported.llm.context_length, sizes.get("context", min(_CONTEXT, imported.llm.context_length))
    contexts = tuple(sorted({asked} if isinstance(asked, int) else {*asked}))
    if outside := [context for context in contexts if "context" in sizes and not 1 < context <= longest]:
        raise UsageError(f"a context of {outside[0]} tokens is none this model has.", f"Choose 2 to {longest}.")
    imported.contexts = contexts
    if contexts != (longest,):
        imported.llm = msgspec.structs.replace(imported.llm, context_length=contexts[-1])
        listed = " and ".join(map(str, contexts))
        imported.notes.append(f"compiled for {listed} of {longest} tokens of context; --size context=N chooses others")


def _any_sizes(imported: ImportedModel, target: Target, sizes: Sizes) -> bool:
    """Whether the target runs the model at sizes that are known only at run time."""
    if target.shapes != "rows" or imported.llm is not None:
        return target.shapes != "static"
    integers = (ir.DataType.INT64, ir.DataType.INT32)
    inputs = list(imported.graph.graph.inputs)
    return (
        not sizes
        and not all(is_static(v) for v in inputs)
        and all(value.dtype in integers and len(value.shape or ()) == 2 for value in inputs)
    )
