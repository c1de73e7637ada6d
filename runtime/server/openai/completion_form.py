"""The answers of ``/v1/completions``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aicc.runtime.generator import Model
from aicc.runtime.request import Piece
from aicc.runtime.sampling import TokenLogprobs
from aicc.runtime.server.openai.completion_schema import Completion, CompletionChoice, CompletionLogprobs
from aicc.runtime.server.openai.forms import StreamedForm, token_text, usage_of
from aicc.runtime.server.openai.schema import Usage
from aicc.runtime.server.sequence_group import Outcome, SequenceGroup, finish_reason


class CompletionForm(StreamedForm):
    """Writes completions; arguments as :class:`StreamedForm`.

    Args:
        echo: Texts to put in front of the choices, one for each; None puts none.
        echo_logprobs: Whether the log-probabilities of these texts are told.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        fingerprint: str,
        include_usage: bool,
        echo: Sequence[str] | None,
        echo_logprobs: bool,
    ) -> None:
        super().__init__(model, name, fingerprint, include_usage)
        self._echo = echo
        self._echo_logprobs = echo_logprobs
        self._offsets: dict[int, int] = {}  # characters of each choice so far

    def answer(self, group: SequenceGroup, outcomes: Sequence[Outcome]) -> Completion:
        """See :class:`aicc.runtime.server.answering.Form`."""
        choices = [self._choice(group, i, outcome.pieces) for i, outcome in enumerate(outcomes)]
        return self._completion(choices, usage_of(group))

    def opening(self, index: int) -> Iterator[Completion]:
        """See :class:`StreamedForm`."""
        yield from ()

    def piece(self, group: SequenceGroup, index: int, piece: Piece) -> Iterator[Completion]:
        """See :class:`StreamedForm`."""
        choice = self._choice(group, index, [piece])
        if choice.text or choice.logprobs:
            yield self._completion([CompletionChoice(index, choice.text, None, choice.logprobs)])
        if choice.finish_reason is not None:
            yield self._completion([CompletionChoice(index, "", choice.finish_reason)])

    def takes_long(self, index: int) -> bool:
        """See :class:`StreamedForm`: the log-probabilities of a long prompt come with a choice's first piece."""
        return self._echo_logprobs and index not in self._offsets

    def usage(self, usage: Usage) -> Completion:
        """See :class:`StreamedForm`."""
        return self._completion([], usage)

    def _choice(self, group: SequenceGroup, index: int, pieces: Sequence[Piece]) -> CompletionChoice:
        """What some pieces add to a choice; the first brings its prompt too, where that is wanted."""
        text, told = "", _Told()
        if self._echo is not None and index not in self._offsets:
            text = self._echo[index]
            if self._echo_logprobs:
                ids, logprobs = group.prompt(index)
                self._tell_prompt(told, text, ids, logprobs)
        offset = self._offsets.get(index, len(text))
        for piece in pieces:
            for token, found in group.logprobs(piece):
                told.add(self._model, token, found, offset)
                offset += len(told.tokens[-1])
            text += piece.text
        self._offsets[index] = offset
        return CompletionChoice(index, text, finish_reason(pieces[-1]), told.logprobs())

    def _tell_prompt(
        self, told: _Told, text: str, ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]
    ) -> None:
        offset = 0
        for token, found in zip(ids, logprobs, strict=True):
            told.add(self._model, token, found, offset)
            if text.startswith(told.tokens[-1], offset):  # not those around a text, such as its beginning's
                offset += len(told.tokens[-1])

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(
            "cmpl-" + self._id, self._created, self._name, choices, self._fingerprint, usage or self._no_usage
        )


class _Told:
    """The lists of a :class:`CompletionLogprobs`, growing."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self._values: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add(self, model: Model, token: int, found: TokenLogprobs | None, offset: int) -> None:
        """One token more; nothing is known of a prompt's first."""
        self.tokens.append(token_text(model, token))
        self._values.append(None if found is None else found.token)
        self._top.append(None if found is None else {token_text(model, id): value for id, value in found.top})
        self._offsets.append(offset)

    def logprobs(self) -> CompletionLogprobs | None:
        """The lists, if there is anything in them."""
        return CompletionLogprobs(self.tokens, self._values, self._top, self._offsets) if self.tokens else None
