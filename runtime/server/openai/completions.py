"""``/v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.server.answering import answer
from aicc.runtime.server.bodies import BodyReader
from aicc.runtime.server.errors import invalid
from aicc.runtime.server.generation import Generation
from aicc.runtime.server.openai.answers import CompletionForm
from aicc.runtime.server.openai.sampling import check_stream_options, includes_usage, sampling_params
from aicc.runtime.server.openai.schema import MAX_PROMPTS, CompletionRequest, one_or_many
from aicc.runtime.server.registry import Registry

_DEFAULT_TOKENS = 16  # what the API gives a completion that names no limit


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """A text, or token ids, continued as they are."""
    decoder = msgspec.json.Decoder(CompletionRequest)

    async def complete(request: Request) -> Response:
        """``POST /v1/completions``."""
        asked = await bodies.message(request, decoder)
        model = registry.decoder(asked.model)
        check_stream_options(asked)
        if asked.echo:
            raise invalid("'echo' is not implemented by this server. Leave it out.", "echo", "unsupported_parameter")
        prompts: Sequence[str | list[int]] = one_or_many(asked.prompt, "prompt")
        if len(prompts) > MAX_PROMPTS:
            raise invalid(f"'prompt' has {len(prompts)} prompts and may have {MAX_PROMPTS}.", "prompt")

        def prepare(generation: Generation) -> CompletionForm:
            params = sampling_params(asked, asked.max_tokens or _DEFAULT_TOKENS, asked.logprobs)
            generation.prepare(prompts, params, "prompt")
            return CompletionForm(generation.model, model.name, model.fingerprint, includes_usage(asked))

        return await answer(request, model, len(prompts) * (asked.n or 1), prepare, bool(asked.stream))

    return [Route("/v1/completions", complete, methods=["POST"])]
