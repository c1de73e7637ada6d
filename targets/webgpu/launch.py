"""A plan on a device: its memory and kernels, made once, and its steps, submitted together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError
from aicc.targets.webgpu.device import describe, failures, lacks, load_wgpu, open_device
from aicc.targets.webgpu.plan import PLAN_FILE, VERSION, Buffer, Kernel, Plan, Step

_AT_ONCE = 1 << 26  # bytes of weights on their way to the device: wgpu has a copy of what is not there yet


class Launcher:
    """Runs a plan.

    Args:
        plan: Is checked here: nothing in a file is trusted.
        adapter: The GPU.
        source: Reads the WGSL of a pipeline by its name.
        weights: The artifact's weights file.
        sizes: The sizes that buffers grow with.

    Raises:
        IntegrityError: The plan names what is not there.
        MismatchError: The GPU lacks something, or does not take a kernel.
        ResourceError: Not enough memory, or the device fails.
    """

    def __init__(
        self,
        plan: Plan,
        adapter: Any,
        source: Callable[[str], str],
        weights: memoryview,
        sizes: Mapping[str, int],
    ) -> None:
        self.name = describe(adapter)
        check(plan, len(weights), sizes)
        if missing := lacks(adapter, plan.features, plan.limits):
            raise MismatchError(f"{self.name} lacks {missing}.", "Compile the model for another target.")
        largest = min(adapter.limits["max-buffer-size"], adapter.limits["max-storage-buffer-binding-size"])
        for buffer in plan.buffers:
            if (size := buffer.bytes.value(sizes)) > largest:
                raise ResourceError(
                    f"{self.name} takes buffers of {largest} bytes, and {buffer.name} needs {size}.",
                    "Give fewer --kv-tokens." if buffer.bytes.of else "Compile the model to fewer bits.",
                )
        self._usage = load_wgpu().BufferUsage
        self._numbers = {buffer.name: number for number, buffer in enumerate(plan.buffers)}
        self._device = open_device(adapter, plan.features)
        try:
            with failures(self.name):
                self._buffers = self._make_buffers(plan.buffers, weights, sizes)
                self._layouts: dict[tuple[bool, ...], Any] = {}
                self._steps = self._make_steps(plan, source)
        except BaseException:
            self.close()
            raise
        self._staging: dict[str, Any] = {}

    def close(self) -> None:
        """Give the device's memory back. Idempotent."""
        device, self._device = self._device, None
        if device is not None:
            device.destroy()

    def write(self, name: str, data: NDArray[Any]) -> None:
        """Put an array, contiguous and of whole words, at the start of a buffer."""
        if data.nbytes:
            with failures(self.name):
                self._device.queue.write_buffer(self._buffers[self._numbers[name]], 0, data)

    def run(self, sizes: Mapping[str, int], results: Mapping[str, int]) -> dict[str, NDArray[np.uint8]]:
        """All steps as one submission.

        Args:
            sizes: Those of this run, by name.
            results: Buffers to read afterwards, and how many bytes of each, a multiple of 4.

        Raises:
            ResourceError: The device fails.
        """
        with failures(self.name):
            encoder = self._device.create_command_encoder()
            work = encoder.begin_compute_pass()
            for size, kernels in self._steps:
                kernel, pipeline, group = _chosen(kernels, sizes[size] if size else 0)
                groups = [extent.value(sizes) for extent in kernel.groups]
                if all(groups):
                    work.set_pipeline(pipeline)
                    work.set_bind_group(0, group)
                    work.dispatch_workgroups(*groups)
            work.end()
            read = {name: self._staged(encoder, name, size) for name, size in results.items() if size}
            self._device.queue.submit([encoder.finish()])
            found = {name: self._bytes(buffer, results[name]) for name, buffer in read.items()}
        return {name: found.get(name, np.empty(0, np.uint8)) for name in results}

    def _staged(self, encoder: Any, name: str, size: int) -> Any:
        """A buffer the host can read, with the copy into it in the queue."""
        staging = self._staging.get(name)
        if staging is None or staging.size < size:
            usage = self._usage.COPY_DST | self._usage.MAP_READ
            staging = self._staging[name] = self._device.create_buffer(size=size, usage=usage)
        encoder.copy_buffer_to_buffer(self._buffers[self._numbers[name]], 0, staging, 0, size)
        return staging

    def _bytes(self, staging: Any, size: int) -> NDArray[np.uint8]:
        staging.map_sync("READ_NOSYNC", 0, size)
        try:
            return np.frombuffer(staging.read_mapped(0, size), np.uint8)
        finally:
            staging.unmap()

    def _make_buffers(self, buffers: Sequence[Buffer], weights: memoryview, sizes: Mapping[str, int]) -> list[Any]:
        usage = self._usage.STORAGE | self._usage.COPY_DST | self._usage.COPY_SRC
        made, waiting = [], 0
        for buffer in buffers:
            size = buffer.bytes.value(sizes)
            there = self._device.create_buffer(label=buffer.name, size=max(4, size), usage=usage)  # none may be empty
            made.append(there)
            for begin in range(0, size if buffer.constant >= 0 else 0, _AT_ONCE):
                piece = weights[buffer.constant + begin : buffer.constant + min(size, begin + _AT_ONCE)]
                self._device.queue.write_buffer(there, begin, piece)
                waiting += len(piece)
                if waiting >= _AT_ONCE:
                    self._device.queue.read_buffer(there, 0, 4)  # waits; wgpu 0.32 cannot be told to
                    waiting = 0
        return made

    def _make_steps(self, plan: Plan, source: Callable[[str], str]) -> list[tuple[str, list[Any]]]:
        pipelines = [self._pipeline(p.writes, p.name, source(p.name)) for p in plan.pipelines]
        groups: dict[tuple[Any, ...], Any] = {}

        def bound(step: Step, kernel: Kernel) -> tuple[Kernel, Any, Any]:
            writes = plan.pipelines[kernel.pipeline].writes
            if (writes, step.buffers) not in groups:
                entries = [{"binding": i, "resource": {"buffer": self._buffers[n]}} for i, n in enumerate(step.buffers)]
                layout = self._layouts[writes]
                groups[writes, step.buffers] = self._device.create_bind_group(layout=layout, entries=entries)
            return kernel, pipelines[kernel.pipeline], groups[writes, step.buffers]

        return [(step.size, [bound(step, kernel) for kernel in step.kernels]) for step in plan.steps]

    def _pipeline(self, writes: tuple[bool, ...], name: str, code: str) -> Any:
        if writes not in self._layouts:
            kinds = ["storage" if written else "read-only-storage" for written in writes]
            entries = [{"binding": i, "visibility": 4, "buffer": {"type": kind}} for i, kind in enumerate(kinds)]
            self._layouts[writes] = self._device.create_bind_group_layout(entries=entries)
        layout = self._device.create_pipeline_layout(bind_group_layouts=[self._layouts[writes]])
        module = self._device.create_shader_module(label=name, code=code)
        return self._device.create_compute_pipeline(layout=layout, compute={"module": module, "entry_point": "main"})


