"""What may be chosen of an engine, and what it counts."""

from __future__ import annotations

import msgspec

from aicc.runtime.errors import UsageError
from aicc.runtime.speculation import SpeculationOptions


class EngineOptions(msgspec.Struct, frozen=True):
    """What a caller may choose of an engine.

    Attributes:
        prefix_cache: Keep keys and values of what is done, for prompts that begin the same.
        speculation: How to guess tokens and compute several in a step; None does not.
        reproducible: Compute every sequence in steps of its own, always cut alike. With a seed it then gets
            the same answer whatever else is asked, on chips too that round differently in a batch.

    Raises:
        UsageError: Options contradict each other.
    """

    prefix_cache: bool = True
    speculation: SpeculationOptions | None = None
    reproducible: bool = False

    def __post_init__(self) -> None:
        if self.reproducible and self.speculation is not None:
            raise UsageError("reproducible answers and speculation exclude each other.", "Leave one of them out.")


DEFAULT_OPTIONS = EngineOptions()


class Counters(msgspec.Struct):
    """What an engine has done since it was made.

    Attributes:
        prompt_tokens: Tokens of prompts that were admitted.
        cached_tokens: Those of them that were found in memory and not computed.
        preemptions: Times a request lost its pages to an older one.
        drafted_tokens: Tokens that were guessed and computed before they were chosen.
        accepted_tokens: Those of them that were chosen.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
