"""The row program cut into steps: between two steps all threads wait for each other.

In order:

- products that share an input are one *matrix step*. Each starts a part; a part takes in what follows
  column by column (elementwise functions, heads' norms and rotations, writing to the cache,
  quantising whole groups), cut into units of columns that can be computed alone. Parts that meet in
  one function become one (gate and up).
- attention is a step.
- anything else is a *row step*, which takes in all that follows row by row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aicc.compiler.rows.program import (
    Attend,
    Elementwise,
    Embed,
    Linear,
    Logits,
    Norm,
    Op,
    Program,
    Quantise,
    Resize,
    Result,
    Rope,
    Select,
    Store,
    Value,
)

MOST_COLUMNS = 256  # of a unit, whose tile of 32 rows stays in the first-level cache


@dataclass(slots=True)
class Part:
    """Products at the same columns and what is done with them, by units.

    Attributes:
        linears: The products, of equal width; empty in row and attention steps.
        ops: What follows, in order.
        unit: Columns of the products in a unit.
    """

    linears: list[Linear] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    unit: int = 1

    @property
    def width(self) -> int:
        """Columns of each product."""
        return self.linears[0].matrix.rows

    @property
    def units(self) -> int:
        """How many there are; the last may be narrower."""
        return -(-self.width // self.unit)


@dataclass(slots=True)
class Step:
    """Work between two meetings of all threads.

    Attributes:
        kind: ``MATRIX``, ``ROWS`` or ``ATTENTION``, as the engine calls them.
        parts: One, but for matrix steps.
        selected: Whether its rows are those whose logits are wanted.
        handed_over: Values computed here that later steps read, which need a buffer.
    """

    kind: str
    parts: list[Part]
    selected: bool
    handed_over: list[Value] = field(default_factory=list)

    def ops(self) -> list[Op]:
        """All its operations."""
        return [op for part in self.parts for op in (*part.linears, *part.ops)]

    def made(self) -> set[Value]:
        """Values computed in it."""
        return {op.output for op in self.ops() if op.output is not None}

    def read(self) -> list[Value]:
        """Values it needs from steps before it, each once."""
        made = self.made()
        return list(dict.fromkeys(v for op in self.ops() for v in op.inputs() if v not in made))


def simplify(program: Program) -> None:
    """Before :func:`fuse`: names what is a function of its own, and takes out the rows whose logits are wanted."""
    _name_silu(program)
    if program.generates:
        _select_rows(program)


def fuse(program: Program) -> list[Step]:
    """Steps in the order in which they run; operations whose results nobody reads are gone from the program."""
    _remove_unused(program)
    todo, steps, ready = list(program.ops), [], set()
    while todo:
        step = _start(todo)
        for op in list(todo):
            if _take_in(step, op, ready):
                todo.remove(op)
        for part in step.parts:
            if part.linears and part.unit == 1:
                part.unit = 32 if part.width % 32 == 0 else 16
        ready |= step.made()
        steps.append(step)
    read = {value for step in steps for value in step.read()}
    for step in steps:  # attention writes floats whether or not they are read
        made = [op.output for op in step.ops() if op.output is not None]
        step.handed_over = [v for v in made if v in read or (step.kind == "ATTENTION" and v is made[0])]
    return steps


def _start(todo: list[Op]) -> Step:
    first = todo[0]
    selected = _is_selected(first)
    if isinstance(first, Linear):
        together: list[Op] = [op for op in todo if isinstance(op, Linear) and op.x is first.x]
        step = Step("MATRIX", [Part([op]) for op in together if isinstance(op, Linear)], selected)
    else:
        together = [first]
        step = Step("ATTENTION" if isinstance(first, Attend) else "ROWS", [Part(ops=[first])], selected)
    for op in together:
        todo.remove(op)
    return step


def _take_in(step: Step, op: Op, ready: set[Value]) -> bool:
    """Add an operation to a step if it can be; ``ready`` are values of the steps before."""
    if isinstance(op, (Linear, Attend, Select, Embed)) or _is_selected(op) != step.selected:
        return False
    owners = [part for part in step.parts if any(v in op.inputs() for v in _values(part))]
    inside = {v for part in owners for v in _values(part)}
    if not owners or any(v not in inside and v not in ready for v in op.inputs()):
        return False
    if step.kind == "ROWS":
        owners[0].ops.append(op)
        return True
    if step.kind == "ATTENTION":
        if not _fits_heads(step.parts[0].ops[0], op):
            return False
        owners[0].ops.append(op)
        return True
    if any(part.width != owners[0].width for part in owners):
        return False
    unit = _unit(owners, op)
    if unit is None:
        return False
    first = owners[0]
    first.unit = unit
    for other in owners[1:]:
        first.linears += other.linears
        first.ops += other.ops
        step.parts.remove(other)
    first.ops.append(op)
    return True


def _values(part: Part) -> list[Value]:
    return [op.output for op in (*part.linears, *part.ops) if op.output is not None]


def _unit(parts: list[Part], op: Op) -> int | None:
    """Columns of a unit if parts and an operation are one; None if it cannot be done by units."""
    part = parts[0]
    needed = 1
    if isinstance(op, Elementwise):
        if any(v.width != op.inputs()[0].width for v in op.inputs()):
            return None
    elif isinstance(op, Resize) or (isinstance(op, Norm) and op.of_heads):
        needed = op.size
    elif isinstance(op, Rope):
        needed = op.head_dim
    elif isinstance(op, Store):
        needed = op.heads.head_dim
    elif isinstance(op, Quantise):
        record = op.output.record
        if record.k != op.x.width:
            return None
        needed = record.group
    elif not isinstance(op, (Logits, Result)):
        return None
    if needed == 1:
        return math.lcm(*(p.unit for p in parts))
    columns = needed * part.width  # of the products: pieces may have been resized since
    if columns % op.inputs()[0].width:
        return None
    unit = math.lcm(columns // op.inputs()[0].width, *(p.unit for p in parts))
    return unit if unit <= MOST_COLUMNS and part.width % unit == 0 else None


def _fits_heads(attend: Op, op: Op) -> bool:
    """Whether attention can quantise its result: whole groups belong to the query heads of one KV head."""
    if not isinstance(attend, Attend) or not isinstance(op, Quantise) or op.x is not attend.output:
        return False
    heads, record = attend.heads, op.output.record
    return record.k == op.x.width and heads.query_heads // heads.kv_heads * heads.head_dim % record.group == 0


def _is_selected(op: Op) -> bool:
    return op.output.selected if op.output is not None else op.inputs()[0].selected


def uses(program: Program) -> dict[Value, list[Op]]:
    """Operations that read each value, in order."""
    found: dict[Value, list[Op]] = {}
    for op in program.ops:
        for value in op.inputs():
            found.setdefault(value, []).append(op)
    return found


def _name_silu(program: Program) -> None:
    """``x * sigmoid(x)`` has a function of its own."""
    makers = {op.output: op for op in program.ops}
    for op in program.ops:
        if not isinstance(op, Elementwise) or op.function != "Mul":
            continue
        for x, other in (op.operands, op.operands[::-1]):
            gate = makers.get(other) if isinstance(other, Value) else None
            if isinstance(gate, Elementwise) and gate.function == "Sigmoid" and gate.operands == (x,):
                op.function, op.operands = "Silu", (x,)
                break


def _select_rows(program: Program) -> None:
    """Take out the rows whose logits are wanted where only one value still leads to the logits."""
    makers = {op.output: op for op in program.ops}
    chain: list[Op] = [program.ops[-1]]
    while len(set(chain[-1].inputs())) == 1:
        maker = makers[chain[-1].inputs()[0]]
        if isinstance(maker, Attend) or len(set(maker.inputs())) != 1:
            break
        chain.append(maker)
    source = chain[-1].inputs()[0]
    chosen = Value(f"{source.name}_wanted", source.width, selected=True)
    _replace(chain[-1], source, chosen)
    for op in chain:
        if op.output is not None:
            op.output.selected = True
    program.ops.insert(program.ops.index(chain[-1]), Select(chain[-1].node, chosen, source))


def _remove_unused(program: Program) -> None:
    while True:
        used = uses(program)
        kept = [op for op in program.ops if op.output is None or op.output in used]
        if len(kept) == len(program.ops):
            return
        program.ops = kept


def _replace(op: Op, old: Value, new: Value) -> None:
    if isinstance(op, Elementwise):
        op.operands = tuple(new if o is old else o for o in op.operands)
    else:
        op.x = new  # type: ignore[attr-defined]
