"""The steps of a row program as kernels, one or more for each."""

from __future__ import annotations

from dataclasses import dataclass

from aicc.compiler.rows.fuse import Part, Step
from aicc.compiler.rows.program import Attend, Heads, Program
from aicc.runtime.errors import UnsupportedError
from aicc.targets.launch_plan import ONE, Extent
from aicc.targets.webgpu.lowering.rows.expressions import THREADS, Binding, Body, stride
from aicc.targets.webgpu.lowering.rows.forms import CHUNK, matrix_form
from aicc.targets.webgpu.lowering.text import constants, filled, template
from aicc.targets.webgpu.plan import HEADER_WORDS

PAGE = 16  # tokens of a page of keys and values
WORKGROUP_BYTES = 16384  # of workgroup memory that every device has
MOST_ROWS = 32  # of a workgroup; buffers have whole numbers of as many
_FEW = (1, 4)  # rows whose products go through the weights once
_KEYS = 64  # keys of a block of attention
_SUMS = 1024  # floats that a workgroup of attention adds up
_TILES = ((32, 32, 2), (64, 16, 2), (64, 8, 1), (32, 8, 1))  # columns at once, rows, rows of a thread; best first
_ORDER = ("POSITION", "KEY_COUNT", "PAGES_BEGIN", "FIRST", "WANTED", "INPUTS")  # arrays of the batch's buffer
_PAIRS = {
    "float16": (
        "alias Pair = u32;\n\nfn packed(two: vec2f) -> Pair {\n    return pack2x16float(two);\n}\n\n"
        "fn unpacked(two: Pair) -> vec2f {\n    return unpack2x16float(two);\n}"
    ),
    "float32": (
        "alias Pair = vec2f;\n\nfn packed(two: vec2f) -> Pair {\n    return two;\n}\n\n"
        "fn unpacked(two: Pair) -> vec2f {\n    return two;\n}"
    ),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to do a dispatch; see :class:`aicc.targets.webgpu.plan.Kernel`."""

    wgsl: str
    groups: tuple[Extent, Extent, Extent]
    most: int
    workgroup_bytes: int


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A part of a step.

    Attributes:
        node: The graph's node, for people.
        size: ``tokens`` or ``wanted``: how many rows there are.
        bindings: What all its kernels bind.
        kernels: By the number of rows they are for.
    """

    node: str
    size: str
    bindings: tuple[Binding, ...]
    kernels: tuple[Kernel, ...]


class Kernels:
    """Writes the kernels of a program.

    Args:
        program: Fused already.
        kv: Type of the cache.
        tokens: Most tokens of a run.
    """

    def __init__(self, program: Program, kv: str, tokens: int) -> None:
        self.program, self._kv, self._tokens = program, kv, tokens

    def step(self, step: Step) -> list[Dispatch]:
        """The dispatches of a step, which may run in any order."""
        if step.kind == "ATTENTION":
            return [self._attention(step)]
        if step.kind == "ROWS":
            return [self._rows(step)]
        return [self._products(step, part) for part in step.parts]

    def choice(self) -> Dispatch:
        """What follows a decoder's logits."""
        bindings = (Binding("logits", "logits", "u32"), Binding("chosen", "result", "u32", writes=True))
        parts = (_declared(bindings), constants(THREADS=THREADS, VOCAB=self.program.vocab), template("choose"))
        groups = (ONE, Extent(1, "wanted"), ONE)
        kernel = Kernel("\n\n".join(p.strip() for p in parts) + "\n", groups, 0, 8 * THREADS)
        return Dispatch("the likeliest tokens", "wanted", bindings, (kernel,))

    def _products(self, step: Step, part: Part) -> Dispatch:
        size = "wanted" if step.selected else "tokens"
        kernels, bindings = [], ()
        for rows in (*_FEW, 0):
            columns, many, per_thread = _tile(part) if not rows else (0, 0, 0)
            body = Body(rows or many, part.unit, part.width, step.selected)
            body.bind("batch", "batch", "u32")
            body.bind(part.linears[0].x, "input", "vec4f")
            core = template("few_rows" if rows else "many_rows")
            head, _, product = core.partition("\nfn ")
            products = []
            for number, linear in enumerate(part.linears):
                n = body.matrix(linear.matrix)
                products.append(filled(f"fn {product}", n=n, number=number, **_written_out(rows)))
                lanes = f"const LANES_{n} = {_lanes(matrix_form(linear.matrix).chunks)}u;\n\n" if rows else ""
                products[-1] = lanes + products[-1].rstrip()
                body.define(linear.output, "product", f"products[({number}u * ROWS + row) * UNIT + column]")
                body.main.append(f"product_of_{number}(thread);")
            self._write(step, part, body)
            threads = THREADS if rows else columns // 4 * (many // per_thread)
            numbers = constants(
                ROWS=body.rows, UNIT=part.unit, COLUMNS=part.width, INPUT_VECTORS=stride(part.linears[0].x) // 4,
                THREADS=threads, **({} if rows else {"AT_ONCE": columns, "PER_THREAD": per_thread}),
            )  # fmt: skip
            memory = f"var<workgroup> products: array<f32, {len(part.linears)}u * ROWS * UNIT>;\n"
            used = 4 * len(part.linears) * body.rows * part.unit + body.workgroup_bytes
            used += 4 * rows * THREADS if rows else 16 * 8 * (columns + many)
            text = self._text(body, numbers, head.replace("\n\n", "\n").rstrip() + "\n" + memory, *products)
            groups = (Extent(part.units), Extent(1, size, body.rows), ONE)
            kernels.append(Kernel(text, groups, rows, used))
            bindings = tuple(body.bindings)
        return Dispatch(part.linears[0].node, size, bindings, tuple(kernels))

    def _rows(self, step: Step) -> Dispatch:
        part, size = step.parts[0], "wanted" if step.selected else "tokens"
        body = Body(1, 1, 1, step.selected)
        body.bind("batch", "batch", "u32")
        self._write(step, part, body)
        text = self._text(body, constants(THREADS=THREADS))
        kernel = Kernel(text, (ONE, Extent(1, size), ONE), 0, body.workgroup_bytes)
        return Dispatch(part.ops[0].node, size, tuple(body.bindings), (kernel,))

    def _write(self, step: Step, part: Part, body: Body) -> None:
        """What follows products, or is all there is."""
        for op in part.ops:
            body.run(op)
        made = [op.output for op in (*part.linears, *part.ops) if op.output is not None]
        for value in made:
            if value in step.handed_over:
                body.hand_over(value)

    def _text(self, body: Body, numbers: str, *parts: str) -> str:
        caches = any(binding.type == "Pair" for binding in body.bindings)
        main = "\n".join(
            [
                "@compute @workgroup_size(THREADS)",
                "fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {",
                "    unit = group.x;",
                f"    first_row = group.y * {body.rows}u;",
                *(f"    {line}" for line in body.main),
                "}",
            ]
        )
        private = "var<private> unit: u32;\nvar<private> first_row: u32;"
        functions = "\n\n".join(body.functions)
        named = any(name in functions for name in ("sigmoid", "silu", "hyperbolic", "error_function", "gelu"))
        shared = [template("error_function"), template("functions")] if named else []
        cache = [_PAIRS[self._kv]] if caches else []
        declared = _declared(body.bindings)
        return "\n\n".join(
            p.strip() for p in (declared, self._batch(), numbers, private, *cache, *shared, *parts, functions, main)
        ) + "\n"  # fmt: skip

    def _batch(self) -> str:
        places = {name: HEADER_WORDS + i * self._tokens for i, name in enumerate(_ORDER)}
        return constants(MOST_TOKENS=self._tokens, PAGE=PAGE, **places)

    def _attention(self, step: Step) -> Dispatch:
        attend = step.parts[0].ops[0]
        assert isinstance(attend, Attend)
        heads: Heads = attend.heads
        sharing = heads.query_heads // heads.kv_heads
        together = max(n for n in range(1, sharing + 1) if sharing % n == 0 and (n == 1 or n * heads.head_dim <= _SUMS))
        bindings = (
            Binding("batch", "batch", "u32"),
            Binding("pages", "pages", "u32"),
            Binding(attend.x, "queries", "vec2f"),
            Binding(("keys", attend.layer), "keys", "Pair"),
            Binding(("values", attend.layer), "values", "Pair"),
            Binding(attend.output, "result", "vec2f", writes=True),
        )
        numbers = constants(
            THREADS=THREADS, KEYS=_KEYS, HEADS=together, SHARING=sharing, KV_HEADS=heads.kv_heads,
            PAIRS=heads.head_dim // 2, ROW_PAIRS=stride(attend.x) // 2, WINDOW=heads.window,
            SCALE=heads.scale, SOFT_CAP=heads.soft_cap, LOWEST=-3e38,
        )  # fmt: skip
        hidden = "true"
        if self.program.mask >= 0:
            hidden = f"batch[INPUTS + {self.program.mask}u * MOST_TOKENS + batch[FIRST + token] + key] != 0u"
        seen = f"fn seen(token: u32, key: u32) -> bool {{\n    return {hidden};\n}}"
        parts = (_declared(bindings), self._batch(), numbers, _PAIRS[self._kv], template("attention"), seen)
        used = 4 * together * (_KEYS + heads.head_dim + 3)
        kernel = Kernel(
            "\n\n".join(p.strip() for p in parts) + "\n",
            (Extent(heads.query_heads // together), Extent(1, "tokens"), ONE),
            0,
            used,
        )
        return Dispatch(attend.node, "tokens", bindings, (kernel,))


def _declared(bindings: tuple[Binding, ...] | list[Binding]) -> str:
    return "\n".join(
        f"@group(0) @binding({i}) var<storage, {'read_write' if b.writes else 'read'}> {b.name}: array<{b.type}>;"
        for i, b in enumerate(bindings)
    )


def _written_out(rows: int) -> dict[str, str]:
    """What a product of a few rows does for each of them."""
    each = range(rows)
    terms = [" + ".join(f"dot(w[{i}], input[at_{r} + {i}u])" for i in range(8)) for r in each]
    return {
        "zero": "\n        ".join(f"var sum_{r} = 0.0;" for r in each),
        "add": "\n                ".join(
            f"let at_{r} = first + {r}u * INPUT_VECTORS;\n                sum_{r} += {terms[r]};" for r in each
        ),
        "keep": "\n        ".join(f"parts[{r}u * THREADS + thread] = sum_{r};" for r in each),
    }


def _lanes(chunks: int) -> int:
    """Threads that share a column: enough to read neighbouring memory, few enough to have work for each."""
    return next((lanes for lanes in (32, 16, 8, 4, 2) if chunks >= 2 * lanes), 1)


def _tile(part: Part) -> tuple[int, int, int]:
    """Columns at once, rows, and rows of a thread of a product of many rows."""
    for columns, rows, per_thread in _TILES if part.unit <= CHUNK else _TILES[1:]:
        if 4 * len(part.linears) * rows * part.unit + 16 * 8 * (columns + rows) <= WORKGROUP_BYTES:
            return columns, rows, per_thread
    node = part.linears[0].node
    raise UnsupportedError(f"the product of node {node} has units of {part.unit} columns, which are too large.")
