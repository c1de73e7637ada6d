"""Kernels of single rows: quantisation, normalisation, rotary embedding, functions of a float."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_model import address

SETTINGS = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def parts(record: np.ndarray, k: int, group: int) -> tuple[np.ndarray, ...]:
    groups = k // group
    q, scale, total, total_of_q = np.split(record[: k + 12 * groups], [k, k + 4 * groups, k + 8 * groups])
    return (
        q.view(np.int8).reshape(groups, group),
        scale.view(np.float32),
        total.view(np.float32),
        total_of_q.view(np.int32),
    )


@SETTINGS
@given(st.sampled_from([32, 64, 128]), st.lists(FLOATS, min_size=1, max_size=260))
def test_quantised_rows_are_within_half_a_step_and_their_sums_are_theirs(kernels, group, values):
    x = np.array([values], np.float32)
    k = -(-x.shape[1] // group) * group
    q, scale, total, sums = parts(kernels.quantise(x, k, group)[0], k, group)
    groups = np.pad(x[0], (0, k - x.shape[1])).reshape(-1, group)
    largest = np.abs(groups).max(1)
    counted = largest >= 2.0**-100
    assert np.array_equal(scale[~counted], 0 * scale[~counted])
    assert np.array_equal(scale[counted], largest[counted] * np.float32(1 / 127))
    assert np.array_equal(sums, q.astype(np.int32).sum(1))
    with np.errstate(over="ignore"):
        assert np.array_equal(total, scale * sums.astype(np.float32))
    assert np.abs(q.astype(int)).max() <= 127
    error = np.abs(q * scale[:, None].astype(np.float64) - groups)
    assert (error[counted] <= largest[counted, None] / 127 * 0.5001).all()
    assert (q[~counted] == 0).all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_not_hidden_by_quantisation(kernels, bad):
    x = np.ones((1, 64), np.float32)
    x[0, 40] = bad
    q, scale, _, _ = parts(kernels.quantise(x, 64, 32)[0], 64, 32)
    assert math.isnan(scale[1])
    assert scale[0] == np.float32(1 / 127)
    assert (q[0] == 127).all()


@SETTINGS
@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e4]))
def test_norms_are_right_at_any_width(kernels, width, seed, size):
    random = np.random.default_rng(seed)
    x = (random.standard_normal(width) * size).astype(np.float32)
    weight, bias = (random.standard_normal(width).astype(np.float32) for _ in range(2))
    y = np.empty_like(x)
    wide = x.astype(np.float64)
    kernels.lib.rms_norm(address(y), address(x), address(weight), width)
    assert np.allclose(y, wide / np.sqrt((wide**2).mean() + 1e-5) * weight, rtol=2e-6, atol=1e-30)
    kernels.lib.rms_norm(address(y), address(x), None, width)
    assert np.allclose(y, wide / np.sqrt((wide**2).mean() + 1e-5), rtol=2e-6, atol=1e-30)
    kernels.lib.layer_norm(address(y), address(x), address(weight), address(bias), width)
    centred = wide - wide.mean()
    want = centred / np.sqrt((centred**2).mean() + 1e-5) * weight + bias
    assert np.allclose(y, want, rtol=1e-5, atol=1e-5 * (1 + np.abs(want).max()))


@pytest.mark.parametrize("interleaved", [0, 1], ids=["halves", "interleaved"])
@pytest.mark.parametrize(("size", "rotary"), [(64, 64), (80, 32), (128, 96)])
def test_rope_turns_pairs_and_leaves_the_rest(kernels, size, rotary, interleaved):
    random = np.random.default_rng(1)
    head, angles = random.standard_normal(size).astype(np.float32), random.uniform(0, 9, rotary // 2)
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    pairs = head[:rotary].reshape(-1, 2) if interleaved else head[:rotary].reshape(2, -1).T
    turned = (pairs[:, 0] + 1j * pairs[:, 1]) * (cosine + 1j * sine)
    want = head.copy()
    both = np.stack([turned.real, turned.imag], int(interleaved))
    want[:rotary] = both.reshape(-1)
    kernels.lib.rope(address(head), address(cosine), address(sine), rotary, interleaved)
    assert np.allclose(head, want, atol=1e-6)


EDGES = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, math.inf, -math.inf]
ERF = np.vectorize(math.erf, otypes=[float])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


FUNCTIONS = {  # exact function, relative error, absolute error
    "exp": (np.exp, 2.4e-7, 1.2e-38),
    "sigmoid": (sigmoid, 4e-7, 1.2e-38),
    "tanh": (np.tanh, 4e-7, 0),
    "erf": (ERF, 3e-7, 3e-7),
    "silu": (lambda x: np.where(np.isneginf(x), 0, x * sigmoid(x)), 5e-7, 1e-36),
    "gelu": (lambda x: np.where(np.isneginf(x), 0, x * 0.5 * (1 + ERF(x / math.sqrt(2)))), 4e-7, 3e-6),
    "gelu_tanh": (
        lambda x: np.where(np.isneginf(x), 0, 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))), 5e-7, 3e-6
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_keep_their_stated_error(kernels, name):
    exact, relative, absolute = FUNCTIONS[name]
    random = np.random.default_rng(0)
    every = np.concatenate(
        [np.linspace(-110, 110, 200_001), np.linspace(-2, 2, 100_001), random.standard_normal(50_000)]
    )
    x = every.astype(np.float32)
    with np.errstate(over="ignore"):
        want = exact(x.astype(np.float64)).astype(np.float64)
        got = kernels.of(name, x).astype(np.float64)
        want = np.where(np.abs(want) > np.finfo(np.float32).max, np.copysign(np.inf, want), want)
    with np.errstate(invalid="ignore"):
        worst = np.where(got == want, 0, np.abs(got - want) - relative * np.abs(want))
    assert worst.max() <= absolute, (x[worst.argmax()], got[worst.argmax()], want[worst.argmax()])
    assert np.isnan(kernels.of(name, np.full(3, np.nan))).all()


def test_functions_stay_finite_where_they_are(kernels):
    edges = np.array(EDGES, np.float32)
    assert kernels.of("exp", edges).tolist() == [1, 1, 1, 1, 1, math.inf, 0, math.inf, 0]
    assert kernels.of("tanh", edges)[5:].tolist() == [1, -1, 1, -1]
    assert kernels.of("erf", edges)[5:].tolist() == [1, -1, 1, -1]
    assert kernels.of("sigmoid", edges)[5:].tolist() == [1, 0, 1, 0]
    assert kernels.of("tanh", edges)[2:4].tolist() == edges[2:4].tolist()
