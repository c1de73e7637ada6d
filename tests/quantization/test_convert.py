"""Weights to integers and back: how far they may move, whatever they are."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aicc.compiler.quantization.convert import (
    dequantize,
    lazy_quantized,
    quantize_e4m3,
    quantize_symmetric_int8,
    quantize_uint4,
    to_float16,
)
from aicc.runtime.errors import UnsupportedError

TINY = float(np.finfo(np.float16).tiny)  # the smallest scale that is stored
HALF_ROUNDING = 2.0**-11  # relative error of a scale in float16
VALUES = st.floats(-1e4, 1e4, width=32, allow_subnormal=True)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """A float32 matrix, often with zeros, equal values or extremes, and a group size that divides its rows."""
    group, groups, rows = draw(st.integers(1, 33)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    scale = draw(st.sampled_from([0.0, 1e-42, 1e-7, 1.0, 1e4]))
    matrix = draw(arrays.arrays(np.float32, (rows, groups * group), elements=VALUES, fill=st.just(0.0)))
    if draw(st.booleans()):
        matrix[:, :group] = draw(VALUES)
    return (matrix * np.float32(scale)).clip(-4e5, 4e5), group


def _by_group(matrix: np.ndarray, group: int) -> np.ndarray:
    return matrix.reshape(len(matrix), -1, group).astype(np.float64)


@given(grouped())
def test_int8_moves_no_value_by_more_than_half_a_step(given_: tuple[np.ndarray, int]) -> None:
    matrix, group = given_
    values, scales, nothing = quantize_symmetric_int8(matrix, group)
    assert (values.dtype, scales.dtype, nothing) == (np.int8, np.float16, None)
    assert values.min() >= -127
    back = dequantize(group, values, scales, None, None)
    step = np.abs(_by_group(matrix, group)).max(axis=2, keepdims=True) / 127
    allowed = np.maximum(step, TINY) * (0.5 + 127 * HALF_ROUNDING) * (1 + 1e-5)
    assert (np.abs(_by_group(back, group) - _by_group(matrix, group)) <= allowed).all()


@given(grouped())
def test_uint4_moves_values_by_no_more_than_a_step_on_average(given_: tuple[np.ndarray, int]) -> None:
    matrix, group = given_
    values, scales, zero_points = quantize_uint4(matrix, group)
    assert values.dtype == zero_points.dtype == ml_dtypes.uint4
    assert scales.dtype == np.float16
    assert values.shape == matrix.shape
    assert scales.shape == zero_points.shape == (len(matrix), matrix.shape[1] // group)
    back = _by_group(dequantize(group, values, scales, zero_points, None), group)
    wanted = _by_group(matrix, group)
    step = (np.maximum(wanted.max(axis=2), 0) - np.minimum(wanted.min(axis=2), 0)) / 15
    moved = np.sqrt(((back - wanted) ** 2).mean(axis=2))
    assert (moved <= np.maximum(step, TINY) * (1 + 15 * HALF_ROUNDING) * (1 + 1e-5)).all()


@given(grouped())
def test_float8_moves_no_value_by_more_than_half_of_its_last_bit(given_: tuple[np.ndarray, int]) -> None:
    matrix, group = given_
    values, scales, nothing = quantize_e4m3(matrix, group)
    assert (values.dtype, scales.dtype, nothing) == (ml_dtypes.float8_e4m3fn, np.float16, None)
    assert np.isfinite(values.astype(np.float32)).all()
    wanted = _by_group(matrix, group)
    back = _by_group(dequantize(group, values, scales, None, None), group)
    largest = np.maximum(np.abs(wanted).max(axis=2, keepdims=True), 448 * TINY)
    # Three bits of mantissa; the smallest of its steps, 2^-9 of the scale; the largest value is cut by the scale's
    # own rounding.
    allowed = np.maximum(np.abs(wanted) / 16, largest / 448 * 2.0**-10) + largest * HALF_ROUNDING
    assert (np.abs(back - wanted) <= allowed * (1 + 1e-5)).all()


@pytest.mark.parametrize("quantize", [quantize_symmetric_int8, quantize_uint4, quantize_e4m3])
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 40)))
def test_zeros_stay_zeros(quantize, shape: tuple[int, int]) -> None:
    made = quantize(np.zeros(shape, np.float32), shape[1])
    assert not dequantize(shape[1], *made, None).any()


@pytest.mark.parametrize("quantize", [quantize_symmetric_int8, quantize_uint4, quantize_e4m3])
@given(value=st.floats(2.0**-5, 2.0**17, width=32), sign=st.sampled_from([-1, 1]))
def test_equal_values_stay_equal_to_the_precision_of_the_scale(quantize, value: float, sign: int) -> None:
    matrix = np.full((2, 16), sign * value, np.float32)
    back = dequantize(16, *quantize(matrix, 16), None)
    assert np.abs(back / matrix - 1).max() <= HALF_ROUNDING * 1.01


def test_a_value_that_is_on_the_grid_stays_where_it_is() -> None:
    grid = (np.arange(-127, 128, dtype=np.float32) * 0.25)[None]
    assert np.array_equal(dequantize(255, *quantize_symmetric_int8(grid, 255), None), grid)
    nibbles = (np.arange(-5, 11, dtype=np.float32) * 0.5)[None]
    assert np.array_equal(dequantize(16, *quantize_uint4(nibbles, 16), None), nibbles)


@given(grouped())
def test_quantising_what_was_quantised_changes_next_to_nothing(given_: tuple[np.ndarray, int]) -> None:
    matrix, group = given_
    once = dequantize(group, *quantize_symmetric_int8(matrix, group), None)
    twice = dequantize(group, *quantize_symmetric_int8(once, group), None)
    step = np.maximum(np.abs(_by_group(once, group)).max(axis=2, keepdims=True) / 127, TINY)
    assert (np.abs(_by_group(twice, group) - _by_group(once, group)) <= step * 0.6).all()


@pytest.mark.parametrize(("shape", "expected"), [((64, 128), (1, 2)), ((2, 8), (1, 1))], ids=["large", "small"])
@pytest.mark.parametrize(
    ("kind", "parts"), [("int8", ("values", "scales")), ("int4", ("values", "scales", "zero_points"))]
)
def test_a_lazy_weight_is_read_once_for_each_writing_and_a_small_one_kept(
    kind: str, parts: tuple[str, ...], shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    reads = []

    def read() -> np.ndarray:
        reads.append(1)
        return np.ones(shape, np.float32)

    tensors = lazy_quantized(read, shape, kind, 4, "w")
    assert not reads
    for so_often in expected:
        for part in parts:
            tensor = getattr(tensors, part)
            array = tensor.numpy()
            assert (array.shape, array.dtype) == (tuple(tensor.shape), tensor.dtype.numpy())
        assert len(reads) == so_often


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e9])
def test_a_value_that_no_format_has_is_named_not_changed(kind: str, value: float) -> None:
    matrix = np.ones((2, 8), np.float32)
    matrix[1, 3] = value
    tensors = lazy_quantized(lambda: matrix, (2, 8), kind, 4, "layers.0.wq")
    with pytest.raises(UnsupportedError, match=r"layers\.0\.wq"):
        tensors.values.numpy()


def test_a_value_float16_cannot_hold_is_named_not_changed() -> None:
    with pytest.raises(UnsupportedError, match=r"layers\.0\.wq has a value of 70000"):
        to_float16(np.array([[1.0, 70000.0]], np.float32), "layers.0.wq")
    assert to_float16(np.array([[1.0, -65504.0]], np.float32), "w").tolist() == [[1.0, -65504.0]]
