"""Models of tensors: named arrays in, named arrays out, checked before the chip sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from aicc.runtime.artifact import WEIGHTS_PATH, Artifact, Signature, TensorSpec, Variant
from aicc.runtime.errors import AiccError, MismatchError, UnsupportedError, UsageError
from aicc.runtime.machine import processor, release_free_memory
from aicc.runtime.provider import (
    OPTIMAL,
    Array,
    Compatibility,
    DecoderExecutable,
    Executable,
    Fit,
    LoadOptions,
    provider_of,
)
from aicc.runtime.target import find_target

if TYPE_CHECKING:
    from aicc.runtime.embedding import Embedder
    from aicc.runtime.generator import Model
    from aicc.runtime.options import EngineOptions


class Session:
    """A loaded model of tensors; a context manager.

    Args:
        executable: What a provider loaded.
        artifact: Where its facts are.
        compatibility: What the provider said of it and this machine.
        target: What the loaded variant was compiled for.

    Attributes:
        artifact: Where it was loaded from.
        manifest: The artifact's.
    """

    def __init__(
        self, executable: Executable, artifact: Artifact, compatibility: Compatibility = OPTIMAL, target: str = ""
    ) -> None:
        self._executable = executable
        self.target = target
        self.artifact = artifact
        self.manifest = artifact.manifest
        self.compatibility = compatibility
        self._embedder: Embedder | None = None

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """What the model takes and gives, by entry point."""
        return self._executable.signatures

    @property
    def device(self) -> str:
        """Where it runs, as the device calls itself."""
        return self._executable.device

    def run(self, inputs: Mapping[str, Array], signature: str = "default") -> dict[str, Array]:
        """Run once.

        Args:
            inputs: Arrays by name; names, dtypes and shapes as :attr:`signatures` says.
            signature: The entry point.

        Raises:
            UsageError: An input is missing, unknown or of another dtype or shape; it is named.
        """
        signatures = self._executable.signatures
        if signature not in signatures:
            raise UsageError(f"the model has no signature {signature!r}.", f"It has: {', '.join(signatures)}.")
        return self._executable.run(signature, check_inputs(signatures[signature].inputs, inputs))

    @property
    def embedder(self) -> Embedder:
        """Makes vectors of texts.

        Raises:
            UnsupportedError: The model is no encoder whose source says how.
        """
        if self._embedder is None:
            from aicc.runtime.embedding import Embedder

            self._embedder = Embedder(self)
        return self._embedder

    def close(self) -> None:
        """Give back memory and device."""
        self._executable.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def what_it_takes(specs: Sequence[TensorSpec]) -> str:
    """A sentence that names every input, its type and its shape."""
    return f"The model takes: {', '.join(_describe(spec) for spec in specs)}."


def check_inputs(specs: tuple[TensorSpec, ...], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs as contiguous arrays in the order of ``specs``.

    Raises:
        UsageError: One does not fit its specification; it is named.
    """
    unknown = sorted(set(inputs) - {spec.name for spec in specs})
    missing = [spec.name for spec in specs if spec.name not in inputs]
    takes = what_it_takes(specs)
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r}.", takes)
    if missing:
        raise UsageError(f"the input {missing[0]!r} is missing.", takes)
    arrays = {spec.name: _checked(spec, inputs[spec.name]) for spec in specs}
    _check_sizes(specs, arrays)
    return arrays


