"""The runtime half: the TOSA program through Arm's reference model, which defines what its operators compute.

No Ethos-U is executed here: the compiled command stream is for the chip's own driver.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aicc.runtime.errors import IntegrityError, MismatchError
from aicc.runtime.manifest import decode_json
from aicc.runtime.provider import Array, Compatibility, Device, Executable, Fit, LoadOptions
from aicc.targets.ethos_u.layout import INSTALL, PORTS_FILE, PROGRAM_FILE, Port, Ports

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Signature, Variant

_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class EthosUProvider:
    """Runs the program of an ``ethos-u`` artifact as the TOSA specification says."""

    def devices(self) -> list[Device]:
        """The reference model, which is no Ethos-U."""
        return [Device("TOSA", _description())]

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether the reference model is here; it says that no chip is."""
        made, here = variant.requires.get("tosa-tools", ""), _version()
        if _number(here) < _number(made):
            return Compatibility(
                Fit.RECOMPILE,
                f"it was made with tosa-tools {made} and {here} is here; upgrade it, or compile again.",
            )
        return Compatibility(Fit.USABLE, f"it runs on the {_description()}; times say nothing of the chip.")

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Read the program; it has its weights in it.

        Raises:
            IntegrityError: The artifact does not say how its inputs and outputs are quantised.
        """
        path = artifact.file(f"{variant.directory}/{PORTS_FILE}")
        ports = decode_json(path.read_bytes(), path, Ports)
        signature = artifact.manifest.signatures["default"]
        for specs, named in ((signature.inputs, ports.inputs), (signature.outputs, ports.outputs)):
            if [spec.name for spec in specs] != [port.name for port in named] or any(p.scale <= 0 for p in named):
                raise IntegrityError(f"{path} does not describe the model's signature.", "Compile the model again.")
        return Emulated(artifact.file(f"{variant.directory}/{PROGRAM_FILE}"), ports, artifact.manifest.signatures)


class Emulated:
    """A program ready to run.

    Args:
        program: The file of a TOSA flatbuffer.
        ports: How its inputs and outputs are quantised.
        signatures: The model's.
    """

    def __init__(self, program: Path, ports: Ports, signatures: Mapping[str, Signature]) -> None:
        self._program, self._ports = program, ports
        self.signatures = signatures
        self.device = _description()

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Quantise, run, dequantise."""
        integers = self.run_integers([_quantise(inputs[port.name], port) for port in self._ports.inputs])
        specs = self.signatures[signature].outputs
        return {
            spec.name: _dequantise(values, port)
            for spec, port, values in zip(specs, self._ports.outputs, integers, strict=True)
        }

    def run_integers(self, inputs: list[Array]) -> list[Array]:
        """Run the program itself.

        Args:
            inputs: int8, in the program's order and layout: channels last.

        Raises:
            IntegrityError: The reference model does not run the program.
        """
        with tempfile.TemporaryDirectory(prefix="aicc-tosa-") as folder:
            given, made = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
            np.savez(given, *inputs)
            command = [sys.executable, "-P", "-m", "aicc.targets.ethos_u.emulate", self._program, given, made]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
                raise IntegrityError(
                    f"the TOSA reference model cannot run {self._program}: {reason}.", "Compile the model again."
                )
            with np.load(made) as arrays:
                return [arrays[name] for name in arrays.files]

    def close(self) -> None:
        """Nothing is held."""


def _quantise(values: Array, port: Port) -> Array:
    """As ONNX's QuantizeLinear, channels last."""
    steps = np.rint(values.astype(np.float32, copy=False) / np.float32(port.scale)) + port.zero_point
    integers = np.clip(steps, -128, 127).astype(np.int8)
    return np.ascontiguousarray(integers.transpose(_LAST) if integers.ndim == 4 else integers)


def _dequantise(integers: Array, port: Port) -> Array:
    values = (integers.astype(np.float32) - np.float32(port.zero_point)) * np.float32(port.scale)
    return np.ascontiguousarray(values.transpose(_FIRST) if values.ndim == 4 else values)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _description() -> str:
    return f"TOSA reference model {_version()} (no Ethos-U)"


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("tosa-tools")
    except metadata.PackageNotFoundError as error:
        raise MismatchError("tosa-tools is not installed.", INSTALL) from error
