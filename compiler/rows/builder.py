"""The graph as a row program; what has no place in one is refused by node."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from aicc.compiler.lowering import Refusal
from aicc.compiler.quantization.blockwise import match_blockwise
from aicc.compiler.rows import program as rows
from aicc.compiler.rows.constants import (
    constant_size,
    is_constant,
    is_vector,
    positions_read,
    read_constant,
    read_number,
)
from aicc.compiler.rows.matrix import Matrix, stored_float
from aicc.compiler.rows.program import Program, Value, Vector
from aicc.runtime.errors import UnsupportedError

_FUNCTIONS = ("Add", "Sub", "Mul", "Div", "Neg", "Sigmoid", "Tanh", "Erf", "Exp", "Relu", "Gelu")
_SAME = ("Identity", "Dropout")
_REMEDY = "Compile for another target, such as openvino:cpu or reference."


class Refused(Exception):
    """A node that is no operation on rows."""

    def __init__(self, node: ir.Node | None, reason: str) -> None:
        super().__init__(reason)
        operator = "" if node is None else f"{node.domain}.{node.op_type}".removeprefix(".")
        self.refusal = Refusal("the model itself" if node is None else _name(node), operator, reason)


class Builder(ABC):
    """Makes a row program node by node; what begins and ends one is for a decoder or an encoder to say.

    Args:
        model: The optimised and quantised graph; no weight is read.
        program: An empty one.
        family: For messages: who cannot run what is refused.
        head_multiple: Columns of a head are padded with zeros to a multiple of it before attention.
    """

    def __init__(self, model: ir.Model, program: Program, family: str, head_multiple: int) -> None:
        self.model = model
        self.program = program
        self._family = family
        self._head_multiple = head_multiple
        self.made: dict[ir.Value, Value] = {}
        self.angles: dict[tuple[ir.Value, ir.Value], rows.Angles] = {}

    def build(self) -> Program:
        """The program.

        Raises:
            UnsupportedError: Names the node that is no operation on rows.
        """
        try:
            self.operations()
        except Refused as error:
            found = error.refusal
            raise UnsupportedError(
                f"the {self._family} family cannot run {found.op} ({found.node}): {found.reason}.", _REMEDY
            ) from error
        return self.program

    def refusals(self) -> list[Refusal]:
        """What :meth:`build` would refuse."""
        try:
            self.operations()
        except Refused as error:
            return [error.refusal]
        except UnsupportedError as error:
            return [Refusal("", "", error.message.rstrip("."))]
        return []

    @abstractmethod
    def operations(self) -> None:
        """Fill the program.

        Raises:
            Refused: A node is no operation on rows.
        """

    @abstractmethod
    def begins(self, node: ir.Node) -> bool:
        """Whether a node makes activations of something else."""

    @abstractmethod
    def looked_up(self, node: ir.Node) -> tuple[Matrix, int | None]:
        """The table of a ``Gather``, and the input that says which of its rows; None if the position does."""

    @abstractmethod
    def visible(self, node: ir.Node) -> tuple[bool, int]:
        """Whether an ``Attention`` is causal, and its window, 0 if there is none."""

    def compute(self, results: list[ir.Value]) -> None:
        """Everything that leads to some values of the graph."""
        needed = {node for value in results for node in _ancestors(value)}
        for node in self.model.graph:  # sorted: what a node reads comes before it
            if node in needed and (any(v is not None and v in self.made for v in node.inputs) or self.begins(node)):
                self._node(node)

    def _node(self, node: ir.Node) -> None:
        if node.op_type in _SAME or (node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT):
            self.made[node.outputs[0]] = self.made[node.inputs[0]]
            return
        handler: Callable[[ir.Node], None] | None = _HANDLERS.get(node.op_type)
        if handler is None or node.domain not in ("", "ai.onnx"):
            raise Refused(node, "it has no kernel for rows of activations")
        handler(self, node)

    def _add(self, node: ir.Node, kind: type[rows.Op], width: int, *parts: object) -> Value:
        value = Value(_short(node), width)
        self.program.ops.append(kind(_name(node), value, *parts))
        return value

    def _put(self, node: ir.Node, value: Value) -> None:
        width = _width(node.outputs[0])
        if width is not None and width != value.width:
            raise Refused(node, f"its result has {width} columns where {value.width} were computed")
        self.made[node.outputs[0]] = value

    def _row(self, node: ir.Node, index: int = 0) -> Value:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value not in self.made:
            raise Refused(node, f"its input {index} is not a row of activations")
        return self.made[value]

    # Operators

    def _gather(self, node: ir.Node) -> None:
        if node.attributes.get_int("axis", 0) != 0:
            raise Refused(node, "only rows can be looked up")
        table, number = self.looked_up(node)
        self._put(node, self._add(node, rows.Embed, table.columns, table, number))

    def _matmul(self, node: ir.Node) -> None:
        x, weight = self._row(node), node.inputs[1]
        if not is_constant(weight):
            raise Refused(node, "it multiplies two activations outside of an Attention")
        producer = weight.producer()
        if producer is not None and producer.op_type == "Transpose":
            if tuple(producer.attributes.get_ints("perm", (1, 0))) != (1, 0):
                raise Refused(producer, "a weight must be a matrix")
            matrix = self.matrix(node, producer.inputs[0])
        else:
            matrix = self.matrix(node, weight, transposed=True)
        if matrix.columns != x.width:
            raise Refused(node, f"the weight takes {matrix.columns} columns and gets {x.width}")
        self._put(node, self._add(node, rows.Linear, matrix.rows, x, matrix))

    def matrix(self, node: ir.Node, value: ir.Value, transposed: bool = False) -> Matrix:
        """The weight matrix that a node's input is."""
        blockwise = match_blockwise(value)
        if blockwise is None:
            stored = stored_float(value)
            if stored.const_value is None or len(stored.const_value.shape) != 2:
                raise Refused(node, "its weight is not a constant matrix")
            if stored.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                raise Refused(node, f"its weight is {stored.dtype.name.lower()}")
            first, second = (int(d) for d in stored.const_value.shape)
        else:
            first, second = (int(d) for d in blockwise.values.shape)
            if transposed or (blockwise.group_size % 32 and blockwise.group_size != second):
                raise Refused(node, f"its weight is quantised in groups of {blockwise.group_size}")
        return Matrix(value, *((second, first) if transposed else (first, second)), transposed=transposed)

    def _norm(self, node: ir.Node) -> None:
        x, layer = self._row(node), node.op_type == "LayerNormalization"
        shape = _shape(node)
        if node.attributes.get_int("axis", -1) not in (-1, len(shape) - 1) or not isinstance(shape[-1], int):
            raise Refused(node, "it normalises more than the last dimension")
        size = int(shape[-1])
        weight = self._vector(node, node.inputs[1], size)
        bias = self._vector(node, node.inputs[2], size) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        self._put(node, self._add(node, rows.Norm, x.width, x, size, len(shape) > 3, layer, weight, bias, epsilon))

    def _vector(self, node: ir.Node, value: ir.Value | None, width: int) -> Vector:
        """A constant of ``width`` elements, repeated if it is for each head."""
        size = constant_size(value) if is_vector(value) else None
        if not size or width % size:
            raise Refused(node, f"it needs a constant of {width} values")
        return Vector(
            str(value.name), width, lambda: np.tile(read_constant(value).astype(np.float32).reshape(-1), width // size)
        )

    def _rotary(self, node: ir.Node) -> None:
        x = self._row(node)
        if len(_shape(node)) != 3 or (len(node.inputs) > 3 and node.inputs[3] is not None):
            raise Refused(node, "it must have heads side by side, and its angles already looked up")
        heads = node.attributes.get_int("num_heads", 0)
        if heads < 1 or x.width % heads:
            raise Refused(node, f"{x.width} columns are not {heads} heads")
        head_dim = x.width // heads
        rotary = node.attributes.get_int("rotary_embedding_dim", 0) or head_dim
        angles = self._table(node, node.inputs[1], node.inputs[2])
        if 2 * angles.half != rotary:
            raise Refused(node, f"it has {angles.half} angles for {rotary} columns")
        interleaved = bool(node.attributes.get_int("interleaved", 0))
        self._put(node, self._add(node, rows.Rope, x.width, x, head_dim, rotary, interleaved, angles))

    def _table(self, node: ir.Node, cosine: ir.Value, sine: ir.Value) -> rows.Angles:
        if (cosine, sine) in self.angles:
            return self.angles[cosine, sine]
        tables = []
        for value in (cosine, sine):
            gather = value.producer()
            if gather is None or gather.op_type != "Gather" or not is_vector(gather.inputs[0]):
                raise Refused(node, "its angles are not looked up in a constant table")
            index = positions_read(self.model, gather.inputs[1], self.program.context)
            if index is None or int(index.max()) >= int(gather.inputs[0].shape[0]):
                raise Refused(node, "which angles it uses depends on more than the position of a token")
            tables.append((gather.inputs[0], index))
        half = int(tables[0][0].shape[1])

        def read() -> np.ndarray:
            return np.stack([read_constant(table)[index].astype(np.float32) for table, index in tables])

        made = rows.Angles(str(tables[0][0].name), self.program.context, half, read)
        return self.angles.setdefault((cosine, sine), made)

    def _reshape(self, node: ir.Node) -> None:
        """Heads side by side or apart are the same row."""
        source, shape = self._row(node), node.outputs[0].shape
        if shape is None or _width(node.outputs[0]) != source.width or isinstance(shape[1], int):
            raise Refused(node, "it moves values between rows")
        self.made[node.outputs[0]] = source

    def _split(self, node: ir.Node) -> None:
        x, rank = self._row(node), len(_shape(node))
        if rank != 3 or node.attributes.get_int("axis", 0) not in (-1, rank - 1):
            raise Refused(node, "it splits something else than columns")
        begin = 0
        for output in node.outputs:
            width = _width(output)
            if width is None:
                raise Refused(node, "the columns of its parts are not known")
            self.made[output] = self._columns(node, x, begin, width)
            begin += width

    def _columns(self, node: ir.Node, x: Value, begin: int, width: int) -> Value:
        """Some columns: of a product, the product with some rows of its weight."""
        maker = next(op for op in self.program.ops if op.output is x)
        if isinstance(maker, rows.Linear):
            part = rows.Linear(maker.node, Value(_short(node), width), maker.x, maker.matrix.part(begin, width))
            self.program.ops.append(part)
            return part.output
        return self._add(node, rows.Slice, width, x, begin)

    def _elementwise(self, node: ir.Node) -> None:
        function = node.op_type
        if function == "Gelu" and node.attributes.get_string("approximate", "none") == "tanh":
            function = "GeluTanh"
        width = max(self.made[v].width for v in node.inputs if v in self.made)
        operands: list[Value | Vector | float] = []
        for index, value in enumerate(node.inputs):
            if value in self.made:
                operands.append(self._row(node, index))
                if operands[-1].width != width:
                    raise Refused(node, "it combines rows of different widths")
            elif (number := read_number(value)) is not None:
                if not math.isfinite(number):
                    raise Refused(node, f"its operand is {number}")
                operands.append(number)
            else:
                operands.append(self._vector(node, value, width))
        self._put(node, self._add(node, rows.Elementwise, width, function, tuple(operands)))

    def _attention(self, node: ir.Node) -> None:
        attributes = node.attributes
        query_heads, kv_heads = attributes.get_int("q_num_heads", 0), attributes.get_int("kv_num_heads", 0)
        parts = [self._row(node, i) for i in range(3)]
        if not query_heads or not kv_heads or query_heads % kv_heads or parts[0].width % query_heads:
            raise Refused(node, "its heads are not stated, or query heads are not shared evenly")
        size = parts[0].width // query_heads
        if any(part.width != kv_heads * size for part in parts[1:]):
            raise Refused(node, "its keys and values have heads of another size than its queries")
        if any(o is not None and _used(o) for o in node.outputs[1:]):
            raise Refused(node, "its results other than the output are used")
        causal, window = self.visible(node)
        head_dim = -(-size // self._head_multiple) * self._head_multiple
        heads = rows.Heads(
            query_heads, kv_heads, head_dim, attributes.get_float("scale", 0.0) or 1 / math.sqrt(size),
            attributes.get_float("softcap", 0.0), window, causal,
        )  # fmt: skip
        layer = len(self.program.layers)
        self.program.layers.append(heads)
        if head_dim != size:
            parts = [self._add(node, rows.Resize, p.width // size * head_dim, p, size, head_dim) for p in parts]
        query, key, value = parts
        self.program.ops.append(rows.Store(_name(node), None, key, layer, heads, True))
        self.program.ops.append(rows.Store(_name(node), None, value, layer, heads, False))
        out = self._add(node, rows.Attend, query_heads * head_dim, query, layer, heads)
        if head_dim != size:
            out = self._add(node, rows.Resize, query_heads * size, out, head_dim, size)
        self._put(node, out)


_HANDLERS: dict[str, Callable[[Builder, ir.Node], None]] = {
    "Gather": Builder._gather, "MatMul": Builder._matmul, "RMSNormalization": Builder._norm,
    "LayerNormalization": Builder._norm, "RotaryEmbedding": Builder._rotary, "Attention": Builder._attention,
    "Reshape": Builder._reshape, "Split": Builder._split,
} | {name: Builder._elementwise for name in _FUNCTIONS}  # fmt: skip


def _ancestors(value: ir.Value) -> set[ir.Node]:
    found: set[ir.Node] = set()
    todo = [value]
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            todo += [v for v in node.inputs if v is not None]
    return found


def _shape(node: ir.Node) -> ir.Shape:
    """Of its first input."""
    if node.inputs[0].shape is None:
        raise Refused(node, "the shape of its input is not known")
    return node.inputs[0].shape


def _width(value: ir.Value) -> int | None:
    """Columns of an activation ``[batch, sequence, …]``; None if they are not known."""
    if value.shape is None or len(value.shape) < 3 or not all(isinstance(d, int) for d in list(value.shape)[2:]):
        return None
    return math.prod(int(d) for d in list(value.shape)[2:])


def _used(value: ir.Value) -> bool:
    return any(True for _ in value.uses())


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _short(node: ir.Node) -> str:
    """The part of its name that says what it is: ``q_proj`` of ``model/layers.0/self_attn/q_proj/MatMul_node_13``."""
    parts = [p for p in _name(node).replace(".", "/").split("/") if p and "_node" not in p and not p.isdigit()]
    useful = [p for p in parts if p not in ("model", "layers", "self_attn", "mlp")]
    return useful[-1] if useful else node.op_type.lower()
