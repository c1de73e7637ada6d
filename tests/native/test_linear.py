"""Matrix products: the portable kernel is right, and every instruction set equals it.

Tolerance: one rounding (2^-24) for each group and each of its two multiply-adds, of the sum of absolute terms.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import BF16, F16, Q4

FORMS = st.integers(0, 14)  # of kernels.c
ROWS = [1, 2, 3, 5, 31, 33, 65]
SETTINGS = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def case(kernels, form, groups: int, panels: int, rows: int, seed: int, extreme: bool):
    """A form with its k, and random stored values, scales, minima and float activations."""
    random = np.random.default_rng(seed)
    form = form.with_k(groups * form.group if form.quantised else groups * 32 + seed % 7)
    x = random.standard_normal((rows, form.k)).astype(np.float32)
    if extreme:
        x *= np.float32(10.0) ** random.integers(-44, 30, (rows, 1)).astype(np.float32)
        x[random.random(x.shape) < 0.3] = 0
    if not form.quantised:
        values = random.standard_normal((panels * 16, form.k)).astype(np.float32)
        if form.format == F16:
            values = values.astype(np.float16).astype(np.float32)
        if form.format == BF16:
            values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        return form, x, values, None, None
    top = 16 if form.format == Q4 else 256
    values = random.integers(0, top, (panels * 16, form.k))
    if extreme:
        values = np.where(random.random(values.shape) < 0.5, top - 1, 0)
        x = np.where(random.random(x.shape) < 0.5, 1, -1) * np.abs(x).max(1, keepdims=True)
    scales = random.uniform(-2, 2, (panels * 16, groups)).astype(np.float16).astype(np.float32)
    minima = random.uniform(-9, 9, (panels * 16, groups)).astype(np.float16).astype(np.float32)
    if extreme:
        scales[random.random(scales.shape) < 0.3] = np.float32(np.float16(6e-8))  # the smallest half
    return form, x.astype(np.float32), values, scales, minima if form.minima else None


def exact(kernels, form, x, values, scales, minima):
    """The product in float64, and the sum of absolute terms, from the row records' own integers and scales."""
    if not form.quantised:
        x, values = x.astype(np.float64), values.astype(np.float64)
        return x @ values.T, np.abs(x) @ np.abs(values).T
    records = kernels.quantise(x, form.k, form.group)
    groups = form.k // form.group
    q = records[:, : form.k].view(np.int8).astype(np.int64).reshape(len(x), groups, form.group)
    scale = records[:, form.k : form.k + 4 * groups].view(np.float32).astype(np.float64)
    w = values.reshape(len(values), groups, form.group) - form.zero
    dots = np.einsum("rgi,ngi->rng", q, w).astype(np.float64)
    terms = dots * scale[:, None] * scales[None]
    size = np.abs(terms)
    if minima is not None:
        added = (scale * q.sum(2))[:, None] * minima[None]
        terms, size = terms + added, size + np.abs(added)
    return terms.sum(2), size.sum(2)


def activations(kernels, form, x):
    return kernels.quantise(x, form.k, form.group) if form.quantised else np.ascontiguousarray(x)


@pytest.mark.parametrize("extreme", [False, True], ids=["ordinary", "extreme"])
@SETTINGS
@given(FORMS, st.integers(1, 9), st.integers(1, 3), st.sampled_from(ROWS), st.integers(0, 2**32 - 1))
def test_products_are_right(kernels, extreme, form, groups, panels, rows, seed):
    form, x, values, scales, minima = case(kernels, kernels.forms[form], groups, panels, rows, seed, extreme)
    got = kernels.linear(activations(kernels, form, x), kernels.pack(form, values, scales, minima), form)
    want, size = exact(kernels, form, x, values, scales, minima)
    roundings = 3 * groups + 2 if form.quantised else form.k
    assert (np.abs(got - want) <= roundings * 2.0**-24 * size + 1e-37).all()


@SETTINGS
@given(FORMS, st.integers(1, 9), st.integers(1, 3), st.sampled_from(ROWS), st.integers(0, 2**32 - 1))
def test_instruction_sets_agree_with_the_portable_kernel(portable, accelerated, form, groups, panels, rows, seed):
    form, x, values, scales, minima = case(portable, portable.forms[form], groups, panels, rows, seed, seed % 2 == 0)
    records = activations(portable, form, x)
    assert np.array_equal(records, activations(accelerated, form, x)), "quantised activations are the same to the bit"
    packed = portable.pack(form, values, scales, minima)
    _, size = exact(portable, form, x, values, scales, minima)
    difference = np.abs(portable.linear(records, packed, form) - accelerated.linear(records, packed, form))
    roundings = 4 * groups + 2 if form.quantised else 2 * form.k
    assert (difference <= roundings * 2.0**-24 * size + 1e-37).all()


def test_integer_sums_are_exact_at_the_ends_of_their_range(kernels):
    for form in kernels.forms:
        if not form.quantised:
            continue
        form = form.with_k(form.group)
        for weight in (0, 15 if form.format == Q4 else 255):
            for sign in (-127.0, 127.0):
                x = np.full((3, form.k), sign, np.float32)
                ones = np.ones((16, 1), np.float32)
                packed = kernels.pack(form, np.full((16, form.k), weight), ones, 0 * ones)
                got = kernels.linear(kernels.quantise(x, form.k, form.group), packed, form)
                assert (got == sign * form.k * (weight - form.zero)).all(), form


