"""Where buffers lie: planned once, so that a model needs no allocator.

A buffer lives from the step that writes it to the last that reads it, and holds the rows of the
largest batch. Buffers that never live at the same time share memory.
"""

from __future__ import annotations

from aicc.compiler.rows.fuse import Step
from aicc.compiler.rows.program import Value
from aicc.targets.cpu.lowering.formats import align


def row_bytes(value: Value) -> int:
    """Bytes of one row: float32, or a record of ``kernels/quantise.h``."""
    record = value.record
    if record is None:
        return 4 * value.width
    quantised = record.parts * align(record.k + 12 * (record.k // record.group))
    return max(quantised, align(2 * record.k)) if record.rounded else quantised


def plan_buffers(steps: list[Step], rows: int) -> tuple[dict[Value, int], int]:
    """Offsets of all values that one step hands to another.

    Args:
        steps: In the order in which they run.
        rows: Most rows of a batch.

    Returns:
        The offsets, multiples of 64, and how many bytes all of it takes.
    """
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for number, step in enumerate(steps):
        for value in step.handed_over:
            first[value] = last[value] = number
        for value in step.read():
            last[value] = number
    placed: list[tuple[int, int, Value]] = []  # begin, end, value
    for value in first:
        size = align(rows * row_bytes(value))
        beside = [(b, e) for b, e, v in placed if first[v] <= last[value] and first[value] <= last[v]]
        begin = _first_gap(sorted(beside), size)
        placed.append((begin, begin + size, value))
    return {value: begin for begin, _, value in placed}, max((end for _, end, _ in placed), default=0)


def _first_gap(taken: list[tuple[int, int]], size: int) -> int:
    begin = 0
    for b, e in taken:
        if b - begin >= size:
            break
        begin = max(begin, e)
    return begin
