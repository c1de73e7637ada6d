"""The runtime half: a launch plan and its kernels on the best GPU of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aicc.runtime.errors import IntegrityError, MismatchError
from aicc.runtime.manifest import decode_json
from aicc.runtime.provider import OPTIMAL, Compatibility, Device, Executable, Fit, LoadOptions
from aicc.targets.webgpu.batched import WebGpuDecoder, WebGpuEncoder
from aicc.targets.webgpu.device import adapters, describe, is_simulated, lacks
from aicc.targets.webgpu.executables import WebGpuTensors
from aicc.targets.webgpu.launch import Launcher
from aicc.targets.webgpu.plan import PLAN_FILE, Plan

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Variant

_NO_GPU = "this machine has no GPU with a driver for Vulkan, Metal or Direct3D 12"
_DRIVER = "Install the vendor's driver; Debian's mesa-vulkan-drivers has one that runs on the processor, slowly."


class WebGpuProvider:
    """Runs artifacts of the ``webgpu`` family."""

    def devices(self) -> list[Device]:
        """The GPUs there are, the best first.

        Raises:
            MismatchError: wgpu is not installed.
        """
        found = [describe(adapter) for adapter in adapters()]
        return [Device("GPU" if len(found) == 1 else f"GPU.{n}", text) for n, text in enumerate(found)]

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether the best GPU has the features and reaches the limits that the kernels were made for."""
        if not adapters():
            return Compatibility(Fit.UNSUPPORTED, f"{_NO_GPU}. {_DRIVER}")
        limits = {name: int(least) for name, least in variant.requires.items() if least.isdecimal()}
        features = tuple(variant.requires.get("features", "").split())
        if missing := lacks(adapters()[0], features, limits):
            return Compatibility(Fit.UNSUPPORTED, f"{describe(adapters()[0])} lacks {missing}.")
        if is_simulated(adapters()[0]):
            return Compatibility(Fit.USABLE, "there is no GPU here: the processor does its work, slowly.")
        return OPTIMAL

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Compile the kernels for the GPU and put the weights into its memory.

        Raises:
            IntegrityError: The plan contradicts itself, the manifest or the weights file.
            MismatchError: There is no GPU, or it lacks something.
            ResourceError: Its memory is too small.
        """
        if not adapters():
            raise MismatchError(f"{_NO_GPU}.", _DRIVER)
        folder, manifest = variant.directory, artifact.manifest
        path = artifact.file(f"{folder}/{PLAN_FILE}")
        plan = decode_json(path.read_bytes(), path, Plan)
        rows, llm = plan.rows, manifest.llm
        if (llm.vocab_size if llm else 0) != (rows.vocab if rows else 0):
            raise IntegrityError(f"{path} is not the model that the manifest describes.", "Compile the model again.")
        tokens = options.kv_tokens or (llm.context_length if llm else 0)
        pages = -(-tokens // rows.page) if rows and llm else 0
        weights = artifact.weights()

        def source(name: str) -> str:
            return artifact.file(f"{folder}/{name}.wgsl").read_text()

        def launch() -> Launcher:
            return Launcher(plan, adapters()[0], source, weights, {"pages": pages} if pages else {})

        if rows is None:
            return WebGpuTensors(launch, plan, manifest.signatures)
        if llm is None:
            return WebGpuEncoder(launch, plan, rows, manifest.signatures)
        return WebGpuDecoder(launch, plan, rows, manifest.signatures, pages)
