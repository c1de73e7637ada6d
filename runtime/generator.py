"""Models of tokens: generate, stream, score."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import msgspec
import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import (
    CHAT_TEMPLATE_PATH,
    TOKENIZER_CONFIG_PATH,
    TOKENIZER_PATH,
    Artifact,
    LlmFacts,
)
from aicc.runtime.draft_model import DraftModel
from aicc.runtime.engine import Engine
from aicc.runtime.errors import ContextLengthError, IntegrityError, UnsupportedError, UsageError
from aicc.runtime.machine import release_free_memory
from aicc.runtime.options import DEFAULT_OPTIONS, EngineOptions
from aicc.runtime.provider import OPTIMAL, Compatibility, DecoderExecutable
from aicc.runtime.request import FinishReason, Piece, Request, Timings
from aicc.runtime.sampling import SamplingOptions, SamplingParams
from aicc.runtime.speculation import SpeculationOptions
from aicc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:  # imported where they are needed: a first token soon after the process starts does without
    from aicc.runtime.chat import ChatTemplate, Messages
    from aicc.runtime.constraint import Constraint, GrammarKind, Grammars

Prompt = str | Sequence[int] | NDArray[np.integer[Any]]

_MOST_DRAFT_COST = 0.5  # of a target's step
_LOGITS_AT_ONCE = 64 << 20  # bytes of logits a step of `logits` makes


class Generation(msgspec.Struct, frozen=True):
    """A finished generation.

    Attributes:
        text: Without the stop string or end-of-sequence token that ended it.
        token_ids: Every generated token, an end-of-sequence token included.
        finish_reason: ``stop`` (end-of-sequence token or stop string) or ``length``.
        timings: Tokens and seconds of prefill and decode.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    timings: Timings


