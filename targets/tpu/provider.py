"""The run-time half: the executables that were made ahead of time, given their weights on a TPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aicc.runtime.artifact import WEIGHTS_PATH
from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError, first_line
from aicc.runtime.manifest import decode_json
from aicc.runtime.provider import OPTIMAL, Array, Compatibility, Device, Executable, Fit, LoadOptions
from aicc.runtime.target import find_target
from aicc.targets.portable import Evaluate, GraphExecutable
from aicc.targets.static_decoder import BIAS, StaticDecoder, Step
from aicc.targets.tpu.layout import LAYOUT_FILE, Layout, Program, Stored
from aicc.targets.tpu.machine import settle_jax, tpu_chips

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Variant

_CPU = Device("CPU", "XLA's CPU back end")


class TpuProvider:
    """Runs artifacts of the ``tpu`` family through jax's runtime."""

    def devices(self) -> list[Device]:
        """The TPUs on this machine's bus, and its CPU.

        Raises:
            MismatchError: jax is not installed.
        """
        _version("jaxlib")
        return [*(Device(chip, f"Google {chip}") for chip in tpu_chips()), _CPU]

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether the chip is here, and the very runtime that the executable was made with."""
        device = find_target(variant.target).device
        if device not in {each.name for each in self.devices()}:
            return Compatibility(Fit.UNSUPPORTED, f"this machine has no {device}.")
        for package, made in variant.requires.items():
            if (here := _version(package)) != made:
                return Compatibility(
                    Fit.RECOMPILE,
                    f"its executable was made with {package} {made}, and {here} is installed; install "
                    f"{package}=={made}, or compile again.",
                )
        return OPTIMAL

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Load the executables and put each weight on the device once.

        Raises:
            MismatchError: The runtime does not take an executable, or the device cannot be had.
            ResourceError: The device's memory is too small.
            IntegrityError: The layout does not describe what is there.
        """
        folder, name = variant.directory, find_target(variant.target).device
        path = artifact.file(f"{folder}/{LAYOUT_FILE}")
        layout = decode_json(path.read_bytes(), path, Layout)
        weights = artifact.weights()
        try:
            device = _device(name)
            placed = {stored: _put(weights, stored, device, path) for p in layout.programs for stored in p.weights}
            programs = {
                Step(program.name, program.tokens, program.context): _load(
                    program, artifact.file(f"{folder}/{program.name}.bin"), placed, device
                )
                for program in layout.programs
            }
        except RuntimeError as error:  # jax's errors are of this class
            kind = ResourceError if "RESOURCE_EXHAUSTED" in str(error) else MismatchError
            raise kind(
                f"{artifact.path} cannot be loaded on {name}: {first_line(error)}.",
                "Compile the model again on this machine, or for another target.",
            ) from error
        signatures, described = artifact.manifest.signatures, f"{name} (XLA, jaxlib {_version('jaxlib')})"
        llm = artifact.manifest.llm
        if llm is None:
            return GraphExecutable(*programs.values(), signatures, described)
        biases = {s.name for p in layout.programs for s in p.inputs if s.name.startswith(BIAS)}
        return StaticDecoder(programs, biases, signatures, described, options.kv_tokens or llm.context_length)


def _load(program: Program, path: Path, placed: Mapping[Stored, Any], device: Any) -> Evaluate:
    """The function of named arrays that an executable is."""
    import jax
    from jaxlib import _jax

    executable = device.client.deserialize_executable(path.read_bytes(), executable_devices=_jax.DeviceList((device,)))
    weights = [placed[stored] for stored in program.weights]

    def evaluate(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        for spec in program.inputs:  # the executable itself would read beyond an array that is too small
            if inputs[spec.name].shape != spec.shape or inputs[spec.name].dtype.name != spec.dtype:
                raise ValueError(f"{spec.name} must be {spec.dtype}{list(spec.shape)}")
        with jax.enable_x64(True):
            given = [jax.device_put(inputs[spec.name], device) for spec in program.inputs]
            results = executable.execute([*weights, *given])
        return {name: np.asarray(result) for name, result in zip(program.outputs, results, strict=True)}

    return evaluate


def _put(weights: memoryview, stored: Stored, device: Any, path: Path) -> Any:
    """A weight on the device, read from the mapped file."""
    import jax
    import ml_dtypes  # noqa: F401 - lets numpy know bfloat16 by its name

    dtype = np.dtype(stored.dtype)
    size = dtype.itemsize * int(np.prod(stored.shape, dtype=np.int64))
    if not 0 <= stored.offset <= stored.offset + size <= len(weights):
        raise IntegrityError(f"{path} names bytes outside {WEIGHTS_PATH}.", "Compile the model again.")
    with jax.enable_x64(True):
        return jax.device_put(np.frombuffer(weights[stored.offset :][:size], dtype).reshape(stored.shape), device)


def _device(name: str) -> Any:
    settle_jax()
    import jax

    return jax.devices("cpu" if name == _CPU.name else "tpu")[0]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise MismatchError(f"{package} is not installed.", "pip install 'aicc[tpu]'") from error
