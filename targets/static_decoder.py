"""Decoders of chips that run fixed shapes alone: the host keeps the KV cache and says who sees whom.

A family compiles graphs of a few sizes with :func:`aicc.compiler.passes.explicit_cache.specialise_decoder`, for
instance 128 new tokens and 1, and gives this decoder something that evaluates each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import Signature
from aicc.runtime.errors import ResourceError
from aicc.runtime.provider import Array
from aicc.targets.portable import Evaluate, GraphDecoder

BIAS = "attention_bias"
HIDDEN = -256.0  # exp of it is 0 beside any score, and scores keep their steps when both share 16 bits


class StaticDecoder(GraphDecoder):
    """A decoder over paged KV memory, one sequence and one graph at a time.

    Args:
        steps: For each number of new tokens there is a graph for: computes its outputs from its inputs, by name.
        biases: Names of the graphs' mask inputs, each :data:`BIAS` or that with ``.`` and a window.
        context: Cached and new tokens together, the same in all graphs.
        signatures: The manifest's; ``default`` is the decoder's, of any sizes.
        device: What it runs on, for people.
        kv_tokens: Tokens the KV memory holds.
    """

    def __init__(
        self,
        steps: Mapping[int, Evaluate],
        biases: list[str],
        context: int,
        signatures: Mapping[str, Signature],
        device: str,
        kv_tokens: int,
    ) -> None:
        super().__init__(next(iter(steps.values())), signatures, device, kv_tokens, max_batch_tokens=max(steps))
        self._steps = steps
        self._context = context
        self._windows = {name: int(name.removeprefix(BIAS).removeprefix(".") or 0) for name in biases}

    def close(self) -> None:
        """Let go of the evaluators and the KV memory."""
        super().close()
        self._steps = {}

    def _extend(self, tokens: NDArray[np.int64], past: int, pages: NDArray[np.int32]) -> Array:
        """Logits ``[tokens, vocab]`` of one sequence's new tokens, whose keys and values are kept."""
        rows, done = [], 0
        while done < len(tokens):
            size = self._size(past + done, len(tokens) - done)
            piece = tokens[done : done + size]
            rows.append(self._step(size, piece, past + done, pages))
            done += len(piece)
        return np.concatenate(rows)

    def _size(self, past: int, tokens: int) -> int:
        """New tokens of the graph to take: the smallest that holds them behind the past, or the largest."""
        possible = [size for size in self._steps if past + size <= self._context]
        if self._steps and not possible:
            raise ResourceError(
                f"the model was compiled for {self._context} tokens of context, and a sequence has more.",
                "Compile it with a larger --size context=N.",
            )
        return min((size for size in possible if size >= tokens), default=max(possible, default=1))

    def _step(self, size: int, tokens: NDArray[np.int64], past: int, pages: NDArray[np.int32]) -> Array:
        """One graph, with its tokens and cache padded to its sizes."""
        count, slots = len(tokens), self._context - size
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
        self._evaluate = self._steps.get(size)
        outputs = self._compute(inputs)
        self._keep({name: outputs[self._present(name)][:, :, :count] for name in self._memory}, past, pages)
        logits: Array = outputs["logits"][0, :count]
        return logits
