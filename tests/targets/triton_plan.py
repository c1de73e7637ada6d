"""Launch plans without a GPU: written without compiling a kernel, and run with Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from aicc.runtime.provider import TokenBatch
from aicc.targets.triton.lowering.binaries import Binaries, Spec
from aicc.targets.triton.plan import BATCH, LOGITS, PAGES, TILES, WEIGHTS, Argument, Kernel, Plan, Tier, tier
from aicc.targets.triton.steps import step_arrays

_TYPES = {
    "*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16, "*u8": torch.uint8, "*i32": torch.int32
}  # fmt: skip


_interpreted = cache(InterpretedFunction)


def compile_nothing(patch: pytest.MonkeyPatch) -> list[Spec]:
    """What kernels would be compiled from, in their order: their binaries have nothing in them but how they begin."""
    specs: list[Spec] = []

    def note(self: Binaries, spec: Spec) -> None:
        specs.append(spec)
        file = f"none.{self.chip.suffix}"
        Path(self.directory, file).write_bytes(b"\x7fELF")
        self.kernels.append(Kernel(file, spec.function.__name__, spec.warps * self.chip.warp, 64 << 10))

    patch.setattr(Binaries, "_compile", note)
    return specs


class _Builder(interpreter.InterpreterBuilder):
    """What of the interpreter's arithmetic is put right: it keeps bfloat16 as its 16 bits.

    Its products multiply those bits as if they were integers, and its conversion from float32 cuts what chips round
    to the nearest.
    """

    def create_dot(self, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return super().create_dot(a, b, *rest)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return super().cast_impl(src, dst_type)
        rounded = src.data.astype(ml_dtypes.bfloat16).view(np.uint16)
        return interpreter.TensorHandle(rounded, dst_type.scalar)


@contextmanager
def interpreted() -> Iterator[None]:
    """Kernels that call others find them interpreted too, and Triton's language is as it was afterwards.

    Triton patches its language anew for each call of a function, and leaves it so; once is enough.
    """
    call, patch, builder = JITFunction.__call__, interpreter._patch_lang, interpreter.interpreter_builder.__class__
    interpreter.interpreter_builder.__class__ = _Builder
    scopes: dict[int, Any] = {}

    def patch_once(function: Any) -> SimpleNamespace:
        if id(function.__globals__) not in scopes:
            scopes[id(function.__globals__)] = patch(function)
        return SimpleNamespace(restore=lambda: None)

    JITFunction.__call__ = lambda self, *a, **k: _interpreted(self.fn)(*a, **k)  # type: ignore[method-assign]
    interpreter._patch_lang = patch_once
    try:
        yield
    finally:
        for scope in reversed(scopes.values()):
            scope.restore()
        JITFunction.__call__, interpreter._patch_lang = call, patch  # type: ignore[method-assign]
        interpreter.interpreter_builder.__class__ = builder


def launch(kernel: JITFunction, grid: tuple[int, int, int], *arguments: Any, **constants: Any) -> None:
    """Run one kernel."""
    with interpreted():
        _interpreted(kernel.fn)[grid](*arguments, **constants)


class PlanInterpreter:
    """A plan in the host's memory.

    Args:
        plan: As it was written.
        specs: What its kernels were compiled from.
        weights: The weights file.
        pages: Of memory.
    """

    def __init__(self, plan: Plan, specs: list[Spec], weights: bytes, pages: int) -> None:
        self.plan, self.specs = plan, specs
        self.buffers = [torch.zeros(b.bytes.value({"pages": pages}), dtype=torch.uint8) for b in plan.buffers]
        self._copy(WEIGHTS, np.frombuffer(weights, np.uint8)[: plan.weights_bytes])

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """One step, as the provider does it."""
        with interpreted():
            return self._forward(batch)

    def _forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        arrays = step_arrays(self.plan, batch)
        self._copy(BATCH, arrays.batch)
        self._copy(PAGES, arrays.pages)
        self._copy(TILES, arrays.tiles)
        sizes = {"tokens": len(batch.tokens), "tiles": len(arrays.tiles)}
        self._run(tier(self.plan.body, len(batch.tokens)), sizes)
        wanted = len(batch.logit_rows)
        most = self.plan.head[-1].most
        found = []
        for begin in range(0, wanted, most):
            rows = batch.logit_rows[begin : begin + most]
            arrays.batch[: len(rows), 3] = rows
            self._copy(BATCH, arrays.batch)
            self._run(tier(self.plan.head, len(rows)), sizes | {"wanted": len(rows)})
            found.append(self._logits(len(rows)))
        return np.concatenate(found) if found else np.empty((0, self.plan.vocab), np.float32)

    def _logits(self, rows: int) -> NDArray[np.float32]:
        return self.buffers[LOGITS].view(torch.float32).numpy()[: rows * self.plan.vocab].reshape(rows, -1).copy()

    def _copy(self, buffer: int, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self.buffers[buffer][: len(data)] = torch.from_numpy(data.copy())

    def _run(self, tier: Tier, sizes: Mapping[str, int]) -> None:
        for step in tier.launches:
            spec = self.specs[step.kernel]
            flat = iter(step.arguments)
            arguments = [
                tuple(self._argument(next(flat), each, sizes) for each in kind)
                if isinstance(kind, tuple)
                else self._argument(next(flat), kind, sizes)
                for _, kind in spec.types
                if kind != "constexpr"
            ]
            grid = tuple(extent.value(sizes) for extent in step.grid)
            if all(grid):
                _interpreted(spec.function.fn)[grid](*arguments, **dict(spec.constants))
        assert not self.buffers[self._number("arrived")].any(), f"{step.node} left counts behind"

    def _number(self, name: str) -> int:
        return next(i for i, buffer in enumerate(self.plan.buffers) if buffer.name == name)

    def _argument(self, argument: Argument, kind: str, sizes: Mapping[str, int]) -> Any:
        if argument.size:
            assert kind == "i32"
            return sizes[argument.size]
        data = self.buffers[argument.buffer][argument.offset :]
        dtype = _TYPES[kind]
        return data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype)
