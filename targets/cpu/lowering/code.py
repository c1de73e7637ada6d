"""The body of a step in C: what it does with each row, or each row's columns of a unit.

Values live in one of three places: a row of a buffer (what other steps read), a row of the thread's
scratch, or a variable of the loop over columns that makes and uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from aicc.compiler.rows import program as ops
from aicc.compiler.rows.fuse import Part
from aicc.compiler.rows.program import Angles, Elementwise, Heads, Matrix, Op, Value, Vector
from aicc.targets.cpu.lowering.formats import LANES, Form, align, matrix_form
from aicc.targets.cpu.lowering.memory import row_bytes

# Function of a row program → how C writes it; maths.h has what libm is too slow for.
_FUNCTIONS = {
    "Add": "{} + {}", "Sub": "{} - {}", "Mul": "{} * {}", "Div": "{} / {}", "Neg": "-{}",
    "Sigmoid": "aicc_sigmoid({})", "Silu": "aicc_silu({})", "Tanh": "aicc_tanh({})", "Erf": "aicc_erf({})",
    "Exp": "aicc_exp({})", "Relu": "{0} < 0.0f ? 0.0f : {0}", "Gelu": "aicc_gelu({})", "GeluTanh": "aicc_gelu_tanh({})",
}  # fmt: skip
_FORMS = ("weight", "float16", "float32", "bfloat16", "int8", "int4", "float")
# What a variable of a step may not be called: words of C, and names that the lines of a step use themselves.
_TAKEN = frozenset({
    "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum",
    "extern", "false", "float", "for", "goto", "if", "inline", "int", "linux", "long", "register", "restrict",
    "return", "short", "signed", "sizeof", "static", "struct", "switch", "true", "typedef", "union", "unix",
    "unsigned", "void", "volatile", "while", "int32_t", "memcpy", "memset", "size_t", "at", "columns", "f", "n",
    "number", "r", "row", "rows", "s", "spread", "t", "tile", "unit",
})  # fmt: skip


@dataclass(eq=False, frozen=True, slots=True)
class Place:
    """What a step's ``at`` entry points to.

    Attributes:
        kind: ``weights``, ``buffer`` or ``page``.
        what: The matrix, vector, angles, value, or number of the layer.
        unit: Of a matrix: rows after which a new panel starts.
    """

    kind: str
    what: Matrix | Vector | Angles | Value | int
    unit: int = 0


@dataclass(slots=True)
class Constants:
    """C constants that all functions share, by the text that defines them."""

    forms: dict[Form, str] = field(default_factory=dict)
    heads: dict[Heads, str] = field(default_factory=dict)
    products: dict[str, str] = field(default_factory=dict)

    def form(self, form: Form) -> str:
        """Name of an ``aicc_weight``."""
        return self.forms.setdefault(form, form.c_name)

    def layout(self, heads: Heads) -> str:
        """Name of an ``aicc_heads``."""
        return self.heads.setdefault(heads, f"heads_{len(self.heads)}")

    def product(self, form: Form, panels: int, y_stride: int, x_stride: int, parts: int, spread: str) -> str:
        """Name of a function that multiplies rows with some panels of a weight, as ``aicc_linear`` does.

        Matrices of one shape share it: inlined wherever it is used, it would be most of the library and of the time
        to compile it.
        """
        rows = f"y, {y_stride}, x, {x_stride}, rows, {parts}"
        call = f"aicc_linear({rows}, w, units, {panels}, {self.form(form)}, {spread});"
        return self.products.setdefault(call, f"product_{len(self.products)}")


class Body:
    """Collects the lines of one function.

    Args:
        constants: Shared by all functions.
        handed_over: Values that have a buffer.
        prompts: Whether rows of prompts have kernels of their own.
    """

    def __init__(self, constants: Constants, handed_over: set[Value], prompts: bool) -> None:
        self.constants = constants
        self.handed_over = handed_over
        self.prompts = prompts
        self.places: list[Place] = []
        self.scratch_bytes = 0
        self._names = set(_TAKEN)

    def at(self, kind: str, what: Matrix | Vector | Angles | Value | int, unit: int = 0) -> str:
        """The offset of a constant, buffer or layer, as C."""
        for number, place in enumerate(self.places):
            if place.kind == kind and place.what == what and place.unit == unit:
                return f"s->at[{number}]"
        self.places.append(Place(kind, what, unit))
        return f"s->at[{len(self.places) - 1}]"

    def name(self, wanted: str) -> str:
        """A C name that is not taken."""
        base = identifier(wanted)
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def scratch(self, floats: int) -> str:
        """A part of the thread's scratch memory, as C."""
        at = self.scratch_bytes
        self.scratch_bytes += align(4 * floats)
        return f"FLOATS(t->scratch, {at})"


