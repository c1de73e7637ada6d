"""Decoders and encoders on a device: ragged batches of tokens over pages of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import Signature
from aicc.runtime.errors import UsageError
from aicc.runtime.provider import Array, DecoderExecutable, TokenBatch
from aicc.targets.webgpu.executables import Loaded
from aicc.targets.webgpu.launch import Launcher
from aicc.targets.webgpu.plan import BATCH, CHOSEN, HEADER_WORDS, LOGITS, PAGE_LIST, Plan, Rows, output_buffer

Ints = NDArray[np.int64]


class _Batched(Loaded):
    """A model of rows: writes what the kernels ask of each token into the batch's buffer."""

    def __init__(
        self, launch: Callable[[], Launcher], plan: Plan, rows: Rows, signatures: Mapping[str, Signature]
    ) -> None:
        super().__init__(launch, plan, signatures)
        self._rows = rows
        self._words = np.zeros(HEADER_WORDS + (5 + max(1, len(rows.inputs))) * rows.tokens, np.uint32)

    def _step(
        self, inputs: list[Ints], facts: Mapping[str, Any], pages: Any, wanted: Any, results: Mapping[str, int]
    ) -> dict[str, NDArray[np.float32]]:
        """One run.

        Args:
            inputs: Integers of each token, int64 ``[T]`` each.
            facts: Of each token: its ``position``; the number of ``keys`` it sees, from its sequence's first on;
                where its sequence's ``pages`` begin in the list; and ``first``, the number of its sequence's first
                token in this run.
            pages: Pages of all sequences, one after another.
            wanted: Numbers of the tokens whose results are wanted.
            results: Buffers to read, and the bytes of each.
        """
        words, most, count = self._words, self._rows.tokens, len(inputs[0])
        arrays = [*(facts[name] for name in ("position", "keys", "pages", "first")), wanted, *inputs]
        with self._lock:
            words[0], words[1] = count, len(wanted)
            for number, array in enumerate(arrays):
                begin = HEADER_WORDS + number * most
                words[begin : begin + len(array)] = array
            written = {BATCH: words, PAGE_LIST: np.ascontiguousarray(pages, np.uint32)}
            found = self._submit(written, {"tokens": count, "wanted": len(wanted)}, results)
        return {name: array.view(np.float32) for name, array in found.items()}


class WebGpuDecoder(_Batched, DecoderExecutable):
    """A decoder over paged KV memory."""

    def __init__(
        self, launch: Callable[[], Launcher], plan: Plan, rows: Rows, signatures: Mapping[str, Signature], pages: int
    ) -> None:
        super().__init__(launch, plan, rows, signatures)
        self._pages = pages

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return self._rows.page

    @property
    def page_count(self) -> int:
        """Pages there are, all of them in the device's memory."""
        return self._pages

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens a step may add."""
        return self._rows.tokens

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """One step; see :class:`aicc.runtime.provider.DecoderExecutable`.

        Raises:
            UsageError: The batch makes no sense.
            ResourceError: The device fails.
        """
        found = self._run(batch, LOGITS, self._rows.vocab)
        return found.view(np.float32)

    def forward_best(self, batch: TokenBatch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """One step and its likeliest tokens; see :class:`aicc.runtime.provider.ChoosingDecoder`.

        Raises:
            UsageError: As :meth:`forward`.
            ResourceError: As :meth:`forward`.
        """
        chosen = self._run(batch, CHOSEN, 2)
        return chosen[:, 0].astype(np.int64), chosen[:, 1].copy().view(np.float32)

    def _run(self, batch: TokenBatch, result: str, columns: int) -> NDArray[np.uint32]:
        """A buffer's rows after a step, of the tokens whose logits are wanted."""
        self._check(batch)
        new = np.diff(batch.starts)
        first = np.repeat(batch.starts[:-1], new)
        position = np.repeat(batch.past, new) + np.arange(len(batch.tokens)) - first
        facts = {
            "position": position,
            "keys": position + 1,
            "pages": np.repeat(batch.page_starts[:-1], new),
            "first": first,
        }
        size = 4 * len(batch.logit_rows) * columns
        found = self._step([batch.tokens], facts, batch.pages, batch.logit_rows, {result: size})
        return found[result].view(np.uint32).reshape(-1, columns)

    def _check(self, batch: TokenBatch) -> None:
        """Raise for what the kernels would read or write outside of where they may."""
        self._check_open()
        count, sequences, rows = len(batch.tokens), len(batch.past), self._rows
        new, held = np.diff(batch.starts), np.diff(batch.page_starts) * rows.page
        outline = (len(batch.starts), len(batch.page_starts)) == (sequences + 1, sequences + 1) and sequences > 0
        said = ""
        if (
            not outline
            or (batch.starts[0], batch.starts[-1], batch.page_starts[0]) != (0, count, 0)
            or batch.page_starts[-1] != len(batch.pages)
            or not 0 < count <= rows.tokens
            or len(batch.logit_rows) > rows.tokens
            or (new < 1).any()
            or (held < 0).any()
            or _outside(batch.logit_rows, count)
            or (batch.past < 0).any()
        ):
            said = "the batch contradicts itself, or is larger than this model takes"
        elif _outside(batch.tokens, rows.vocab):
            said = "a token is outside the vocabulary"
        elif (batch.past + new > rows.context).any():
            said = "a sequence would be longer than the model's context"
        elif _outside(batch.pages, self._pages) or (batch.past + new > held).any():
            said = "a page is outside the pool, or a sequence has too few pages"
        if said:
            raise UsageError(f"the step cannot be computed: {said}.")


