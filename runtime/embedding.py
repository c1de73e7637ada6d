"""Vectors of texts, by an encoder: tokens, last hidden states, pooling, as sentence-transformers defines them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import TOKENIZER_PATH
from aicc.runtime.errors import ContextLengthError, UnsupportedError, UsageError
from aicc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from aicc.runtime.artifact import EmbeddingFacts
    from aicc.runtime.session import Session

_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"
_TOKENS_AT_ONCE = 4096  # padding included: bounds the memory of intermediate tensors


class Embedder:
    """Makes vectors with a loaded encoder.

    Args:
        session: The encoder; it must stay open.

    Raises:
        UnsupportedError: The artifact does not say how, has no tokenizer, or takes something else than tokens.
    """

    def __init__(self, session: Session) -> None:
        artifact = session.artifact
        facts = session.manifest.embedding
        if facts is None:
            raise UnsupportedError(
                f"{session.manifest.name} does not say how it makes one vector of a text.",
                "Compile a sentence-transformers folder, such as minilm-l6.",
            )
        if not artifact.has(TOKENIZER_PATH):
            raise UnsupportedError(f"{artifact.path} has no tokenizer.", "Compile a folder that has one.")
        self._signature, inputs = next((name, s.inputs) for name, s in session.signatures.items())
        self._inputs = {spec.name: spec for spec in inputs}
        unknown = sorted(self._inputs.keys() - {_IDS, _MASK, _TYPES})
        if unknown or _IDS not in self._inputs:
            raise UnsupportedError(
                f"{session.manifest.name} takes {', '.join(self._inputs)}, which is not just tokens."
            )
        self._facts: EmbeddingFacts = facts
        self._session = session
        self._tokenizer = Tokenizer(artifact.file(TOKENIZER_PATH))
        self._rows, self._length = (size if isinstance(size, int) else None for size in self._inputs[_IDS].shape)

    @property
    def max_tokens(self) -> int:
        """Most tokens a text may have, special ones included."""
        return min(self._facts.max_tokens, self._length or self._facts.max_tokens)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens around it.

        Raises:
            ContextLengthError: There are more than :attr:`max_tokens`.
            UsageError: The text is not Unicode.
        """
        ids = self._tokenizer.encode(text)
        self.check(ids)
        return ids

    def check(self, ids: Sequence[int]) -> None:
        """Refuse token ids the model cannot take.

        Raises:
            ContextLengthError: There are more than :attr:`max_tokens`.
            UsageError: There are none, or one is not of the vocabulary.
        """
        if not ids:
            raise UsageError("the text has no token.", "Give it at least one.")
        if len(ids) > self.max_tokens:
            raise ContextLengthError(len(ids), self.max_tokens)
        highest = self._tokenizer.size - 1
        for wrong in (id for id in ids if not 0 <= id <= highest):
            raise UsageError(f"the text has the token id {wrong}, and the model's ids are 0 to {highest}.")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts.

        Returns:
            float32 ``[texts, width]``.

        Raises:
            ContextLengthError: A text has more tokens than :attr:`max_tokens`; nothing is cut.
        """
        ids = [self.tokenize(text) for text in texts]
        vectors: dict[int, NDArray[np.float32]] = {}
        for batch in self.batches(ids):
            vectors.update(zip(batch, self.run([ids[i] for i in batch]), strict=True))
        return np.stack([vectors[i] for i in range(len(texts))]) if vectors else np.empty((0, 0), np.float32)

    def batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Numbers of texts to run together: of like length, so that little is padding.

        Args:
            ids: Checked token ids of each text.
        """
        batch: list[int] = []
        for i in sorted(range(len(ids)), key=lambda i: len(ids[i])):
            if batch and not self._fits(len(batch) + 1, len(ids[batch[0]]), len(ids[i])):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def run(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors of one batch's texts.

        Args:
            ids: Token ids of each text, as :meth:`batches` put them together.

        Returns:
            float32 ``[texts, width]``.
        """
        rows, length = self._rows or len(ids), self._length or max(map(len, ids))
        tokens, mask = np.zeros((2, rows, length), np.int64)
        for i, text in enumerate(ids):
            tokens[i, : len(text)] = text
            mask[i, : len(text)] = 1
        mask[len(ids) :, 0] = 1  # rows of a fixed batch that hold no text
        given = {_IDS: tokens, _MASK: mask, _TYPES: np.zeros_like(tokens)}
        inputs = {name: given[name].astype(spec.dtype) for name, spec in self._inputs.items()}
        hidden = next(iter(self._session.run(inputs, self._signature).values()))
        return self._pooled(np.asarray(hidden, np.float32)[: len(ids)], mask[: len(ids)])

    def _fits(self, rows: int, shortest: int, longest: int) -> bool:
        """Whether texts may run together, the longest of them last."""
        if rows > (self._rows or rows) or (_MASK not in self._inputs and shortest != longest):
            return False
        return self._rows is not None or rows * (self._length or longest) <= _TOKENS_AT_ONCE

    def _pooled(self, hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """One vector of each text's hidden states.

        Args:
            hidden: float32 ``[texts, tokens, width]``.
            mask: int64 ``[texts, tokens]``, 0 where padding is.
        """
        present = mask[..., None].astype(np.float32)
        if self._facts.pooling == "cls":
            vectors = hidden[:, 0]
        elif self._facts.pooling == "max":
            vectors = np.where(present > 0, hidden, -np.inf).max(axis=1)
        else:
            vectors = (hidden * present).sum(axis=1) / present.sum(axis=1)
        if self._facts.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.asarray(vectors, np.float32)
