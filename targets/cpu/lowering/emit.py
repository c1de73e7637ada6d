"""``model.c``: the steps of a model as C that calls the kernels with constant shapes.

Steps of layers with equal shapes give the same function, which is written once; what differs between
them, the offsets of weights, buffers and cache, is in the table of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from aicc.compiler.rows import program as ops
from aicc.compiler.rows.fuse import Part, Step
from aicc.compiler.rows.program import Angles, Attend, Heads, Matrix, Op, Port, Program, Quantise, Value, Vector
from aicc.runtime.errors import UnsupportedError
from aicc.targets.cpu.lowering.code import (
    Body,
    Constants,
    Place,
    RowCode,
    comment,
    identifier,
    leaf,
    number,
    text_literal,
)
from aicc.targets.cpu.lowering.formats import LANES, align, matrix_form
from aicc.targets.cpu.lowering.memory import plan_buffers, row_bytes
from aicc.targets.cpu.lowering.pack import Packer

MAX_BATCH_TOKENS = 256  # a longer prompt is prefilled in pieces of this, which bounds the buffers
TILE_ROWS, PROMPT_ROWS = 32, 256  # AICC_TILE_ROWS, AICC_PROMPT_ROWS
SPREAD_PANELS, SPREAD_INPUTS = 2, 768  # AICC_SPREAD_PANELS, AICC_SPREAD_INPUTS
_SHORT_ROWS = 2048  # inputs of which PROMPT_ROWS rows are 1 MiB of bfloat16: a second-level cache keeps them
_UNITS_TOGETHER = 4  # where it does not
_OFFSETS = 16  # AICC_OFFSETS
KV_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8"}
_KV_BYTES = {"F32": 4, "F16": 2, "I8": 1}
_MOST_PANELS = 8  # of one aicc_linear
_SPLIT = 128  # AICC_SPLIT


@dataclass(slots=True)
class Function:
    """A step's C function and what its ``at`` entries mean.

    Attributes:
        text: Its definition, with ``@`` for its name.
        name: Name it would like.
        places: Meaning of the entries, for this step.
        scratch_bytes: Scratch memory it needs.
        unit_bytes: See ``aicc_step``.
    """

    text: str
    name: str
    places: list[Place]
    scratch_bytes: int
    unit_bytes: int


def emit_model(program: Program, steps: list[Step], packer: Packer, name: str, kv: str, prompts: bool) -> str:
    """Write a model as C, and its weights into the packer.

    Args:
        program: The fused program.
        steps: Its steps.
        packer: Gets every constant.
        name: What the model is called.
        kv: Type of the cache, one of :data:`KV_TYPES`.
        prompts: Whether rows of prompts have kernels of their own.
    """
    constants = Constants()
    tokens = MAX_BATCH_TOKENS if program.generates else align(max(MAX_BATCH_TOKENS, program.context), LANES)
    offsets, buffer_bytes = plan_buffers(steps, tokens)
    kind, header = ("DECODER", "model.h") if program.generates else ("TENSORS", "tensors.h")
    layers, page_bytes = _layers(program, kv)
    names: dict[str, str] = {}
    rows, scratch = [], 0
    for step in steps:
        function = _function(step, constants, prompts)
        scratch = max(scratch, function.scratch_bytes)
        if function.text not in names:
            names[function.text] = _free_name(function.name, set(names.values()))
        at = [_offset(place, packer, offsets, layers) for place in function.places]
        rows.append(_table_row(step, names[function.text], function.unit_bytes, at))
    text = "\n".join(
        [
            _TOP.format(name=comment(name), count=len(steps), define="" if prompts else "#define AICC_NO_PROMPTS\n"),
            *_constant_lines(constants, kv),
            "",
            *_product_lines(constants),
            *(text.replace("@", chosen) + "\n" for text, chosen in names.items()),
            "static const aicc_step steps[] = {",
            *rows,
            "};",
            "",
            *_port_lines(program),
            _BOTTOM.format(
                name=text_literal(name), kind=kind, vocab=program.vocab, context=program.context,
                weights_bytes=packer.end, weights_id=packer.identity,
                layers=len(program.layers), page_bytes=page_bytes, tokens=tokens,
                buffer_bytes=buffer_bytes, scratch_bytes=align(scratch),
                partial=max((h.query_heads * (h.head_dim + LANES) for h in program.layers), default=0),
                kv_heads=max((h.kv_heads for h in program.layers), default=0),
                signatures=_SIGNATURES if program.outputs else "", ports=_ports(program), header=header,
                heads=max((h.query_heads // h.kv_heads for h in program.layers), default=1),
            ),
        ]
    )  # fmt: skip
    return text


_TOP = """\
/* {name}, compiled by aicc: {count} steps. Kernels are explained in their own files. */
{define}#include "attention.h"
#include "linear.h"
#include "maths.h"
#include "norm.h"
#include "rope.h"

