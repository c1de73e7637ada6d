"""Launch plans on a GPU, which here is one that Mesa simulates: what runs, and what is said of what cannot."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError
from aicc.targets.launch_plan import ONE, Extent
from aicc.targets.webgpu import launch
from aicc.targets.webgpu.device import adapters
from aicc.targets.webgpu.launch import Launcher
from aicc.targets.webgpu.plan import Buffer, Kernel, Pipeline, Plan, Step

if not adapters():
    pytest.skip(
        "There is no Vulkan driver here; `make vulkan` fetches one that needs no card.",
        allow_module_level=True,
    )

_SCALE = """
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> factor: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    if (id.x < arrayLength(&x)) { y[id.x] = factor[0] * x[id.x]; }
}
"""
_WEIGHTS = np.array([0.0, 3.0, -1.0, 0.0], np.float32)
_BUFFERS = (
    Buffer("x", Extent(400)),
    Buffer("between", Extent(400)),
    Buffer("y", Extent(400)),
    Buffer("three", Extent(4), constant=4),
    Buffer("minus one", Extent(4), constant=8),
    Buffer("grown", Extent(64, "pages")),
)
_GROUPS = (Extent(1, "rows", 64), ONE, ONE)
_PLAN = Plan(
    version=2,
    limits={"max-compute-invocations-per-workgroup": 64},
    features=(),
    buffers=_BUFFERS,
    pipelines=(Pipeline("scale", (False, False, True)),),
    steps=(
        Step("triple", (0, 3, 1), (Kernel(0, _GROUPS),)),
        Step("negate", (1, 4, 2), (Kernel(0, _GROUPS, most=10), Kernel(0, (Extent(2), ONE, ONE))), "rows"),
    ),
)


def _launch(plan: Plan = _PLAN, pages: int = 2) -> Launcher:
    weights = memoryview(_WEIGHTS).cast("B")
    return Launcher(plan, adapters()[0], lambda name: {"scale": _SCALE}[name], weights, {"pages": pages})


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    made = _launch()
    yield made
    made.close()


@pytest.mark.parametrize("rows", [1, 64, 65, 100])
def test_steps_run_in_order_with_as_many_groups_as_the_sizes_ask_for(launcher: Launcher, rows: int) -> None:
    x = np.random.default_rng(rows).standard_normal(100).astype(np.float32)
    launcher.write("between", np.zeros(100, np.float32))
    launcher.write("x", x)
    found = launcher.run({"rows": rows}, {"y": 400})["y"].view(np.float32)
    computed = -(-rows // 64) * 64
    assert np.array_equal(found[:computed], np.float32(-1) * (np.float32(3) * x[:computed]))
    assert not found[computed:].any()


def test_nothing_runs_for_no_rows_and_nothing_is_read_for_no_bytes(launcher: Launcher) -> None:
    launcher.write("x", np.ones(100, np.float32))
    launcher.write("between", np.full(100, 7, np.float32))
    found = launcher.run({"rows": 0}, {"between": 400, "y": 0})
    assert (found["between"].view(np.float32) == 7).all()
    assert not len(found["y"])


def test_weights_that_do_not_fit_at_once_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_AT_ONCE", 8)
    weights = np.arange(16, dtype=np.float32)
    plan = _changed(buffers=(*_BUFFERS[:3], Buffer("three", Extent(64), constant=0), *_BUFFERS[4:]))
    launcher = Launcher(plan, adapters()[0], lambda name: _SCALE, memoryview(weights).cast("B"), {"pages": 1})
    assert np.array_equal(launcher.run({"rows": 0}, {"three": 64})["three"].view(np.float32), weights)
    launcher.close()


def _changed(**changes: Any) -> Plan:
    return msgspec.structs.replace(_PLAN, **changes)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (_changed(buffers=(*_BUFFERS[:3], Buffer("three", Extent(4), constant=16), *_BUFFERS[4:])), "three is not"),
        (_changed(buffers=(*_BUFFERS[:5], Buffer("grown", Extent(64, "moons")))), "grows with 'moons'"),
        (_changed(steps=(Step("triple", (0, 3, 9), (Kernel(0, _GROUPS),)),)), "node triple has no kernel, or a buffer"),
        (_changed(steps=(Step("triple", (0, 3, 1), (Kernel(4, _GROUPS),)),)), "node triple has a kernel that is not"),
        (_changed(steps=(Step("triple", (0, 3), (Kernel(0, _GROUPS),)),)), "node triple binds another number"),
        (_changed(steps=(Step("triple", (0, 3, 1), ()),)), "node triple has no kernel"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(plan: Plan, said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        _launch(plan)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (_changed(version=1), "version 1"),
        (_changed(features=("time-travel",)), "lacks the feature time-travel"),
        (_changed(limits={"max-buffer-size": 1 << 60}), f"lacks max-buffer-size of {1 << 60} \\(it has"),
    ],
)
def test_a_plan_for_another_gpu_is_refused_with_what_is_lacking(plan: Plan, said: str) -> None:
    with pytest.raises(MismatchError, match=said):
        _launch(plan)


def test_a_kernel_that_the_driver_does_not_take_is_no_crash() -> None:
    with pytest.raises(MismatchError, match="does not take what was compiled"):
        Launcher(_PLAN, adapters()[0], lambda name: "fn main(", memoryview(_WEIGHTS).cast("B"), {"pages": 1})


def test_more_memory_than_a_buffer_may_have_is_refused() -> None:
    with pytest.raises(ResourceError, match="grown needs"):
        _launch(pages=1 << 40)


def test_a_device_that_is_lost_is_said_to_be_and_nothing_hangs() -> None:
    launcher = _launch()
    launcher._device.destroy()
    for _ in range(2):
        with pytest.raises(ResourceError, match="was lost"):
            launcher.write("x", np.ones(100, np.float32))
        with pytest.raises(ResourceError, match="was lost"):
            launcher.run({"rows": 1}, {"y": 400})
    launcher.close()
    launcher.close()


def test_memory_that_runs_out_in_a_run_is_an_error_and_the_next_run_is_right() -> None:
    """In a process of its own, whose address space is limited meanwhile."""
    program = Path(__file__).with_name("webgpu_out_of_memory.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(said) == {"results on the device", "results on the host", "a new device", "inputs"}
    for where, text in said.items():
        assert "no memory left" in text, where
        assert "Give fewer --kv-tokens" in text, where
        assert text.endswith("Then: right."), where


def test_a_machine_without_a_screen_is_no_error() -> None:
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "NODEVICE_SELECT")
    bare = {name: value for name, value in os.environ.items() if name not in screens}
    code = "from aicc.targets.webgpu.device import adapters; assert adapters()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""


def test_the_unpacked_driver_is_used_where_the_system_has_none() -> None:
    tests = Path(__file__).parents[1]
    if not any((tests.parent / "build" / "vulkan").glob("usr/lib/*/libvulkan_lvp.so")):
        pytest.skip("`make vulkan` has unpacked no driver: the system has one.")
    code = (
        "import vulkan; assert vulkan.use_driver(system=())\n"
        "from aicc.targets.webgpu.device import adapters, describe\n"
        "print(describe(adapters()[0]), [line.split()[-1] for line in open('/proc/self/maps') if 'vulkan' in line])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "in software" in done.stdout
    assert "build/vulkan" in done.stdout
