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
from aicc.runtime.server.openai.completion_form import CompletionForm
from aicc.runtime.server.openai.completion_schema import MAX_PROMPTS, CompletionRequest
from aicc.runtime.server.openai.sampling import check_stream_options, includes_usage, sampling_params
from aicc.runtime.server.openai.schema import one_or_many
from aicc.runtime.server.registry import Registry
from aicc.runtime.server.sequence_group import SequenceGroup

_DEFAULT_TOKENS = 16  # what the API gives a completion that names no limit


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """A text, or token ids, continued as they are."""
    decoder = msgspec.json.Decoder(CompletionRequest)

    async def complete(request: Request) -> Response:
        """``POST /v1/completions``."""
        asked = await bodies.message(request, decoder)
        model = registry.decoder(asked.model)
        check_stream_options(asked)
        if asked.max_tokens == 0 and not asked.echo:
            raise invalid("'max_tokens' of 0 asks for nothing without 'echo'.", "max_tokens")
        prompts: Sequence[str | list[int]] = one_or_many(asked.prompt, "prompt")
        if len(prompts) > MAX_PROMPTS:
            raise invalid(f"'prompt' has {len(prompts)} prompts and may have {MAX_PROMPTS}.", "prompt")

        def prepare(group: SequenceGroup) -> CompletionForm:
            limit = _DEFAULT_TOKENS if asked.max_tokens is None else asked.max_tokens
            prompt_logprobs = asked.logprobs if asked.echo else None
            if limit == 0 and prompt_logprobs is None:
                prompt_logprobs = 0  # without anything to compute there is no generation
            group.prepare(prompts, sampling_params(asked, limit, asked.logprobs, prompt_logprobs), "prompt")
            echo = _echoed(group, prompts, asked.n or 1) if asked.echo else None
            told = asked.logprobs is not None
            usage = includes_usage(asked)
            return CompletionForm(group.model, model.name, model.fingerprint, usage, echo, told)

        return await answer(request, model, len(prompts) * (asked.n or 1), prepare, bool(asked.stream))

    return [Route("/v1/completions", complete, methods=["POST"])]


def _echoed(group: SequenceGroup, prompts: Sequence[str | list[int]], choices: int) -> list[str]:
    """The prompt of each choice as text."""
    texts = [p if isinstance(p, str) else group.model.tokenizer.decode(p) for p in prompts]
    return [text for text in texts for _ in range(choices)]
