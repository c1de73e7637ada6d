"""What a loaded plan is to the runtime; batched.py has decoders and encoders of any number of tokens."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import Signature
from aicc.runtime.errors import IntegrityError, UsageError
from aicc.runtime.provider import Array
from aicc.targets.webgpu.launch import Launcher
from aicc.targets.webgpu.plan import BATCH, CHOSEN, LOGITS, PAGE_LIST, PLAN_FILE, RUN_SIZES, Plan, output_buffer

_MOST_GROUPS = 2**32 - 1
_MOST = 2**31 - 1  # either way, so that the device may change a sign


class Loaded:
    """A plan on a device, until it is closed.

    Args:
        launch: Puts the plan on the device: now, and again after a run that failed. What a run left in memory for
            the next, such as keys and values, is gone then.
        plan: The plan.
        signatures: The manifest's.

    Raises:
        IntegrityError: The plan names what the host does not have, or lacks what it writes and reads.
        AiccError: What :class:`Launcher` raises.
    """

    def __init__(self, launch: Callable[[], Launcher], plan: Plan, signatures: Mapping[str, Signature]) -> None:
        if problem := _problem(plan, signatures):
            raise IntegrityError(f"{PLAN_FILE} is damaged: {problem}.", "Compile the model again.")
        self._launch = launch
        # One thread at a time: memory is shared by all runs, and wgpu ends the process where a thread destroys a device
        # that another submits to.
        self._lock = threading.RLock()
        self._launcher: Launcher | None = launch()
        self._closed = False
        self._plan, self._signatures, self._device = plan, signatures, self._launcher.name

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The manifest's."""
        return self._signatures

    @property
    def device(self) -> str:
        """The GPU, and through what it is driven."""
        return self._device

    def close(self) -> None:
        """Give the device's memory back, after a run that another thread is in. Idempotent."""
        with self._lock:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            launcher.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the model was closed.", "Load it again.")

    def _submit(
        self, written: Mapping[str, NDArray[Any]], sizes: Mapping[str, int], results: Mapping[str, int]
    ) -> dict[str, NDArray[np.uint8]]:
        """Write buffers and run all steps; sizes and results as :meth:`Launcher.run` takes them.

        Raises:
            ResourceError: The device fails; the next run begins with a new one.
        """
        with self._lock:
            self._check_open()
            if self._launcher is None:
                self._launcher = self._launch()
            try:
                for name, data in written.items():
                    self._launcher.write(name, data)
                return self._launcher.run(sizes, results)
            except BaseException:  # whatever ended it may have left a buffer mapped, or the device lost
                self._let_go()
                raise


def _problem(plan: Plan, signatures: Mapping[str, Signature]) -> str:
    """What is wrong with the names by which the host writes, runs and reads a plan; empty if nothing."""
    rows = plan.rows
    extents = [extent for step in plan.steps for kernel in step.kernels for extent in kernel.groups]
    sizes = {step.size for step in plan.steps} | {extent.of for extent in extents}
    most = dict.fromkeys(RUN_SIZES, rows.tokens) if rows else {}
    inputs = rows.inputs if rows else [tensor.spec.name for tensor in plan.inputs]
    names = {tensor.buffer for tensor in (*plan.inputs, *plan.outputs)}
    if rows:
        found = [LOGITS, CHOSEN] if rows.vocab else [output_buffer(n) for n in range(len(rows.outputs))]
        names = {BATCH, PAGE_LIST, *found}
    if not sizes <= {"", *most}:
        return "a step grows with a size that is not there"
    if any(extent.value(most) > _MOST_GROUPS for extent in extents):
        return "a step is larger than any GPU takes"
    if missing := names - {buffer.name for buffer in plan.buffers}:
        return f"it has no buffer {min(missing)}"
    if any(not {*inputs} <= {spec.name for spec in signature.inputs} for signature in signatures.values()):
        return "it takes inputs that the model has not"
    if rows and (len(rows.limits) != len(inputs) or not -1 <= rows.mask < max(1, len(inputs))):
        return "what it says of its inputs is not of all of them"
    return ""


class WebGpuTensors(Loaded):
    """A model of tensors whose sizes are all fixed."""

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            UsageError: An integer is too large for the device.
            ResourceError: The device fails.
        """
        specs = {tensor.buffer: tensor.spec for tensor in self._plan.outputs}
        words = {tensor.buffer: _words(tensor.spec.name, inputs[tensor.spec.name]) for tensor in self._plan.inputs}
        shapes = {name: tuple(d for d in spec.shape if isinstance(d, int)) for name, spec in specs.items()}
        found = self._submit(words, {}, {name: 4 * math.prod(shape) for name, shape in shapes.items()})
        with np.errstate(over="ignore"):  # float16 has an infinity for it
            return {
                spec.name: found[name].view(_word(np.dtype(spec.dtype))).reshape(shapes[name]).astype(spec.dtype)
                for name, spec in specs.items()
            }


def _word(dtype: np.dtype[Any]) -> type[np.float32 | np.int32 | np.uint32]:
    """What an element is on the device."""
    return np.float32 if dtype.kind == "f" else np.uint32 if dtype in (np.bool_, np.uint32) else np.int32


def _words(name: str, array: Array) -> NDArray[Any]:
    """An input as the device has it.

    Raises:
        UsageError: An integer does not fit 32 bits.
    """
    if array.dtype == np.int64 and array.size and (array.max() > _MOST or array.min() < -_MOST):
        raise UsageError(f"{name} has an integer of more than 32 bits, which GPUs do not compute with.")
    return np.ascontiguousarray(array, _word(array.dtype))
