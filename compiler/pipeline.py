"""The whole of ``aicc compile`` on one screen: import → optimize → quantize → lower → package."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

import msgspec
import onnx_ir as ir

from aicc.compiler.coverage import refuse
from aicc.compiler.evaluate import measure_quality
from aicc.compiler.facts import (
    activation_bytes,
    check_kv_choice,
    graph_signatures,
    kv_bytes_per_token,
    kv_dtype,
    lacks_cache,
    weight_layers,
)
from aicc.compiler.importers import ImportedModel, Source, import_model
from aicc.compiler.lowering import LoweredVariant, lowering_module, lowering_refusals
from aicc.compiler.memory import memory_bounded
from aicc.compiler.optimize import optimize
from aicc.compiler.package import ArtifactWriter, check_replaceable
from aicc.compiler.quantization.policy import Quant, quantize
from aicc.compiler.quantization.samples import read_samples, sample_files
from aicc.compiler.quantization.static import calibrate, check_calibration
from aicc.compiler.report import CompileReport, PassRecord, PhaseRecord
from aicc.compiler.sizes import Sizes, fix_sizes
from aicc.compiler.sources import resolve
from aicc.compiler.template_check import check_template
from aicc.runtime.artifact import Artifact, Format, Manifest, MemoryFacts, Variant
from aicc.runtime.errors import MismatchError, QualityError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.generator import Model
from aicc.runtime.machine import memory, peak_rss_bytes
from aicc.runtime.provider import Compatibility, Fit, LoadOptions, provider_of
from aicc.runtime.session import find_variant, load_artifact
from aicc.runtime.target import Target, find_targets, load_object

PHASES = ("import", "optimize", "quantize", "lower", "package")
_PRODUCERS = ("aicc", "onnx", "onnx-ir", "onnxscript")
_CUT = "Cut the graph there and leave the rest to the host's program, or compile for another target."
_REFERENCE_COPIES = 4  # of an exported model's float32 weights, while OpenVINO prepares and reads them
Progress = Callable[[str, str], None]


def compile_model(
    source: str | Source,
    target: str | Target | Sequence[Target],
    output: Path | None,
    *,
    quant: Quant = "auto",
    group_size: int | None = None,
    importer: str = "auto",
    dump_graph: Path | None = None,
    stop_after: str | None = None,
    kv: str = "auto",
    activations: str = "auto",
    partition: str = "chip",
    calibration: Path | None = None,
    sizes: Sizes = MappingProxyType({}),
    compiler: str | None = None,
    graph: bool | None = None,
    measure: bool = True,
    max_kl: float | None = None,
    progress: Progress = lambda phase, message: None,
) -> CompileReport:
    """Compile a model for a target, or for several of a family, into an artifact.

    Args:
        source: What ``aicc compile`` takes: a name, hub id, folder or file, or a resolved source.
        target: ``family:variant``, several with commas between, or what :func:`find_targets` makes of them.
        output: The artifact to make; may be None when ``stop_after`` comes before lowering.
        quant: Weight format; see :mod:`aicc.compiler.quantization.policy`.
        group_size: Values that share a scale, for int8 and int4.
        importer: ``auto``, ``mobius`` or ``optimum``.
        dump_graph: Folder that gets the graph as text after each phase, weights left out.
        stop_after: Last phase to run.
        kv: Number format of a decoder's KV cache: ``auto`` is the target's first choice, or one of
            :data:`aicc.runtime.target.KV_KINDS`.
        activations: How what quantised weights are multiplied with is quantised: ``auto`` is the target's first
            choice, or another of :attr:`aicc.runtime.target.Target.activations`.
        partition: Who runs the graph: all of it the ``chip``, or the ``host`` what the chip refuses; one of
            :attr:`aicc.runtime.target.Target.partitions`.
        calibration: Sample inputs that fix the scales of activations, for targets that compute with such; see
            :func:`aicc.compiler.quantization.samples.read_samples`.
        sizes: For targets of fixed shapes: of the dimensions a model of tensors leaves open, by name, or
            ``context``, the tokens a decoder is made for: a number, or several for graphs of each in one artifact.
        compiler: Command of a C compiler to take instead of the target's own.
        graph: Whether the artifact keeps the portable graph, which tools for ONNX open; None keeps it unless the
            target has the weights in a layout of its own.
        measure: Whether to measure a decoder's quality against its source.
        max_kl: Refuse an artifact whose mean KL divergence is above this.
        progress: Told the phase and what is being done.

    Returns:
        How the model was made; the artifact has it too.

    Raises:
        AiccError: Any of its kinds; nothing is left at ``output`` then.
    """
    targets = find_targets(target) if isinstance(target, str) else (target,) if isinstance(target, Target) else target
    targets = tuple(
        each.with_kv(kv).with_activations(activations).with_partition(partition).with_compiler(compiler)
        for each in targets
    )
    target = targets[0]
    if target.lowering is None:
        raise UsageError(f"nothing is compiled for {target.name}.", "Choose a target that `aicc targets` can compile.")
    if stop_after is not None and stop_after not in PHASES:
        raise UsageError(f"there is no phase {stop_after!r}.", f"The phases are {', '.join(PHASES)}.")
    check_calibration(target, calibration is not None, quant, activations)
    if calibration is not None:
        sample_files(calibration)  # refuses what is not there before the model is read
    lower = _lowering(targets)
    if output is not None:
        check_replaceable(output)
    report = CompileReport(target=", ".join(each.name for each in targets), quantization=quant)

    def finished(phase: str, imported: ImportedModel) -> bool:
        if dump_graph is not None:
            _dump(imported.graph, dump_graph, PHASES.index(phase), phase)
        return phase == stop_after

    with _phase(report, "import", progress, f"reading {source if isinstance(source, str) else source.name}"):
        resolved = resolve(source, partial(progress, "import")) if isinstance(source, str) else source
        imported = import_model(resolved, importer, target=target, progress=partial(progress, "import"))
        report.importer = imported.importer
        report.notes = imported.notes  # later phases add to them
        if imported.chat_template is not None:
            report.notes += check_template(imported.chat_template, imported.tokenizer_config)
    check_kv_choice(imported.kind, kv)
    if reason := lacks_cache(imported.kind, target):
        raise UnsupportedError(f"{reason}.", "Choose another target (`aicc targets`).")
    fix_sizes(imported, target, sizes)
    if finished("import", imported):
        return report
    original = imported.graph.clone()  # shares the lazy weights: what quality is measured against
    with _phase(report, "optimize", progress, "simplifying the graph") as record:
        record.passes += optimize(imported, target)
    if finished("optimize", imported):
        return report
    with _phase(report, "quantize", progress, f"choosing weight formats ({quant})"):
        if calibration is None:
            report.quantization = quantize(imported, target, quant, group_size)
        else:
            for each in targets:  # before a graph is calibrated, which takes a while
                refuse(lowering_refusals(imported, each), each, _CUT)
            samples = read_samples(calibration, imported)
            progress("quantize", f"calibrating with {len(samples)} samples")
            report.quantization = calibrate(imported, target, samples)
        report.layers = weight_layers(imported.graph)
    if finished("quantize", imported):
        return report
    if output is None:
        raise UsageError("no output was named for the artifact.", "Give -o FOLDER.aicc.")
    graph_signatures(imported.graph)  # refuses what no artifact can take or give before work is done for it
    weight_bytes = sum(layer.bytes for layer in report.layers)
    with ArtifactWriter(output, weight_bytes) as writer:
        variants = []
        with _phase(report, "lower", progress, f"lowering for {report.target}") as record:
            for each in targets:
                name = each.name.replace(":", "-")
                lowered: LoweredVariant = lower(imported, each, writer.variant_directory(name), writer.weights)
                variants.append(Variant(name, each.name, tuple(lowered.files), lowered.requires, lowered.options))
                record.passes += _named(lowered.passes, each.name if len(targets) > 1 else "")
                if lowered.kernels:
                    report.kernels[each.name] = lowered.kernels
            report.coverage = lowered.coverage
            report.weight_bytes_per_token = lowered.weight_bytes_per_token
        if finished("lower", imported):
            return report
        with _phase(report, "package", progress, "writing the artifact"):
            if _keeps_graph(graph, imported, target, lowered):
                writer.write_graph(imported.graph)
            if imported.tokenizer_json is not None:
                writer.write_tokenizer(imported.tokenizer_json, imported.chat_template, imported.tokenizer_config)
            manifest = _manifest(imported, target, tuple(variants), lowered.producer, report)
            if measure and imported.kind == "decoder":
                imported.graph = original
                staged = writer.stage(manifest, report)
                manifest = _measured(staged, imported, target, manifest, report, max_kl, progress)
            elif imported.kind == "tensors" and target.provider is not None:
                _check_loads(writer.stage(manifest, report), output, target, report, progress)
        writer.commit(manifest, report)
    return report


def _lowering(targets: Sequence[Target]) -> Callable[..., LoweredVariant]:
    """The compile half of a family, after it was asked whether it has what it compiles with."""
    module = lowering_module(targets[0])
    if hasattr(module, "prepare"):
        for target in targets:
            module.prepare(target)
    return load_object(targets[0].lowering)


@contextmanager
def _phase(report: CompileReport, name: str, progress: Progress, message: str) -> Iterator[PhaseRecord]:
    progress(name, message)
    record = PhaseRecord(name)
    report.phases.append(record)
    started = time.perf_counter()
    yield record
    record.seconds = time.perf_counter() - started
    record.peak_rss_bytes = peak_rss_bytes()


def _keeps_graph(asked: bool | None, imported: ImportedModel, target: Target, lowered: LoweredVariant) -> bool:
    """Whether the portable graph goes into the artifact.

    Raises:
        UsageError: It was asked for and there is none, or not wanted and is all there would be.
    """
    if imported.exported is not None:
        if asked:
            raise UsageError(f"{imported.importer} gives no portable graph to keep.", "Leave --graph out.")
        return False
    if asked is False and not lowered.files:
        raise UsageError(f"{target.name} runs the portable graph itself.", "Leave --no-graph out.")
    return not target.repacks_weights if asked is None else asked


def _named(passes: list[PassRecord], target: str) -> list[PassRecord]:
    """A target's own passes, with its name where there are several."""
    return [msgspec.structs.replace(p, name=f"{p.name} ({target})") for p in passes] if target else passes


