"""From a conversation, and what its answer is to be, to sequences in the engine; no API is known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aicc.runtime.constraint import Constraint
from aicc.runtime.errors import AiccError
from aicc.runtime.generator import Model
from aicc.runtime.request import Piece
from aicc.runtime.sampling import SamplingParams
from aicc.runtime.server.errors import ApiError, from_foreseen
from aicc.runtime.server.sequence_group import SequenceGroup
from aicc.runtime.tools.formats import MOST_CALLS, Function, ToolFormat, template_input, tool_format
from aicc.runtime.tools.grammar import calls_grammar, optional_calls_grammar
from aicc.runtime.tools.parser import Said, Text, ToolCallParser


@dataclass(frozen=True, slots=True)
class Fields:
    """What a request calls the parts of a conversation, for errors.

    Attributes:
        messages: The conversation.
        schema: The schema of the answer.
        parameters: The schema of a function's arguments, with ``{}`` for the number of the function.
    """

    messages: str
    schema: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said and what is to be said next.

    Attributes:
        messages: As :func:`aicc.runtime.tools.formats.template_input` takes them.
        fields: Their names in the request.
        functions: What the model may call.
        to_call: Those of them one of which it has to call; None leaves it to the model.
        parallel: Whether it may call several times in one answer.
        schema: JSON schema of an answer that is no call; None is any text.
    """

    messages: Sequence[Mapping[str, Any]]
    fields: Fields
    functions: Sequence[Function] = field(default=())
    to_call: Sequence[Function] | None = None
    parallel: bool = True
    schema: Mapping[str, Any] | None = None

    def prepare(self, group: SequenceGroup, choices: Sequence[SamplingParams]) -> Callable[[], ToolCallParser] | None:
        """Make the sequences. Slow for long conversations; runs on any thread.

        Args:
            group: Gets them.
            choices: How to sample each choice.

        Returns:
            What makes a reader of calls for one choice; None if there are no functions.

        Raises:
            ApiError: The chat template refuses the conversation, or a schema cannot be enforced.
        """
        model = group.model
        try:
            form = tool_format(model.chat_template.source)
            shown, definitions = template_input(form, self.messages, self.functions)
            ids = model.chat_ids(shown, tools=definitions)
        except AiccError as error:
            raise from_foreseen(error, self.fields.messages) from error
        marker = model.tokenizer.special_tokens.get(form.marker)
        group.prepare([ids], choices, self.fields.messages, self._constraint(model, form, marker))
        names = [function.name for function in self.functions]
        return partial(ToolCallParser, form, names, marker) if names else None

    def _constraint(self, model: Model, form: ToolFormat, marker: int | None) -> Callable[[], Constraint] | None:
        """Makes what an answer must follow, one for each choice; None if it may be anything."""
        most = MOST_CALLS if self.parallel and form.separator is not None else 1
        if self.to_call is not None:
            return partial(self._grammar, model, calls_grammar(form, self.to_call, most, marker))
        schema = self.schema
        if self.functions and (schema is not None or most == 1 or any(f.strict for f in self.functions)):
            return partial(self._grammar, model, optional_calls_grammar(form, self.functions, most, marker, schema))
        return None if schema is None else partial(json_constraint, model, schema, self.fields.schema)

    def _grammar(self, model: Model, grammar: str) -> Constraint:
        try:
            return model.constraint("lark", grammar)
        except AiccError as error:
            raise self._at_fault(model, error) from error

    def _at_fault(self, model: Model, error: AiccError) -> ApiError:
        """The refusal of a grammar, told of the schema that cannot be enforced."""
        schemas = [(f.schema, self.fields.parameters.format(i)) for i, f in enumerate(self.functions)]
        if self.schema is not None:
            schemas.append((dict(self.schema), self.fields.schema))
        for schema, param in schemas:
            try:
                json_constraint(model, schema, param)
            except ApiError as refused:
                return refused
        return from_foreseen(error, self.fields.parameters.partition("[")[0])


def said_by(piece: Piece, parser: ToolCallParser | None) -> list[Said]:
    """What a piece of an answer says, text and calls; the last piece says all that is left.

    Args:
        piece: The next of its sequence.
        parser: What has read those before it; None if there are no functions.
    """
    if parser is None:
        return [Text(piece.text)] if piece.text else []
    said = parser.push(piece.text, piece.token_ids)
    return said + parser.finish() if piece.finish_reason is not None else said


def json_constraint(model: Model, schema: Mapping[str, Any], param: str) -> Constraint:
    """What makes one answer follow a schema.

    Args:
        model: What answers.
        schema: The JSON schema.
        param: The request's field it came from, for errors.

    Raises:
        ApiError: It cannot be enforced.
    """
    try:
        return model.constraint("json_schema", schema)
    except AiccError as error:
        raise from_foreseen(error, param) from error
