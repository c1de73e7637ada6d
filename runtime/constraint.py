"""What a generation may say: grammars, as masks over the vocabulary.

A :class:`Constraint` belongs to one request. Which tokens may come next is known as soon as the
last one is, so the mask is made in a thread of its own while the chip computes the logits it will
be applied to. Grammars come from strangers, so their size and what they may cost are bounded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import llguidance

GrammarKind = Literal["json_object", "json_schema", "regex", "lark"]

MAX_GRAMMAR_BYTES = 64 << 10
_MAX_DIVISOR = 10_000  # an automaton that counts remainders has as many states
_MAX_LEXER_STATES = 20_000  # of up to 2 kB each
_MAX_GRAMMAR_SYMBOLS = 100_000
_MAX_REASON = 300  # characters of the library's own explanation
# As Python's json.dumps writes, which is what models have seen most of: where they may choose the spaces they go on
# with spaces for ever, or open one object in another.
JSON_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraint(Protocol):
    """Decides which tokens may follow. One thread at a time."""

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        ...

    def mask(self) -> NDArray[np.bool_] | None:
        """bool ``[vocab]``: the tokens that may come next; None is all of them.

        Raises:
            UsageError: Going on would cost more than a request may.
        """
        ...

    def advance(self, token: int) -> None:
        """Take the token that was chosen; the next mask is begun."""
        ...


class Grammars:
    """Compiles grammars for one vocabulary. May be used from any thread.

    Args:
        tokenizer: The model's ``tokenizer.json``.
        vocab_size: Length of a row of logits.
        eos_token_ids: Tokens that end the text, allowed where the grammar is satisfied.

    Raises:
        UnsupportedError: The library for it is not installed, or does not know the tokenizer.
    """

    def __init__(self, tokenizer: str | os.PathLike[str], vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise UnsupportedError(
                "grammars need llguidance, which is not installed.", "pip install 'aicc[serve]'"
            ) from error
        try:
            self._tokenizer = llguidance.LLTokenizer(os.fspath(tokenizer), vocab_size, list(eos_token_ids) or None)
        except ValueError as error:
            raise UnsupportedError(
                f"grammars cannot be used with this model's tokenizer ({_reason(str(error))}).", "Ask without them."
            ) from error
        self._vocab_size = vocab_size
        self._matcher = llguidance.LLMatcher
        self._limits = llguidance.LLParserLimits(
            max_lexer_states=_MAX_LEXER_STATES, max_grammar_size=_MAX_GRAMMAR_SYMBOLS, verbose_errors=False
        )
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="aicc-grammar")

    def compile(self, kind: GrammarKind, source: str | Mapping[str, Any] = "") -> Constraint:
        """A constraint for one request.

        Args:
            kind: ``json_object`` (any JSON object), ``json_schema``, ``regex`` or ``lark``.
            source: The schema, expression or grammar; a schema as JSON text or as a mapping.

        Raises:
            UsageError: It is not one, is too large, or has something that cannot be enforced.
        """
        if kind == "json_object":
            source = {"type": "object"}
        text = source if isinstance(source, str) else _dumped(source)
        size = len(text.encode(errors="replace"))
        if size > MAX_GRAMMAR_BYTES:
            raise UsageError(f"the {kind} has {size} bytes and may have {MAX_GRAMMAR_BYTES}.", "Make it smaller.")
        matcher = self._matcher(self._tokenizer, self._grammar(kind, text), log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refused(kind, matcher.get_error())
        return _Matched(kind, matcher, self._vocab_size, self._workers)

    def close(self) -> None:
        """End the workers; no constraint can go on."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _grammar(self, kind: GrammarKind, text: str) -> str:
        if kind == "regex":
            return self._matcher.grammar_from_regex(text)
        if kind == "lark":
            if "multipleOf" in text:  # a schema may be part of a grammar
                raise _refused(kind, "multipleOf is not allowed in it")
            return self._matcher.grammar_from_lark(text)
        try:
            _check_divisors(json.loads(text))
            # A schema can ask to have what is not implemented ignored, or for other spaces; that is overruled.
            overrides: Any = {"lenient": False, "whitespace_pattern": None, **JSON_SPACING}
            return self._matcher.grammar_from_json_schema(text, overrides=overrides)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise _refused(kind, str(error)) from error


class _Matched:
    """A :class:`Constraint` by a grammar. The engine's thread advances it, a worker makes its masks."""

    def __init__(
        self, kind: GrammarKind, matcher: llguidance.LLMatcher, vocab_size: int, workers: ThreadPoolExecutor
    ) -> None:
        self._kind, self._matcher, self._vocab_size, self._workers = kind, matcher, vocab_size, workers
        self._finished = False
        self._next: Future[NDArray[np.bool_]] = workers.submit(self._make)

    @property
    def finished(self) -> bool:
        return self._finished  # the matcher itself cannot be asked while a worker has it

    def mask(self) -> NDArray[np.bool_]:
        return self._next.result()

    def advance(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise _refused(self._kind, self._matcher.get_error())
        self._finished = self._matcher.is_stopped()
        if not self._finished:
            self._next = self._workers.submit(self._make)

    def _make(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        if self._matcher.is_error() or not mask.any():
            raise _refused(self._kind, self._matcher.get_error() or "no token may follow")
        return mask


def _dumped(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused("json_schema", str(error)) from error


def _check_divisors(schema: Any) -> None:
    """Refuse ``multipleOf`` whose automaton would be huge, each alone or several on one number."""
    together = 1
    for value in _divisors(schema):
        digits = "".join(map(str, Decimal(str(value)).normalize().as_tuple().digits))
        together = math.lcm(together, max(1, int(digits)))
        if together > _MAX_DIVISOR:
            raise ValueError(f"multipleOf of more than {_MAX_DIVISOR} is too expensive, taking all of them together")


def _divisors(schema: Any) -> Iterator[float]:
    if isinstance(schema, dict):
        value = schema.get("multipleOf")
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield value
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for each in inner:
        yield from _divisors(each)


def _reason(text: str) -> str:
    """The library's explanation on one line."""
    line = " ".join(text.replace("<non-verbose/>", "").split())
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 3] + "..."


def _refused(kind: GrammarKind, reason: str) -> UsageError:
    return UsageError(f"the {kind} cannot be enforced: {_reason(reason).rstrip('.')}.")
