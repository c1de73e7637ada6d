"""``/v1/responses``: what needs no memory of earlier ones."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.sampling import SamplingParams
from aicc.runtime.server.answering import answer
from aicc.runtime.server.bodies import BodyReader
from aicc.runtime.server.errors import invalid
from aicc.runtime.server.fields import UNBOUNDED
from aicc.runtime.server.openai.response_form import ResponseForm
from aicc.runtime.server.openai.response_input import conversation_of
from aicc.runtime.server.openai.response_schema import ResponseRequest
from aicc.runtime.server.registry import Registry
from aicc.runtime.server.sequence_group import SequenceGroup


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """A conversation whose every turn is sent along."""
    decoder = msgspec.json.Decoder(ResponseRequest)

    async def respond(request: Request) -> Response:
        """``POST /v1/responses``."""
        asked = await bodies.message(request, decoder)
        model = registry.decoder(asked.model)
        if asked.store:
            raise invalid("'store' is not implemented by this server. Leave it out.", "store", "unsupported_parameter")
        conversation = conversation_of(asked)

        def prepare(group: SequenceGroup) -> ResponseForm:
            params = SamplingParams(
                max_tokens=asked.max_output_tokens or UNBOUNDED,
                temperature=1.0 if asked.temperature is None else asked.temperature,
                top_p=1.0 if asked.top_p is None else asked.top_p,
            )
            return ResponseForm(asked, conversation.prepare(group, [params]))

        return await answer(request, model, 1, prepare, bool(asked.stream))

    return [Route("/v1/responses", respond, methods=["POST"])]
