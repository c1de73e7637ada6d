"""Attention over pages equals softmax in float64, whatever the batch, and gives the same bits however it is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from native_model import address, aligned


@dataclass(frozen=True)
class Heads:
    query: int
    kv: int
    size: int
    cache: str
    causal: bool
    window: int
    scale: float
    cap: float


CASES = [  # as in kernels.c
    Heads(9, 3, 64, "half", True, 0, 0.125, 0),
    Heads(4, 4, 32, "float", True, 0, 0.2, 0),
    Heads(8, 1, 80, "half", True, 200, 0.1, 0),
    Heads(4, 2, 128, "float", True, 70, 0.1, 5),
    Heads(6, 2, 48, "float", False, 0, 0.15, 0),
    Heads(40, 1, 16, "float", True, 0, 0.25, 30),
    Heads(9, 3, 64, "int8", True, 0, 0.125, 0),
    Heads(4, 2, 80, "int8", True, 70, 0.1, 5),
]
PAGES = 64
BYTES = {"float": 4, "half": 2, "int8": 1}


class Cache:
    """A pool of pages and attention over it; garbage where nothing was written."""

    def __init__(self, kernels, number: int):
        self.kernels, self.number, self.heads = kernels, number, CASES[number]
        h = self.heads
        scales = 2 * 64 if h.cache == "int8" else 0
        self.pool = aligned(PAGES * h.kv * (h.size * 32 * BYTES[h.cache] + scales))
        self.pool[:] = 0xFF  # NaN

    def attend(self, sequences, q, k, v, threads: int = 1, quantised: bool = False, prompt: bool = False):
        """`sequences` of (past, pages, count); q, k, v rows `[T, heads, size]`. Float rows out, or row records too."""
        h, rows = self.heads, len(q)
        ints = [np.array(values, np.int32) for values in (
            np.cumsum([0, *(count for *_, count in sequences)]), [past for past, *_ in sequences],
            [page for _, pages, _ in sequences for page in pages], np.cumsum([0, *(len(p) for _, p, _ in sequences)]),
        )]  # fmt: skip
        starts, past, pages, page_starts = ints
        width = h.query * h.size
        out, records = np.full((rows, width), np.nan, np.float32), aligned(rows * (width + width // 32 * 12 + 64))
        layout = np.zeros(2 * rows, np.int32)
        floats = [np.ascontiguousarray(x, np.float32) for x in (q, k, v)]
        count = self.kernels.lib.attention(
            *(self.number, len(sequences), rows),
            *map(address, (starts, past, pages, page_starts)),
            threads,
            *map(address, (*floats, self.pool, out)),
            address(records) if quantised else None,
            address(layout),
            int(prompt),
        )
        assert count > 0
        return (out, records) if quantised else out


def softmax_attention(h: Heads, q, keys, values, first: int):
    """Float64 attention of queries at positions first, first + 1, ... over all keys `[n, kv, size]`."""
    group, out = h.query // h.kv, np.empty((len(q), h.query, h.size))
    position, key = np.arange(len(q))[:, None] + first, np.arange(len(keys))[None]
    seen = np.full((len(q), len(keys)), True)
    if h.causal:
        seen &= key <= position
    if h.window:
        seen &= key > position - h.window
    for head in range(h.query):
        s = q[:, head].astype(float) @ keys[:, head // group].T.astype(float) * h.scale
        s = h.cap * np.tanh(s / h.cap) if h.cap else s
        s = np.where(seen, s, -np.inf)
        p = np.exp(s - s.max(1, keepdims=True))
        out[:, head] = p / p.sum(1, keepdims=True) @ values[:, head // group]
    return out.reshape(len(q), -1)


def rows(random, h: Heads, count: int):
    kv = [random.standard_normal((count, h.kv, h.size)).astype(np.float16).astype(np.float32) for _ in range(2)]
    return random.standard_normal((count, h.query, h.size)).astype(np.float32) * 3, *kv


def in_bytes(x):
    """Rounded to bytes with a scale for each token and head ``[T, heads, size]``."""
    largest = np.abs(x).max(axis=2, keepdims=True)
    return np.rint(x * (np.float32(127) / largest)) * (largest / np.float32(127))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_prompt_in_one_piece_is_softmax(attending, number):
    h = CASES[number]
    for length in (1, 15, 16, 17, 128, 129, 300):
        cache = Cache(attending, number)
        q, k, v = rows(np.random.default_rng(length), h, length)
        pages = list(np.random.default_rng(0).permutation(PAGES)[: -(-length // 16)])
        got = cache.attend([(0, pages, length)], q, k, v)
        if h.cache == "int8":
            k, v = in_bytes(k), in_bytes(v)
        assert np.allclose(got, softmax_attention(h, q, k, v, 0), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("number", [n for n, h in enumerate(CASES) if h.size % 32 == 0])
def test_a_prompt_by_tiles_is_softmax_of_bfloat16(prompting, number):
    """Queries, keys, probabilities and values have 8 bits: an error of 2^-9 of each, with scores up to 10 or so."""
    h, length = CASES[number], 300
    q, k, v = rows(np.random.default_rng(number), h, length)
    pages = list(np.random.default_rng(0).permutation(PAGES)[: -(-length // 16)])
    whole = Cache(prompting, number).attend([(0, pages, length)], q, k, v, prompt=True)
    if h.cache == "int8":
        k, v = in_bytes(k), in_bytes(v)
    assert np.abs(whole - softmax_attention(h, q, k, v, 0)).max() <= 0.1


@pytest.mark.parametrize("number", [n for n, h in enumerate(CASES) if h.size % 32 == 0])
def test_chunks_of_a_prompt_and_company_give_the_same_bits(prompting, number):
    h, length = CASES[number], 290
    random = np.random.default_rng(number)
    (q, k, v), other, pages = rows(random, h, length), rows(random, h, 40), list(range(19))
    whole = Cache(prompting, number).attend([(0, pages, length)], q, k, v, prompt=True)
    chunked = Cache(prompting, number)
    for start, end in ((0, 7), (7, 140), (140, 289), (289, length)):
        company = [np.concatenate(pair) for pair in zip(other, (q[start:end], k[start:end], v[start:end]), strict=True)]
        got = chunked.attend([(0, [40, 41, 42], 40), (start, pages, end - start)], *company, threads=2, prompt=True)
        assert got[40:].tobytes() == whole[start:end].tobytes()


@pytest.mark.parametrize("number", [n for n, h in enumerate(CASES) if h.causal])
def test_chunks_decoding_and_company_give_the_same_bits(attending, number):
    """A prompt at once; in chunks; a token at a time with splits side by side; beside other sequences."""
    h, length = CASES[number], 290
    random = np.random.default_rng(number)
    q, k, v = rows(random, h, length)
    other = rows(random, h, 40)
    pages = list(range(19))
    whole = Cache(attending, number).attend([(0, pages, length)], q, k, v)

    chunked = Cache(attending, number)
    for start, end in ((0, 7), (7, 140), (140, length)):
        company = [np.concatenate(pair) for pair in zip(other, (q[start:end], k[start:end], v[start:end]), strict=True)]
        got = chunked.attend([(0, [40, 41, 42], 40), (start, pages, end - start)], *company, threads=2)
        assert got[40:].tobytes() == whole[start:end].tobytes()

    single = Cache(attending, number)
    single.attend([(0, pages, 250)], q[:250], k[:250], v[:250])
    for row in range(250, length):
        now = slice(row, row + 1)
        got = single.attend([(row, pages, 1)], q[now], k[now], v[now], threads=8)
        assert got.tobytes() == whole[now].tobytes()


def test_output_is_quantised_as_rows_are(attending):
    h = CASES[0]
    q, k, v = rows(np.random.default_rng(3), h, 20)
    out, records = Cache(attending, 0).attend([(0, [5, 9], 20)], q, k, v, quantised=True)
    want = attending.quantise(out, 576, 32)
    used = 576 + 18 * 12
    got = records[: 20 * want.shape[1]].reshape(20, -1)
    assert np.array_equal(got[:, :used], want[:, :used])


def test_values_beyond_half_precision_are_held_at_its_largest(attending):
    h = CASES[0]
    q, k, v = rows(np.random.default_rng(3), h, 1)
    assert np.array_equal(
        Cache(attending, 0).attend([(0, [1], 1)], q, k, v * 0 + 1e9), np.full((1, 576), 65504, np.float32)
    )


def test_bytes_of_a_head_of_zeros_are_zeros_and_what_is_not_finite_shows(attending):
    h = CASES[6]
    q, k, v = rows(np.random.default_rng(3), h, 2)
    assert np.array_equal(Cache(attending, 6).attend([(0, [1], 2)], q, k, v * 0), np.zeros((2, 576), np.float32))
    v[1, 2, 5] = np.inf
    got = Cache(attending, 6).attend([(0, [1], 2)], q, k, v).reshape(2, 9, 64)
    assert np.isnan(got[1, 6:]).all()
    assert np.isfinite(got[1, :6]).all()
