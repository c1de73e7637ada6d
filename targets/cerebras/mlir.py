"""A static graph as torch-dialect MLIR, in the operators and the syntax (LLVM 14's) ``torch-cirh-opt`` takes.

It takes ``mm``, ``bmm``, ``permute``, ``view_copy``, ``slice_copy``, ``cat``, ``embedding``, ``mean.dim``,
``_softmax``, ``_to_copy``, ``gelu`` and arithmetic between tensors. It refuses ``linear``, ``transpose.int``, ``view``,
``slice``, ``to.dtype`` and every operator with a Python number: so numbers are constants of rank 0, and a power is a
product with itself. Weights are arguments of the function, not text in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import onnx_ir as ir

from aicc.runtime.errors import UnsupportedError

_TYPES = {
    ir.DataType.FLOAT16: "f16",
    ir.DataType.FLOAT: "f32",
    ir.DataType.INT64: "si64",
    ir.DataType.INT32: "si32",
    ir.DataType.BOOL: "i1",
}
_TORCH_TYPES = {ir.DataType.FLOAT16: 5, ir.DataType.FLOAT: 6, ir.DataType.INT64: 4, ir.DataType.INT32: 3}
_BINARY = {"Mul": "mul.Tensor", "Div": "div.Tensor"}
_SUMS = {"Add": "add.Tensor", "Sub": "sub.Tensor"}
_UNARY = {
    name: name.lower() for name in ("Sigmoid", "Sqrt", "Reciprocal", "Tanh", "Neg", "Exp", "Erf", "Relu", "Sin", "Cos")
}


@dataclass(slots=True)
class Function:
    """A function in text.

    Attributes:
        arguments: The graph's inputs, then its large weights, in the order of the function's arguments.
        operators: How many of each torch operator it has.
        text: The whole module.
    """

    arguments: list[ir.Value]
    operators: Counter[str]
    text: str


@dataclass(slots=True)
class _Writer:
    names: dict[ir.Value, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)

    def fresh(self) -> str:
        return f"%v{len(self.lines)}"

    def constant(self, kind: str, text: str = "") -> str:
        """A Python value, written once: ``int 3``, ``bool true``, ``none``."""
        key = f"torch.constant.{kind} {text}".strip()
        if key not in self.numbers:
            self.numbers[key] = f"%c{len(self.numbers)}"
        return self.numbers[key]

    def ints(self, values: Sequence[int]) -> str:
        parts = [self.constant("int", str(int(value))) for value in values]
        kinds = ", ".join(["!torch.int"] * len(parts))
        name = self.fresh()
        self.lines.append(f"{name} = torch.prim.ListConstruct {', '.join(parts)} : ({kinds}) -> !torch.list<int>")
        return name

    def op(self, name: str, operands: Sequence[tuple[str, str]], shape: Sequence[int], dtype: ir.DataType) -> str:
        """An operator with one result: operands are names with their types."""
        result, kind = self.fresh(), _type(shape, dtype)
        names, kinds = (", ".join(part) for part in zip(*operands, strict=True))
        self.lines.append(f"{result} = torch.aten.{name} {names} : {kinds} -> {kind}")
        self.operators[f"aten.{name}"] += 1
        return result


def write_function(model: ir.Model) -> Function:
    """Write a graph whose shapes are fixed.

    Raises:
        UnsupportedError: A node has no form in the subset; it is named.
    """
    writer = _Writer()
    weights = [
        v
        for v in model.graph.initializers.values()
        if v.uses() and v.const_value is not None and v.const_value.size > 1
    ]
    arguments = [*model.graph.inputs, *weights]
    for index, value in enumerate(arguments):
        writer.names[value] = f"%arg{index}"
    for value in model.graph.initializers.values():
        if value not in writer.names and value.const_value is not None:
            _literal(writer, value)
    for node in model.graph:
        _write(writer, node)
    results = [_operand(writer, value) for value in model.graph.outputs]
    kinds = ", ".join(kind for _, kind in results)
    header = ", ".join(f"{writer.names[value]}: {_type_of(value)}" for value in arguments)
    numbers = [f"{name} = {key}" for key, name in writer.numbers.items()]
    body = [*numbers, *writer.lines, f"return {', '.join(name for name, _ in results)} : {kinds}"]
    text = f"func @main({header}) -> ({kinds}) {{\n" + "".join(f"  {line}\n" for line in body) + "}\n"
    return Function(arguments, writer.operators, text)


def _type(shape: Sequence[int], dtype: ir.DataType) -> str:
    return f"!torch.vtensor<[{','.join(str(int(dim)) for dim in shape)}],{_TYPES[dtype]}>"


def _shape(value: ir.Value) -> list[int]:
    assert value.shape is not None
    return [int(dim) for dim in value.shape]


def _type_of(value: ir.Value) -> str:
    if value.dtype not in _TYPES:
        raise UnsupportedError(f"{value.name} is of type {value.dtype}, which the subset lacks.", "Use another target.")
    return _type(_shape(value), value.dtype)


def _operand(writer: _Writer, value: ir.Value) -> tuple[str, str]:
    kind = _type_of(value)  # refuses a literal that has no name, too
    return writer.names[value], kind


def _literal(writer: _Writer, value: ir.Value) -> None:
    """A constant in the text: those with more than a few numbers are arguments."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype not in _TYPES:
        return
    array, kind = tensor.numpy(), _TYPES[tensor.dtype]
    one = [f"{float(x):e}" if tensor.dtype.is_floating_point() else str(int(x)) for x in np.asarray(array).reshape(-1)]
    dims = "x".join([*map(str, array.shape), kind])
    name = writer.fresh()
    text = one[0] if len(set(one)) == 1 else _nested(one, array.shape)
    writer.lines.append(
        f"{name} = torch.vtensor.literal(dense<{text}> : tensor<{dims}>) : {_type(array.shape, tensor.dtype)}"
    )
    writer.names[value] = name


