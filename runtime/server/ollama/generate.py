"""``/api/chat`` and ``/api/generate``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.server.answering import answer
from aicc.runtime.server.bodies import BodyReader
from aicc.runtime.server.conversation import json_constraint
from aicc.runtime.server.errors import invalid, unimplemented
from aicc.runtime.server.ollama.conversation import chat_of, prompt_of, sampling_params, schema_of
from aicc.runtime.server.ollama.form import LINES, OllamaForm
from aicc.runtime.server.ollama.schema import ChatRequest, GenerateRequest, GeneratingRequest
from aicc.runtime.server.recording import record_of
from aicc.runtime.server.registry import Decoder, Registry
from aicc.runtime.server.sequence_group import SequenceGroup
from aicc.runtime.tools.parser import ToolCallParser

Prepare = Callable[[SequenceGroup], Callable[[], ToolCallParser] | None]


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """A conversation, or a text, continued."""
    chats = msgspec.json.Decoder(ChatRequest)
    texts = msgspec.json.Decoder(GenerateRequest)

    async def chat(request: Request) -> Response:
        """``POST /api/chat``."""
        asked = await bodies.message(request, chats)
        model = registry.decoder(asked.model)
        conversation = chat_of(asked)

        def prepare(group: SequenceGroup) -> Callable[[], ToolCallParser] | None:
            params = sampling_params(asked.options, group.model.context_length)
            return conversation.prepare(group, [params])

        return await _answer(request, model, asked, prepare)

    async def generate(request: Request) -> Response:
        """``POST /api/generate``."""
        asked = await bodies.message(request, texts)
        model = registry.decoder(asked.model)
        _check(asked)

        def prepare(group: SequenceGroup) -> None:
            params = sampling_params(asked.options, group.model.context_length)
            if not asked.raw:
                prompt_of(asked).prepare(group, [params])
                return
            schema = schema_of(asked.format)
            constraint = None if schema is None else partial(json_constraint, group.model, schema, "format")
            group.prepare([asked.prompt], [params], "prompt", constraint)

        return await _answer(request, model, asked, prepare)

    return [Route("/api/chat", chat, methods=["POST"]), Route("/api/generate", generate, methods=["POST"])]


async def _answer(request: Request, model: Decoder, asked: GeneratingRequest, prepare: Prepare) -> Response:
    def form(group: SequenceGroup) -> OllamaForm:
        started = record_of(request.scope).started
        return OllamaForm(model.name, started, isinstance(asked, ChatRequest), prepare(group))

    return await answer(request, model, 1, form, asked.stream is not False, LINES)


def _check(asked: GenerateRequest) -> None:
    """Refuse what types alone cannot.

    Raises:
        ApiError: Naming the field.
    """
    for field, value in (("suffix", asked.suffix), ("template", asked.template)):
        if value:
            raise unimplemented(field)
    if asked.raw and asked.system:
        raise invalid("'system' is not allowed with 'raw', which takes the prompt as it is.", "system")