@SETTINGS
@given(FORMS, st.integers(1, 5), st.sampled_from(ROWS[1:]), st.integers(0, 2**32 - 1))
def test_a_row_alone_gives_the_same_bits_as_among_others(kernels, form, groups, rows, seed):
    form, x, values, scales, minima = case(kernels, kernels.forms[form], groups, 2, rows, seed, seed % 2 == 0)
    records, packed = activations(kernels, form, x), kernels.pack(form, values, scales, minima)
    together = kernels.linear(records, packed, form)
    row = seed % rows
    alone = kernels.linear(records[row : row + 1], packed, form)
    assert alone.tobytes() == together[row : row + 1].tobytes()
    assert together[: rows - 1].tobytes() == kernels.linear(records[: rows - 1], packed, form).tobytes()


@SETTINGS
@given(FORMS, st.integers(1, 5), st.integers(0, 31), st.integers(0, 2**32 - 1))
def test_rows_of_a_weight_are_gathered_from_panels(kernels, form, groups, row, seed):
    form, _, values, scales, minima = case(kernels, kernels.forms[form], groups, 2, 1, seed, False)
    got = kernels.gather(kernels.pack(form, values, scales, minima), row, form)
    if not form.quantised:
        assert np.array_equal(got, values[row])
        return
    want = np.repeat(scales[row].astype(np.float64), form.group) * (values[row] - form.zero)
    if minima is not None:
        want = want + np.repeat(minima[row], form.group)
    assert np.allclose(got, want, rtol=0, atol=2.0**-23 * 600)


@SETTINGS
@given(st.integers(0, 8), st.integers(1, 5), st.integers(1, 3), st.sampled_from(ROWS), st.integers(0, 10**6))
def test_two_records_of_a_row_give_the_product_to_fifteen_bits(kernels, form, groups, panels, rows, seed):
    form, x, values, scales, minima = case(kernels, kernels.forms[form], groups, panels, rows, seed, extreme=False)
    packed = kernels.pack(form, values, scales, minima)
    records = kernels.quantise(x, form.k, form.group, parts=2)
    got = kernels.linear(records, packed, form, parts=2)
    per_input = np.repeat(scales, form.group, axis=1).astype(np.float64) * (values - form.zero)
    if minima is not None:
        per_input += np.repeat(minima, form.group, axis=1)
    largest = np.abs(x).reshape(rows, groups, form.group).max(2).repeat(form.group, axis=1)
    steps = largest / 127 / 254  # the second record's: its largest is half a step of the first
    bound = steps @ np.abs(per_input).T * 0.51 + np.abs(x) @ np.abs(per_input).T * 2.0**-24 * 4 * (groups + 2)
    assert (np.abs(got - x.astype(np.float64) @ per_input.T) <= bound).all()
    halves = np.split(records, 2, axis=1)
    alone = [kernels.linear(np.ascontiguousarray(half), packed, form) for half in halves]
    assert got.tobytes() == (alone[0] + alone[1]).tobytes()


def rounded(x):
    """Values as bfloat16 holds them, to nearest, ties to even; denormals are zeros."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = np.where(bits & 0x7F800000, bits, bits & 0x80000000)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def out_of_tiles(stored, k):
    """Rows `[rows, k]` of what lies in tiles of 16 rows by 32 inputs."""
    tiles = [stored[first : first + 16] for first in range(0, len(stored), 16)]
    inputs = [tile.reshape(-1)[: 2 * k * len(tile)].view(np.uint16).reshape(-1, len(tile), 32) for tile in tiles]
    return np.concatenate([tile.swapaxes(0, 1).reshape(-1, k) for tile in inputs])


@SETTINGS
@given(st.integers(0, 11), st.integers(1, 30), st.integers(1, 5), st.sampled_from(ROWS), st.integers(0, 2**32 - 1))
def test_products_of_prompts_are_those_of_bfloat16(kernels, form, groups, panels, rows, seed):
    form, x, values, scales, minima = case(kernels, kernels.forms[form], groups, panels, rows, seed, seed % 2 == 0)
    assert form.quantised
    x, packed = x[:, : form.k - seed % 5], kernels.pack(form, values, scales, minima)
    stored = kernels.round(x, form.k)
    inputs = out_of_tiles(stored, form.k)
    assert np.array_equal(inputs[:, : x.shape[1]], (rounded(x).view(np.uint32) >> 16).astype(np.uint16))
    assert (inputs[:, x.shape[1] :] == 0).all()
    per_input = np.repeat(scales, form.group, axis=1).astype(np.float64) * (values - form.zero)
    if minima is not None:
        per_input = per_input + np.repeat(minima, form.group, axis=1)
    weight = rounded(per_input.astype(np.float32)).astype(np.float64)[:, : x.shape[1]]
    got, row = kernels.linear_prompt(stored, packed, form), rounded(x).astype(np.float64)
    size = np.abs(row) @ np.abs(weight).T
    assert (np.abs(got - row @ weight.T) <= form.k * 2.0**-24 * size + 1e-37 * form.k).all()
    for units in (u for u in range(2, panels + 1) if panels % u == 0):
        assert kernels.linear_prompt(stored, packed, form, units).tobytes() == got.tobytes()
    alone = kernels.linear_prompt(kernels.round(x[rows - 1 :], form.k), packed, form)
    assert alone.tobytes() == got[rows - 1 :].tobytes(), "a row does not depend on the rows beside it"
