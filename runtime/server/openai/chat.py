"""``/v1/chat/completions``."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.server.answering import answer
from aicc.runtime.server.bodies import BodyReader
from aicc.runtime.server.errors import invalid
from aicc.runtime.server.fields import UNBOUNDED
from aicc.runtime.server.openai.chat_form import ChatForm
from aicc.runtime.server.openai.chat_input import conversation_of
from aicc.runtime.server.openai.chat_schema import ChatRequest
from aicc.runtime.server.openai.sampling import check_stream_options, includes_usage, sampling_params
from aicc.runtime.server.registry import Registry
from aicc.runtime.server.sequence_group import SequenceGroup


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """A conversation through the model's own chat template."""
    decoder = msgspec.json.Decoder(ChatRequest)

    async def chat(request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        asked = await bodies.message(request, decoder)
        model = registry.decoder(asked.model)
        _check(asked)
        conversation = conversation_of(asked)

        def prepare(group: SequenceGroup) -> ChatForm:
            limit = asked.max_completion_tokens or asked.max_tokens or UNBOUNDED
            logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
            parser = conversation.prepare(group, sampling_params(asked, limit, logprobs))
            return ChatForm(group.model, model.name, model.fingerprint, includes_usage(asked), parser)

        return await answer(request, model, asked.n or 1, prepare, bool(asked.stream))

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


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
