"""Columns of heads in the order in which pairs that are rotated together are neighbours.

Kernels rotate neighbours. Where a model pairs column ``j`` with ``j + half``, rows of the weights that
make queries and keys are put in the other order instead; their products with each other stay the same.
"""

from __future__ import annotations

import numpy as np

from aicc.compiler.rows import program as rows
from aicc.compiler.rows.fuse import uses
from aicc.compiler.rows.program import Op, Program, Value
from aicc.runtime.errors import UnsupportedError
from aicc.targets.triton.lowering.pack import Order


def head_orders(program: Program) -> dict[Value, Order]:
    """The order of the columns of each value that is not in the graph's.

    Raises:
        UnsupportedError: A value that is rotated is also used where its order matters.
    """
    makers = {op.output: op for op in program.ops if op.output is not None}
    orders: dict[Value, Order] = {}
    for op in program.ops:
        if isinstance(op, rows.Rope) and not op.interleaved:
            order = _order(op)
            todo = [op.x]
            orders[op.output] = order
            while todo:
                value = todo.pop()
                orders[value] = order
                if not isinstance(makers[value], rows.Linear):
                    todo += makers[value].inputs()
    readers = uses(program)
    for value in orders:
        for op in (makers[value], *readers.get(value, [])):
            if not _keeps_order(op, orders):
                raise UnsupportedError(
                    f"the triton family cannot run {op.node}: a value that is rotated is used in another place too.",
                    "Compile for another target, such as openvino:cpu or reference.",
                )
    return orders


def _order(op: rows.Rope) -> Order:
    half = op.rotary // 2
    head = np.arange(op.head_dim)
    head[: op.rotary] = np.stack([head[:half], head[half : op.rotary]], axis=1).reshape(-1)
    return (np.arange(0, op.x.width, op.head_dim)[:, None] + head).reshape(-1)


def _keeps_order(op: Op, orders: dict[Value, Order]) -> bool:
    if isinstance(op, rows.Linear):
        return op.output in orders and op.x not in orders
    if isinstance(op, (rows.Rope, rows.Elementwise, rows.Norm)):
        values = [*op.inputs(), op.output]
        return all(v in orders for v in values)
    return isinstance(op, (rows.Store, rows.Attend))
