"""Reads ``tolerances.toml`` and compares by it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("tolerances.toml").read_text())


def assert_within(row: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Compare two arrays by a row of ``[arrays]``.

    Raises:
        AssertionError: Type, shape or a value is not as expected; says how far it is.
    """
    limits = TOLERANCES["arrays"][row]
    assert found.dtype == expected.dtype, f"{found.dtype} for {expected.dtype}"
    assert found.shape == expected.shape, f"shape {found.shape} for {expected.shape}"
    if np.issubdtype(expected.dtype, np.integer):
        far = np.abs(found.astype(np.int64) - expected.astype(np.int64)).max(initial=0)
        assert far <= limits.get("steps", 0), f"differs by up to {far}"
    elif expected.dtype == np.bool_:
        assert np.array_equal(found, expected), f"{int((found != expected).sum())} of {found.size} differ"
    else:
        wide, reference = found.astype(np.float64), expected.astype(np.float64)
        close = np.isclose(wide, reference, limits["relative"], limits["absolute"], equal_nan=True)
        with np.errstate(invalid="ignore"):
            far = np.nanmax(np.abs(wide - reference), initial=0)
        assert close.all(), f"{int((~close).sum())} of {close.size} differ, by up to {far:.3g}"


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The smallest cosine between rows of two arrays ``[..., n]``."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(axis=-1) / lengths).min())
