"""Rows quantised before the products that take them so."""

from __future__ import annotations

from aicc.compiler.rows.fuse import uses
from aicc.compiler.rows.program import Elementwise, Linear, Op, Program, Quantise, Record, Value
from aicc.targets.cpu.lowering.formats import matrix_form


def quantise_inputs(program: Program, activations: str, rounded: bool) -> None:
    """Give every product with a quantised weight an operation that quantises its input.

    Args:
        program: Simplified and not fused yet; it is changed.
        activations: What quantised weights are multiplied with: ``int8``, ``int16`` (two parts, see ``Record``), or
            ``mixed``, which is int8 for products inside a feed-forward block. They are half of a model's work and a
            quarter of what int8 costs in quality.
        rounded: Whether the kernels multiply rows of prompts as bfloat16.
    """
    readers = uses(program)
    made: dict[tuple[Value, Record], Value] = {}
    ops: list[Op] = []
    for op in program.ops:
        form = matrix_form(op.matrix) if isinstance(op, Linear) else None
        if form is not None and form.quantised:
            # Of selected rows there are few: reading the weights takes longer than multiplying them twice.
            coarse = activations == "int8" or (activations == "mixed" and _inside_block(op, readers))
            record = Record(form.k, form.group, 1 if coarse and not op.x.selected else 2, rounded and not op.x.selected)
            if (op.x, record) not in made:
                value = Value(f"{op.x.name}_int{8 * record.parts}", op.x.width, record, op.x.selected)
                made[op.x, record] = value
                ops.append(Quantise(op.node, value, op.x))
            op.x = made[op.x, record]
        ops.append(op)
    program.ops = ops


def _inside_block(linear: Linear, readers: dict[Value, list[Op]]) -> bool:
    """Whether a product's results only meet functions of single columns before they enter the next product."""
    todo = [linear.output]
    while todo:
        for op in readers.get(todo.pop(), []):
            if isinstance(op, Elementwise):
                todo.append(op.output)
            elif not isinstance(op, Linear):
                return False
    return True
