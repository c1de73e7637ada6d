"""What a chip family's compile half gives the pipeline.

A family's lowering is one function, named by ``Target.lowering``:

    lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant

It writes its executable into ``directory`` (``variants/<name>/`` of the artifact being made), puts
every large constant into ``weights``, shared by all variants and the portable graph, and refuses
with :class:`aicc.runtime.errors.UnsupportedError`, naming the node, what the chip cannot run.

Importing the module raises :class:`aicc.runtime.errors.MismatchError` if a package is missing that the
family compiles with: ``aicc targets`` asks that way. The module may also have

    prepare(target: Target) -> None

which raises the same if a tool is missing that is no package. It is called before the model is read,
and may fetch the tool. And it may have

    refusals(imported: ImportedModel, target: Target) -> list[Refusal]

which lists what ``lower`` would refuse beyond the target's own rules, without reading a weight;
``aicc check`` asks it, and so does a compile before it calibrates, which takes a while.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from aicc.compiler.report import KernelRecord, OpCoverage, PassRecord
from aicc.runtime.target import Target

if TYPE_CHECKING:
    from aicc.compiler.importers import ImportedModel


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node the chip cannot run.

    Attributes:
        node: Its name in the graph; empty if no single node is to blame.
        op: Its operator, as ``Op`` or ``domain.Op``.
        reason: Why it is refused; a whole sentence but for its stop where no node is to blame.
        remedy: What to do about it, where that is something of its own.
    """

    node: str
    op: str
    reason: str
    remedy: str = ""


def lowering_module(target: Target) -> ModuleType:
    """The compile half of a target's family.

    Args:
        target: One that is compiled for.

    Raises:
        MismatchError: A package is missing that it compiles with.
    """
    assert target.lowering is not None
    return importlib.import_module(target.lowering.partition(":")[0])


def lowering_refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """What the target's lowering would refuse beyond the target's own rules, as far as it can tell beforehand."""
    asked = getattr(lowering_module(target), "refusals", None)
    return asked(imported, target) if asked is not None else []


class WeightStore(Protocol):
    """The artifact's one weights file while it is being written."""

    def add(self, data: bytes | memoryview) -> int:
        """Append a constant, or find the same bytes already there.

        Returns:
            Its offset in ``weights/model.bin``, aligned to 64 bytes.
        """
        ...


@dataclass(slots=True)
class LoweredVariant:
    """One compiled variant; see :class:`aicc.runtime.artifact.Variant` for what is kept of it.

    Attributes:
        files: Names written into the variant's directory.
        requires: The provider's descriptor of the driver, runtime or processor the executable needs.
        producer: Packages that took part in making it, and their versions.
        options: What the provider must load it with.
        coverage: Where each operator's nodes went.
        passes: The target's own passes, for the report.
        kernels: What its compiled kernels take of the chip, for the report.
        weight_bytes_per_token: Weights read to decode one token; 0 for tensor models.
    """

    files: list[str]
    requires: dict[str, str] = field(default_factory=dict)
    producer: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    coverage: list[OpCoverage] = field(default_factory=list)
    passes: list[PassRecord] = field(default_factory=list)
    kernels: list[KernelRecord] = field(default_factory=list)
    weight_bytes_per_token: int = 0
