"""What a step does beside products and attention, as WGSL functions of a row and a column.

A kernel computes some rows of a unit of columns, see :class:`aicc.compiler.rows.fuse.Part`. Each value
made in it is a function ``f32`` of the row and the column *within these*, which calls those of the
values it is made of; nothing is kept but the statistics of norms, in workgroup memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aicc.compiler.rows import program as ops
from aicc.compiler.rows.program import Matrix, Op, Value
from aicc.targets.webgpu.lowering.rows.forms import CHUNK, matrix_form
from aicc.targets.webgpu.lowering.text import filled, number, template

THREADS = 128  # of a workgroup; every device has as many
_FUNCTIONS = {
    "Add": "{0} + {1}", "Sub": "{0} - {1}", "Mul": "{0} * {1}", "Div": "{0} / {1}", "Neg": "-{0}",
    "Sigmoid": "sigmoid({0})", "Tanh": "hyperbolic_tangent({0})", "Erf": "error_function({0})", "Exp": "exp({0})",
    "Relu": "select(max({0}, 0.0), {0}, {0} != {0})", "Gelu": "gelu({0})", "GeluTanh": "gelu_by_tanh({0})",
    "Silu": "silu({0})",
}  # fmt: skip


def stride(value: Value) -> int:
    """Floats from a row of a value to the next: whole chunks, so that products read no other row's."""
    return -(-value.width // CHUNK) * CHUNK


@dataclass(frozen=True, slots=True)
class Binding:
    """A storage buffer of a kernel.

    Attributes:
        what: The value, weight, vector or angles in it, or the name of one that is there once.
        name: In the kernel.
        type: Its element.
        writes: Whether the kernel writes to it.
    """

    what: object
    name: str
    type: str
    writes: bool = False


@dataclass(slots=True)
class Body:
    """A kernel while it is written.

    Attributes:
        rows: Rows of a workgroup.
        unit: Columns of a unit of the step's products, or of a whole row.
        width: Columns that all units make.
        selected: Whether rows are those whose results are wanted.
    """

    rows: int
    unit: int
    width: int
    selected: bool
    bindings: list[Binding] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)  # definitions, in order
    main: list[str] = field(default_factory=list)  # statements, in order
    workgroup_bytes: int = 0
    names: dict[Value, str] = field(default_factory=dict)

    def bind(self, what: object, kind: str, element: str = "f32", writes: bool = False) -> str:
        """A name for a buffer, which is bound once as each type."""
        for binding in self.bindings:
            if binding.what == what and binding.type == element:
                return binding.name
        count = sum(b.name.startswith(kind) for b in self.bindings)
        name = kind if kind in ("batch", "pages", "input") else f"{kind}_{count}"
        self.bindings.append(Binding(what, name, element, writes))
        return name

    def matrix(self, matrix: Matrix) -> int:
        """The number of a weight, which there are functions for then."""
        known = len(self.bindings)
        n = int(self.bind(matrix, "matrix", "vec4u").removeprefix("matrix_"))
        if len(self.bindings) > known:
            self.functions.append(matrix_form(matrix).text(n))
        return n

    def share(self, value: Value) -> int:
        """Columns of a value in a unit."""
        return self.unit * value.width // self.width

    def first(self, value: Value) -> str:
        """The column of a value where a unit begins, as something to add another to."""
        return "" if self.unit == self.width else f"unit * {self.share(value)}u + "

    def define(self, value: Value, kind: str, *lines: str) -> None:
        """A function for a value; its last line is an expression."""
        name = f"{kind.lower()}_{len(self.functions)}"
        self.names[value] = name
        body = "\n".join(f"    {line}" for line in (*lines[:-1], f"return {lines[-1]};"))
        self.functions.append(f"fn {name}(row: u32, column: u32) -> f32 {{\n{body}\n}}")

    def element(self, value: Value, row: str = "row", column: str = "column") -> str:
        """A value at a place."""
        if value not in self.names:
            at = f"(first_row + row) * {stride(value)}u + {self.first(value)}column"
            self.define(value, "read", f"{self.bind(value, 'value')}[{at}]")
        return f"{self.names[value]}({row}, {column})"

    @property
    def count(self) -> str:
        """How many rows there are."""
        self.bind("batch", "batch", "u32")
        return "batch[1]" if self.selected else "batch[0]"

    def token(self) -> str:
        """The number of the token that a row is of."""
        self.bind("batch", "batch", "u32")
        return "batch[WANTED + first_row + row]" if self.selected else "first_row + row"

    def run(self, op: Op) -> None:
        """An operation that makes a value or ends there."""
        _WRITERS[type(op)](self, op)

    def hand_over(self, value: Value, what: object = None, width: int = 0) -> None:
        """Write a value where later steps, or the host, read it."""
        target = self.bind(what or value, "result", writes=True)
        at = f"(first_row + row) * {width or stride(value)}u + {self.first(value)}column"
        self._loop(value, self.share(value), "column", f"{target}[{at}] = {self.element(value)};")

    def _loop(self, value: Value, steps: int, index: str, *lines: str) -> None:
        """Statements for each row and some numbers, by all threads."""
        inside = f"first_row + row < {self.count}"
        if self.width % self.unit:
            column = index if steps == self.share(value) else f"2u * {index}"
            inside += f" && {self.first(value)}{column} < {value.width}u"
        self.main += [
            f"for (var i = thread; i < {self.rows * steps}u; i += THREADS) {{",
            f"    let row = i / {steps}u;",
            f"    let {index} = i % {steps}u;",
            f"    if ({inside}) {{",
            *(f"        {line}" for line in lines),
            "    }",
            "}",
        ]

    # Operations

    def _elementwise(self, op: ops.Elementwise) -> None:
        arguments = []
        for operand in op.operands:
            if isinstance(operand, Value):
                arguments.append(self.element(operand))
            elif isinstance(operand, float):
                arguments.append(f"({number(operand)})")
            else:
                arguments.append(f"{self.bind(operand, 'vector')}[{self.first(op.output)}column]")
        self.define(op.output, op.function, _FUNCTIONS[op.function].format(*arguments))

    def _norm(self, op: ops.Norm) -> None:
        pieces = self.share(op.x) // op.size
        n = len(self.functions)
        self.workgroup_bytes += 8 * self.rows * pieces + (4 * THREADS if pieces * self.rows == 1 else 0)
        kind = "row" if pieces * self.rows == 1 else "pieces"
        x = self.element(op.x, "row", "column")
        mean = "true" if op.layer else "false"
        self.functions.append(
            filled(template(f"norm_{kind}"), n=n, x=x, size=op.size, pieces=pieces, count=self.rows * pieces,
                   epsilon=number(op.epsilon), mean=mean)
        )  # fmt: skip
        self.main += [f"measure_{n}(thread);", "workgroupBarrier();"]
        which = f"row * {pieces}u + column / {op.size}u" if pieces > 1 else "row"
        text = f"(({self.element(op.x)} - s.y) * s.x)"
        for vector, sign in ((op.weight, "*"), (op.bias, "+")):
            if vector is not None:
                text += f" {sign} {self.bind(vector, 'vector')}[column % {op.size}u]"
        self.define(op.output, "norm", f"let s = statistics_{n}[{which}];", text)

    def _rope(self, op: ops.Rope) -> None:
        angles, half = self.bind(op.angles, "angles"), op.angles.half
        step = 1 if op.interleaved else half
        which, upper = ("d / 2u", "d % 2u == 1u") if op.interleaved else (f"d % {half}u", f"d >= {half}u")
        self.bind("batch", "batch", "u32")
        lines = [f"let d = column % {op.head_dim}u;"]
        if op.rotary < op.head_dim:
            lines += [f"if (d >= {op.rotary}u) {{", f"    return {self.element(op.x)};", "}"]
        lines += [
            f"let at = batch[POSITION + {self.token()}] * {half}u + {which};",
            f"let cosine = {angles}[at];",
            f"let sine = {angles}[{op.angles.positions * half}u + at];",
            f"if ({upper}) {{",
            f"    return {self.element(op.x)} * cosine + {self.element(op.x, column=f'column - {step}u')} * sine;",
            "}",
            f"{self.element(op.x)} * cosine - {self.element(op.x, column=f'column + {step}u')} * sine",
        ]
        self.define(op.output, "rope", *lines)

    def _resize(self, op: ops.Resize) -> None:
        moved = self.element(op.x, column=f"column / {op.to}u * {op.size}u + d")
        lines = [f"let d = column % {op.to}u;"]
        if op.to > op.size:
            lines += [f"if (d >= {op.size}u) {{", "    return 0.0;", "}"]
        self.define(op.output, "resize", *lines, moved)

    def _slice(self, op: ops.Slice) -> None:
        self.define(op.output, "slice", self.element(op.x, column=f"column + {op.begin}u"))

    def _select(self, op: ops.Select) -> None:
        source = self.bind(op.x, "value")
        self.define(op.output, "select", f"{source}[{self.token()} * {stride(op.x)}u + column]")

    def _embed(self, op: ops.Embed) -> None:
        n = self.matrix(op.table)
        array = "POSITION" if op.input is None else f"INPUTS + {op.input}u * MOST_TOKENS"
        self.define(
            op.output, "embed",
            f"let w = chunk_{n}(batch[{array} + {self.token()}], column / {CHUNK}u);",
            f"w[column % {CHUNK}u / 4u][column % 4u]",
        )  # fmt: skip

    def _store(self, op: ops.Store) -> None:
        cache = self.bind(("keys" if op.keys else "values", op.layer), "cache", "Pair", writes=True)
        pages, heads = self.bind("pages", "pages", "u32"), op.heads
        second = self.element(op.x, column="2u * pair + 1u")
        self._loop(
            op.x, self.share(op.x) // 2, "pair",
            f"let column = {self.first(op.x)}2u * pair;",
            f"let position = batch[POSITION + {self.token()}];",
            f"let page = {pages}[batch[PAGES_BEGIN + {self.token()}] + position / PAGE];",
            f"let at = (page * {heads.kv_heads}u + column / {heads.head_dim}u) * PAGE + position % PAGE;",
            f"let two = vec2f({self.element(op.x, column='2u * pair')}, {second});",
            f"{cache}[at * {heads.head_dim // 2}u + column % {heads.head_dim}u / 2u] = packed(two);",
        )  # fmt: skip

    def _logits(self, op: ops.Logits) -> None:
        self.hand_over(op.x, "logits", op.x.width)

    def _result(self, op: ops.Result) -> None:
        self.hand_over(op.x, ("output", op.number), op.x.width)


_WRITERS: dict[type, Callable[[Body, Op], None]] = {
    ops.Elementwise: Body._elementwise, ops.Norm: Body._norm, ops.Rope: Body._rope, ops.Resize: Body._resize,
    ops.Slice: Body._slice, ops.Select: Body._select, ops.Embed: Body._embed, ops.Store: Body._store,
    ops.Logits: Body._logits, ops.Result: Body._result,
}  # type: ignore[dict-item]  # fmt: skip
