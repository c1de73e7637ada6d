"""What a cut between chip and host would cost."""

import pytest
from graph_text import graph

from aicc.compiler.partition import Partition, partition

CHAIN = """
    (float[4, 8] x) => (float[4, 8] y) {
        a = Relu (x)
        b = Erf (a)
        c = Sigmoid (b)
        d = Add (c, a)
        y = Erf (d)
    }
"""


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ([], Partition(1, 0)),
        (["b"], Partition(2, 2 * 128)),  # a and b cross
        (["b", "y"], Partition(2, 3 * 128)),
        (["a", "b", "c", "d", "y"], Partition(0, 0)),
        (["a"], Partition(1, 128)),  # a crosses once, whoever reads it
    ],
)
def test_pieces_and_bytes(host: list[str], expected: Partition) -> None:
    model = graph(CHAIN)
    for node in model.graph:
        node.name = node.outputs[0].name
        node.outputs[0].dtype, node.outputs[0].shape = model.graph.inputs[0].dtype, model.graph.inputs[0].shape
    assert partition(model, host) == expected