class RowCode:
    """Emits operations for one row, or for one unit's columns of it.

    Args:
        body: The function.
        operations: In order.
        row: The number of the row, in C.
        part: The part of a matrix step they follow, None if they take whole rows.
    """

    def __init__(self, body: Body, operations: list[Op], row: str, part: Part | None = None) -> None:
        self.body, self.ops, self.row, self.part = body, operations, row, part
        self.narrow = part is not None and part.width % part.unit != 0
        self.where: dict[Value, str] = {}  # the pointer or variable that holds a value
        self.views: set[Value] = set()  # values that lie in another's memory and must not be changed there
        self.lines: list[str] = []

    def columns(self, value: Value) -> int:
        """Columns of a value that are computed here."""
        return value.width if self.part is None else value.width * self.part.unit // self.part.width

    def count(self, value: Value) -> str:
        """The same in C: the last unit may be narrower."""
        return "columns" if self.narrow else str(self.columns(value))

    def emit(self) -> list[str]:
        """The lines."""
        waiting: list[Elementwise] = []
        for op in self.ops:
            if waiting and not (isinstance(op, Elementwise) and op.output.width == waiting[0].output.width):
                self._loop(waiting)
                waiting = []
            if isinstance(op, Elementwise):
                waiting.append(op)
            else:
                _EMITTERS[type(op)](self, op)
        if waiting:
            self._loop(waiting)
        return self.lines

    def given(self, value: Value, pointer: str) -> None:
        """Say where a product is."""
        name = self.body.name(value.name)
        self.lines.append(f"float *restrict {name} = {pointer};")
        self.where[value] = name
        self._copy_if_handed_over(value)

    # Memory

    def _source(self, value: Value) -> str:
        """Pointer to a value, from a buffer if an earlier step made it."""
        if value not in self.where:
            name = self.body.name(value.name)
            self.lines.append(f"const float *restrict {name} = {self._in_buffer(value, self.row)};")
            self.where[value] = name
            self.views.add(value)
        return self.where[value]

    def _in_buffer(self, value: Value, row: str) -> str:
        buffer = f"FLOATS(f->buffers, {self.body.at('buffer', value)})"
        return f"{buffer} + (size_t){_grouped(row)} * {value.width}{self._begin(value)}"

    def _begin(self, value: Value) -> str:
        return "" if self.part is None else f" + unit * {self.columns(value)}"

    def _target(self, value: Value, floats: int = 0) -> str:
        """Memory for a new value: its buffer, or scratch."""
        name = self.body.name(value.name)
        if value in self.body.handed_over and not floats:
            self.lines.append(f"float *restrict {name} = {self._in_buffer(value, self.row)};")
        else:
            self.lines.append(f"float *restrict {name} = {self.body.scratch(floats or self.columns(value) + LANES)};")
        self.where[value] = name
        return name

    def _copy_if_handed_over(self, value: Value) -> None:
        if value in self.body.handed_over:
            to = self._in_buffer(value, self.row)
            self.lines.append(f"memcpy({to}, {self.where[value]}, {self.count(value)} * sizeof(float));")

    def _vector(self, vector: Vector, like: Value) -> str:
        return f"(WEIGHT_FLOATS(f, {self.body.at('weights', vector)}){self._begin(like)})"

    # Operations

    def _loop(self, run: list[Elementwise]) -> None:
        """One loop over columns for consecutive functions."""
        inside = {op.output for op in run}
        used_later = {v for op in self.ops if op not in run for v in op.inputs()}
        assignments: list[str] = []
        local: dict[Value, str] = {}
        for op in run:
            arguments = []
            for operand in op.operands:
                if isinstance(operand, float):
                    arguments.append(number(operand))
                elif isinstance(operand, Vector):
                    name = self.body.name(leaf(operand.name))
                    self.lines.append(f"const float *restrict {name} = {self._vector(operand, op.output)};")
                    arguments.append(f"{name}[n]")
                elif operand in inside:
                    arguments.append(local[operand])
                else:
                    arguments.append(f"{self._source(operand)}[n]")
            expression = _FUNCTIONS[op.function].format(*arguments)
            if op.output in used_later or op.output in self.body.handed_over:
                local[op.output] = f"{self._target(op.output)}[n]"
                assignments.append(f"{local[op.output]} = {expression};")
            else:
                local[op.output] = self.body.name(op.output.name)
                assignments.append(f"float {local[op.output]} = {expression};")
        head = f"for (int32_t n = 0; n < {self.count(run[0].output)}; n++)"
        if len(assignments) == 1:
            self.lines += [head, f"    {assignments[0]}"]
        else:
            self.lines += [f"{head} {{", *(f"    {line}" for line in assignments), "}"]

    def _embed(self, op: ops.Embed) -> None:
        form = matrix_form(op.table)
        wide = form.k if form.k != op.output.width else 0  # the gather writes the padding too
        to = self._target(op.output, wide)
        table, name = self.body.at("weights", op.table, LANES), self.body.constants.form(form)
        which = f"f->position_of[{self.row}]" if op.input is None else f"(int32_t)f->inputs[{op.input}][{self.row}]"
        self.lines.append(f"aicc_gather_row({to}, f->weights + {table}, {which}, {name});")
        if wide:
            self._copy_if_handed_over(op.output)

    def _norm(self, op: ops.Norm) -> None:
        x, to = self._source(op.x), self._target(op.output)
        offset = "" if self.columns(op.x) == op.size else " + n"
        weight = f"WEIGHT_FLOATS(f, {self.body.at('weights', op.weight)})" if op.weight else "NULL"
        bias = f"WEIGHT_FLOATS(f, {self.body.at('weights', op.bias)})" if op.bias else "NULL"
        rest = f"{weight}, {bias}" if op.layer else weight
        function = "aicc_layer_norm" if op.layer else "aicc_rms_norm"
        if offset:
            self.lines.append(f"for (int32_t n = 0; n < {self.columns(op.x)}; n += {op.size})")
        indent = "    " if offset else ""
        self.lines.append(f"{indent}{function}({to}{offset}, {x}{offset}, {rest}, {op.size}, {number(op.epsilon)});")

    def _rope(self, op: ops.Rope) -> None:
        x = self._source(op.x)
        once = sum(v is op.x for other in self.ops for v in other.inputs()) == 1
        if once and op.x not in self.views and not {op.x, op.output} & self.body.handed_over:
            to = self.where[op.output] = x
        else:
            to = self._target(op.output)
            self.lines.append(f"memcpy({to}, {x}, {self.columns(op.x)} * sizeof(float));")
        angles = self.body.name("angles")
        table, position = self.body.at("weights", op.angles), f"f->position_of[{self.row}]"
        self.lines.append(f"const float *{angles} = WEIGHT_FLOATS(f, {table}) + (size_t){position} * {op.angles.half};")
        offset = "" if self.columns(op.x) == op.head_dim else " + n"
        if offset:
            self.lines.append(f"for (int32_t n = 0; n < {self.columns(op.x)}; n += {op.head_dim})")
        self.lines.append(
            f"{'    ' if offset else ''}aicc_rope({to}{offset}, {angles}, {angles} + "
            f"{op.angles.positions * op.angles.half}, {op.rotary}, {int(op.interleaved)});"
        )

    def _resize(self, op: ops.Resize) -> None:
        x, to = self._source(op.x), self._target(op.output)
        pieces, kept = self.columns(op.x) // op.size, min(op.size, op.to)
        self.lines.append(f"for (int32_t n = 0; n < {pieces}; n++) {{")
        self.lines.append(f"    memcpy({to} + n * {op.to}, {x} + n * {op.size}, {kept} * sizeof(float));")
        if op.to > op.size:
            self.lines.append(f"    memset({to} + n * {op.to} + {op.size}, 0, {op.to - op.size} * sizeof(float));")
        self.lines.append("}")

    def _slice(self, op: ops.Slice) -> None:
        self._view(op.output, f"{self._source(op.x)} + {op.begin}")

    def _select(self, op: ops.Select) -> None:
        self._view(op.output, self._in_buffer(op.x, f"f->batch->logit_rows[{self.row}]"))

    def _view(self, value: Value, pointer: str) -> None:
        name = self.body.name(value.name)
        self.lines.append(f"const float *{name} = {pointer};")
        self.where[value] = name
        self.views.add(value)
        self._copy_if_handed_over(value)

    def _quantise(self, op: ops.Quantise) -> None:
        x, record = self._source(op.x), op.output.record
        rows, bytes_ = f"f->buffers + {self.body.at('buffer', op.output)}", row_bytes(op.output)
        row = f"{rows} + (size_t){_grouped(self.row)} * {bytes_}"
        of_prompt = f"aicc_row_of_prompt(f, {rows}, {bytes_}, {self.row})"
        form, columns = f"{record.k}, {record.group}, {record.parts}", self.columns(op.x)
        if self.part is None:
            if record.rounded:
                self.lines.append(
                    f"if ({self.row} >= f->first_prompt_row) aicc_round_row({of_prompt}, {record.k}, {x}, {columns});"
                )
            otherwise = f"aicc_quantise_row({row}, {form}, {x}, {columns});"
        else:
            if record.rounded:
                self.lines.append(f"if (t->prompt) aicc_round_columns({of_prompt}, unit * {columns}, {columns}, {x});")
            groups = columns // record.group
            first = "unit" if groups == 1 else f"unit * {groups}"
            otherwise = f"aicc_quantise_groups({row}, {form}, {first}, {groups}, {x});"
        self.lines.append(f"else {otherwise}" if record.rounded else otherwise)

    def _store(self, op: ops.Store) -> None:
        x, heads = self._source(op.x), self.body.constants.layout(op.heads)
        page = self.body.at("page", op.layer)
        if self.part is None:
            self.lines.append(f"for (int32_t n = 0; n < {op.heads.kv_heads}; n++)")
            head, pointer, indent = "n", f"{x} + n * {op.heads.head_dim}", "    "
        elif self.columns(op.x) == op.heads.head_dim:
            head, pointer, indent = "unit", x, ""
        else:
            several = self.columns(op.x) // op.heads.head_dim
            self.lines.append(f"for (int32_t n = 0; n < {several}; n++)")
            head, pointer, indent = f"unit * {several} + n", f"{x} + n * {op.heads.head_dim}", "    "
        parts = f"{pointer}, NULL" if op.keys else f"NULL, {pointer}"
        self.lines.append(f"{indent}aicc_cache_write(f, {page}, {self.row}, {head}, {parts}, {heads});")

    def _logits(self, op: ops.Logits | ops.Result) -> None:
        all_rows = f"f->outputs[{op.number}]" if isinstance(op, ops.Result) else "f->logits"
        to = f"{all_rows} + (size_t){_grouped(self.row)} * {op.x.width}{self._begin(op.x)}"
        self.lines.append(f"memcpy({to}, {self._source(op.x)}, {self.count(op.x)} * sizeof(float));")


