"""A process whose memory runs out in runs on a simulated GPU: prints what is said, and if the next run is right."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from aicc.runtime.artifact import TensorSpec
from aicc.runtime.errors import ResourceError
from aicc.targets.launch_plan import ONE, Extent
from aicc.targets.webgpu.device import adapters
from aicc.targets.webgpu.executables import WebGpuTensors
from aicc.targets.webgpu.launch import Launcher
from aicc.targets.webgpu.plan import Buffer, Kernel, Pipeline, Plan, Step, Tensor

_MANY, _FEW = 1 << 24, 64  # elements
_MARGIN = 24 << 20  # bytes that are left: fewer than many elements take
_DOUBLE = """
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) { y[id.x] = 2 * x[id.x]; }
"""


@contextmanager
def memory_runs_out() -> Iterator[None]:
    """No more address space than there is, and a little."""
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MARGIN, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


def _model(given: int, made: int) -> tuple[WebGpuTensors, Callable[[], str]]:
    """One that doubles its first elements, and a run of it: what it says, or whether it is right."""
    tensors = [Tensor(TensorSpec(name, "float32", (size,)), name) for name, size in (("x", given), ("y", made))]
    plan = Plan(
        version=2, limits={}, features=(), buffers=(Buffer("x", Extent(4 * given)), Buffer("y", Extent(4 * made))),
        pipelines=(Pipeline("double", (False, True)),),
        steps=(Step("double", (0, 1), (Kernel(0, (ONE, ONE, ONE)),)),), inputs=(tensors[0],), outputs=(tensors[1],),
    )  # fmt: skip
    launch = partial(Launcher, plan, adapters()[0], lambda name: _DOUBLE, memoryview(b""), {})
    model, x = WebGpuTensors(launch, plan, {}), np.arange(given, dtype=np.float32)

    def run() -> str:
        try:
            y = model.run("default", {"x": x})["y"]
        except ResourceError as error:
            return str(error)
        return "right" if np.array_equal(y[:_FEW], 2 * x[:_FEW]) else "wrong"

    return model, run


def _tell(where: str, run: Callable[[], str]) -> None:
    with memory_runs_out():
        said = run()
    print(f"{where}: {said} Then: {run()}.")


def main() -> None:
    """Each place where memory can run out, and a run with enough of it afterwards."""
    model, run = _model(_FEW, _MANY)
    _tell("results on the device", run)
    _tell("results on the host", run)
    model._launcher._device.destroy()
    run()
    _tell("a new device", run)
    model.close()
    _, run = _model(_MANY, _FEW)
    _tell("inputs", run)


if __name__ == "__main__":
    main()
