"""The run-time half: context binaries on the HTP, or in its emulator on x86-64."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aicc.runtime.errors import MismatchError, ResourceError, first_line
from aicc.runtime.manifest import decode_json
from aicc.runtime.provider import Array, Compatibility, Device, Executable, Fit, LoadOptions
from aicc.targets.hexagon.session import PACKAGE, PARTITION, STEPS_FILE, installed, open_session
from aicc.targets.portable import Evaluate, GraphExecutable
from aicc.targets.static_decoder import StaticDecoder, Steps

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Variant

_NO_MEMORY = ("MEM_ALLOC", "bad_alloc")  # in what QNN and onnxruntime say where there is none left


class HexagonProvider:
    """Runs context binaries, and on the processor what was left out of them, with onnxruntime and Qualcomm's code."""

    def devices(self) -> list[Device]:
        """The HTP of this machine, or its emulator."""
        return [Device("HTP", _device(installed()))]

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether the libraries are those it was compiled with, and whether there is a chip."""
        made, here = variant.requires.get(PACKAGE, ""), installed()
        if made != here:
            return Compatibility(
                Fit.RECOMPILE, f"it was compiled with {PACKAGE} {made}, and {here} is installed; compile it again."
            )
        if _emulated():
            return Compatibility(Fit.USABLE, "there is no HTP here: Qualcomm's emulator runs it, very slowly.")
        return Compatibility(Fit.OPTIMAL)

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Give each context binary to the chip.

        Raises:
            MismatchError: The chip or its libraries do not take one.
            ResourceError: There is no memory for one.
        """
        manifest, htp = artifact.manifest, variant.requires.get("htp", "")
        device = _device(installed(), htp)
        if variant.options[PARTITION] == "host":
            device += ", and the processor"
        if manifest.llm is None:
            return GraphExecutable(_evaluator(artifact, variant, "model", htp), manifest.signatures, device)
        path = artifact.file(f"{variant.directory}/{STEPS_FILE}")
        layout = decode_json(path.read_bytes(), path, Steps)
        steps = {step: _evaluator(artifact, variant, step.name, htp) for step in layout.steps}
        kv_tokens = options.kv_tokens or manifest.llm.context_length
        return StaticDecoder(steps, layout.biases, manifest.signatures, device, kv_tokens)


def _evaluator(artifact: Artifact, variant: Variant, name: str, htp: str) -> Evaluate:
    path = artifact.file(f"{variant.directory}/{name}.onnx")
    try:
        session = open_session(path, htp, variant.options[PARTITION])
    except Exception as error:  # onnxruntime's classes have no common base of their own
        short = isinstance(error, MemoryError) or any(word in str(error) for word in _NO_MEMORY)
        raise (ResourceError if short else MismatchError)(
            f"the HTP does not take {path}: {first_line(error)}.",
            "Close other programs, if memory is short, or compile the model again for the chip of this machine.",
        ) from error
    names = [output.name for output in session.get_outputs()]

    def evaluate(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return evaluate


def _emulated() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _device(version: str, htp: str = "") -> str:
    name = f"Hexagon HTP{f' v{htp}' if htp else ''}"
    return f"{name} in the x86 emulator of {PACKAGE} {version}" if _emulated() else f"{name} ({PACKAGE} {version})"
