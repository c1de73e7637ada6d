"""Kernels and tensors as a launch plan: equal kernels once, and memory that tensors have one after another."""

from __future__ import annotations

import numpy as np

from aicc.compiler.lowering import WeightStore
from aicc.compiler.weights import tensor_bytes
from aicc.runtime.artifact import TensorSpec
from aicc.targets.launch_plan import ONE, Extent
from aicc.targets.webgpu import plan
from aicc.targets.webgpu.lowering.tensors.graph import Kernels, Port
from aicc.targets.webgpu.lowering.tensors.values import Buffer

_BINDING, _DEFAULT = "max-storage-buffer-binding-size", 1 << 27  # bytes of a buffer that every device binds


def assemble(kernels: Kernels, weights: WeightStore) -> tuple[plan.Plan, dict[str, str]]:
    """The plan of a graph, and WGSL by the names of its pipelines.

    Args:
        kernels: Of the graph.
        weights: Gets the constants.
    """
    numbers: dict[Buffer, int] = {}
    made: list[plan.Buffer] = []

    def add(size: int, *buffers: Buffer, constant: int = -1) -> None:
        numbers.update(dict.fromkeys(buffers, len(made)))
        made.append(plan.Buffer(f"buffer{len(made)}", Extent(size), constant))

    ports = [port.buffer for port in (*kernels.inputs, *kernels.outputs)]
    for buffer in ports:
        add(buffer.size, buffer)
    bound = dict.fromkeys(buffer for dispatch in kernels.dispatches for buffer in dispatch.buffers)
    for buffer in bound:
        if buffer.constant is not None:
            add(buffer.size, buffer, constant=weights.add(_bytes(buffer)))
    between = [buffer for buffer in bound if buffer not in numbers]
    for size, sharing in _shared(kernels, between):
        add(size, *sharing)
    sources: dict[str, str] = {}
    pipelines: dict[tuple[str, int], int] = {}
    steps = []
    for dispatch in kernels.dispatches:
        key = (dispatch.wgsl, len(dispatch.buffers))
        if key not in pipelines:
            pipelines[key] = len(pipelines)
            sources[f"kernel{len(sources)}"] = dispatch.wgsl
        groups = (Extent(dispatch.groups[0]), Extent(dispatch.groups[1]), ONE)
        bindings = tuple(numbers[buffer] for buffer in dispatch.buffers)
        steps.append(plan.Step(dispatch.label, bindings, (plan.Kernel(pipelines[key], groups),)))
    largest = max((buffer.bytes.times for buffer in made), default=0)
    written = plan.Plan(
        version=plan.VERSION,
        limits={_BINDING: largest} if largest > _DEFAULT else {},
        features=(),
        buffers=tuple(made),
        pipelines=tuple(
            plan.Pipeline(name, (*[False] * (count - 1), True))
            for name, (_, count) in zip(sources, pipelines, strict=True)
        ),
        steps=tuple(steps),
        inputs=tuple(_tensor(port, made[numbers[port.buffer]].name) for port in kernels.inputs),
        outputs=tuple(_tensor(port, made[numbers[port.buffer]].name) for port in kernels.outputs),
    )
    return written, sources


def _shared(kernels: Kernels, buffers: list[Buffer]) -> list[tuple[int, list[Buffer]]]:
    """Which buffers can be the same memory, since they are never needed at the same time, and its bytes.

    They are not parts of one large buffer, since WebGPU keeps a kernel from writing to one that it reads.
    """
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for number, dispatch in enumerate(kernels.dispatches):
        for buffer in dispatch.buffers:
            first.setdefault(buffer, number)
            last[buffer] = number
    memories: list[tuple[int, list[Buffer]]] = []
    for buffer in buffers:
        free = [m for m, (_, sharing) in enumerate(memories) if last[sharing[-1]] < first[buffer]]
        fitting = [m for m in free if memories[m][0] >= buffer.size]
        if not free:
            memories.append((buffer.size, [buffer]))
            continue
        taken = min(fitting, key=lambda m: memories[m][0]) if fitting else max(free, key=lambda m: memories[m][0])
        size, sharing = memories[taken]
        memories[taken] = (max(size, buffer.size), [*sharing, buffer])
    return memories


def _bytes(buffer: Buffer) -> bytes | memoryview:
    """A constant as whole words."""
    constant = buffer.constant
    if isinstance(constant, np.ndarray):
        words = constant.astype(np.int32) if constant.dtype == np.int64 else constant
        data = memoryview(words.tobytes())
    else:
        data = tensor_bytes(constant)
    return bytes(data) + bytes(buffer.size - len(data)) if len(data) < buffer.size else data


def _tensor(port: Port, buffer: str) -> plan.Tensor:
    return plan.Tensor(TensorSpec(port.name, port.dtype.numpy().name, port.shape), buffer)
