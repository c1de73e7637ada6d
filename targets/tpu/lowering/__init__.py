"""The compile half: fixed shapes → plain operators → StableHLO → an executable by the chip's own compiler.

No TPU is needed: libtpu compiles for a chip it is only told the name of. The same StableHLO goes to XLA's CPU back
end for ``tpu:host``, which is how its numbers are checked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.importers import ImportedModel
from aicc.compiler.legalise import legalise
from aicc.compiler.lowering import LoweredVariant, Refusal, WeightStore
from aicc.compiler.passes.explicit_cache import decoder_steps
from aicc.compiler.quantization.blockwise import match_blockwise
from aicc.compiler.report import PassRecord
from aicc.compiler.weights import tensor_bytes
from aicc.runtime.artifact import TensorSpec
from aicc.runtime.errors import MismatchError, ResourceError, UnsupportedError, first_line
from aicc.runtime.target import Target
from aicc.targets.static_decoder import Step
from aicc.targets.tpu.layout import LAYOUT_FILE, TOPOLOGIES, Layout, Program, Stored
from aicc.targets.tpu.machine import settle_jax

settle_jax()
try:
    import jax
    from jax import export
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from aicc.targets.tpu.lowering.trace import argument_type, as_function, large_constants
except ImportError as error:
    raise MismatchError("compiling for TPUs needs jax, which is not installed.", "pip install 'aicc[tpu]'") from error

jax.config.update("jax_traceback_in_locations_limit", 0)  # or the StableHLO names files of this machine

_PLATFORMS = ("tpu", "cpu")
_MEMORY = ("argument", "output", "temp", "alias", "generated_code")


def prepare(target: Target) -> None:
    """Start the chip's compiler.

    Raises:
        MismatchError: It is not installed, or another program has it.
    """
    _device(target.device)


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write the StableHLO and the executable of each graph, and ``layout.json``.

    Args:
        imported: The optimised and quantised graph; it is not changed.
        target: One of this family's targets.
        directory: Where the variant's files go.
        weights: The artifact's weights file; the executables take what is in it as arguments.

    Raises:
        UnsupportedError: A node has no translation, or a size that is only known at run time; it is named.
        ResourceError: The compiler says that a program does not fit the chip's memory.
        MismatchError: The chip's compiler is not installed.
    """
    refuse_operators(imported.graph, target)
    exact = not any(match_blockwise(node.outputs[0]) for node in imported.graph.graph)
    programs, passes = [], []
    for step, model in _graphs(imported):
        name = step.name
        outputs = tuple(str(value.name) for value in model.graph.outputs)  # simplifying may give two of them one value
        passes += legalise(model, msgspec.structs.replace(target, shapes="dynamic"))
        started = time.perf_counter()
        exported = _export(model, exact)
        Path(directory, f"{name}.stablehlo").write_bytes(exported.mlir_module_serialized)
        compiled = _compile(exported, target)
        Path(directory, f"{name}.bin").write_bytes(compiled.runtime_executable().serialize())
        inputs = tuple(TensorSpec(str(v.name), v.dtype.numpy().name, tuple(v.shape)) for v in model.graph.inputs)
        stored = tuple(_store(value, weights) for value in large_constants(model))
        program = Program(name, step.tokens, step.context, stored, inputs, outputs, _analysis(compiled))
        programs.append(program)
        imported.notes.append(_note(target, program))
        nodes = sum(1 for _ in model.graph)
        passes.append(PassRecord(f"compile {name} by XLA", nodes, nodes, time.perf_counter() - started))
    Path(directory, LAYOUT_FILE).write_bytes(msgspec.json.encode(Layout(tuple(programs))))
    versions = {package: metadata.version(package) for package in _packages(target)}
    return LoweredVariant(
        files=[LAYOUT_FILE, *(f"{p.name}.{kind}" for p in programs for kind in ("stablehlo", "bin"))],
        requires=versions,
        producer=versions,
        coverage=full_coverage(imported.graph),
        passes=passes,
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.llm else 0,
    )


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """What would be refused, told by tracing alone: no weight is read and nothing compiled."""
    try:
        for _, model in _graphs(imported):
            legalise(model, msgspec.structs.replace(target, shapes="dynamic"))
            _export(model, exact=True)
    except UnsupportedError as error:
        return [Refusal("", "", error.message.rstrip("."))]
    return []


