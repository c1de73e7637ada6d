"""Rates of a GPU and of what runs on it, each measured where a caller stands."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from ctypes import c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from aicc.runtime import Model
from aicc.runtime.errors import ResourceError
from aicc.runtime.provider import ChoosingDecoder, DecoderExecutable, TokenBatch
from aicc.targets.triton.driver import Driver

_COPIED = 1 << 30  # bytes, more than any cache
_REPEATS = 10
_SIDE = 8192  # of the matrices of the bfloat16 rate
_COPY = {"cuda": "cuMemcpyDtoDAsync_v2", "hip": "hipMemcpyDtoDAsync"}


@cache
def runs(python: str, code: str) -> bool:
    """Whether some lines run in a Python to their end."""
    try:
        return subprocess.run([python, "-c", code], capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def torch_has_gpu(python: str) -> bool:
    """Whether a Python's torch can use the GPU."""
    return runs(python, "import torch; assert torch.cuda.is_available()")


def copy_rate(driver: Driver, size: int = _COPIED) -> float:
    """Bytes a second that the GPU reads and writes while it copies its memory."""
    driver.activate()
    stream = driver.stream()
    addresses: list[int] = []
    try:
        addresses += [driver.allocate(size)]
        addresses += [driver.allocate(size)]
        copy = driver.function(_COPY[driver.kind])
        seconds = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            for _ in range(_REPEATS):
                if copy(c_void_p(addresses[1]), c_void_p(addresses[0]), c_size_t(size), stream):
                    raise ResourceError(f"{driver.name} does not copy its memory.")
            driver.call("StreamSynchronize", stream)
            seconds.append(time.perf_counter() - started)
    finally:
        for address in addresses:
            driver.call("Free", c_void_p(address))
        driver.call("StreamDestroy", stream)
    return 2 * size * _REPEATS / min(seconds)


def matrix_rate(python: str) -> float:
    """Operations a second (a multiplication and an addition are two) of torch's bfloat16 product of large matrices.

    In a process of its own, so that its memory is given back, and no failure of ours meets torch or the other way.

    Raises:
        ResourceError: It fails.
    """
    program = Path(__file__).parent / "workers/matrix_rate.py"
    try:
        done = subprocess.run([python, program, str(_SIDE), "cuda"], capture_output=True, text=True, timeout=120)
        return 2 * _SIDE**3 / float(done.stdout.split()[-1])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise ResourceError(f"{python} does not multiply matrices on the GPU.") from error


@dataclass(frozen=True)
class Rates:
    """Tokens a second.

    Attributes:
        decode: Of one sequence.
        together: Of all sequences of a batch.
        prefill: Of a prompt.
        prompt: Its tokens.
    """

    decode: float
    together: float
    prefill: float
    prompt: int


def rates(decoder: DecoderExecutable, vocab: int, prompt: int, past: int, steps: int, together: int) -> Rates:
    """Rates of a decoder over paged memory.

    Args:
        decoder: Has pages for ``together`` sequences of ``past + steps`` tokens.
        vocab: Its tokens.
        prompt: Tokens of the prompt whose reading is timed; no more than a step takes.
        past: Tokens of context before what is decoded.
        steps: Tokens that are decoded; the median of them counts.
        together: Sequences of the batch.
    """
    prompts = random_prompts(vocab)
    prompt = min(prompt, decoder.max_batch_tokens)
    read = [_timed(decoder, [prompts(prompt)], 0) for _ in range(4)]
    found = {}
    for count in (1, together):
        for number in range(count):  # one by one: their steps need no more room than a prompt has
            _timed(decoder, [prompts(past)], 0, first=number, tokens=past + steps)
        taken = [
            _timed(decoder, [prompts(1) for _ in range(count)], past + step, tokens=past + steps)
            for step in range(steps)
        ]
        found[count] = count / median(taken[steps // 8 :])  # the first are what is not yet a graph
    return Rates(found[1], found[together], prompt / median(read[1:]), prompt)


def _timed(decoder: DecoderExecutable, new: list[list[int]], past: int, first: int = 0, tokens: int = 0) -> float:
    """Seconds of a step that adds as many tokens to each of some sequences, after as many ``past`` ones, and chooses
    the next of each: on the device where it can, as the engine does.

    Args:
        decoder: Takes the step.
        new: Tokens of each sequence.
        past: Tokens of each before.
        first: Number of the first of the sequences, whose pages follow each other.
        tokens: Most tokens of a sequence, for which it owns pages.
    """
    count, length = len(new), len(new[0])
    pages = -(-max(tokens, past + length) // decoder.page_size)
    starts = np.arange(count + 1, dtype=np.int32)
    batch = TokenBatch(
        np.array(new, np.int64).reshape(-1),
        starts * length,
        np.full(count, past, np.int32),
        np.arange(first * pages, (first + count) * pages, dtype=np.int32),
        starts * pages,
        starts[1:] * length - 1,
    )
    started = time.perf_counter()
    if isinstance(decoder, ChoosingDecoder):
        decoder.forward_best(batch)
    else:
        decoder.forward(batch).argmax(axis=1)
    return time.perf_counter() - started


def random_prompts(vocab: int) -> Callable[[int], list[int]]:
    """A function from a length to a prompt that was never given before."""
    random = np.random.default_rng(0)
    return lambda length: random.integers(0, vocab, length).tolist()


def streamed(model: Model, ids: list[int], tokens: int) -> float:
    """Tokens a second that a caller of the runtime gets, after one generation that is not counted."""
    for _ in range(2):
        stamps = [time.perf_counter() for _ in model.stream(ids, max_tokens=tokens, ignore_eos=True)]
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


def text_logits(model: Model, ids: NDArray[np.int64], one_by_one: bool) -> NDArray[np.float32]:
    """Logits ``[tokens, vocab]`` of a text, read as a prompt or as if each token was generated."""
    found: list[NDArray[np.float32]] = []
    rows = 1 if one_by_one else len(ids)
    model.engine.teacher_forced(ids, rows, one_by_one, lambda logits: found.append(logits.copy()))
    return np.concatenate(found)


def llama_bench(program: str, gguf: Path, prompt: int, steps: int, limit_s: float) -> tuple[float, float]:
    """Tokens a second of llama.cpp's own benchmark: of a prompt, and decoded.

    Raises:
        TimeoutError: It took longer.
        ResourceError: It failed.
    """
    command = [program, "-m", gguf, "-ngl", "999", "-p", str(prompt), "-n", str(steps), "-o", "json"]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError("llama-bench took longer than there was time") from error
    if done.returncode:
        raise ResourceError(f"llama-bench failed: {done.stderr.strip()[-200:]}")
    tests = json.loads(done.stdout)
    by_kind = {bool(test["n_gen"]): test["avg_ts"] for test in tests}
    return by_kind[False], by_kind[True]
