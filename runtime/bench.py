"""``aicc bench``: how fast an artifact runs here, beside what this machine could do at most."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec
import numpy as np

from aicc.runtime import load
from aicc.runtime.artifact import TensorSpec
from aicc.runtime.errors import UsageError
from aicc.runtime.generator import Model
from aicc.runtime.limits import read_bandwidth
from aicc.runtime.machine import peak_rss_bytes, processor
from aicc.runtime.provider import Array
from aicc.runtime.session import Session

_VARYING = 64  # size given to a varying dimension; a multiple of what strided image models want


class DecoderBench(msgspec.Struct, frozen=True):
    """What ``aicc bench --json`` prints for a language model: one sequence at a time.

    Rates are medians; ``_min`` and ``_max`` their spread.

    Attributes:
        name: The model.
        device: Where it ran, as the device calls itself.
        threads: Threads it was told to compute with, or else the cores this process may use; a provider decides itself
            how many of those it takes.
        prompt_tokens: Tokens of each prompt.
        decode_tokens: Tokens decoded after the first.
        repeat: Timed runs.
        load_s: From the path to a model that takes prompts, in this process.
        first_token_s: From the first prompt to its first token: what lazy set-up is left after loading.
        prefill_tokens_per_s: Prompt tokens over the time to the first new token.
        prefill_tokens_per_s_min: The slowest run's.
        prefill_tokens_per_s_max: The fastest run's.
        decode_tokens_per_s: New tokens after the first over the time they took.
        decode_tokens_per_s_min: The slowest run's.
        decode_tokens_per_s_max: The fastest run's.
        peak_rss_bytes: Most memory the process had resident, mapped files included.
        weight_bytes_per_token: Weights read to decode one token, from the manifest.
        read_bandwidth_bytes_per_s: What this machine reads at most, over as many bytes, measured
            once after the repeats, with as many threads.
        bandwidth_fraction: How much of it decoding used.
        remark: Why the artifact is not at its best here; empty if it is.
    """

    name: str
    device: str
    threads: int
    prompt_tokens: int
    decode_tokens: int
    repeat: int
    load_s: float
    first_token_s: float
    prefill_tokens_per_s: float
    prefill_tokens_per_s_min: float
    prefill_tokens_per_s_max: float
    decode_tokens_per_s: float
    decode_tokens_per_s_min: float
    decode_tokens_per_s_max: float
    peak_rss_bytes: int
    weight_bytes_per_token: int
    read_bandwidth_bytes_per_s: float
    bandwidth_fraction: float
    remark: str = ""


class TensorBench(msgspec.Struct, frozen=True):
    """What ``aicc bench --json`` prints for a model of tensors.

    Attributes:
        name: The model.
        device: Where it ran, as the device calls itself.
        threads: Threads it was told to compute with, or else the cores this process may use; a provider decides itself
            how many of those it takes.
        repeat: Timed runs.
        inputs: Shapes it was given, by input.
        load_s: From the path to a model that takes inputs, in this process.
        first_run_s: The first run: what lazy set-up is left after loading.
        latency_s: Median of the timed runs.
        latency_s_min: The fastest run's.
        latency_s_max: The slowest run's.
        peak_rss_bytes: Most memory the process had resident, mapped files included.
        remark: Why the artifact is not at its best here; empty if it is.
    """

    name: str
    device: str
    threads: int
    repeat: int
    inputs: dict[str, list[int]]
    load_s: float
    first_run_s: float
    latency_s: float
    latency_s_min: float
    latency_s_max: float
    peak_rss_bytes: int
    remark: str = ""


BenchResult = DecoderBench | TensorBench


def bench_artifact(
    path: str | os.PathLike[str],
    prompt_tokens: int = 256,
    decode_tokens: int = 64,
    repeat: int = 5,
    threads: int | None = None,
    device: str | None = None,
    inputs: Mapping[str, Array] | None = None,
) -> BenchResult:
    """Load an artifact and time it.

    Args:
        path: The ``.aicc`` directory.
        prompt_tokens: Tokens of each prompt; every repeat has other ones, so no cache can answer.
        decode_tokens: Tokens decoded after the first.
        repeat: Timed runs, after one that warms up.
        threads: Threads to compute with; None leaves it to the provider, and the bandwidth is
            measured with every core this process may use.
        device: As for :func:`aicc.runtime.load`.
        inputs: For a model of tensors; None makes some up from its signature.

    Raises:
        UsageError: A count below 1, more tokens than the context holds, or inputs that cannot be made up.
        AiccError: The artifact cannot be loaded; see :func:`aicc.runtime.load`.
    """
    for name, value in (("prompt tokens", prompt_tokens), ("decode tokens", decode_tokens), ("repeat", repeat)):
        if value < 1:
            raise UsageError(f"{name} is {value} and must be at least 1.")
    start = time.perf_counter()
    with load(path, device=device, threads=threads, prefix_cache=False) as model:
        load_s = time.perf_counter() - start
        used = threads or processor().usable_cores
        if isinstance(model, Session):
            return _bench_session(model, load_s, used, repeat, inputs)
        if inputs is not None:
            raise UsageError(f"{os.fspath(path)} is a decoder and takes no inputs.", "Leave out --input.")
        return _bench_decoder(model, load_s, used, prompt_tokens, decode_tokens, repeat)


def _bench_decoder(
    model: Model, load_s: float, threads: int, prompt_tokens: int, decode_tokens: int, repeat: int
) -> DecoderBench:
    facts = model.manifest.llm
    assert facts is not None  # a Model has them
    if prompt_tokens + decode_tokens + 1 > model.context_length:
        raise UsageError(
            f"a prompt of {prompt_tokens} tokens, its first new token and {decode_tokens} more do not fit the context "
            f"of {model.context_length} tokens.",
            "Ask for fewer of either.",
        )
    # The same ids on every machine, so that runs can be compared.
    prompts = np.random.default_rng(0).integers(0, facts.vocab_size, (repeat + 1, prompt_tokens))
    (first_token_s, _), *runs = [time_generation(model, prompt.tolist(), decode_tokens) for prompt in prompts]
    peak = peak_rss_bytes()  # before the bandwidth measurement adds its own buffers
    bandwidth = read_bandwidth(facts.weight_bytes_per_token, min(threads, processor().usable_cores))
    prefill = [prompt_tokens / first for first, _ in runs]
    decode = [decode_tokens / rest for _, rest in runs]
    return DecoderBench(
        name=model.manifest.name,
        device=model.device,
        threads=threads,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        repeat=repeat,
        load_s=load_s,
        first_token_s=first_token_s,
        prefill_tokens_per_s=median(prefill),
        prefill_tokens_per_s_min=min(prefill),
        prefill_tokens_per_s_max=max(prefill),
        decode_tokens_per_s=median(decode),
        decode_tokens_per_s_min=min(decode),
        decode_tokens_per_s_max=max(decode),
        peak_rss_bytes=peak,
        weight_bytes_per_token=facts.weight_bytes_per_token,
        read_bandwidth_bytes_per_s=bandwidth,
        bandwidth_fraction=median(decode) * facts.weight_bytes_per_token / bandwidth,
        remark=model.compatibility.reason,
    )


def time_generation(model: Model, prompt: Sequence[int], decode_tokens: int) -> tuple[float, float]:
    """Time one greedy generation from outside, past any end-of-sequence token.

    Returns:
        Seconds to the first new token, and seconds for the ``decode_tokens`` after it.
    """
    start = time.perf_counter()
    stamps = [time.perf_counter() for _ in model.stream(prompt, max_tokens=decode_tokens + 1, ignore_eos=True)]
    return stamps[0] - start, stamps[-1] - stamps[0]


def _bench_session(
    session: Session, load_s: float, threads: int, repeat: int, inputs: Mapping[str, Array] | None
) -> TensorBench:
    signature = next(iter(session.signatures))
    given = inputs or {spec.name: _made_up(spec) for spec in session.signatures[signature].inputs}
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        try:
            session.run(given, signature)
        except Exception as error:  # what a chip's software raises when a model does not like its inputs
            if inputs is not None:
                raise
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in given.items())
            remedy = "Give it real ones with --input NAME=FILE.npy."
            raise UsageError(f"the model does not run on made-up inputs ({shapes}): {error}.", remedy) from error
        seconds.append(time.perf_counter() - start)
    first, *runs = seconds
    return TensorBench(
        name=session.manifest.name,
        device=session.device,
        threads=threads,
        repeat=repeat,
        inputs={name: list(array.shape) for name, array in given.items()},
        load_s=load_s,
        first_run_s=first,
        latency_s=median(runs),
        latency_s_min=min(runs),
        latency_s_max=max(runs),
        peak_rss_bytes=peak_rss_bytes(),
        remark=session.compatibility.reason,
    )


def _made_up(spec: TensorSpec) -> Array:
    """An input of the right form: one item, varying sizes set, noise for floats, ones for the rest.

    Ones are a token every vocabulary has, and an attention mask that hides nothing.
    """
    shape = [size if isinstance(size, int) else 1 if axis == 0 else _VARYING for axis, size in enumerate(spec.shape)]
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    return np.ones(shape, spec.dtype)
