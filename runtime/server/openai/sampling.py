"""What chats and completions ask of the sampler, in the runtime's terms."""

from __future__ import annotations

from aicc.runtime.sampling import SamplingParams
from aicc.runtime.server.errors import invalid
from aicc.runtime.server.openai.schema import SamplingRequest


def sampling_params(
    asked: SamplingRequest, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None
) -> list[SamplingParams]:
    """Sampling of each choice; what is left out has the API's default, not the library's.

    Args:
        asked: The request.
        max_tokens: Most tokens of a choice.
        logprobs: How many of the likeliest tokens to tell with each, or None.
        prompt_logprobs: The same for the prompt's tokens.
    """
    return [
        SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=asked.top_k or 0,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            min_p=asked.min_p or 0.0,
            repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
            presence_penalty=asked.presence_penalty or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            seed=None if asked.seed is None else asked.seed + choice,
            stop=asked.stop or (),
            logit_bias=asked.logit_bias or {},
            ignore_eos=bool(asked.ignore_eos),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        for choice in range(asked.n or 1)
    ]


def check_stream_options(asked: SamplingRequest) -> None:
    """Refuse options of a stream that was not asked for.

    Raises:
        ApiError: Naming the field.
    """
    if asked.stream_options is not None and not asked.stream:
        raise invalid("'stream_options' is only allowed with 'stream'.", "stream_options")


def includes_usage(asked: SamplingRequest) -> bool:
    """Whether a stream is to end with the token counts."""
    return asked.stream_options is not None and bool(asked.stream_options.include_usage)
