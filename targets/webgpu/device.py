"""The machine's GPUs through the package wgpu: found, opened, and what their failures are for people."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from aicc.runtime.errors import MismatchError, ResourceError, first_line

_BACKENDS = ("Vulkan", "Metal", "DX12")  # OpenGL lacks what kernels need
# Where none of these is set, Mesa's choice of the GPU that a screen is on has none, and says so as errors on stderr.
_SCREEN = {"DISPLAY", "WAYLAND_DISPLAY", "MESA_VK_DEVICE_SELECT"}
# Best first; what wgpu calls each, and what a person does.
_KINDS = {"DiscreteGPU": "", "IntegratedGPU": ", integrated", "VirtualGPU": ", virtual", "CPU": ", in software"}
_FEWER = "Give fewer --kv-tokens, or compile for smaller inputs or to fewer bits."
_REMEDY = f"Try again; if it goes on: {_FEWER[0].lower()}{_FEWER[1:]}"


def load_wgpu() -> Any:
    """The package.

    Raises:
        MismatchError: It is not installed, or its library does not load.
    """
    try:
        import wgpu
        import wgpu.backends.wgpu_native
    except ImportError as error:
        raise MismatchError("wgpu is not installed.", "pip install 'aicc[webgpu]'") from error
    except (OSError, RuntimeError) as error:
        raise MismatchError(f"wgpu cannot be loaded: {error}.", "pip install --force-reinstall wgpu") from error
    return wgpu


@cache
def adapters() -> tuple[Any, ...]:
    """The GPUs there are, the best first; those that the processor simulates come last.

    Raises:
        MismatchError: wgpu is not installed.
    """
    if not _SCREEN & os.environ.keys():
        os.environ.setdefault("NODEVICE_SELECT", "1")
    wgpu = load_wgpu()
    from wgpu.backends.wgpu_native.extras import set_instance_extras

    with suppress(RuntimeError):  # where this process uses wgpu for something else too, it has decided already
        set_instance_extras(backends=_BACKENDS)
    found = [a for a in wgpu.gpu.enumerate_adapters_sync() if a.info["backend_type"] != "OpenGL"]
    kinds = list(_KINDS)
    ranks = [kinds.index(a.info["adapter_type"]) if a.info["adapter_type"] in kinds else len(kinds) for a in found]
    return tuple(adapter for _, adapter in sorted(zip(ranks, found, strict=True), key=lambda pair: pair[0]))


def describe(adapter: Any) -> str:
    """What a GPU is, for people."""
    info = adapter.info
    return f"{info['device']} ({info['backend_type']}{_KINDS.get(info['adapter_type'], '')})"


def is_simulated(adapter: Any) -> bool:
    """Whether the processor does a GPU's work."""
    return bool(adapter.info["adapter_type"] == "CPU")


def lacks(adapter: Any, features: tuple[str, ...], limits: dict[str, int]) -> str:
    """What a GPU lacks of what a plan needs, as a person reads it; empty if nothing."""
    missing = [f"the feature {name}" for name in features if name not in adapter.features]
    missing += [
        f"{name} of {least} (it has {adapter.limits.get(name, 0)})"
        for name, least in limits.items()
        if adapter.limits.get(name, 0) < least
    ]
    return ", ".join(missing)


def open_device(adapter: Any, features: tuple[str, ...]) -> Any:
    """A device of a GPU, with all its limits and some features.

    Raises:
        ResourceError: The driver refuses.
    """
    with failures(describe(adapter)):
        return adapter.request_device_sync(required_features=list(features))


@contextmanager
def failures(name: str) -> Iterator[None]:
    """Say in our errors what wgpu says in its own: out of memory, device lost, or a kernel it does not take.

    wgpu-native calls all three validation errors; which it is stands below the first line of their texts.
    """
    from wgpu import GPUError, GPUOutOfMemoryError, GPUValidationError

    try:
        yield
    except MemoryError as error:
        raise ResourceError("there is no memory left for what goes to the GPU or comes from it.", _FEWER) from error
    except (GPUError, RuntimeError) as error:
        said = str(error).lower()
        if isinstance(error, GPUOutOfMemoryError) or "memory left" in said or "out of memory" in said:
            raise ResourceError(f"{name} has no memory left.", _FEWER) from error
        if "lost" in said:
            raise ResourceError(f"{name} was lost.", _REMEDY) from error
        if isinstance(error, GPUValidationError):
            raise MismatchError(
                f"{name} does not take what was compiled: {first_line(error)}.", "Compile the model again."
            ) from error
        raise ResourceError(f"{name} failed: {first_line(error)}.", _REMEDY) from error
