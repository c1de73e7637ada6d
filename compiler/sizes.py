"""The sizes a model is compiled for, on targets that run fixed shapes alone."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx_ir as ir

from aicc.compiler.importers import ImportedModel
from aicc.compiler.passes.static_shapes import input_shapes
from aicc.runtime.errors import UsageError
from aicc.runtime.target import Target

_CONTEXT = 1024  # tokens of a decoder, cached and new, where nobody says how many


def fix_sizes(imported: ImportedModel, target: Target, sizes: Mapping[str, int]) -> None:
    """Give the inputs of a model their shapes, or a decoder its context; a note says which.

    Args:
        imported: Changed in place, unless the target takes any shapes.
        target: What it is compiled for.
        sizes: What was asked for: the model's own symbols, or ``context`` for a decoder.

    Raises:
        UsageError: A size is missing, or there is none of that name to choose.
    """
    if target.shapes != "static":
        if sizes:
            raise UsageError(f"{target.name} takes any sizes when it runs.", "Leave --size out.")
        return
    if imported.llm is None:
        shapes = input_shapes(imported.graph.graph, sizes)
        for value in imported.graph.graph.inputs:
            value.shape = ir.Shape(shapes[str(value.name)])
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        imported.notes.append(f"compiled for inputs of fixed sizes: {listed}; --size chooses others")
        return
    longest, context = imported.llm.context_length, sizes.get("context", _CONTEXT)
    if unknown := [name for name in sizes if name != "context"]:
        raise UsageError(f"a decoder has no size called {unknown[0]!r}.", "It has: context.")
    if not 1 < context <= longest and "context" in sizes:
        raise UsageError(f"a context of {context} tokens is none this model has.", f"Choose 2 to {longest}.")
    if context < longest:
        imported.llm = msgspec.structs.replace(imported.llm, context_length=context)
        imported.notes.append(f"compiled for {context} of {longest} tokens of context; --size context=N chooses others")
