"""What a model asks of any chip, read off its graph: exact, and without reading a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from aicc.compiler.coverage import PREPARES
from aicc.compiler.importers import ImportedModel
from aicc.runtime.errors import UnsupportedError

_MULTIPLIES = ("MatMul", "Gemm", "Conv")
_VALUE_BYTES = 2  # of a cached key or value on chips that compute in 16 bits


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a weight, ``[rows × k] × [k × n]``.

    Attributes:
        rows: Vectors multiplied in one run of a model of tensors; 1 for decoders, whose products have one a token.
        k: Inputs.
        n: Outputs.
        last_only: Only the last token of a prompt needs it, as the logits do.
    """

    rows: int
    k: int
    n: int
    last_only: bool = False

    @property
    def macs(self) -> int:
        """Multiplications with additions."""
        return self.rows * self.k * self.n


@dataclass(frozen=True, slots=True)
class Workload:
    """A model as its sizes.

    Attributes:
        products: Its products with weights.
        parameters: Weights in all, each counted once however often it is used.
        layers: Decoder layers, or products that wait for one another in a model of tensors.
        attention_width: Heads times head size, summed over the layers: multiplications with keys a cached token.
        kv_width: Values cached a token, over all layers.
        decoder: Whether it makes tokens.
        unsized: Products with weights that are left out, because their sizes are not known before it runs.
        bytes_per_token: Bytes of weights a token reads as the target at hand stores them; 0 if not asked for.
    """

    products: tuple[Product, ...]
    parameters: int
    layers: int
    attention_width: int = 0
    kv_width: int = 0
    decoder: bool = True
    unsized: int = 0
    bytes_per_token: int = 0

    def macs(self, context: int = 0) -> int:
        """Multiplications to decode a token after so many, or with the weights in one run of a model of tensors."""
        return sum(product.macs for product in self.products) + 2 * self.attention_width * context

    def prompt_macs(self, tokens: int) -> int:
        """Multiplications to read a prompt: its tokens attend to half of it on average."""
        each = sum(product.macs for product in self.products if not product.last_only)
        last = sum(product.macs for product in self.products if product.last_only)
        return tokens * each + last + self.attention_width * tokens * tokens

    def kv_bytes(self, context: int) -> int:
        """Bytes of a full cache of 16-bit values."""
        return _VALUE_BYTES * self.kv_width * context


def read_workload(imported: ImportedModel, tokens: int) -> Workload:
    """Read a graph's sizes.

    Args:
        imported: After the optimizer, whose shapes are complete.
        tokens: What a symbolic dimension of a model of tensors is taken to be, beyond the batch.

    Raises:
        UnsupportedError: It multiplies with no weight whose sizes are known.
    """
    graph, llm = imported.graph, imported.llm
    if llm is None:
        common.ShapeInferencePass()(graph)
    outputs = {value.name for value in graph.graph.outputs}
    seen: dict[int, int] = {}
    products, width, unsized = [], 0, 0
    for node in graph.graph.all_nodes():
        if node.op_type == "Attention":
            width += _attention_width(node)
        found = _product(node, 1 if llm else tokens, decoder=llm is not None)
        if found is None:
            unsized += node.op_type in _MULTIPLIES and _root(node.inputs[1]) is not None
            continue
        root, product = found
        seen[id(root)] = product.k * product.n
        if node.outputs[0].name in outputs and llm is not None:
            product = Product(product.rows, product.k, product.n, last_only=True)
        products.append(product)
    if not products:
        raise UnsupportedError(
            f"no sizes of the products in {imported.info.name} are known.", "Run shape inference on the model first."
        )
    parameters = sum(seen.values()) + _tables(graph, set(seen)) + _vectors(graph)
    if llm is None:
        return Workload(tuple(products), parameters, len(products), decoder=False, unsized=unsized)
    kv = 2 * llm.layers * llm.kv_heads * llm.head_dim
    return Workload(tuple(products), parameters, llm.layers, width, kv)


def _product(node: ir.Node, tokens: int, decoder: bool) -> tuple[ir.Value, Product] | None:
    """The weight and the sizes, if a node multiplies with a weight."""
    if node.op_type not in _MULTIPLIES or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    operand, result = node.inputs[1], node.outputs[0]
    root = _root(operand)
    if root is None or operand.shape is None or result.shape is None:
        return None
    sizes = [int(d) for d in operand.shape if isinstance(d, int)]
    if len(sizes) != len(operand.shape) or len(sizes) < 2:
        return None
    if node.op_type == "Conv":
        k, n, dims = math.prod(sizes[1:]), sizes[0], [*list(result.shape)[:1], *list(result.shape)[2:]]
    else:
        n = int(result.shape[-1]) if isinstance(result.shape[-1], int) else sizes[-1]
        k, dims = math.prod(sizes) // max(1, n), list(result.shape)[:-1]
    rows = math.prod(d if isinstance(d, int) else tokens if axis else 1 for axis, d in enumerate(dims))
    return root, Product(1 if decoder else rows, k, n)


def _root(value: ir.Value | None) -> ir.Value | None:
    """The stored weight a value is prepared from; None if there is none."""
    while value is not None:
        if value.is_initializer() or value.const_value is not None:
            return value
        producer = value.producer()
        if producer is None or producer.op_type not in PREPARES:
            return None
        value = producer.inputs[0]
    return None


def _attention_width(node: ir.Node) -> int:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return 0
    kept = (1, 3) if len(shape) == 4 else (len(shape) - 1,)
    return math.prod(int(shape[axis]) for axis in kept if isinstance(shape[axis], int))


def _tables(model: ir.Model, products: set[int]) -> int:
    """Values of tables that are looked up and multiplied with nowhere."""
    found: dict[int, int] = {}
    for node in model.graph.all_nodes():
        if node.op_type == "Gather" and (root := _root(node.inputs[0])) is not None and id(root) not in products:
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            computed = "rotary" in (root.name or "") or root.dtype in (ir.DataType.INT64, ir.DataType.INT32)
            if shape is not None and len(shape) > 1 and not computed:
                found[id(root)] = math.prod(int(d) for d in shape if isinstance(d, int))
    return sum(found.values())


def _vectors(model: ir.Model) -> int:
    """Values of norms and biases."""
    vectors = (v for v in model.graph.initializers.values() if v.shape is not None and len(v.shape) == 1)
    return sum(int(v.shape[0]) for v in vectors if v.shape and v.dtype is not None and v.dtype.is_floating_point())