#define FLOATS(base, offset) ((float *)(void *)((base) + (offset)))
#define WEIGHT_FLOATS(f, offset) ((const float *)(const void *)((f)->weights + (offset)))

/* Formats of the weights, and shapes of the attentions. */"""

_BOTTOM = """\
static const aicc_program aicc_this_program = {{
    .about = {{
        .abi_version = AICC_ABI_VERSION, .kind = AICC_{kind}, .name = {name}, .isa = AICC_ISA,
        .weights_bytes = {weights_bytes}u, .weights_id = 0x{weights_id:016x}u,
        .vocab_size = {vocab}, .context_length = {context}, .layer_count = {layers},
        .page_tokens = AICC_LANES, .page_bytes = {page_bytes}u,
        .max_batch_tokens = {tokens}, .max_batch_sequences = {tokens}, .prompts_apart = AICC_PROMPTS_APART,{signatures}
    }},
    .steps = steps,
    .step_count = sizeof steps / sizeof steps[0],
    .buffer_bytes = {buffer_bytes}u,
    .scratch_bytes = {scratch_bytes}u,
    .partial_floats = {partial},
    .kv_heads = {kv_heads},
    .queries_per_item = AICC_MAX(1, AICC_ATTENTION_ROWS / {heads}),{ports}
}};