def _chosen(kernels: list[Any], size: int) -> Any:
    """The first kernel for a size, with its pipeline and bind group."""
    return next((k for k in kernels if size <= k[0].most), kernels[-1])


def check(plan: Plan, weights: int, sizes: Mapping[str, int]) -> None:
    """Raise if a plan contradicts itself or what lies beside it.

    Args:
        plan: As it was read.
        weights: Bytes of the weights file.
        sizes: The sizes that buffers may grow with.
    """
    if plan.version != VERSION:
        raise MismatchError(
            f"its {PLAN_FILE} has version {plan.version}, and this aicc reads {VERSION}.", "Compile the model again."
        )
    problem = ""
    for buffer in plan.buffers:
        if buffer.bytes.of not in ("", *sizes):
            problem = f"buffer {buffer.name} grows with {buffer.bytes.of!r}"
        elif buffer.constant >= 0 and (buffer.bytes.of or buffer.constant + buffer.bytes.times > weights):
            problem = f"buffer {buffer.name} is not inside the weights file"
    for step in plan.steps:
        if not step.kernels or any(n >= len(plan.buffers) for n in step.buffers):
            problem = f"the step of node {step.node} has no kernel, or a buffer that is not there"
        for kernel in step.kernels:
            if kernel.pipeline >= len(plan.pipelines):
                problem = f"the step of node {step.node} has a kernel that is not there"
            elif len(plan.pipelines[kernel.pipeline].writes) != len(step.buffers):
                problem = f"the step of node {step.node} binds another number of buffers than its kernel has"
    if problem:
        raise IntegrityError(f"{PLAN_FILE} is damaged: {problem}.", "Compile the model again.")
