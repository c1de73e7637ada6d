"""Kernels as a launch plan: buffers, equal kernels once, weights in the artifact's file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aicc.compiler.lowering import WeightStore
from aicc.compiler.rows.fuse import Step
from aicc.compiler.rows.program import Angles, Heads, Matrix, Program, Value, Vector
from aicc.targets.launch_plan import Extent
from aicc.targets.webgpu import plan
from aicc.targets.webgpu.lowering.rows.expressions import stride
from aicc.targets.webgpu.lowering.rows.forms import pack_matrix
from aicc.targets.webgpu.lowering.rows.kernels import MOST_ROWS, PAGE, WORKGROUP_BYTES, Dispatch, Kernels
from aicc.targets.webgpu.plan import BATCH, CHOSEN, HEADER_WORDS, LOGITS, PAGE_LIST

KV_BYTES = {"float16": 2, "float32": 4}
_BOUND = 1 << 27  # bytes of a buffer that every device binds
_BINDINGS = 8  # storage buffers of a kernel that every device has
_LARGEST_BATCH = 256  # tokens of a run


def batch_tokens(program: Program) -> int:
    """Most tokens of a run: the logits of all of them are one buffer, and a sequence of an encoder is one run."""
    if not program.generates:
        return -(-max(_LARGEST_BATCH, program.context) // MOST_ROWS) * MOST_ROWS
    fitting = _BOUND // (4 * program.vocab) // MOST_ROWS * MOST_ROWS
    return max(MOST_ROWS, min(_LARGEST_BATCH, fitting))


class Assembler:
    """Makes the plan of a program.

    Args:
        program: Fused already.
        kv: Type of the cache.
        weights: Gets the constants.
    """

    def __init__(self, program: Program, kv: str, weights: WeightStore) -> None:
        self._program, self._kv, self._weights = program, kv, weights
        self._tokens = batch_tokens(program)
        self._buffers: list[plan.Buffer] = []
        self._numbers: dict[object, int] = {}
        self._free: dict[int, list[int]] = {}  # buffers of values by the stride of their rows

    def plan(self, steps: list[Step]) -> tuple[plan.Plan, dict[str, str]]:
        """The plan, and WGSL by the names of its pipelines."""
        program, kernels = self._program, Kernels(self._program, self._kv, self._tokens)
        self._add_ports()
        last = {value: number for number, step in enumerate(steps) for value in step.read()}
        dispatches: list[Dispatch] = []
        for number, step in enumerate(steps):
            for value in step.handed_over:
                self._take(value)
            dispatches += kernels.step(step)
            for value in (*step.read(), *step.handed_over):
                if last.get(value, number) == number:
                    self._give_back(value)
        if program.generates:
            dispatches.append(kernels.choice())
        texts: dict[tuple[str, tuple[bool, ...]], int] = {}
        made = tuple(self._step(dispatch, texts) for dispatch in dispatches)
        pipelines = tuple(plan.Pipeline(f"kernel{n}", writes) for n, (_, writes) in enumerate(texts))
        written = plan.Plan(
            version=plan.VERSION,
            limits=self._limits(dispatches),
            features=(),
            buffers=tuple(self._buffers),
            pipelines=pipelines,
            steps=made,
            rows=plan.Rows(
                tokens=self._tokens,
                context=program.context,
                page=PAGE,
                vocab=program.vocab,
                inputs=tuple(port.name for port in program.inputs),
                limits=tuple(port.limit for port in program.inputs),
                mask=program.mask,
                outputs=tuple((port.name, port.shape[-1]) for port in program.outputs),
            ),
        )
        return written, {p.name: text for p, (text, _) in zip(pipelines, texts, strict=True)}

    def _add_ports(self) -> None:
        """What the host writes and reads, and the cache."""
        program, tokens = self._program, self._tokens
        arrays = 5 + max(1, len(program.inputs))
        self._add("batch", BATCH, Extent(4 * (HEADER_WORDS + arrays * tokens)))
        self._add("pages", PAGE_LIST, Extent(4 * tokens * -(-program.context // PAGE)))
        if program.generates:
            self._add("logits", LOGITS, Extent(4 * tokens * program.vocab))
            self._add("chosen", CHOSEN, Extent(8 * tokens))
        for number, port in enumerate(program.outputs):
            self._add(("output", number), plan.output_buffer(number), Extent(4 * tokens * port.shape[-1]))
        for layer, heads in enumerate(program.layers):
            for kind in ("keys", "values"):
                self._add((kind, layer), f"{kind}{layer}", self._cache(heads), first=(kind, 0))

    def _cache(self, heads: Heads) -> Extent:
        page = KV_BYTES[self._kv] * heads.kv_heads * PAGE * heads.head_dim
        return Extent(page, "pages") if self._program.generates else Extent(page * (self._tokens // PAGE))

    def _add(self, what: object, name: str, size: Extent, constant: int = -1, first: object = None) -> None:
        """A buffer; without decoding no layer needs what another has stored: all have the memory of the ``first``."""
        if first in self._numbers and not self._program.generates:
            known = self._numbers[first]
            most = max(size.times, self._buffers[known].bytes.times)
            self._buffers[known] = plan.Buffer(self._buffers[known].name, Extent(most))
            self._numbers[what] = known
            return
        self._numbers[what] = len(self._buffers)
        self._buffers.append(plan.Buffer(name, size, constant))

    def _take(self, value: Value) -> None:
        free = self._free.setdefault(stride(value), [])
        if free:
            self._numbers[value] = free.pop()
        else:
            self._add(value, f"rows{len(self._buffers)}", Extent(4 * self._tokens * stride(value)))

    def _give_back(self, value: Value) -> None:
        self._free[stride(value)].append(self._numbers[value])

    def _number(self, what: object) -> int:
        """Of a buffer; constants are stored when they are first asked for."""
        if what not in self._numbers:
            data = _READERS[type(what)](what)
            name = f"constant{len(self._buffers)}"
            self._add(what, name, Extent(len(data)), self._weights.add(data))
        return self._numbers[what]

    def _step(self, dispatch: Dispatch, texts: dict[tuple[str, tuple[bool, ...]], int]) -> plan.Step:
        writes = tuple(binding.writes for binding in dispatch.bindings)
        kernels = tuple(
            plan.Kernel(texts.setdefault((kernel.wgsl, writes), len(texts)), kernel.groups, kernel.most)
            for kernel in dispatch.kernels
        )
        buffers = tuple(self._number(binding.what) for binding in dispatch.bindings)
        return plan.Step(dispatch.node, buffers, kernels, dispatch.size if len(kernels) > 1 else "")

    def _limits(self, dispatches: list[Dispatch]) -> dict[str, int]:
        """What not every device has."""
        needed = {
            "max-storage-buffer-binding-size": (max(b.bytes.times for b in self._buffers), _BOUND),
            "max-storage-buffers-per-shader-stage": (max(len(d.bindings) for d in dispatches), _BINDINGS),
            "max-compute-workgroup-storage-size": (
                max(kernel.workgroup_bytes for d in dispatches for kernel in d.kernels), WORKGROUP_BYTES
            ),
        }  # fmt: skip
        return {name: least for name, (least, usual) in needed.items() if least > usual}


_READERS: dict[type, Callable[[object], bytes]] = {
    Matrix: lambda matrix: pack_matrix(matrix),
    Vector: lambda vector: vector.read().astype(np.float32).tobytes(),
    Angles: lambda angles: angles.read().astype(np.float32).tobytes(),
}
