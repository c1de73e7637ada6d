"""What the runtime asks of a chip: the execution provider and what it loads.

A family implements :class:`ExecutionProvider` once. What it loads is an :class:`Executable`,
which maps named arrays to named arrays, or a :class:`DecoderExecutable`, which also takes a
ragged batch of tokens over paged KV memory, so that one scheduler serves every chip.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from aicc.runtime.errors import MismatchError, UnsupportedError
from aicc.runtime.target import Target, load_object

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Signature, Variant

Array = NDArray[np.generic]


class Fit(Enum):
    """How a compiled variant and this machine fit."""

    OPTIMAL = "optimal"  # made for exactly this
    USABLE = "usable"  # runs, something is not as it was compiled for
    RECOMPILE = "recompile"  # the executable cannot be used here; the model can be compiled again for this machine
    UNSUPPORTED = "unsupported"  # this machine cannot run it at all

    @property
    def runs(self) -> bool:
        """Whether what fits so can be loaded."""
        return self in (Fit.OPTIMAL, Fit.USABLE)


class Compatibility(msgspec.Struct, frozen=True):
    """A :class:`Fit` with its reason, a sentence a user can act on (empty when optimal)."""

    fit: Fit
    reason: str = ""


OPTIMAL = Compatibility(Fit.OPTIMAL)


class Device(msgspec.Struct, frozen=True):
    """One device of this machine: the provider's name for it, and what it is."""

    name: str
    description: str


class LoadOptions(msgspec.Struct, frozen=True):
    """What a caller may choose at load time.

    Attributes:
        threads: Threads to compute with; None leaves it to the provider.
        kv_tokens: KV cache capacity in tokens over all sequences; None is one full context.
    """

    threads: int | None = None
    kv_tokens: int | None = None


class TokenBatch(msgspec.Struct, frozen=True):
    """New tokens of several sequences, run in one step over paged KV memory.

    Sequence ``i`` adds ``tokens[starts[i]:starts[i+1]]`` after ``past[i]`` cached tokens, and owns
    the pages ``pages[page_starts[i]:page_starts[i+1]]``, enough for past plus new tokens.

    Attributes:
        tokens: int64 ``[T]``.
        starts: int32 ``[B+1]``, first 0, last T.
        past: int32 ``[B]``.
        pages: int32 ``[P]``, page numbers below the executable's capacity.
        page_starts: int32 ``[B+1]``, first 0, last P.
        logit_rows: int32 ``[L]``, rows of ``tokens`` whose logits are wanted.
        first_prompt: Sequences from this one on add tokens of their prompts, those before it tokens that
            were generated.
    """

    tokens: NDArray[np.int64]
    starts: NDArray[np.int32]
    past: NDArray[np.int32]
    pages: NDArray[np.int32]
    page_starts: NDArray[np.int32]
    logit_rows: NDArray[np.int32]
    first_prompt: int = 0


@runtime_checkable
class Executable(Protocol):
    """A model ready to run on a device."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """What it takes and gives, by entry point."""
        ...

    @property
    def device(self) -> str:
        """Where it really runs, as the device calls itself."""
        ...

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Inputs were checked against the signature by the session."""
        ...

    def close(self) -> None:
        """Give back memory and device. Idempotent."""
        ...


@runtime_checkable
class DecoderExecutable(Executable, Protocol):
    """A decoder over paged KV memory. Families inherit from it what is the same for most of them."""

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        ...

    @property
    def page_count(self) -> int:
        """Pages there are; memory of untouched pages need not be resident."""
        ...

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens one step may add; longer prompts are cut into chunks by the scheduler."""
        ...

    @property
    def prompts_apart(self) -> bool:
        """Whether a token gives other keys and values, to the last bits, in a prompt than generated.

        They are not taken for one another then. Few families make the difference, so the others inherit this answer.
        """
        return False

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """A decoder has no tensors, unless its family says otherwise.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("a decoder takes tokens, not tensors.", "Use Model.generate or logits.")

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Run one step, writing keys and values of the new tokens into their pages.

        Returns:
            float32 ``[L, vocab]``, one row for each of ``batch.logit_rows``. The array may be
            reused by the next call; copy what must outlive it.
        """
        ...


@runtime_checkable
class ChoosingDecoder(Protocol):
    """What a :class:`DecoderExecutable` has besides whose device can choose tokens: logits need not leave it."""

    def forward_best(self, batch: TokenBatch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Run one step as ``forward`` does, and choose.

        Returns:
            Of each of ``batch.logit_rows`` the first of its largest logits, int64 ``[L]``, and that logit, float32
            ``[L]``; NaN if any of the row is.
        """
        ...


class ExecutionProvider(Protocol):
    """The runtime half of a chip family. Vendor imports stay inside its methods."""

    def devices(self) -> list[Device]:
        """Devices of this family on this machine; empty when there are none.

        Raises:
            MismatchError: The family's own software is missing; the remedy names the extra.
        """
        ...

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether a compiled variant runs here, told without loading it."""
        ...

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Make a variant ready to run; weights are mapped, not copied, where the device can."""
        ...


def provider_of(target: Target) -> ExecutionProvider:
    """The runtime half of a target's family.

    Raises:
        MismatchError: It has none.
        ModuleNotFoundError: It needs a package that is not installed.
    """
    if target.provider is None:
        raise MismatchError(
            f"{target.name} runs outside aicc, by the tools of the chip's maker.",
            "Compile the model for a target that runs here: `aicc targets`.",
        )
    provider: ExecutionProvider = load_object(target.provider)()  # type: ignore[operator]
    return provider