#include "{header}"
"""

_SIGNATURES = """
        .signature_count = 1, .signatures = signatures,"""


def _constant_lines(constants: Constants, kv: str) -> list[str]:
    lines = [
        f"static const aicc_weight {name} = "
        f"{{AICC_{w.format}, {w.k}, {w.group}, {w.zero}, AICC_{w.scales}, AICC_{w.minima}}};"
        for w, name in constants.forms.items()
    ]
    return lines + [
        f"static const aicc_heads {name} = {{{h.query_heads}, {h.kv_heads}, {h.head_dim}, AICC_{kv}, {int(h.causal)}, "
        f"{h.window}, {number(h.scale)}, {number(h.soft_cap)}}};"
        for h, name in constants.heads.items()
    ]


def _product_lines(constants: Constants) -> list[str]:
    arguments = "float *y, const uint8_t *x, int32_t rows, const uint8_t *w, int32_t units, uint16_t *spread"
    return [f"static void {name}({arguments}) {{\n    {call}\n}}\n" for call, name in constants.products.items()]


def _ports(program: Program) -> str:
    if program.generates:
        return ""
    limits = ", ".join(str(port.limit) for port in program.inputs)
    return f"\n    .mask_input = {program.mask},\n    .input_limits = {{{limits}}},"


def _port_lines(program: Program) -> list[str]:
    """The signature of a model of tensors."""
    if program.generates:
        return []

    def table(name: str, kind: str, ports: list[Port]) -> str:
        shapes = [
            f"{{{text_literal(p.name)}, AICC_{kind}, {len(p.shape)}, {{{', '.join(map(str, p.shape))}}}}}"
            for p in ports
        ]
        return f"static const aicc_port {name}[] = {{{', '.join(shapes)}}};"

    counts = f"{len(program.inputs)}, {len(program.outputs)}"
    return [
        table("inputs", "I64", program.inputs),
        table("outputs", "F32", program.outputs),
        f'static const aicc_signature signatures[] = {{{{"default", {counts}, inputs, outputs}}}};',
        "",
    ]


def _layers(program: Program, kv: str) -> tuple[list[int], int]:
    """Where each layer's part of a page begins, and the bytes of a page.

    Without decoding no layer needs the keys and values of another: all have the same place.
    """
    scales = 4 if kv == "I8" else 0
    sizes = [h.kv_heads * 2 * LANES * (h.head_dim * _KV_BYTES[kv] + scales) for h in program.layers]
    if not program.generates:
        return [0] * len(sizes), max(sizes, default=0)
    return [sum(sizes[:layer]) for layer in range(len(sizes))], sum(sizes)


def _offset(place: Place, packer: Packer, buffers: dict[Value, int], layers: list[int]) -> int:
    what = place.what
    if isinstance(what, Value):
        return buffers[what]
    if isinstance(what, Matrix):
        return packer.matrix(what, place.unit)
    if isinstance(what, Vector):
        return packer.vector(what)
    if isinstance(what, Angles):
        return packer.angles(what)
    return layers[what]


def _table_row(step: Step, function: str, unit_bytes: int, at: list[int]) -> str:
    units = sum(part.units for part in step.parts) if step.kind == "MATRIX" else 1
    if step.kind == "ATTENTION":
        units = _attend(step).heads.kv_heads
    nodes = " ".join(dict.fromkeys(op.node.rsplit("/", 1)[0] or op.node for op in step.ops()))
    offsets = ", ".join(map(str, at))
    return (
        f"    /* {comment(nodes)} */\n"
        f"    {{{function}, AICC_{step.kind}, {int(step.selected)}, {units}, {unit_bytes}, "
        f"{{{offsets}}}, {_at_once(step)}}},"
    )


def _free_name(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def _function(step: Step, constants: Constants, prompts: bool) -> Function:
    body = Body(constants, set(step.handed_over), prompts)
    emitters = {"MATRIX": _matrix_step, "ROWS": _row_step, "ATTENTION": _attention_step}
    lines, unit_bytes = emitters[step.kind](step, body)
    if len(body.places) > _OFFSETS:
        node = step.ops()[0].node
        raise UnsupportedError(
            f"the step of node {node} uses {len(body.places)} constants and buffers, more than {_OFFSETS}."
        )
    meanings = comment(", ".join(f"{i} {_meaning(place)}" for i, place in enumerate(body.places)))
    head = f"/* at: {meanings} */\nstatic void @(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {{"
    text = "\n".join([head, *(f"    {line}" for line in lines), "}"])
    return Function(text, _step_name(step), body.places, body.scratch_bytes, unit_bytes)


def _meaning(place: Place) -> str:
    what = place.what
    if isinstance(what, int):
        return "the layer in a page"
    if isinstance(what, Matrix):
        return f"weight {leaf(what.value.name)}"
    return leaf(what.name)


def _step_name(step: Step) -> str:
    if step.kind == "ATTENTION":
        return "step_attention"
    if step.kind == "MATRIX":
        names = [linear.output.name for part in step.parts for linear in part.linears]
    else:
        named = [op.output.name for op in step.ops() if isinstance(op, (ops.Embed, ops.Norm, ops.Select))]
        names = named or [op.output.name for op in step.ops() if op.output is not None]
    return f"step_{identifier('_'.join(dict.fromkeys(names)))[:60]}"


def _row_step(step: Step, body: Body) -> tuple[list[str], int]:
    operations: list[Op] = step.parts[0].ops
    inner = RowCode(body, operations, "row").emit()
    moved = sum(row_bytes(v) for v in (*step.read(), *step.handed_over))
    loop = "for (int32_t row = t->row_begin; row < t->row_end; row++) {"
    return [loop, *(f"    {line}" for line in inner), "}"], moved


def _attend(step: Step) -> Attend:
    attend = step.parts[0].ops[0]
    assert isinstance(attend, Attend)
    return attend


def _attention_step(step: Step, body: Body) -> tuple[list[str], int]:
    attend = _attend(step)
    heads: Heads = attend.heads
    records = [op.output for op in step.parts[0].ops if isinstance(op, Quantise)]
    quantised = f"f->buffers + {body.at('buffer', records[0])}" if records else "NULL"
    group, parts = (records[0].record.group, records[0].record.parts) if records else (0, 1)
    bytes_ = row_bytes(records[0]) if records else 0
    width = heads.query_heads * heads.head_dim
    body.scratch_bytes = _attention_scratch(heads.head_dim, body.prompts)
    query, out = body.at("buffer", attend.x), body.at("buffer", attend.output)
    return [
        f"aicc_attention_place at = {{FLOATS(f->buffers, {query}), FLOATS(f->buffers, {out}), {width}, {width},",
        f"                           {quantised}, {bytes_}, {group}, {parts}}};",
        f"aicc_attention(f, t, {body.at('page', attend.layer)}, at, {body.constants.layout(heads)});",
    ], 0


def _attention_scratch(head_dim: int, prompts: bool) -> int:
    """Bytes, as ``aicc_attention_scratch_bytes`` counts them."""
    rows = 64 if prompts else 32  # AICC_ATTENTION_ROWS
    tiles = 2 * (rows * (head_dim + _SPLIT) + _SPLIT * head_dim) if prompts else 0
    return 4 * (rows * _SPLIT + 4 * rows + 3 * rows * head_dim) + tiles


def _matrix_step(step: Step, body: Body) -> tuple[list[str], int]:
    """A loop over units; each part has its own range of them."""
    if (at_once := _at_once(step)) > 1:
        return _units_together(step.parts[0], at_once, body)
    lines = ["for (int32_t number = t->begin; number < t->end; number++) {"]
    first, largest = 0, 0
    for index, part in enumerate(step.parts):
        code = _part(part, body)
        largest = max(largest, _bytes_of_unit(part))
        if len(step.parts) > 1:
            last = index == len(step.parts) - 1
            condition = "{" if last else f"if (number < {first + part.units}) {{"
            lines += [f"    {'} else ' if index else ''}{condition}"]
        lines.append(
            f"    {'    ' if len(step.parts) > 1 else ''}int32_t unit = number{f' - {first}' if first else ''};"
        )
        lines += [f"    {'    ' if len(step.parts) > 1 else ''}{line}" for line in code]
        first += part.units
    if len(step.parts) > 1:
        lines.append("    }")
    return [*lines, "}"], largest


def _at_once(step: Step) -> int:
    """Units that rows of prompts are computed for together, so that long rows come from memory once for all of them."""
    if step.kind != "MATRIX" or len(step.parts) != 1:
        return 1
    part = step.parts[0]
    records = [linear.x.record for linear in part.linears]
    together = all(record and record.rounded and record.k > _SHORT_ROWS for record in records)
    return _UNITS_TOGETHER if together and part.width % part.unit == 0 and part.unit <= LANES * _MOST_PANELS else 1


def _units_together(part: Part, at_once: int, body: Body) -> tuple[list[str], int]:
    """A loop over units, several at once for rows of prompts."""
    most = f"AICC_UNITS_AT_A_TIME(t, {at_once})"
    return [
        f"for (int32_t number = t->begin; number < t->end; number += {most}) {{",
        f"    int32_t units = AICC_MIN(t->end - number, {most});",
        *(f"    {line}" for line in _part(part, body, at_once)),
        "}",
    ], _bytes_of_unit(part)


def _bytes_of_unit(part: Part) -> int:
    return sum(_unit_bytes(part, linear) for linear in part.linears)


def _unit_bytes(part: Part, linear: ops.Linear) -> int:
    return align(part.unit, LANES) // LANES * matrix_form(linear.matrix).panel_bytes


def _part(part: Part, body: Body, at_once: int = 1) -> list[str]:
    """The products of one unit, or of several, for tiles of rows, and what follows for each row."""
    stride = align(part.unit, LANES)
    tiles = {linear: body.name(f"tile_{i}") for i, linear in enumerate(part.linears)}
    before = body.scratch_bytes
    body.scratch_bytes = 0  # parts run one after another in the same memory
    rounded = [linear.x.record for linear in part.linears if linear.x.record and linear.x.record.rounded]
    most = PROMPT_ROWS if rounded else TILE_ROWS
    lines = [f"float *{tile} = {body.scratch(at_once * most * stride)};" for tile in tiles.values()]
    if rounded:
        lines.append(f"uint16_t *spread = AICC_SPREAD(t, {body.scratch_bytes});")
        inputs = max(max(min(record.k, SPREAD_INPUTS), record.group) for record in rounded)
        body.scratch_bytes += align(2 * SPREAD_PANELS * LANES * inputs)
    if part.width % part.unit:
        lines.append(f"int32_t columns = AICC_MIN({part.width} - unit * {part.unit}, {part.unit});")
    some = "AICC_ROWS_AT_A_TIME(t)" if rounded else "AICC_TILE_ROWS"
    lines += [
        f"for (int32_t tile = t->row_begin; tile < t->row_end; tile += {some}) {{",
        f"    int32_t rows = AICC_MIN(t->row_end - tile, {some});",
    ]
    for linear, tile in tiles.items():
        lines += [f"    {line}" for line in _product(part, linear, tile, stride, body, at_once)]
    rows = RowCode(body, part.ops, "tile + r", part)
    for linear, tile in tiles.items():
        row = "r" if at_once == 1 else f"((unit - number) * {PROMPT_ROWS} + r)"
        rows.given(linear.output, f"{tile} + {row} * {stride}")
    loop = ["for (int32_t r = 0; r < rows; r++) {", *(f"    {line}" for line in rows.emit()), "}"]
    if at_once > 1:
        loop = ["for (int32_t unit = number; unit < number + units; unit++)", *(f"    {line}" for line in loop)]
    lines += [*(f"    {line}" for line in loop), "}"]
    body.scratch_bytes = max(before, body.scratch_bytes)
    return lines


def _product(part: Part, linear: ops.Linear, tile: str, stride: int, body: Body, at_once: int) -> list[str]:
    form, x = matrix_form(linear.matrix), linear.x
    panels, bytes_ = stride // LANES, row_bytes(x)
    parts = x.record.parts if x.record else 1
    spread = "spread" if x.record and x.record.rounded else "NULL"
    source = f"f->buffers + {body.at('buffer', x)} + (size_t)tile * {bytes_}"
    unit, units = ("unit", "1") if at_once == 1 else ("number", "units")
    matrix = body.at("weights", linear.matrix, part.unit)
    weight = f"f->weights + {matrix} + (size_t){unit} * {_unit_bytes(part, linear)}"
    lines = []
    for begin in range(0, panels, _MOST_PANELS):
        count = min(_MOST_PANELS, panels - begin)
        to = f"{tile} + {begin * LANES}" if begin else tile
        skipped = f" + {begin * form.panel_bytes}" if begin else ""
        product = body.constants.product(form, count, stride, bytes_, parts, spread)
        lines.append(f"{product}({to}, {source}, rows, {weight}{skipped}, {units}, {spread});")
    return lines
