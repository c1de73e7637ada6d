"""Lazy weights record torch code and run it only when their values are asked for."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from aicc.compiler.importers.lazy import LazyWeight, materialise, onnx_tensor, row_selection
from aicc.runtime.errors import UnsupportedError

VALUES = torch.arange(48, dtype=torch.float32).reshape(8, 6)


class Reading:
    """A file that counts how often it is read."""

    def __init__(self) -> None:
        self.count = 0

    def weight(self) -> LazyWeight:
        return LazyWeight.from_file((8, 6), torch.float32, self.load, "the file")

    def load(self) -> torch.Tensor:
        self.count += 1
        return VALUES.clone()


RECIPES = {
    "split": lambda w: w.split([2, 6])[1],
    "chunk": lambda w: w.chunk(2, dim=1)[0],
    "reorder rows": lambda w: w.reshape(2, 2, 2, 6).swapaxes(1, 2).reshape(8, 6),
    "transpose": lambda w: w.T,
    "join": lambda w: torch.cat([w[4:], w[:4]]),
    "pick": lambda w: w[[1, 0, 3]],
    "add": lambda w: w + 1,
    "cast": lambda w: w.to(torch.float16).float(),
    "stack": lambda w: torch.stack([w[0], w[1]]),
    "copy into zeros": lambda w: torch.zeros(8, 6).copy_(w),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_gives_the_values_it_would_have_given_at_once(recipe) -> None:
    torch.testing.assert_close(materialise(recipe(Reading().weight())), recipe(VALUES))


def test_nothing_is_read_before_the_values_are_asked_for() -> None:
    file = Reading()
    tensor = onnx_tensor((file.weight()[2:4] + 1).T, ir.DataType.FLOAT16, "w")
    assert (tensor.shape, tensor.dtype, file.count) == (ir.Shape([6, 2]), ir.DataType.FLOAT16, 0)
    np.testing.assert_array_equal(tensor.numpy(), (VALUES[2:4] + 1).T.numpy().astype(np.float16))
    assert file.count == 1


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("reorder rows", [0, 2, 1, 3, 4, 6, 5, 7]),
        ("split", [2, 3, 4, 5, 6, 7]),
        ("join", [4, 5, 6, 7, 0, 1, 2, 3]),
        ("pick", [1, 0, 3]),
    ],
)
def test_rows_chosen_and_reordered_are_found_without_reading(name: str, rows: list[int]) -> None:
    file = Reading()
    source, found = row_selection(RECIPES[name](file.weight()))
    assert (source.origin, found.tolist(), file.count) == ("the file", rows, 0)


def test_a_weight_as_it_is_needs_no_reordering() -> None:
    weight = Reading().weight()
    assert row_selection(weight) == (weight, None)


@pytest.mark.parametrize("name", ["transpose", "add", "chunk", "cast"])
def test_anything_else_is_no_choice_of_rows(name: str) -> None:
    assert row_selection(RECIPES[name](Reading().weight())) is None


def test_arithmetic_that_leaves_numbers_alone_is_not_taken_for_reordering() -> None:
    assert row_selection(Reading().weight().abs()) is None


def test_rows_of_two_files_are_no_choice_of_rows() -> None:
    assert row_selection(torch.cat([Reading().weight(), Reading().weight()])) is None


def test_changing_a_lazy_weight_in_place_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="in place"):
        Reading().weight().add_(1)