def _manifest(
    imported: ImportedModel,
    target: Target,
    variants: tuple[Variant, ...],
    producer: dict[str, str],
    report: CompileReport,
) -> Manifest:
    llm = imported.llm
    return Manifest(
        format=Format(0, 0),  # filled in by the writer, like the files
        name=re.sub(r"[^a-z0-9.]+", "-", Path(imported.info.name).name.lower()).strip("-.") or "model",
        kind=imported.kind,
        producer={p: metadata.version(p) for p in _PRODUCERS} | imported.packages | producer,
        source=imported.info,
        quantization=report.quantization,
        signatures=graph_signatures(imported.graph),
        variants=variants,
        memory=MemoryFacts(
            weight_bytes=sum(layer.bytes for layer in report.layers),
            kv_bytes_per_token=kv_bytes_per_token(llm, kv_dtype(imported.graph, target)) if llm else 0,
            activation_bytes=activation_bytes(imported.graph),
        ),
        files=(),
        embedding=imported.embedding,
        llm=llm and msgspec.structs.replace(llm, weight_bytes_per_token=report.weight_bytes_per_token),
    )


def _measured(
    staged: Artifact,
    imported: ImportedModel,
    target: Target,
    manifest: Manifest,
    report: CompileReport,
    max_kl: float | None,
    progress: Progress,
) -> Manifest:
    """The manifest with the quality of the staged artifact, if the target runs on this machine.

    Raises:
        QualityError: The mean KL divergence is above what was allowed, or cannot be measured and was limited.
    """
    if reason := _not_measurable(staged, imported, target):
        report.notes.append(f"quality was not measured: {reason}")
        if max_kl is not None:
            raise QualityError(f"quality cannot be measured: {reason}.", "Compile without a limit on it.")
        return manifest
    progress("package", "measuring quality against the source")
    with load_artifact(staged, LoadOptions(kv_tokens=min(imported.llm.context_length, 1024))) as model:
        assert isinstance(model, Model)
        report.quality = measure_quality(model, imported)
        if len(manifest.variants) > 1:
            report.notes.append(f"quality was measured with {model.target}, the best of them that this machine can run")
    if max_kl is not None and not report.quality.kl_mean <= max_kl:  # nor one that is no number
        raise QualityError(
            f"mean KL divergence from the source is {report.quality.kl_mean:.4f}, above the allowed {max_kl}.",
            "Use --quant auto, int8 or fp16, or a smaller --group-size.",
        )
    return msgspec.structs.replace(manifest, quality=report.quality)