class Model:
    """A loaded decoder; a context manager.

    Args:
        executable: What a provider loaded.
        artifact: Where its tokenizer and facts are.
        compatibility: What the provider said of it and this machine.
        target: What the loaded variant was compiled for.
        options: How the engine goes about it.
        draft: A smaller model that guesses tokens for it, seen to by :func:`aicc.runtime.draft_model.check_draft`;
            it is closed with this one and does nothing else.

    Attributes:
        manifest: The artifact's.
        engine: Runs the requests; a server drives it from its own thread.
    """

    def __init__(
        self,
        executable: DecoderExecutable,
        artifact: Artifact,
        compatibility: Compatibility = OPTIMAL,
        target: str = "",
        options: EngineOptions = DEFAULT_OPTIONS,
        draft: Model | None = None,
    ) -> None:
        self._executable = executable
        self._draft = draft
        self.target = target
        self.compatibility = compatibility
        self._artifact = artifact
        self.manifest = artifact.manifest
        facts = self.manifest.llm
        if facts is None:
            raise UsageError(f"{artifact.path} is not a decoder.")
        self._facts: LlmFacts = facts
        drafter = None if draft is None else draft._drafts_for(self, options)
        self.engine = Engine(executable, options, drafter)
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        self._grammars: Grammars | None = None
        self._lock = threading.Lock()

    @property
    def device(self) -> str:
        """Where it runs, as the device calls itself."""
        return self._executable.device

    @property
    def prompts_apart(self) -> bool:
        """Whether tokens of prompts are computed by other kernels than generated ones."""
        return self._executable.prompts_apart

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and completion: the model's context, or the KV cache if that is smaller."""
        return min(self._facts.context_length, self.engine.capacity)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the artifact has a tokenizer; without one prompts are token ids."""
        return self._artifact.has(TOKENIZER_PATH)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            UnsupportedError: The artifact has none.
        """
        if self._tokenizer is None:
            if not self.has_tokenizer:
                raise UnsupportedError(
                    f"{self._artifact.path} has no tokenizer.", "Give prompts as lists of token ids."
                )
            self._tokenizer = Tokenizer(
                self._artifact.file(TOKENIZER_PATH), self._facts.bos_token_id, self._facts.add_bos
            )
            release_free_memory()
        return self._tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether the artifact has a chat template."""
        return self._artifact.has(CHAT_TEMPLATE_PATH)

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template; its process starts while the caller goes on.

        Raises:
            UnsupportedError: The artifact has none.
        """
        from aicc.runtime.chat import ChatTemplate

        if self._template is None:
            if not self.has_chat_template:
                raise UnsupportedError(
                    f"{self.manifest.name} has no chat template.", "Give it a plain prompt (--raw) instead of messages."
                )
            self._template = ChatTemplate(
                _read_text(self._artifact, CHAT_TEMPLATE_PATH), self.manifest.name, _template_variables(self._artifact)
            )
        return self._template

    def chat_ids(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation; see :meth:`ChatTemplate.ids`.

        Raises:
            UsageError: The template refuses the conversation.
            UnsupportedError: The model has no chat template.
        """
        return self.chat_template.ids(self.tokenizer, messages, add_generation_prompt, tools, **variables)

    def constraint(self, kind: GrammarKind, source: str | Mapping[str, Any] = "") -> Constraint:
        """What one generation may say; any thread may make it, and the first one takes longer.

        Args:
            kind: ``json_object``, ``json_schema``, ``regex`` or ``lark``.
            source: The schema (JSON text or a mapping), expression or grammar.

        Raises:
            UsageError: It is not one, is too large, or has something that cannot be enforced.
            UnsupportedError: The model has no tokenizer that grammars know, or llguidance is not installed.
        """
        from aicc.runtime.constraint import Grammars

        with self._lock:
            if self._grammars is None:
                _ = self.tokenizer  # refuses a model without one
                path, facts = self._artifact.file(TOKENIZER_PATH), self._facts
                self._grammars = Grammars(path, facts.vocab_size, facts.eos_token_ids)
        return self._grammars.compile(kind, source)

    def generate(
        self, prompt: Prompt, constraint: Constraint | None = None, **options: Unpack[SamplingOptions]
    ) -> Generation:
        """Generate until the model ends, a stop string appears or the tokens run out.

        Args:
            prompt: Text, as it is (no chat template), or token ids.
            constraint: From :meth:`constraint`, for this generation alone.
            options: Fields of :class:`SamplingParams`.

        Raises:
            UsageError: The prompt is empty or not of this model, or an option is out of range.
            ContextLengthError: The prompt does not fit the context.
        """
        pieces: deque[Piece] = deque()
        request = self.request(prompt, SamplingParams(**options), pieces.append, constraint)
        text = "".join(piece.text for piece in self.drive(request, pieces))
        assert request.finish_reason is not None
        return Generation(text, request.completion_ids, request.finish_reason, request.timings)

    def stream(
        self, prompt: Prompt, constraint: Constraint | None = None, **options: Unpack[SamplingOptions]
    ) -> Iterator[Piece]:
        """The same, piece by piece; closing the iterator ends the generation.

        Raises:
            UsageError: As :meth:`generate`, at the call and not at the first piece.
        """
        pieces: deque[Piece] = deque()
        return self.drive(self.request(prompt, SamplingParams(**options), pieces.append, constraint), pieces)

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        emit: Callable[[Piece], None],
        constraint: Constraint | None = None,
    ) -> Request:
        """A request for :attr:`engine`, checked but not submitted.

        Args:
            prompt: Text or token ids.
            params: How to sample and when to stop.
            emit: Called with each piece by whoever steps the engine.
            constraint: From :meth:`constraint`, for this request alone.

        Raises:
            UsageError: The prompt is empty or not of this model.
            ContextLengthError: The prompt does not fit the context.
        """
        if params.stops and not self.has_tokenizer:
            raise UnsupportedError("stop strings need a tokenizer, and this model has none.", "Leave out stop.")
        ids = self._ids(prompt)
        return Request(
            ids,
            params,
            vocab_size=self._facts.vocab_size,
            capacity=self.context_length,
            page_size=self._executable.page_size,
            eos_token_ids=self._facts.eos_token_ids,
            tokenizer=self.tokenizer if self.has_tokenizer else None,
            emit=emit,
            constraint=constraint,
        )

    def logits(self, ids: Sequence[int], generated: bool = False) -> NDArray[np.float32]:
        """Next-token logits after every token of a text, teacher-forced.

        Args:
            ids: Token ids, at most :attr:`context_length`.
            generated: Whether they are computed as generated tokens are, which can be otherwise than a prompt's.

        Returns:
            float32 ``[tokens, vocab]``.
        """
        tokens = self._ids(ids)
        rows = np.empty((len(tokens), self._facts.vocab_size), np.float32)
        done = 0

        def store(chunk: NDArray[np.float32]) -> None:
            nonlocal done
            rows[done : done + len(chunk)] = chunk
            done += len(chunk)

        chunk = max(16, _LOGITS_AT_ONCE // (4 * self._facts.vocab_size))
        self.engine.teacher_forced(tokens, chunk, generated, store)
        return rows

    def close(self) -> None:
        """Give back memory and device."""
        if self._template is not None:
            self._template.close()
        if self._grammars is not None:
            self._grammars.close()
        self._executable.close()
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def drive(self, request: Request, pieces: deque[Piece]) -> Generator[Piece, None, None]:
        """Step the engine until a request ends, giving its pieces; closing the iterator ends it early.

        Args:
            request: From :meth:`request`, with ``pieces.append`` as its ``emit``.
            pieces: What it emitted and nobody took yet.
        """
        self.engine.submit(request)
        try:
            while True:
                while not pieces:
                    self.engine.step()
                piece = pieces.popleft()
                if piece.error is not None:
                    raise piece.error
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            if request.finish_reason is None:  # closed, or interrupted: its memory is free again at once
                self.engine.cancel(request)
                self.engine.settle()

    def _drafts_for(self, target: Model, options: EngineOptions) -> DraftModel:
        """What makes drafts of another model out of this one."""
        # A decode is as long as reading the weights takes. One that was asked for is tried, however large it is.
        cost = min(_MOST_DRAFT_COST, self._facts.weight_bytes_per_token / max(1, target._facts.weight_bytes_per_token))
        return DraftModel(
            self._executable,
            options.speculation or SpeculationOptions(),
            cost,
            self.context_length,
            min(self._facts.vocab_size, target._facts.vocab_size),
            options.prefix_cache and not options.reproducible,
        )

    def _ids(self, prompt: Prompt) -> NDArray[np.int64]:
        """A prompt as int64 ids of this model that fit its context."""
        given = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        ids = np.asarray(given)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise UsageError("a prompt must be a text or a list of token ids.")
        if not len(ids):
            raise UsageError("the prompt is empty.", "Give it at least one token.")
        if ids.min() < 0 or ids.max() >= self._facts.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self._facts.vocab_size)][0]
            raise UsageError(
                f"the prompt has the token id {wrong}, and the model's ids are 0 to {self._facts.vocab_size - 1}.",
                "Encode it with the model's own tokenizer.",
            )
        if len(ids) > self.context_length:
            raise ContextLengthError(len(ids), self.context_length)
        return ids.astype(np.int64)


def _read_text(artifact: Artifact, relative: str) -> str:
    path = artifact.file(relative)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}).", "Compile the model again.") from error


def _template_variables(artifact: Artifact) -> dict[str, str]:
    """``bos_token`` and the like, for the chat template."""
    if not artifact.has(TOKENIZER_CONFIG_PATH):
        return {}
    try:
        return msgspec.json.decode(_read_text(artifact, TOKENIZER_CONFIG_PATH), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise IntegrityError(
            f"{artifact.file(TOKENIZER_CONFIG_PATH)} is not an object of strings ({error}).", "Compile the model again."
        ) from error
