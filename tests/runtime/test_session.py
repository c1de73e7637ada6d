"""Sessions check what they are given before the chip sees it, and say which input is wrong."""

import numpy as np
import pytest
from small_tensors import write_small

from aicc.runtime import load
from aicc.runtime.artifact import TensorSpec
from aicc.runtime.errors import UsageError
from aicc.runtime.session import Session, check_inputs


@pytest.fixture(scope="session")
def session(tmp_path_factory) -> Session:
    return load(write_small(tmp_path_factory.mktemp("session") / "small.aicc", "reference:cpu").path)


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    return {"x": np.ones((2, 8), np.float32), "negate": np.array(False), "fixed": np.array([1, 2])}


def test_signatures_tell_names_types_and_shapes(session):
    signature = session.signatures["default"]
    assert [(t.name, t.dtype, t.shape) for t in signature.inputs] == [
        ("x", "float32", ("rows", 8)),
        ("negate", "bool", ()),
        ("fixed", "int64", (2,)),
    ]
    assert [t.name for t in signature.outputs] == ["y", "doubled"]


def test_outputs_come_by_name(session, inputs):
    outputs = session.run(inputs)
    assert {name: array.dtype.name for name, array in outputs.items()} == {"y": "float32", "doubled": "int64"}


def test_arrays_of_any_memory_layout_mean_the_same(session, inputs):
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    expected = session.run(inputs | {"x": x})["y"]
    for same in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.astype(">f4")):
        np.testing.assert_array_equal(session.run(inputs | {"x": same})["y"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "'x' is missing"),
        ({"z": np.ones(1)}, "no input 'z'"),
        ({"x": np.ones((2, 8))}, "'x' has dtype float64 and must have float32"),
        ({"x": np.ones(8, np.float32)}, r"'x' has shape \[8\] and must be x float32\[rows, 8\]"),
        ({"x": np.ones((2, 9), np.float32)}, r"'x' has shape \[2, 9\]"),
        ({"fixed": np.array([1, 2, 3])}, r"'fixed' has shape \[3\]"),
        ({"negate": np.array([True])}, r"'negate' has shape \[1\]"),
        ({"fixed": ["a", "b"]}, "'fixed' has dtype"),
    ],
)
def test_a_wrong_input_is_named_with_what_the_model_takes(session, inputs, change, message):
    changed = {name: value for name, value in (inputs | change).items() if value is not None}
    with pytest.raises(UsageError, match=message):
        session.run(changed)


def test_an_unknown_signature_is_refused_with_those_there_are(session, inputs):
    with pytest.raises(UsageError, match="default"):
        session.run(inputs, signature="other")


def test_one_varying_size_is_the_same_in_all_inputs():
    sizes = {"a": 2, "b": "width", "c": "width"}
    specs = tuple(TensorSpec(name, "float32", ("rows", size)) for name, size in sizes.items())
    fit = {"a": np.ones((3, 2), np.float32), "b": np.ones((3, 5), np.float32), "c": np.ones((3, 5), np.float32)}

    assert list(check_inputs(specs, fit)) == ["a", "b", "c"]
    for name, shape in (("b", (1, 5)), ("c", (3, 1))):
        with pytest.raises(UsageError, match="must agree"):
            check_inputs(specs, fit | {name: np.ones(shape, np.float32)})