class WebGpuEncoder(_Batched):
    """A model of token ids: integers of each token in, rows of activations out."""

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; inputs of one shape ``[batch, length]``, in any batch.

        Raises:
            UsageError: Shapes differ, a sequence is too long, or a number is outside its table.
            ResourceError: The device fails.
        """
        self._check_open()
        rows, arrays = self._rows, [inputs[name] for name in self._rows.inputs]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise UsageError(f"the inputs have different shapes: {', '.join(map(str, sorted(shapes)))}.")
        batch, length = arrays[0].shape
        if length > rows.context:
            raise UsageError(
                f"the inputs are {length} tokens long, and this model takes {rows.context} at most.", "Cut them."
            )
        if any(limit and _outside(array, limit) for array, limit in zip(arrays, rows.limits, strict=True)):
            raise UsageError("a number in the inputs is below 0 or not below the size of the table it looks into.")
        if rows.mask >= 0:
            arrays[rows.mask] = (arrays[rows.mask] != 0).astype(np.int64)
        outputs: dict[str, Array] = {name: np.empty((batch, length, width), np.float32) for name, width in rows.outputs}
        pages = -(-max(1, length) // rows.page)  # a sequence begins with a page of its own
        together = max(1, min(rows.tokens // max(1, length), rows.tokens // rows.page // pages))
        for begin in range(0, batch if length else 0, together):
            part = [array[begin : begin + together] for array in arrays]
            for name, found in self._sequences(part).items():
                outputs[name][begin : begin + together] = found
        return outputs

    def _sequences(self, arrays: list[Array]) -> dict[str, Array]:
        """As many sequences as fit into one run."""
        batch, length = arrays[0].shape
        pages = -(-length // self._rows.page)
        number, count = np.repeat(np.arange(batch), length), batch * length
        facts = {
            "position": np.tile(np.arange(length), batch),
            "keys": np.full(count, length),
            "pages": number * pages,
            "first": number * length,
        }
        ids = [array.reshape(-1).astype(np.int64) for array in arrays]
        outputs = {name: output_buffer(n) for n, (name, _) in enumerate(self._rows.outputs)}
        sizes = {outputs[name]: 4 * count * width for name, width in self._rows.outputs}
        found = self._step(ids, facts, np.arange(batch * pages), np.arange(0), sizes)
        return {name: found[outputs[name]].reshape(batch, length, width) for name, width in self._rows.outputs}


def _outside(numbers: Array, limit: int) -> bool:
    """Whether any is negative, or not below a limit."""
    return bool(((numbers < 0) | (numbers >= limit)).any())  # type: ignore[operator]
