"""The runtime half: a launch plan and its binaries on the first GPU of this machine, through its driver alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError
from aicc.runtime.manifest import decode_json
from aicc.runtime.provider import OPTIMAL, Compatibility, Device, Executable, Fit, LoadOptions
from aicc.targets.triton.driver import drivers, why_none
from aicc.targets.triton.executable import OpenPlan, TritonDecoder
from aicc.targets.triton.plan import PLAN_FILE, Plan

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Variant

_NO_GPU = "this machine has no GPU with a driver of NVIDIA's or AMD's"
_DRIVER = "Install the vendor's driver, or compile for another target (`aicc targets`)."
_MOST_PAGES = 1 << 24  # offsets in a page table are int32


class TritonProvider:
    """Runs artifacts of the ``triton`` family."""

    def devices(self) -> list[Device]:
        """The first GPU of each vendor."""
        return [Device("GPU", f"{driver.name} ({driver.architecture})") for driver in drivers()]

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether there is a GPU of the architecture that the binaries are for."""
        made_for = variant.requires.get("architecture", "")
        found = [driver.architecture for driver in drivers()]
        if not found:
            return Compatibility(Fit.UNSUPPORTED, why_none() or f"{_NO_GPU}. {_DRIVER}")
        if made_for in found:
            return OPTIMAL
        if any(takes(architecture, made_for) for architecture in found):
            return Compatibility(Fit.USABLE, f"it was made for {made_for} and this GPU is {found[0]}.")
        target = f"; compile for --target triton:{found[0]}"
        return Compatibility(Fit.RECOMPILE, f"it was made for {made_for} and this GPU is {found[0]}{target}.")

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Put kernels and weights into the GPU's memory.

        Raises:
            IntegrityError: The plan contradicts itself or the weights file.
            MismatchError: There is no GPU for it, or its driver is too old.
            ResourceError: Its memory is too small.
        """
        made_for = variant.requires.get("architecture", "")
        driver = next((d for d in drivers() if takes(d.architecture, made_for)), None)
        if driver is None:
            raise MismatchError(f"there is no GPU for {made_for} on this machine.", _DRIVER)
        folder = variant.directory
        path = artifact.file(f"{folder}/{PLAN_FILE}")
        plan = decode_json(path.read_bytes(), path, Plan)
        weights = artifact.weights()
        llm = artifact.manifest.llm
        if (llm.vocab_size if llm else 0) != plan.vocab:
            raise IntegrityError(f"{path} is not the model that the manifest describes.", "Compile the model again.")
        tokens = options.kv_tokens or (llm.context_length if llm else 0)
        pages = max(1, -(-tokens // plan.page_tokens))
        if pages > _MOST_PAGES:
            raise ResourceError(
                f"there is no memory for keys and values of {tokens} tokens.", "Give fewer --kv-tokens."
            )

        def binary(name: str) -> bytes:
            return artifact.file(f"{folder}/{name}").read_bytes()

        def open_plan() -> OpenPlan:
            return OpenPlan(driver, plan, binary, weights, pages)

        return TritonDecoder(open_plan, driver, plan, pages, artifact.manifest.signatures)


def takes(architecture: str, made_for: str) -> bool:
    """Whether a GPU runs a binary: Ampere's and Ada's run what was made for an earlier one of theirs.

    NVIDIA, CUDA programming guide, binary compatibility; from Hopper on, binaries use what is of one chip only.
    """
    if architecture == made_for:
        return True
    return (
        all(name.startswith("sm8") and len(name) == 4 for name in (architecture, made_for)) and made_for < architecture
    )
