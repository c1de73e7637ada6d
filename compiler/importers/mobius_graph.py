"""Graphs from mobius' model definitions, for the importers that start from a Hugging Face config.

mobius builds the graph of an architecture without its weights; this module checks the config's
numbers before, and puts lazy weights into the graph after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from aicc.compiler.importers.corrections import (
    context_length,
    correct_graph,
    correct_module,
    position_offset,
    refuse_inexact,
)
from aicc.compiler.importers.lazy import onnx_tensor
from aicc.compiler.quiet import quiet
from aicc.runtime.errors import AiccError, IntegrityError, UnsupportedError

# Largest numbers any published model comes near to. Beyond them a config is damaged or hostile:
# tables would be computed and graphs unrolled until memory ends.
LIMITS: dict[str, int] = {
    "vocab_size": 4 << 20,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 2048,
    "num_key_value_heads": 2048,
    "head_dim": 4096,
    "max_position_embeddings": 1 << 22,
    "type_vocab_size": 1 << 16,
    "sliding_window": 1 << 24,
}

NO_END = "the model names no token that ends a text: generation stops at the number of tokens asked for"

Blockwise = Callable[[ir.Graph, str, torch.Tensor], ir.Value | None]


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A graph without weights.

    Attributes:
        model: The graph, opset 24, standard operators only.
        module: mobius' definition, which knows how published weight names map to the graph's.
        config: mobius' config.
        task: mobius' name of what the model does, such as ``text-generation``.
        context_length: Tokens of context the graph is exact for.
        notes: What the user should know of the graph.
    """

    model: ir.Model
    module: Any
    config: Any
    task: str
    context_length: int
    notes: list[str]


def check_limits(where: str, values: Iterable[tuple[str, str, object]]) -> None:
    """Refuse sizes no real model has.

    Args:
        where: File the values are from, for the message.
        values: Name in :data:`LIMITS`, name in the file, value; None values are skipped.

    Raises:
        IntegrityError: Names the key and what is allowed.
    """
    for limit, key, value in values:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMITS[limit]:
            raise IntegrityError(
                f"{where}: {key} is {value!r}; it must be a whole number from 1 to {LIMITS[limit]:,}.",
                "The file is damaged; download or convert the model again.",
            )


def make_config(make: Callable[[], Any], where: str) -> Any:
    """Make a transformers config, whose own rules are checked on the way.

    Raises:
        IntegrityError: The values break a rule; transformers' reason is given.
    """
    try:
        with quiet():
            return make()
    except Exception as error:  # transformers validates with many kinds of exception; one line is enough
        reason = " ".join(str(error).split())[:300]
        raise IntegrityError(f"{where} does not describe a model: {reason}.", "The file is damaged.") from error


def build_graph(hf_config: Any, where: str) -> BuiltGraph:
    """Build the graph of a transformers config, in float32.

    Raises:
        UnsupportedError: mobius does not know the architecture, or not this form of it.
    """
    from mobius._builder import build_from_module
    from mobius._config_resolver import _config_from_hf, _default_task_for_model
    from mobius._registry import registry

    model_type = hf_config.model_type
    refuse_inexact(hf_config, where)
    try:
        module_class = registry.get(model_type)
        config = _config_from_hf(hf_config, parent_config=hf_config, module_class=module_class)
        config.dtype = ir.DataType.FLOAT
        config.max_position_embeddings -= position_offset(hf_config)
        task = _default_task_for_model(model_type)
        module = module_class(config)
        correct_module(module, hf_config)
        with quiet():
            package = build_from_module(module, config, task, execution_provider="onnx-standard")
    except AiccError:
        raise
    except Exception as error:  # mobius is another project's code: whatever it raises, the user gets one line
        raise UnsupportedError(
            f"{where}: mobius cannot build this {model_type} model ({type(error).__name__}: {error}).",
            "Try the other importer: --importer optimum",
        ) from error
    if list(package) != ["model"]:
        raise UnsupportedError(
            f"{where}: {model_type} is a model of several parts ({', '.join(package)}), and aicc compiles one graph.",
            "Export the part you need to ONNX and give that file.",
        )
    correct_graph(package["model"], hf_config, task)
    full, length = config.max_position_embeddings, context_length(hf_config, config.max_position_embeddings)
    notes = []
    if length < full:
        why = "beyond, this model attends to a window, or turns positions by other angles, and the graph does not"
        notes.append(f"the context is {length} of {full} tokens: {why}")
    return BuiltGraph(package["model"], module, config, task, length, notes)


def bind_weights(
    built: BuiltGraph,
    weights: dict[str, torch.Tensor],
    where: str,
    blockwise: Blockwise | None = None,
    ignorable: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give every constant of the graph its weight.

    Args:
        built: From :func:`build_graph`; changed in place.
        weights: By their published names, lazy.
        where: File, for messages.
        blockwise: Makes the quantised form of a weight in the graph, or returns None to use floats.
        ignorable: Tells which published names may stay unused.

    Raises:
        IntegrityError: A weight is missing, left over, or has another shape; it is named.
    """
    graph = built.model.graph
    try:
        converted = built.module.preprocess_weights(dict(weights))
    except AiccError:
        raise
    except Exception as error:  # shapes mobius did not expect; see build_graph
        raise IntegrityError(
            f"{where}: the weights are not those of the model its config names ({type(error).__name__}: {error}).",
            "The file is damaged or of another architecture than it says.",
        ) from error
    used: set[int] = set()
    tied: dict[int, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None:
            continue
        weight = converted.get(name)
        if weight is None:
            raise IntegrityError(f"{where} has no weight for {name!r}.", "The file is damaged or incomplete.")
        if tuple(weight.shape) != tuple(value.shape):
            shapes = f"{list(weight.shape)} and the model's config asks for {list(value.shape)}"
            raise IntegrityError(
                f"{where}: the weight {name!r} is {shapes}.",
                "The file is damaged or its config belongs to another model.",
            )
        used.add(id(weight))
        _bind(graph, value, weight, tied, blockwise)
    unused = [name for name, weight in converted.items() if id(weight) not in used and not ignorable(name)]
    if unused:
        raise IntegrityError(
            f"{where} has {len(unused)} weights the model does not use: {', '.join(unused[:4])}"
            f"{' …' if len(unused) > 4 else ''}.",
            "The file is damaged, or its architecture is not the one it names.",
        )


def _bind(
    graph: ir.Graph, value: ir.Value, weight: torch.Tensor, tied: dict[int, ir.Value], blockwise: Blockwise | None
) -> None:
    """One constant: the one already bound to the same weight, its quantised form, or lazy floats."""
    shared = tied.get(id(weight))
    if shared is None and blockwise is not None and _is_matrix(value):
        name = value.name
        del graph.initializers[name]
        shared = blockwise(graph, name, weight)
        if shared is None:
            graph.initializers[name] = value
    if shared is None:
        value.const_value = onnx_tensor(weight, value.dtype, value.name)
        tied[id(weight)] = value
        return
    tied[id(weight)] = shared
    graph.initializers.pop(value.name, None)
    value.replace_all_uses_with(shared)


def _is_matrix(value: ir.Value) -> bool:
    """Whether every use of a constant can take the block-wise form: a table, or a transposed factor."""
    uses = [(use.node.op_type, use.idx) for use in value.uses()]
    return len(value.shape) == 2 and all(use in (("Gather", 0), ("Transpose", 0)) for use in uses)
