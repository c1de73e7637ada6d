"""Whether a model can be compiled for a target and will fit, told from headers alone.

The model is imported, simplified and given its weight formats exactly as a compile would, but
every weight stays where it is: only names, shapes and types are read. So the bytes are those the
artifact will have; memory is a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import msgspec

from aicc.compiler.coverage import refused_operators, weight_bytes_per_token
from aicc.compiler.facts import (
    activation_bytes,
    check_kv_choice,
    kv_bytes_per_token,
    kv_dtype,
    lacks_cache,
    weight_layers,
)
from aicc.compiler.importers import ImportedModel, Source, preview_model
from aicc.compiler.lowering import Refusal, lowering_module, lowering_refusals
from aicc.compiler.optimize import optimize
from aicc.compiler.quantization.policy import Quant, quantize
from aicc.compiler.sizes import Sizes, fix_sizes
from aicc.runtime import machine
from aicc.runtime.target import Target

RUNTIME_BYTES = 150_000_000  # the process itself: Python, numpy and the vendor's runtime


class CheckReport(msgspec.Struct):
    """What ``aicc check --json`` prints. Bytes are those the artifact would have; memory is predicted.

    Attributes:
        model: What was checked.
        importer: What reads it: ``mobius``, ``onnx`` or ``optimum``.
        kind: ``decoder`` or ``tensors``.
        target: For which target, or targets.
        quantization: Number formats the weights would get.
        supported: Whether the target can run every operator.
        refused: Operators it cannot run; empty if supported.
        fits: Whether the predicted memory is there.
        operators: Nodes of the graph.
        weight_bytes: Weights, as stored.
        weight_bytes_per_token: Weights read to decode one token; 0 for models of tensors.
        kv_bytes_per_token: KV cache for each token kept; 0 for models of tensors.
        context_length: Tokens of one full context; 0 for models of tensors.
        activation_bytes: Predicted memory for intermediate tensors.
        memory_bytes: Predicted memory to run with one full context.
        memory_available: Memory available to this process, or of the target's own devices.
        memory_of: Whose memory that is, such as ``this machine`` or ``64 x LPU``.
        notes: What the importer had to decide.
    """

    model: str
    importer: str
    kind: str
    target: str
    quantization: str
    supported: bool
    refused: list[Refusal]
    fits: bool
    operators: int
    weight_bytes: int
    weight_bytes_per_token: int
    kv_bytes_per_token: int
    context_length: int
    activation_bytes: int
    memory_bytes: int
    memory_available: int
    memory_of: str
    notes: list[str] = []


def check_model(
    source: Source,
    targets: Target | Sequence[Target],
    *,
    quant: Quant = "auto",
    group_size: int | None = None,
    importer: str = "auto",
    kv: str = "auto",
    sizes: Sizes = MappingProxyType({}),
    partition: str = "chip",
) -> CheckReport:
    """Look at a model as a compile would, without reading a weight.

    Args:
        source: From :func:`aicc.compiler.sources.resolve`.
        targets: What it would be compiled for; several as :func:`aicc.runtime.target.find_targets` gives them.
        quant: Weight format, as for a compile.
        group_size: Values that share a scale, as for a compile.
        importer: As for a compile.
        kv: As for a compile.
        sizes: As for a compile.
        partition: As for a compile; which nodes a chip's own compiler would refuse is not known from headers.

    Raises:
        UnsupportedError: The model cannot be imported at all.
        IntegrityError: Its files contradict themselves.
        UsageError: The options make no sense for the target.
    """
    targets = (targets,) if isinstance(targets, Target) else targets
    targets = [each.with_kv(kv).with_partition(partition) for each in targets]
    target = targets[0]
    if target.lowering is not None:
        lowering_module(target)  # says what is missing before the model is read
    imported = preview_model(source, importer, target)
    check_kv_choice(imported.kind, kv)
    fix_sizes(imported, target, sizes)
    optimize(imported, target)
    quantization = quantize(imported, target, quant, group_size)
    graph, llm = imported.graph, imported.llm
    refused = list(dict.fromkeys(refusal for each in targets for refusal in _refused(imported, each)))
    weight_bytes = sum(layer.bytes for layer in weight_layers(graph))
    kv_bytes = kv_bytes_per_token(llm, kv_dtype(graph, target)) if llm and target.kv_dtypes else 0
    context = llm.context_length if llm else 0
    activations = activation_bytes(graph)
    needed = weight_bytes + kv_bytes * context + activations
    if target.memory_bytes is None:
        needed, available, owner = needed + RUNTIME_BYTES, machine.memory().available, "this machine"
    else:
        available = target.memory_bytes * target.devices
        owner = f"{target.devices} x {target.device}" if target.devices > 1 else target.device
    return CheckReport(
        model=source.name,
        importer=imported.importer,
        kind=imported.kind,
        target=", ".join(each.name for each in targets),
        quantization=quantization,
        supported=not refused,
        refused=refused,
        fits=needed <= available,
        operators=sum(1 for _ in graph.graph.all_nodes()),
        weight_bytes=weight_bytes,
        weight_bytes_per_token=weight_bytes_per_token(graph) if llm else 0,
        kv_bytes_per_token=kv_bytes,
        context_length=context,
        activation_bytes=activations,
        memory_bytes=needed,
        memory_available=available,
        memory_of=owner,
        notes=imported.notes,
    )


def _refused(imported: ImportedModel, target: Target) -> list[Refusal]:
    """What the target's rules, ONNX itself and the target's lowering refuse, in that order."""
    if reason := lacks_cache(imported.kind, target):
        return [Refusal("", "Attention", reason)]
    refused = refused_operators(imported.graph, target)
    if refused or target.lowering is None:
        return refused
    return lowering_refusals(imported, target)
