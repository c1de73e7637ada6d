"""Kernels compiled for a chip that need not be there."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from aicc.compiler.report import KernelRecord
from aicc.runtime.errors import MismatchError, UnsupportedError
from aicc.targets.triton.lowering.resources import amdgcn_resources, cubin_resources
from aicc.targets.triton.plan import Kernel

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # 3.9 warns, 3.10 turns it off; results may round either way
try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
except ImportError as error:
    raise MismatchError("triton is not installed.", "pip install 'aicc[triton]'") from error


@dataclass(frozen=True, slots=True)
class Chip:
    """What tiles are chosen by.

    Attributes:
        backend: Triton's name.
        arch: Triton's name of the architecture.
        warp: Threads of a warp.
        shared: Bytes of shared memory a program may have (NVIDIA's CUDA programming guide, table of technical
            specifications per compute capability; AMD's ISA documents: LDS of a workgroup).
        processors: Of a usual card, to judge when programs are too few.
    """

    backend: str
    arch: int | str
    warp: int
    shared: int
    processors: int

    @property
    def wide(self) -> bool:
        """Whether tiles of 64 columns leave room for several stages."""
        return self.shared > 128 << 10

    @property
    def suffix(self) -> str:
        """Of the binary's name."""
        return "cubin" if self.backend == "cuda" else "hsaco"


CHIPS = {
    "sm80": Chip("cuda", 80, 32, 163 << 10, 108),
    "sm89": Chip("cuda", 89, 32, 99 << 10, 128),
    "sm90": Chip("cuda", 90, 32, 227 << 10, 132),
    "sm100": Chip("cuda", 100, 32, 227 << 10, 148),
    "sm120": Chip("cuda", 120, 32, 99 << 10, 170),
    "gfx942": Chip("hip", "gfx942", 64, 64 << 10, 304),
    "gfx1100": Chip("hip", "gfx1100", 32, 64 << 10, 96),
    "gfx1201": Chip("hip", "gfx1201", 32, 64 << 10, 64),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """A kernel with its constants.

    Attributes:
        function: The kernel, from ``kernels/``.
        types: Triton's types of its arguments, by name, in order; constants are ``constexpr``.
        constants: By name.
        warps: Of a program.
        stages: How far ahead tiles are loaded, at most.
    """

    function: Any
    types: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int


@dataclass(slots=True)
class Binaries:
    """Compiles each kernel once and writes it into a directory."""

    chip: Chip
    directory: Path
    specs: list[Spec] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    records: list[KernelRecord] = field(default_factory=list)

    def number(self, spec: Spec) -> int:
        """Of the kernel; it is compiled if there is none like it yet."""
        if spec not in self.specs:
            self.specs.append(spec)
            self._compile(spec)
        return self.specs.index(spec)

    def _compile(self, spec: Spec) -> None:
        compiled = _fitting(spec, self.chip)
        registers, stack = _resources(compiled)
        name = f"{len(self.kernels)}-{spec.function.__name__}"
        data = compiled.asm[self.chip.suffix]
        file = f"{name}.{self.chip.suffix}"
        Path(self.directory, file).write_bytes(data)
        facts = compiled.metadata
        self.kernels.append(Kernel(file, facts.name, facts.num_warps * self.chip.warp, facts.shared))
        self.records.append(KernelRecord(name, facts.num_warps * self.chip.warp, registers, facts.shared, stack))


def _fitting(spec: Spec, chip: Chip) -> Any:
    """The kernel compiled with as many stages as fit and spill nothing; where all spill, with as many as fit.

    Raises:
        UnsupportedError: None fit.
    """
    fitting = None
    for stages in range(spec.stages, 0, -1):
        compiled = _compiled(spec, chip, stages)
        if compiled.metadata.shared <= chip.shared:
            fitting = fitting or compiled
            if not _resources(compiled)[1]:
                return compiled
    if fitting is None:
        raise UnsupportedError(
            f"{spec.function.__name__} needs {compiled.metadata.shared:,} bytes of shared memory, and {chip.arch} has "
            f"{chip.shared:,}.",
            "Compile for another target.",
        )
    return fitting


def _resources(compiled: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack."""
    if "amdgcn" in compiled.asm:
        return amdgcn_resources(compiled.asm["amdgcn"])
    return cubin_resources(compiled.asm["cubin"])


def _compiled(spec: Spec, chip: Chip, stages: int) -> Any:
    types, constants = dict(spec.types), dict(spec.constants)
    aligned = [["tt.divisibility", 16]]
    attributes = {}
    for i, kind in enumerate(types.values()):
        if isinstance(kind, tuple):
            attributes |= {(i, j): aligned for j in range(len(kind))}
        elif kind.startswith("*"):
            attributes[(i,)] = aligned
    source = ASTSource(spec.function, types, constants, attributes)
    options = {"num_warps": spec.warps, "num_stages": stages, "enable_fp_fusion": True}
    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache  # what is compiled is kept in the artifact and nowhere else
        return triton.compile(source, target=GPUTarget(chip.backend, chip.arch, chip.warp), options=options)


def producer() -> dict[str, str]:
    """The package that compiles, and its version."""
    return {"triton": metadata.version("triton")}