def _check_loads(staged: Artifact, output: Path, target: Target, report: CompileReport, progress: Progress) -> None:
    """Load a staged artifact where its device is: some graphs convert, and only loading shows what is missing.

    Raises:
        UnsupportedError: The target cannot load what it made of the graph.
    """
    compatibility = _compatibility(staged, target)
    if not compatibility.fit.runs:
        report.notes.append(f"it was not loaded: {compatibility.reason}")
        return
    progress("package", "loading it once")
    try:
        with memory_bounded(staged.manifest.memory.weight_bytes):
            load_artifact(staged).close()
    except ResourceError as error:
        report.notes.append(f"it was not loaded: {error.message}")
    except (MismatchError, UnsupportedError) as error:
        raise UnsupportedError(
            error.message.replace(str(staged.path), str(output)), "Compile for another target, such as reference."
        ) from error


def _not_measurable(staged: Artifact, imported: ImportedModel, target: Target) -> str:
    """Why the quality of an artifact cannot be measured here; empty if it can."""
    if imported.tokenizer_json is None:
        return "the model has no tokenizer to read a text with"
    if target.provider is None:
        return f"{target.name} runs outside aicc"
    if imported.exported is not None:
        needed = _REFERENCE_COPIES * imported.exported.with_suffix(".bin").stat().st_size
        if needed > memory().available:
            return f"the source at float32 needs about {needed:,} bytes of memory, more than are available"
    compatibility = _compatibility(staged, target)
    emulated = target.evidence == "emulated" and compatibility.fit is Fit.USABLE  # too slow for thousands of tokens
    return compatibility.reason if emulated or not compatibility.fit.runs else ""


def _compatibility(staged: Artifact, target: Target) -> Compatibility:
    """How a staged artifact and this machine fit."""
    return provider_of(target).compatibility(find_variant(staged, None))


def _dump(model: ir.Model, folder: Path, index: int, phase: str) -> None:
    """Write the graph as text, without weights, for people to read and diff."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{index}-{phase}.txt").write_text(str(model.graph))
