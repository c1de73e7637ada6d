"""Stage 2: load an artifact, run it, generate with it, serve it.

    from aicc.runtime import load
    with load("model.aicc") as model:
        print(model.generate("Once upon a time", max_tokens=32).text)

Importing this package is cheap; what a loaded model needs is imported when it is loaded.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact
    from aicc.runtime.errors import AiccError
    from aicc.runtime.generator import Generation, Model
    from aicc.runtime.request import Piece
    from aicc.runtime.sampling import SamplingParams
    from aicc.runtime.session import Session
    from aicc.runtime.speculation import SpeculationOptions

__all__ = [
    "AiccError",
    "Artifact",
    "Generation",
    "Model",
    "Piece",
    "SamplingParams",
    "Session",
    "SpeculationOptions",
    "load",
]

_MAX_THREADS = 4096
_HOMES = {
    "AiccError": "errors",
    "Artifact": "artifact",
    "Generation": "generator",
    "Model": "generator",
    "Piece": "request",
    "SamplingParams": "sampling",
    "Session": "session",
    "SpeculationOptions": "speculation",
}


def load(
    path: str | os.PathLike[str],
    device: str | None = None,
    threads: int | None = None,
    kv_tokens: int | None = None,
    prefix_cache: bool = True,
    speculation: SpeculationOptions | None = None,
    reproducible: bool = False,
    draft: str | os.PathLike[str] | None = None,
) -> Session | Model:
    """Load an artifact.

    Args:
        path: The ``.aicc`` directory.
        device: A target (``openvino:cpu``), family, variant or device name the artifact must have
            been compiled for; None is the best of it that this machine can run. Nothing else is ever used
            instead.
        threads: Threads to compute with; None leaves it to the provider.
        kv_tokens: Tokens the KV cache holds over all sequences; None is one full context.
        prefix_cache: Keep keys and values of what is done, as far as there is room, so that a prompt which
            begins like an earlier one is computed from where they part.
        speculation: Guess tokens from what the text says already and compute several in a step; faster
            where a text repeats itself, and what is said stays the same. None does not, unless there is ``draft``.
        reproducible: Compute one sequence at a time and each prompt from its start, so that a seed gives the
            same answer whatever else is asked meanwhile. The cpu family gives it in any case.
        draft: The ``.aicc`` directory of a smaller model with the same tokens, which guesses instead, and is
            loaded for the same device with as large a KV cache.

    Returns:
        A :class:`Model` for decoders, a :class:`Session` for models of tensors.

    Raises:
        UsageError: There is no artifact, an option makes no sense, or the draft has other tokens.
        IntegrityError: The artifact is damaged.
        MismatchError: It was not compiled for the device, or cannot be used on this machine.
        ResourceError: Not enough memory.
    """
    from aicc.runtime.artifact import Artifact
    from aicc.runtime.errors import UsageError
    from aicc.runtime.options import EngineOptions
    from aicc.runtime.provider import LoadOptions
    from aicc.runtime.session import load_artifact

    for name, value in (("threads", threads), ("kv_tokens", kv_tokens)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(f"{name} is {value!r} and must be an integer of at least 1.")
    if threads is not None and threads > _MAX_THREADS:
        raise UsageError(
            f"threads is {threads} and may be at most {_MAX_THREADS}.", "More than there are cores help nothing."
        )
    artifact, options = Artifact.open(path), LoadOptions(threads, kv_tokens)
    if draft is None:
        return load_artifact(artifact, options, device, EngineOptions(prefix_cache, speculation, reproducible))
    from aicc.runtime.draft_model import check_draft
    from aicc.runtime.speculation import SpeculationOptions

    engine = EngineOptions(prefix_cache, speculation or SpeculationOptions(), reproducible)
    drafting = Artifact.open(draft)
    check_draft(artifact, drafting)
    model: Any = load_artifact(drafting, options, device)
    try:
        return load_artifact(artifact, options, device, engine, model)
    except BaseException:
        model.close()
        raise


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"aicc.runtime.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
