"""Several products of one input become one: query, key and value; gate and up.

``MatMul(x, Transpose(A)), MatMul(x, Transpose(B))`` → ``Split(MatMul(x, Transpose([A; B])))``. One
wide product reads the input once and starts one kernel. Rows of the weights are put one after
another, lazily; quantised weights stay quantised, as their groups lie within rows.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from aicc.compiler.quantization.blockwise import BlockwiseWeight, add_blockwise, match_blockwise


class MergeProjections(InPlacePass):
    """Merge products that share their input; ``refused`` says which were left, and why."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = 0
        self.refused: dict[str, str] = {}

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every group of products the check accepts."""
        for products in _sharing_input(model.graph):
            if reason := _why_not(products):
                self.refused[" + ".join(map(_name, products))] = reason
                continue
            _merge(model.graph, products)
            self.changed += 1
        return PassResult(model, modified=bool(self.changed))


def _sharing_input(graph: ir.Graph) -> list[list[ir.Node]]:
    """Groups of two and more weight products with the same first input, in graph order."""
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "MatMul" and node.inputs[0] is not None and _transpose(node) is not None:
            groups.setdefault(node.inputs[0], []).append(node)
    return [nodes for nodes in groups.values() if len(nodes) > 1]


def _transpose(product: ir.Node) -> ir.Node | None:
    node = product.inputs[1].producer() if product.inputs[1] is not None else None
    if node is None or node.op_type != "Transpose":
        return None
    return node if tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0) else None


def _name(product: ir.Node) -> str:
    return product.name or str(product.outputs[0].name)


def _weight(product: ir.Node) -> ir.Value:
    return _transpose(product).inputs[0]


def _why_not(products: list[ir.Node]) -> str:
    """Why a group cannot be merged; empty if it can."""
    kinds = set()
    for product in products:
        weight = _weight(product)
        if len(list(weight.uses())) > 1 or len(list(product.inputs[1].uses())) > 1:
            return f"weight {weight.name} is used elsewhere too"
        if product.outputs[0].is_graph_output():
            return f"{_name(product)} is an output of the graph"
        blocks = match_blockwise(weight)
        if blocks is not None:
            kinds.add((blocks.values.dtype, blocks.scales.dtype, blocks.group_size, blocks.offset))
        elif weight.const_value is not None and len(weight.const_value.shape) == 2:
            kinds.add((weight.dtype,))
        else:
            return f"weight {weight.name} is not a constant matrix"
    return "" if len(kinds) == 1 else "the weights are stored in different formats"


def _merge(graph: ir.Graph, products: list[ir.Node]) -> None:
    weights = [_weight(p) for p in products]
    rows = [int(w.shape[0]) for w in weights]
    name = "+".join(w.name for w in weights)
    blocks = [match_blockwise(w) for w in weights]
    merged = _merge_blockwise(graph, name, blocks) if blocks[0] else _merge_float(graph, name, weights)
    transpose = ir.node("Transpose", [merged], attributes={"perm": [1, 0]})
    product = ir.node("MatMul", [products[0].inputs[0], transpose.outputs[0]], name=name)
    sizes = ir.tensor(np.array(rows, np.int64), name=f"{name}.rows")
    split_sizes = ir.Value(
        name=sizes.name, type=ir.TensorType(sizes.dtype), shape=ir.Shape([len(rows)]), const_value=sizes
    )
    graph.register_initializer(split_sizes)
    split = ir.node(
        "Split", [product.outputs[0], split_sizes], attributes={"axis": -1}, num_outputs=len(rows), name=f"{name}.split"
    )
    first = products[0].outputs[0]
    product.outputs[0].type = first.type
    product.outputs[0].shape = ir.Shape([*list(first.shape)[:-1], sum(rows)]) if first.shape is not None else None
    for old, new in zip(products, split.outputs, strict=True):
        new.name, new.type, new.shape = old.outputs[0].name, old.outputs[0].type, old.outputs[0].shape
    graph.insert_before(products[0], [transpose, product, split])
    for old, new in zip(products, split.outputs, strict=True):
        ir.convenience.replace_all_uses_with(old.outputs[0], new)
        graph.remove(old, safe=True)


def _merge_float(graph: ir.Graph, name: str, weights: list[ir.Value]) -> ir.Value:
    tensor = _stack([w.const_value for w in weights])
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _merge_blockwise(graph: ir.Graph, name: str, blocks: list[BlockwiseWeight]) -> ir.Value:
    def stack(role: str) -> ir.LazyTensor | None:
        parts = [getattr(b, role) for b in blocks]
        return None if parts[0] is None else _stack([p.const_value for p in parts])

    return add_blockwise(
        graph, name, stack("values"), stack("scales"), blocks[0].group_size, stack("zero_points"), stack("minimum")
    )


def _stack(tensors: list[ir.TensorProtocol]) -> ir.LazyTensor:
    """Tensors one below another along their rows, read when written."""
    shape = ir.Shape([sum(int(t.shape[0]) for t in tensors), *list(tensors[0].shape)[1:]])
    assert math.prod(int(d) for d in shape) == sum(t.size for t in tensors)
    dtype = tensors[0].dtype
    return ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([t.numpy() for t in tensors]), dtype=dtype), dtype=dtype, shape=shape
    )
