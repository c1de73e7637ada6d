"""What a loaded plan is to the runtime: a model of tensors with fixed sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import Signature
from aicc.runtime.errors import UsageError
from aicc.runtime.provider import Array
from aicc.targets.webgpu.launch import Launcher
from aicc.targets.webgpu.plan import Plan

_MOST = 2**31 - 1  # either way, so that the device may change a sign


class WebGpuTensors:
    """A plan on a device, until it is closed."""

    def __init__(self, launcher: Launcher, plan: Plan, signatures: Mapping[str, Signature]) -> None:
        self._launcher: Launcher | None = launcher
        self._plan, self._signatures, self._device = plan, signatures, launcher.name

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The manifest's."""
        return self._signatures

    @property
    def device(self) -> str:
        """The GPU, and through what it is driven."""
        return self._device

    def close(self) -> None:
        """Give the device's memory back. Idempotent."""
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            launcher.close()

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            UsageError: An integer is too large for the device.
            ResourceError: The device fails.
        """
        launcher, specs = self._opened(), {tensor.buffer: tensor.spec for tensor in self._plan.outputs}
        for tensor in self._plan.inputs:
            launcher.write(tensor.buffer, _words(tensor.spec.name, inputs[tensor.spec.name]))
        shapes = {name: tuple(d for d in spec.shape if isinstance(d, int)) for name, spec in specs.items()}
        found = launcher.run({}, {name: 4 * math.prod(shape) for name, shape in shapes.items()})
        with np.errstate(over="ignore"):  # float16 has an infinity for it
            return {
                spec.name: found[name].view(_word(np.dtype(spec.dtype))).reshape(shapes[name]).astype(spec.dtype)
                for name, spec in specs.items()
            }

    def _opened(self) -> Launcher:
        if self._launcher is None:
            raise UsageError("the model was closed.", "Load it again.")
        return self._launcher


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