_EMITTERS: dict[type, Callable[[RowCode, Op], None]] = {
    ops.Embed: RowCode._embed, ops.Norm: RowCode._norm, ops.Rope: RowCode._rope, ops.Resize: RowCode._resize,
    ops.Slice: RowCode._slice, ops.Select: RowCode._select, ops.Quantise: RowCode._quantise,
    ops.Store: RowCode._store, ops.Logits: RowCode._logits, ops.Result: RowCode._logits,
}  # type: ignore[dict-item]  # fmt: skip


def leaf(name: str | None) -> str:
    """A constant's name without its layer: ``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``."""
    parts = [p for p in re.sub(r"_\d+$", "", str(name)).split(".") if p not in _FORMS and not p.isdigit()]
    return "_".join(parts[-2:] if parts[-1:] == ["bias"] else parts[-1:]) or "constant"


def identifier(text: str) -> str:
    """A C name that any text gives."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "value"
    return f"v_{name}" if name[0].isdigit() or name.startswith("aicc") else name


def comment(text: str) -> str:
    """Any text as a comment may hold it: a name in a model file must not end the comment and become code."""
    return re.sub(r"[^\w .,:/+-]", "_", text, flags=re.ASCII)


def number(value: float) -> str:
    """A float32 literal."""
    text = str(np.float32(value))
    return f"{text if '.' in text or 'e' in text else text + '.0'}f"


def text_literal(text: str) -> str:
    """A string literal of any text, as UTF-8."""
    safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-/:"
    return '"' + "".join(chr(b) if chr(b) in safe else f"\\{b:03o}" for b in text.encode(errors="replace")) + '"'


def _grouped(row: str) -> str:
    return f"({row})" if " " in row else row