def _checked(spec: TensorSpec, value: Array) -> Array:
    array = np.asarray(value)
    if array.dtype.name != spec.dtype:
        raise UsageError(
            f"the input {spec.name!r} has dtype {array.dtype.name} and must have {spec.dtype}.",
            f"Convert it, for example with array.astype({spec.dtype!r}).",
        )
    fits = len(array.shape) == len(spec.shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise UsageError(f"the input {spec.name!r} has shape {list(array.shape)} and must be {_describe(spec)}.")
    # Providers hand over addresses, so the bytes must be in order: contiguous and of this machine's endianness.
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _check_sizes(specs: tuple[TensorSpec, ...], arrays: Mapping[str, Array]) -> None:
    """A varying dimension has one size in all inputs; operators that broadcast would make a far larger tensor of two.

    Raises:
        UsageError: It has two.
    """
    first: dict[str, tuple[TensorSpec, int]] = {}
    for spec in specs:
        for name, size in zip(spec.shape, arrays[spec.name].shape, strict=True):
            if isinstance(name, str) and first.setdefault(name, (spec, size))[1] != size:
                other, wanted = first[name]
                message = (
                    f"{name!r} is {wanted} in the input {other.name!r} and {size} in {spec.name!r}; they must agree."
                )
                raise UsageError(message, what_it_takes(specs))


def _describe(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}[{', '.join(map(str, spec.shape))}]"


def find_variant(artifact: Artifact, device: str | None) -> Variant:
    """The variant a caller means.

    Args:
        artifact: An opened artifact.
        device: A variant, target or family, or a device as its provider calls it (``CPU``); None
            is the family the artifact was first compiled for. Of several variants for it, which
            stand best first, the first that this machine can run.

    Raises:
        MismatchError: The artifact has no variant for it. Nothing else is taken instead.
    """
    variants = artifact.manifest.variants
    meant = [v for v in variants if device is not None and _target_device(v) == device.upper()]
    if not meant:
        named = artifact.variant(device)
        if device in (named.name, named.target):
            return named
        meant = [v for v in variants if v.family == named.family]
    if len(meant) == 1:
        return meant[0]
    return next((v for v in meant if _runs_here(v)), meant[0])


def _runs_here(variant: Variant) -> bool:
    """Whether a variant's provider would load it; what keeps one from answering is told to who asks for it alone."""
    try:
        return provider_of(find_target(variant.target)).compatibility(variant).fit.runs
    except (AiccError, ModuleNotFoundError):
        return False


def _target_device(variant: Variant) -> str | None:
    try:
        return find_target(variant.target).device.upper()
    except UsageError:  # made for a family that is not installed here
        return None


def load_artifact(
    artifact: Artifact,
    options: LoadOptions | None = None,
    device: str | None = None,
    engine: EngineOptions | None = None,
    draft: Model | None = None,
) -> Session | Model:
    """Make an opened artifact ready to run; see :func:`aicc.runtime.load`.

    Every file but the weights is hashed, which takes milliseconds. The weights are mapped, not read,
    so only their size is checked; :meth:`Artifact.verify` hashes them too. ``draft`` guesses tokens for the
    model, as :class:`Model` says.

    Raises:
        IntegrityError: A file is not the one the manifest describes.
        MismatchError: It was not compiled for the device, or cannot be used on this machine.
    """
    variant = find_variant(artifact, device)
    try:
        target = find_target(variant.target)
    except UsageError as error:
        raise MismatchError(
            f"{artifact.path} was compiled for {variant.target}, which this installation does not know.",
            "Install the package that brings this target, or compile the model for another.",
        ) from error
    provider = provider_of(target)
    compatibility = provider.compatibility(variant)
    if not compatibility.fit.runs:
        name = target.name if target.runs_on(processor()) else target.family
        again = f"Compile the model again on this machine: aicc compile MODEL --target {name} -o OUT.aicc"
        raise MismatchError(
            f"{artifact.path} cannot run on {target.name} here: {compatibility.reason.rstrip('.')}.",
            again if compatibility.fit is Fit.RECOMPILE else "`aicc targets` lists what can run here.",
        )
    artifact.verify(entry.path for entry in artifact.manifest.files if entry.path != WEIGHTS_PATH)
    executable = provider.load(artifact, variant, options or LoadOptions())
    release_free_memory()
    if artifact.manifest.llm is None:
        return Session(executable, artifact, compatibility, target.name)
    if not isinstance(executable, DecoderExecutable):
        executable.close()
        raise UnsupportedError(f"{target.name} runs models of tensors only, and {artifact.path} is a decoder.")
    from aicc.runtime.generator import Model
    from aicc.runtime.options import EngineOptions

    return Model(executable, artifact, compatibility, target.name, engine or EngineOptions(), draft)