def _nested(items: list[str], shape: Sequence[int]) -> str:
    if len(shape) <= 1:
        return f"[{', '.join(items)}]"
    step = len(items) // shape[0]
    return f"[{', '.join(_nested(items[i : i + step], shape[1:]) for i in range(0, len(items), step))}]"


def _write(writer: _Writer, node: ir.Node) -> None:
    """One node in the operators of the subset."""
    kind = node.op_type
    if kind == "Constant":
        node.outputs[0].const_value = ir.convenience.get_const_tensor(node.outputs[0])
        return _literal(writer, node.outputs[0])
    inputs = [value for value in node.inputs if value is not None]
    out = node.outputs[0]
    shape, dtype = _shape(out), out.dtype
    assert dtype is not None

    def emit(name: str, *operands: tuple[str, str]) -> None:
        writer.names[out] = writer.op(name, operands, shape, dtype)

    one, none = (writer.constant("int", "1"), "!torch.int"), (writer.constant("none"), "!torch.none")
    false = (writer.constant("bool", "false"), "!torch.bool")
    first = _operand(writer, inputs[0]) if inputs else ("", "")
    axis = node.attributes.get_int("axis", -1)
    if not inputs:
        _refuse(node)
    elif kind in _UNARY:
        emit(_UNARY[kind], first)
    elif kind in _BINARY:
        emit(_BINARY[kind], first, _operand(writer, inputs[1]))
    elif kind in _SUMS:
        emit(_SUMS[kind], first, _operand(writer, inputs[1]), one)
    elif kind == "Pow" and _number(inputs[1]) in (2, 3):
        square = writer.op("mul.Tensor", [first, first], shape, dtype) if _number(inputs[1]) == 3 else first[0]
        emit("mul.Tensor", (square, first[1]), first)
    elif kind == "Pow" and _number(inputs[1]) == 0.5:
        emit("sqrt", first)
    elif kind in ("Reshape", "Unsqueeze", "Squeeze", "Flatten"):
        emit("view_copy", first, (writer.ints(shape), "!torch.list<int>"))
    elif kind == "Transpose":
        perm = node.attributes.get_ints("perm", range(len(shape))[::-1])
        emit("permute", first, (writer.ints(perm), "!torch.list<int>"))
    elif kind == "Gelu" and (form := node.attributes.get_string("approximate", "none")) in ("none", "tanh"):
        form = writer.constant("str", f'"{form}"')  # it becomes text of the program: only what is known may
        emit("gelu", first, (form, "!torch.str"))
    elif kind == "Softmax":
        emit("_softmax", first, (writer.constant("int", str(axis)), "!torch.int"), false)
    elif kind == "Cast" and dtype in _TORCH_TYPES:
        number = writer.constant("int", str(_TORCH_TYPES[dtype]))
        emit("_to_copy", first, (number, "!torch.int"), none, none, none, false, none)
    elif kind == "ReduceMean" and (axes := node.attributes.get_ints("axes") or _numbers(*inputs[1:2])):
        keep = writer.constant("bool", "true" if node.attributes.get_int("keepdims", 1) else "false")
        emit("mean.dim", first, (writer.ints(axes), "!torch.list<int>"), (keep, "!torch.bool"), none)
    elif kind == "Gather" and node.attributes.get_int("axis", 0) == 0 and len(_shape(inputs[0])) == 2:
        padding = writer.constant("int", "-1")
        emit("embedding", first, _operand(writer, inputs[1]), (padding, "!torch.int"), false, false)
    elif kind == "Concat":
        _concat(writer, node, emit)
    elif kind == "Split":
        _split(writer, node)
    elif kind == "MatMul" and len(_shape(inputs[1])) > 1:
        _product(writer, node)
    else:
        _refuse(node)
    return None


