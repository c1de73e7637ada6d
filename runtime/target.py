"""What a chip can do, as data.

A :class:`Target` is pure data: passes and lowerings ask it, nobody compares its name. Each chip
family lists its variants in ``targets/<family>/target.py`` as ``TARGETS``, and out-of-tree
families do the same behind the entry-point group ``aicc.targets``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Literal

import msgspec

from aicc.runtime.errors import UsageError
from aicc.runtime.machine import Processor, processor

FLOAT_DTYPES = ("float32", "float16", "bfloat16")
# What users choose the KV cache by → types of it; both of 8 bits have a scale for each head and token.
KV_KINDS = {"fp32": ("float32",), "fp16": ("float16",), "int8": ("int8", "uint8")}
CALIBRATED = ("int8", "uint8", "int16", "uint16")  # what activations can be with scales that calibration finds
OpRule = Literal["native", "decompose", "refuse"]
Evidence = Literal["runs", "emulated", "compiled", "prepared"]
# What decides the graph that is lowered: variants of one artifact have it in common.
_SHARED = (
    "family", "lowering", "compute_dtypes", "weight_formats", "kv_dtypes", "activations", "calibration",
    "float_operators", "op_rules", "graph_domains", "shapes", "alignment", "merges_projections",
)  # fmt: skip


class WeightFormat(msgspec.Struct, frozen=True):
    """One way of storing a weight matrix that a target multiplies with directly.

    Attributes:
        bits: Bits a value: 4 or 8 (integers, or floats of 8 bits), 16 or 32 (floats).
        group_sizes: Values along the input dimension that share a scale; 0 is a whole row. Empty
            for floats.
        offset: What may be subtracted from the integer before scaling: ``none`` (symmetric),
            ``integer`` (a zero point of the same type) or ``float`` (any zero point, which is
            what keeps min-scaled blocks such as GGUF's Q4_1 exact).
        dtype: Where the bits alone do not say it: ``float8e4m3`` for 8, ``bfloat16`` for 16. Empty for integers,
            float16 and float32.
    """

    bits: int
    group_sizes: tuple[int, ...] = ()
    offset: Literal["none", "integer", "float"] = "none"
    dtype: Literal["", "float8e4m3", "bfloat16"] = ""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 16, 32) or {"float8e4m3": 8, "bfloat16": 16}.get(self.dtype, self.bits) != self.bits:
            raise ValueError(f"a weight of {self.bits} bits {self.dtype} is not a format")
        if (self.bits <= 8) != bool(self.group_sizes):
            raise ValueError("weights of 4 and 8 bits need group sizes, and only they do")


class Target(msgspec.Struct, frozen=True):
    """One variant of one chip family.

    Attributes:
        family: Folder under ``targets/`` and first half of the name.
        variant: Second half of the name; the family's first target that this machine's processor can run is its
            default.
        description: One line for ``aicc targets``.
        lowering: ``module:function`` of the compile half; None if nothing is compiled for it.
        library: ``module:function`` that makes a C library of an artifact, for programs without Python; None if
            there is none.
        provider: ``module:Class`` of the runtime half; None if it cannot run from an artifact.
        device: The provider's name of the device, as shown to users.
        extra: The pip extra that brings what the family needs, empty if nothing.
        compute_dtypes: Float types the chip computes in, best first.
        weight_formats: What it multiplies with directly, smallest first.
        kv_dtypes: Types the KV cache may have, default first; empty without decoders.
        activations: How it may quantise what quantised weights are multiplied with, default first; empty if that
            is not for users to choose.
        calibration: Whether scales of activations are fixed when compiling, from inputs the user gives
            (``--calibrate``): never, if there are such inputs, or always. :attr:`activations` are then some of
            :data:`CALIBRATED`; weights become symmetric int8, with a scale for each channel.
        float_operators: Operators that a calibrated graph leaves in floats, since the chip does not take them in
            integers.
        compilers: The C compiler its code is made with; empty if it is made without.
        partitions: Who runs the graph: ``chip`` all of it, or it is refused; ``host`` is the device's own processor
            for what the chip refuses, where the family can cut a graph. The first is taken unless another is asked
            for.
        op_rules: Per ONNX operator: run it as it is, decompose it first, or refuse it. What is
            not listed is taken to the lowering, which refuses by node what it cannot do.
        graph_domains: Domains of operators its lowering takes besides ONNX's: those of its vendor's
            own graphs, which no other family runs.
        shapes: Whether tensors may have sizes known only at run time: all, none, or the ``rows`` of tokens that
            decoders and encoders of token ids compute with.
        alignment: Bytes each weight is aligned to.
        memory_bytes: Memory of one device, None if it is the host's.
        devices: Over how many of them one model is spread at most.
        repacks_weights: Whether its executables have the weights in a layout of their own, so that the portable
            graph would be a second copy of them; it is then kept only when asked for.
        merges_projections: Whether one wide product is better than several that share an input.
        architecture: What :mod:`platform` calls the processor that the code is made for; empty if any.
        instruction_sets: Those of :data:`aicc.runtime.machine.INSTRUCTION_SETS` the code uses.
        evidence: What has been shown of it on the machines the project is tested on.
    """

    family: str
    variant: str
    description: str
    lowering: str | None
    provider: str | None
    device: str
    extra: str = ""
    library: str | None = None
    compute_dtypes: tuple[str, ...] = ("float32",)
    weight_formats: tuple[WeightFormat, ...] = (WeightFormat(32),)
    kv_dtypes: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    calibration: Literal["never", "optional", "required"] = "never"
    float_operators: tuple[str, ...] = ()
    compilers: tuple[str, ...] = ()
    partitions: tuple[Literal["chip", "host"], ...] = ("chip",)
    op_rules: Mapping[str, OpRule] = msgspec.field(default_factory=lambda: MappingProxyType({}))
    graph_domains: tuple[str, ...] = ()
    shapes: Literal["dynamic", "static", "rows"] = "dynamic"
    alignment: int = 64
    memory_bytes: int | None = None
    devices: int = 1
    repacks_weights: bool = False
    merges_projections: bool = False
    architecture: str = ""
    instruction_sets: tuple[str, ...] = ()
    evidence: Evidence = "runs"

    def __post_init__(self) -> None:
        if not self.compute_dtypes or set(self.compute_dtypes) - set(FLOAT_DTYPES):
            raise ValueError(f"{self.name}: compute dtypes must be some of {FLOAT_DTYPES}")
        if not self.weight_formats:
            raise ValueError(f"{self.name}: a target multiplies with at least one weight format")
        if self.alignment & (self.alignment - 1) or self.alignment < 1:
            raise ValueError(f"{self.name}: alignment must be a power of two")
        if self.calibration != "never" and not (self.activations and set(self.activations) <= set(CALIBRATED)):
            raise ValueError(f"{self.name}: calibrated activations must be some of {CALIBRATED}")
        if self.evidence in ("runs", "emulated") and self.provider is None:
            raise ValueError(f"{self.name}: says it {self.evidence} and has no provider")

    @property
    def name(self) -> str:
        """``family:variant``, as on the command line and in manifests."""
        return f"{self.family}:{self.variant}"

    def with_kv(self, kind: str) -> Target:
        """The same, with one choice for the KV cache.

        Args:
            kind: ``auto`` leaves it as it is; or one of :data:`KV_KINDS`.

        Raises:
            UsageError: There is no such kind, or the target has no cache of it.
        """
        if kind == "auto":
            return self
        if kind not in KV_KINDS:
            raise UsageError(f"there is no KV cache of {kind!r}.", f"Choose one of: {', '.join(KV_KINDS)}.")
        chosen = tuple(dtype for dtype in self.kv_dtypes if dtype in KV_KINDS[kind])
        if not chosen:
            has = [name for name, dtypes in KV_KINDS.items() if set(dtypes) & set(self.kv_dtypes)]
            raise UsageError(f"{self.name} has no KV cache of {kind}.", f"It has: {', '.join(has) or 'none'}.")
        return msgspec.structs.replace(self, kv_dtypes=chosen)

    def with_activations(self, kind: str) -> Target:
        """The same, with one choice for how activations are quantised.

        Args:
            kind: ``auto`` leaves it as it is; or one of :attr:`activations`.

        Raises:
            UsageError: The target has no such choice.
        """
        if kind == "auto":
            return self
        if kind not in self.activations:
            has = f"It has: {', '.join(self.activations)}." if self.activations else "Leave --activations out."
            raise UsageError(f"{self.name} does not quantise activations to {kind} on request.", has)
        return msgspec.structs.replace(self, activations=(kind,))

    def with_partition(self, kind: str) -> Target:
        """The same, with one choice of who runs the graph.

        Args:
            kind: One of :attr:`partitions`.

        Raises:
            UsageError: The target has no such choice.
        """
        if kind not in self.partitions:
            raise UsageError(f"{self.name} runs a graph whole or not at all.", "Leave --partition out.")
        return msgspec.structs.replace(self, partitions=(kind,))

    def with_compiler(self, command: str | None) -> Target:
        """The same, made with a C compiler of the user's; None leaves it as it is.

        Raises:
            UsageError: No C is compiled for the target.
        """
        if command is None:
            return self
        if not self.compilers:
            raise UsageError(f"no C is compiled for {self.name}.", "Leave --cc out.")
        return msgspec.structs.replace(self, compilers=(command,))

    def runs_on(self, processor: Processor) -> bool:
        """Whether a processor is of the architecture and has the instruction sets the code is made for."""
        return self.architecture in ("", processor.architecture) and set(self.instruction_sets) <= set(
            processor.instruction_sets
        )

    def accepts_weight(self, bits: int, group_size: int, offset: str, dtype: str = "") -> bool:
        """Whether scaled weights of this form need no change before this target; see :class:`WeightFormat`."""
        rank = ("none", "integer", "float")
        return any(
            (f.bits, f.dtype) == (bits, dtype)
            and group_size in f.group_sizes
            and rank.index(offset) <= rank.index(f.offset)
            for f in self.weight_formats
        )


@cache
def _in_tree() -> Mapping[str, Target]:
    import aicc.targets as package

    modules = sorted(f"aicc.targets.{m.name}.target" for m in pkgutil.iter_modules(package.__path__) if m.ispkg)
    return _by_name({}, ((name, importlib.import_module(name).TARGETS) for name in modules))


@cache
def all_targets() -> Mapping[str, Target]:
    """Every target of this installation by its full name, in-tree families first.

    Returns:
        An ordered mapping; each family's entries are in order of preference.

    Raises:
        UsageError: Two families have one name, as a copied one has before it is edited.
    """
    from importlib import metadata  # takes longer than all in-tree families, which most programs are content with

    entries = metadata.entry_points(group="aicc.targets")
    return _by_name(_in_tree(), ((entry.value, entry.load()) for entry in entries))


def _by_name(found: Mapping[str, Target], lists: Iterable[tuple[str, Iterable[Target]]]) -> Mapping[str, Target]:
    """The targets found before and those of modules, by name."""
    found = dict(found)
    for where, targets in lists:
        for target in targets:
            if target.name in found:
                raise UsageError(
                    f"{where} defines {target.name}, which another family has already.",
                    "Give `family` the name of its own folder there.",
                )
            found[target.name] = target
    return MappingProxyType(found)


def find_target(name: str) -> Target:
    """The target called ``family:variant``, or for ``family`` the first of it that this machine's processor can run.

    Raises:
        UsageError: No such target; the message lists those there are, of its family if that is one.
    """
    for targets in (_in_tree, all_targets):
        if name in targets():
            return targets()[name]
        family = [target for target in targets().values() if target.family == name]
        if family:
            here = processor() if any(target.architecture for target in family) else None
            return next((target for target in family if here is None or target.runs_on(here)), family[0])
    every = all_targets().values()
    relatives = [target.name for target in every if target.family == name.partition(":")[0]]
    choices = relatives or dict.fromkeys(target.family for target in every)
    raise UsageError(f"there is no target {name!r}.", f"Choose one of: {', '.join(choices)}.")


def find_targets(names: str) -> tuple[Target, ...]:
    """The targets of a list with commas, best first, as one artifact can hold them.

    Raises:
        UsageError: There is no such target, or two would not have the same graph and weights.
    """
    chosen = {find_target(name.strip()).name for name in names.split(",")}
    first, *others = (target for target in all_targets().values() if target.name in chosen)
    for other in others:
        if any(getattr(first, fact) != getattr(other, fact) for fact in _SHARED):
            raise UsageError(
                f"{first.name} and {other.name} cannot share an artifact.", "Compile an artifact for each."
            )
    return first, *others


def load_object(reference: str) -> object:
    """Import ``module:attribute``; used for a target's two halves."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
