"""A graph of some bytes whose constants would be terabytes, or take years, is refused by node."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aicc.compiler.importers import Source, import_model
from aicc.compiler.optimize import optimize
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import find_target

CONSTANTS = {
    "zero": 0,
    "one": 1,
    "million": 10**6,
    "many": 10**12,
    "few": [1, 2, 3, 4],
    "shape": [10**12],
    "true": True,
}
NAMES = [f"c{i}" for i in range(40)]
MAXIMUM = helper.make_node("ReduceMax", ["r"], ["m"], keepdims=0)


def counting() -> onnx.GraphProto:
    number, truth = ((lambda name, kind=kind: helper.make_tensor_value_info(name, kind, [])) for kind in (7, 9))
    nodes = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["s", "one"], ["t"])]
    return helper.make_graph(nodes, "body", [number("i"), truth("c"), number("s")], [truth("d"), number("t")])


def node(op: str, *inputs: str, to: str = "r", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [to], to, **attributes)


BOMBS = {
    "a range": ([node("Range", "zero", "many", "one"), MAXIMUM], "Range 'r'"),
    "a range to a computed limit": (
        [node("Mul", "million", "million", to="limit"), node("Range", "zero", "limit", "one"), MAXIMUM],
        "Range 'r'",
    ),
    "a broadcast": ([node("Expand", "zero", "shape"), MAXIMUM], "Expand 'r'"),
    "a repetition": ([node("Tile", "few", "shape"), MAXIMUM], "Tile 'r'"),
    "a doubling": (
        [
            *(node("Concat", a, a, to=b, axis=0) for a, b in pairwise(["few", *NAMES])),
            helper.make_node("ReduceMax", [NAMES[-1]], ["m"], keepdims=0),
        ],
        "Concat 'c24'",
    ),
    "an input's own size": (
        [
            node("Shape", "x", to="s"),
            node("Concat", "s", "s", to="ss", axis=0),
            node("Expand", "zero", "ss"),
            MAXIMUM,
        ],
        "Expand 'r'",
    ),
    "a loop": ([node("Loop", "many", "true", "zero", to="m", body=counting())], "Loop 'm'"),
}


def optimized(path: Path, nodes: list[onnx.NodeProto]) -> None:
    """Import and simplify ``y = x + m``, where the nodes make m of small constants."""
    used = {name for each in nodes for name in each.input} | {"one"}
    graph = helper.make_graph(
        [*nodes, helper.make_node("Add", ["x", "m"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [10**6])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [10**6])],
        [numpy_helper.from_array(np.array(value), name) for name, value in CONSTANTS.items() if name in used],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    optimize(import_model(Source(path, "onnx", "m"), digest=False), find_target("reference:cpu"))


@pytest.mark.parametrize("bomb", BOMBS)
def test_constants_that_no_memory_holds_are_refused_by_node(tmp_path: Path, bomb: str) -> None:
    nodes, blamed = BOMBS[bomb]
    with pytest.raises(UnsupportedError, match=f"the {blamed} computes constants"):
        optimized(tmp_path / "m.onnx", nodes)


def test_constants_of_usual_size_are_taken(tmp_path: Path) -> None:
    optimized(tmp_path / "m.onnx", [node("Range", "zero", "million", "one"), MAXIMUM])