def _refuse(node: ir.Node) -> NoReturn:
    raise UnsupportedError(
        f"{node.op_type} ({node.name or node.outputs[0].name}) has no form in what torch-cirh-opt takes.",
        "Compile for another target.",
    )


def _number(value: ir.Value) -> float | None:
    numbers = _numbers(value)
    return float(numbers[0]) if len(numbers) == 1 else None


def _numbers(value: ir.Value | None = None) -> list[float]:
    """Of a constant; none of anything else."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return [] if tensor is None else np.asarray(tensor.numpy()).reshape(-1).tolist()


def _concat(writer: _Writer, node: ir.Node, emit: Callable[..., None]) -> None:
    parts = [_operand(writer, value) for value in node.inputs if value is not None]
    names, kinds = (", ".join(part) for part in zip(*parts, strict=True))
    # A list's type has no number of items: the type of each item, without sizes that differ.
    item = f"vtensor<{parts[0][1].removeprefix('!torch.vtensor<')}" if len({k for _, k in parts}) == 1 else "vtensor"
    name = writer.fresh()
    writer.lines.append(f"{name} = torch.prim.ListConstruct {names} : ({kinds}) -> !torch.list<{item}>")
    axis = writer.constant("int", str(node.attributes["axis"].as_int()))
    emit("cat", (name, f"!torch.list<{item}>"), (axis, "!torch.int"))


def _split(writer: _Writer, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    axis, start = node.attributes.get_int("axis", 0) % len(_shape(source)), 0
    for out in node.outputs:
        end = start + _shape(out)[axis]
        numbers = [(writer.constant("int", str(n)), "!torch.int") for n in (axis, start, end, 1)]
        assert out.dtype is not None
        writer.names[out] = writer.op("slice_copy.Tensor", [_operand(writer, source), *numbers], _shape(out), out.dtype)
        start = end


def _product(writer: _Writer, node: ir.Node) -> None:
    """``mm`` for a weight, ``bmm`` for one matrix a head."""
    left, right = node.inputs
    assert left is not None
    assert right is not None
    out = node.outputs[0]
    dtype = out.dtype
    assert dtype is not None
    a, b, result = _shape(left), _shape(right), _shape(out)

    def view(name: str, old: Sequence[int], new: Sequence[int]) -> str:
        if list(old) == list(new):
            return name
        return writer.op("view_copy", [(name, _type(old, dtype)), (writer.ints(new), "!torch.list<int>")], new, dtype)

    if len(b) == 2:
        flat_a, flat_b, flat = [int(np.prod(a[:-1])), a[-1]], b, [int(np.prod(a[:-1])), b[1]]
        name = "mm"
    elif a[:-2] == b[:-2]:
        heads = int(np.prod(a[:-2]))
        flat_a, flat_b, flat = [heads, *a[-2:]], [heads, *b[-2:]], [heads, a[-2], b[-1]]
        name = "bmm"
    else:
        raise UnsupportedError(
            f"MatMul ({node.name or out.name}) repeats one side over the other's heads, which the subset lacks.",
            "Compile for another target.",
        )
    x, y = view(writer.names[left], a, flat_a), view(writer.names[right], b, flat_b)
    made = writer.op(name, [(x, _type(flat_a, dtype)), (y, _type(flat_b, dtype))], flat, dtype)
    writer.names[out] = view(made, flat, result)