def _export(model: ir.Model, exact: bool) -> export.Exported:
    """The graph as StableHLO, for TPUs and CPUs alike.

    Args:
        model: A graph of fixed shapes.
        exact: Whether products of float32 are computed in float32: by default a TPU rounds what it multiplies
            to bfloat16. Quantised weights have no more digits than that.

    Raises:
        UnsupportedError: A node, or the whole, has no form in StableHLO.
    """
    weights = [argument_type(value) for value in large_constants(model)]
    inputs = [jax.ShapeDtypeStruct(tuple(v.shape), v.dtype.numpy()) for v in model.graph.inputs]
    precision = "highest" if exact else "default"
    try:
        with jax.enable_x64(True), jax.default_matmul_precision(precision):
            return export.export(jax.jit(as_function(model), keep_unused=True), platforms=_PLATFORMS)(weights, inputs)
    except (ValueError, TypeError, RuntimeError) as error:  # jax checks some of it when all nodes are traced
        raise UnsupportedError(
            f"the graph cannot be written as StableHLO: {first_line(error)}.", "Compile for another target."
        ) from error


def _compile(exported: export.Exported, target: Target) -> Any:
    """An executable for the target's device, which need not be here."""
    sharding = SingleDeviceSharding(_device(target.device))
    types = [jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=sharding) for t in exported.in_avals]
    weights, inputs = jax.tree.unflatten(exported.in_tree, types)[0]
    try:
        with jax.enable_x64(True):
            return jax.jit(exported.call, keep_unused=True).lower(weights, inputs).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise ResourceError(
                f"the model does not fit the memory of {target.device}: {first_line(error)}.",
                "Choose fewer bits (--quant int8), smaller sizes (--size), or a chip with more memory.",
            ) from error
        raise UnsupportedError(
            f"XLA cannot compile the model for {target.device}: {first_line(error)}.", "Compile for another target."
        ) from error


@cache
def _device(name: str) -> Any:
    """What the compiler compiles for, by a target's name of it."""
    if name not in TOPOLOGIES:
        return jax.devices("cpu")[0]
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[name]).devices[0]
    except RuntimeError as error:
        raise MismatchError(
            f"libtpu, which compiles for {name}, cannot be used: {first_line(error)}.",
            "End the program that uses the TPU; or install libtpu again: pip install 'aicc[tpu]'",
        ) from error


def _graphs(imported: ImportedModel) -> Iterator[tuple[Step, ir.Model]]:
    """The graph of each program: one for a model of tensors, the steps of a decoder."""
    if imported.llm is None:
        model = imported.graph.clone()
        for node in model.graph.all_nodes():
            for value in node.outputs:
                value.shape = None  # those of any sizes
        ShapeInferencePass(check_type=False, strict_mode=False)(model)  # what this does not find, tracing does
        yield Step("model", 0, 0), model
    else:
        yield from decoder_steps(imported)


def _store(value: ir.Value, weights: WeightStore) -> Stored:
    argument = argument_type(value)
    return Stored(weights.add(tensor_bytes(value.const_value)), argument.dtype.name, argument.shape)


def _packages(target: Target) -> tuple[str, ...]:
    return ("jaxlib", "libtpu") if target.device in TOPOLOGIES else ("jaxlib",)


def _analysis(compiled: Any) -> dict[str, int]:
    """Bytes of memory, and what a run would compute and move, as the compiler sees it."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    found = {f"{name}_bytes": int(getattr(memory, f"{name}_size_in_bytes")) for name in _MEMORY}
    return found | {"operations": int(cost.get("flops", 0)), "moved_bytes": int(cost.get("bytes accessed", 0))}


def _note(target: Target, program: Program) -> str:
    figures = {name.replace("_", " "): number / 1e6 for name, number in program.analysis.items()}
    held = ", ".join(f"{figures[name]:,.1f} MB {name.removesuffix(' bytes')}" for name in figures if "bytes" in name)
    return (
        f"XLA's own analysis of {program.name} on {target.device}, estimated and not measured: {held}, "
        f"{figures['operations']:,.0f} million operations"
    )
