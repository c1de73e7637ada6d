"""``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.errors import AiccError
from aicc.runtime.generator import Model
from aicc.runtime.server.answering import answer
from aicc.runtime.server.bodies import BodyReader
from aicc.runtime.server.errors import from_foreseen, invalid
from aicc.runtime.server.generation import Generation
from aicc.runtime.server.openai.chat_form import ChatForm
from aicc.runtime.server.openai.chat_schema import ChatRequest
from aicc.runtime.server.openai.sampling import UNBOUNDED, check_stream_options, includes_usage, sampling_params
from aicc.runtime.server.openai.tools import constraint_of, functions_of, messages_of
from aicc.runtime.server.registry import Registry
from aicc.runtime.tools.formats import Function, ToolFormat, template_input, tool_format
from aicc.runtime.tools.parser import ToolCallParser


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """A conversation through the model's own chat template."""
    decoder = msgspec.json.Decoder(ChatRequest)

    async def chat(request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        asked = await bodies.message(request, decoder)
        model = registry.decoder(asked.model)
        _check(asked)

        functions = functions_of(asked)
        messages = messages_of(asked.messages)

        def prepare(generation: Generation) -> ChatForm:
            form, ids = conversation(generation.model, messages, functions)
            marker = generation.model.tokenizer.special_tokens.get(form.marker)
            limit = asked.max_completion_tokens or asked.max_tokens or UNBOUNDED
            logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
            constraint = constraint_of(asked, generation.model, form, functions, marker)
            generation.prepare([ids], sampling_params(asked, limit, logprobs), "messages", constraint)
            names = [function.name for function in functions]
            parser = partial(ToolCallParser, form, names, marker) if functions else None
            return ChatForm(generation.model, model.name, model.fingerprint, includes_usage(asked), parser)

        return await answer(request, model, asked.n or 1, prepare, bool(asked.stream))

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


def conversation(
    model: Model, messages: list[dict[str, Any]], functions: Sequence[Function]
) -> tuple[ToolFormat, list[int]]:
    """How the model writes calls, and the tokens of a conversation.

    Raises:
        ApiError: The chat template refuses it, or there is none.
    """
    try:
        form = tool_format(model.chat_template.source)
        shown, definitions = template_input(form, messages, functions)
        return form, model.chat_ids(shown, tools=definitions)
    except AiccError as error:
        raise from_foreseen(error, "messages") from error


def _check(asked: ChatRequest) -> None:
    """Refuse combinations of fields that types alone cannot.

    Raises:
        ApiError: Naming the field.
    """
    check_stream_options(asked)
    if asked.max_tokens and asked.max_completion_tokens and asked.max_tokens != asked.max_completion_tokens:
        raise invalid("'max_tokens' and 'max_completion_tokens' differ. Give one of them.", "max_tokens")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("'top_logprobs' is only allowed with 'logprobs'.", "top_logprobs")
