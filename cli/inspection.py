"""What ``aicc inspect`` gathers about an artifact, and the document it prints with ``--json``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from aicc.cli.machine import install, is_device
from aicc.cli.output import shown_path
from aicc.compiler.report import CompileReport
from aicc.runtime.artifact import GRAPH_PATH, REPORT_PATH, Artifact, Manifest, Variant
from aicc.runtime.errors import AiccError, IntegrityError
from aicc.runtime.provider import provider_of
from aicc.runtime.session import find_variant
from aicc.runtime.target import Target, all_targets


class DeviceFit(msgspec.Struct):
    """How one compiled variant of an artifact and a device of this machine fit.

    Attributes:
        variant: Name of the variant inside the artifact.
        target: What it was compiled for.
        device: The provider's name of the device.
        description: What the device is; empty if this machine has none.
        fit: ``optimal``, ``usable``, ``recompile`` or ``unsupported``.
        reason: Why it is not optimal, and what to do.
    """

    variant: str
    target: str
    device: str
    description: str
    fit: str
    reason: str


class InspectDocument(msgspec.Struct):
    """What ``aicc inspect --json`` prints.

    Attributes:
        path: The artifact.
        bytes: Size of all its files.
        manifest: The manifest, as docs/artifact-format.md describes it.
        report: The compile report, as docs/artifact-format.md describes it; null if there is none.
        devices: Where this machine can run it.
        default: The variant that is loaded here unless another is asked for.
        portable: Whether it holds the portable graph; without, other targets are compiled from the source.
        verified: True if every file was hashed and matches (``--verify``), null if that was not asked.
    """

    path: str
    bytes: int
    manifest: Manifest
    report: CompileReport | None
    devices: list[DeviceFit]
    default: str = ""
    portable: bool = True
    verified: bool | None = None


class CompileDocument(msgspec.Struct):
    """What ``aicc compile --json`` prints.

    Attributes:
        artifact: The artifact made; empty if the compile was stopped before.
        bytes: Size of all its files.
        report: The compile report, as docs/artifact-format.md describes it.
    """

    artifact: str
    bytes: int
    report: CompileReport


def look_into(path: Path, verify: bool) -> InspectDocument:
    """Open an artifact and describe it, without loading the model.

    Raises:
        AiccError: It is no artifact, of another version, or damaged; with ``verify`` every byte counts.
    """
    artifact = Artifact.open(path)
    if verify:
        artifact.verify()
    return InspectDocument(
        path=shown_path(path),
        bytes=sum(entry.bytes for entry in artifact.manifest.files),
        manifest=artifact.manifest,
        report=_report(artifact) if artifact.has(REPORT_PATH) else None,
        devices=[_fit(variant) for variant in artifact.manifest.variants],
        default=find_variant(artifact, None).name,
        portable=artifact.has(GRAPH_PATH),
        verified=True if verify else None,
    )


def _report(artifact: Artifact) -> CompileReport:
    """The report with its types checked; what was measured is zero where timings.json is gone."""
    try:
        return msgspec.convert(artifact.report(), CompileReport)
    except msgspec.ValidationError as error:
        raise IntegrityError(
            f"{artifact.path / REPORT_PATH}: {error}.", "Copy the artifact again, or compile it again."
        ) from error


def _fit(variant: Variant) -> DeviceFit:
    """Ask the variant's own provider; whatever it cannot do here is a reason, not an error."""
    target = all_targets().get(variant.target)
    if target is None:
        reason = f"This installation does not know {variant.target}. Upgrade aicc, or install what brings it."
        return DeviceFit(variant.name, variant.target, "", "", "unsupported", reason)
    try:
        compatibility = provider_of(target).compatibility(variant)
        description = _description(target)
    except AiccError as error:
        return DeviceFit(variant.name, variant.target, target.device, "", "unsupported", str(error))
    except ModuleNotFoundError as missing:
        reason = f"It needs {missing.name}: {install(target, target.extra)}."
        return DeviceFit(variant.name, variant.target, target.device, "", "unsupported", reason)
    fit, reason = compatibility.fit.value, compatibility.reason
    return DeviceFit(variant.name, variant.target, target.device, description, fit, reason)


def _description(target: Target) -> str:
    devices = provider_of(target).devices()
    return next((device.description for device in devices if is_device(target, device.name)), "")
