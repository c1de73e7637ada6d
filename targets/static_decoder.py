"""Decoders of chips that run fixed shapes alone: the host keeps the KV cache and says who sees whom.

A family compiles the graphs of :func:`aicc.compiler.passes.explicit_cache.decoder_steps`, for instance 128 new tokens
and 1 in contexts of 256 and of 1,024, and gives this decoder something that evaluates each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import Signature
from aicc.runtime.errors import ResourceError, UsageError
from aicc.runtime.provider import Array
from aicc.targets.portable import Evaluate, GraphDecoder

BIAS = "attention_bias"
HIDDEN = -256.0  # exp of it is 0 beside any score, and scores keep their steps when both share 16 bits


class Step(msgspec.Struct, frozen=True):
    """One graph of a decoder.

    Attributes:
        name: Of its files.
        tokens: New tokens it takes: a chunk of a prompt, or 1.
        context: Cached and new tokens together.
    """

    name: str
    tokens: int
    context: int


class Steps(msgspec.Struct, frozen=True):
    """A decoder's graphs, and the names of their mask inputs: each :data:`BIAS` or that with ``.`` and a window."""

    steps: tuple[Step, ...]
    biases: tuple[str, ...]


class StaticDecoder(GraphDecoder):
    """A decoder over paged KV memory, one sequence and one graph at a time.

    A sequence that outgrows a context goes on in the next larger one: its pages are laid out for each step anyway.

    Args:
        steps: The graphs there are, and what computes the outputs of each from its inputs, by name.
        biases: Names of the graphs' mask inputs.
        signatures: The manifest's; ``default`` is the decoder's, of any sizes.
        device: What it runs on, for people.
        kv_tokens: Tokens the KV memory holds.
    """

    def __init__(
        self,
        steps: Mapping[Step, Evaluate],
        biases: Iterable[str],
        signatures: Mapping[str, Signature],
        device: str,
        kv_tokens: int,
    ) -> None:
        super().__init__(
            next(iter(steps.values())), signatures, device, kv_tokens, max_batch_tokens=max(s.tokens for s in steps)
        )
        self._steps = steps
        self._context = max(step.context for step in steps)
        self._windows = {name: int(name.removeprefix(BIAS).removeprefix(".") or 0) for name in biases}

    def close(self) -> None:
        """Let go of the evaluators and the KV memory."""
        super().close()
        self._steps = {}

    def _extend(self, tokens: NDArray[np.int64], past: int, pages: NDArray[np.int32]) -> Array:
        """Logits ``[tokens, vocab]`` of one sequence's new tokens, whose keys and values are kept."""
        rows, done = [], 0
        while done < len(tokens):
            step = self._choose(past + done, len(tokens) - done)
            piece = tokens[done : done + step.tokens]
            rows.append(self._run(step, piece, past + done, pages))
            done += len(piece)
        return np.concatenate(rows)

    def _choose(self, past: int, tokens: int) -> Step:
        """The graph to take: the fewest new tokens that hold these, or the most; in the smallest context that does."""
        if not self._steps:
            raise UsageError("the model was closed.", "Load it again.")
        possible = [step for step in self._steps if past + step.tokens <= step.context]
        if not possible:
            raise ResourceError(
                f"the model was compiled for {self._context} tokens of context, and a sequence has more.",
                "Compile it with a larger --size context=N.",
            )
        enough = [step for step in possible if step.tokens >= tokens]
        size = min(s.tokens for s in enough) if enough else max(s.tokens for s in possible)
        return min((step for step in possible if step.tokens == size), key=lambda step: step.context)

    def _run(self, step: Step, tokens: NDArray[np.int64], past: int, pages: NDArray[np.int32]) -> Array:
        """One graph, with its tokens and cache padded to its sizes."""
        size, count, slots = step.tokens, len(tokens), step.context - step.tokens
        positions = np.arange(past, past + size, dtype=np.int64)
        inputs: dict[str, Array] = {
            "input_ids": np.pad(tokens, (0, size - count))[None],
            "position_ids": positions[None],
        }
        inputs = {name: array for name, array in inputs.items() if name in self._inputs}
        keys = np.concatenate([np.where(np.arange(slots) < past, np.arange(slots), self._context), positions])
        for name, window in self._windows.items():
            back = positions[:, None] - keys
            seen = (back >= 0) & ((back < window) if window else True)
            inputs[name] = np.where(seen, 0, HIDDEN).astype(np.float32)[None, None]
        for name, memory in self._memory.items():
            _, heads, _, width = memory.shape
            whole = np.zeros((1, heads, slots, width), memory.dtype)
            whole[0, :, :past] = memory[pages].transpose(1, 0, 2, 3).reshape(heads, -1, width)[:, :past]
            inputs[name] = whole
        self._evaluate = self._steps[step]
        outputs = self._compute(inputs)
        self._keep({name: outputs[self._present(name)][:, :, :count] for name in self._memory}, past, pages)
        logits: Array = outputs["logits"][0, :count]
        return logits
