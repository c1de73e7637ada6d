"""Torch tensors that remember how they are made instead of being made.

Converting published weights to a graph's layout is ordinary torch code (rename, split, permute
rows, add one …). Run on a :class:`LazyWeight` it records the operators and computes only shapes,
on meta tensors; the numbers are read from the mapped file when the weight is written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch.utils import _pytree as pytree

from aicc.runtime.errors import UnsupportedError

_aten = torch.ops.aten

# Operators that only move values. Only of chains of these may a permutation of rows be inferred.
_MOVES = {
    _aten.alias, _aten.as_strided, _aten.cat, _aten.clone, _aten.detach, _aten.expand, _aten.index, _aten.index_select,
    _aten.permute, _aten.select, _aten.slice, _aten.split, _aten.split_with_sizes, _aten.squeeze, _aten.stack, _aten.t,
    _aten.transpose, _aten.unbind, _aten.unsqueeze, _aten.view, _aten._unsafe_view, _aten.unfold,
}  # fmt: skip
_NEED_VALUES = (_aten._local_scalar_dense.default, _aten.equal.default)


class LazyWeight(torch.Tensor):
    """A tensor known by shape, dtype and recipe.

    Attributes:
        load: Reads the values, for a tensor that comes straight from a file; else None.
        origin: Whatever the importer wants to find again at such a tensor.
        recipe: Operator, arguments, keyword arguments and which of its results, for the others.
    """

    load: Callable[[], torch.Tensor] | None
    origin: object
    recipe: tuple[Any, tuple, dict, int] | None

    @staticmethod
    def from_file(
        shape: tuple[int, ...], dtype: torch.dtype, load: Callable[[], torch.Tensor], origin: object = None
    ) -> LazyWeight:
        """A tensor whose values ``load`` reads, each time they are needed."""
        weight = _wrap(torch.empty(shape, dtype=dtype, device="meta"))
        weight.load, weight.origin = load, origin
        return weight

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _NEED_VALUES:
            return func(*pytree.tree_map(_materialise, args), **pytree.tree_map(_materialise, kwargs))
        if func._schema.is_mutable:
            if isinstance(args[0], LazyWeight):
                raise UnsupportedError(
                    f"this model's weights are changed in place ({func}), which cannot be done lazily."
                )
            return func(*pytree.tree_map(_materialise, args), **pytree.tree_map(_materialise, kwargs))
        meta_kwargs = {key: torch.device("meta") if key == "device" else value for key, value in kwargs.items()}
        results = func(*pytree.tree_map(_to_meta, args), **pytree.tree_map(_to_meta, meta_kwargs))
        if isinstance(results, torch.Tensor):
            return _recorded(results, (func, args, kwargs, 0))
        return [_recorded(result, (func, args, kwargs, i)) for i, result in enumerate(results)]


def _wrap(meta: torch.Tensor) -> LazyWeight:
    weight = torch.Tensor._make_wrapper_subclass(
        LazyWeight,
        meta.shape,
        strides=meta.stride(),
        storage_offset=meta.storage_offset(),
        dtype=meta.dtype,
        device="cpu",
    )
    weight.load = weight.origin = weight.recipe = None
    return weight


def _recorded(meta: torch.Tensor, recipe: tuple[Any, tuple, dict, int]) -> LazyWeight:
    weight = _wrap(meta)
    weight.recipe = recipe
    return weight


def _to_meta(value: Any) -> Any:
    if isinstance(value, LazyWeight):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _materialise(value: Any) -> Any:
    return materialise(value) if isinstance(value, LazyWeight) else value


def materialise(weight: torch.Tensor, instead: torch.Tensor | None = None) -> torch.Tensor:
    """Compute a weight's values.

    Args:
        weight: Lazy, or a plain tensor, which is returned as it is.
        instead: Used in place of every tensor that would be read from a file.
    """
    if not isinstance(weight, LazyWeight):
        return weight
    if weight.recipe is None:
        return weight.load() if instead is None else instead
    func, args, kwargs, index = weight.recipe

    def value(argument: Any) -> Any:
        return materialise(argument, instead) if isinstance(argument, LazyWeight) else argument

    result = func(*pytree.tree_map(value, args), **pytree.tree_map(value, kwargs))
    return result if isinstance(result, torch.Tensor) else result[index]


def row_selection(weight: torch.Tensor) -> tuple[LazyWeight, np.ndarray | None] | None:
    """The file's matrix that a weight is made of by choosing and reordering whole rows, if it is so.

    The recipe is run on a matrix that holds the number of each element instead of its value.

    Returns:
        The matrix ``[N, K]`` and int64 ``[M]`` row numbers (None for the matrix itself), or None
        when the weight is anything else.
    """
    sources: list[LazyWeight] = []
    if not isinstance(weight, LazyWeight) or not _only_moves(weight, sources) or len(sources) != 1:
        return None
    source = sources[0]
    if weight is source:
        return source, None
    if source.dim() != 2 or weight.dim() != 2 or source.shape[1] != weight.shape[1]:
        return None
    columns = source.shape[1]
    dtype = torch.int32 if source.numel() < 2**31 else torch.int64
    numbers = materialise(weight, torch.arange(source.numel(), dtype=dtype).reshape(source.shape))
    rows = numbers[:, 0] // columns
    if not torch.equal(numbers, rows[:, None] * columns + torch.arange(columns, dtype=dtype)):
        return None
    return source, rows.to(torch.int64).numpy()


def _only_moves(weight: LazyWeight, sources: list[LazyWeight]) -> bool:
    """Whether a recipe only moves values; collects the file tensors it reads."""
    if weight.recipe is None:
        if all(weight is not seen for seen in sources):
            sources.append(weight)
        return True
    func, args, kwargs, _ = weight.recipe
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, LazyWeight)]
    return func.overloadpacket in _MOVES and all(_only_moves(leaf, sources) for leaf in inputs)


def onnx_tensor(weight: torch.Tensor, dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """The weight as a graph's constant of the given type, computed when it is written."""

    def load() -> ir.TensorProtocol:
        values = materialise(weight).to(tensor_adapters.to_torch_dtype(dtype)).contiguous()
        return tensor_adapters.TorchTensor(values, name)

    return ir.LazyTensor(load, dtype, ir.Shape(weight.shape), name=name)
