"""``aicc bench`` and ``aicc eval``: how fast an artifact is, and how close to its source."""

from __future__ import annotations

from pathlib import Path

import click

from aicc.cli.compile_commands import compiler
from aicc.cli.options import input_option, refuse_options, runtime_options
from aicc.cli.output import Progress, facts, human_bytes, note, note_compatibility, print_json, print_result

COUNT = click.IntRange(min=1)
REPEATS = click.IntRange(1, 10_000)


@click.command(short_help="Measure speed and memory on this machine.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--prompt-tokens", type=COUNT, metavar="N", default=256, show_default=True, help="Length of the prompt.")
@click.option(
    "--decode-tokens",
    type=COUNT,
    metavar="N",
    default=64,
    show_default=True,
    help="Tokens to generate after the first.",
)
@click.option(
    "--repeat", type=REPEATS, metavar="N", default=5, show_default=True, help="Timed runs; medians are shown."
)
@input_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@runtime_options
def bench(
    artifact: Path,
    prompt_tokens: int,
    decode_tokens: int,
    repeat: int,
    inputs: tuple[str, ...],
    as_json: bool,
    device: str | None,
    threads: int | None,
) -> None:
    """Measure how fast ARTIFACT runs on this machine.

    For a language model: how fast it loads, reads a prompt and generates. Decoding reads every
    weight once a token, so its limit is the memory's read bandwidth; that is measured in the same
    run and the fraction reached is shown. For a model of tensors: how long one run takes, on the
    inputs given or on made-up ones.
    """
    from aicc.cli.run_tensors import read_inputs
    from aicc.runtime.artifact import Artifact
    from aicc.runtime.bench import DecoderBench, bench_artifact

    if Artifact.open(artifact).manifest.kind == "decoder":
        refuse_options(("inputs",), f"{artifact} is a language model.")
    else:
        for_decoders = ("prompt_tokens", "decode_tokens")
        refuse_options(for_decoders, f"{artifact} is a model of tensors.")
    result = bench_artifact(
        artifact, prompt_tokens, decode_tokens, repeat, threads, device, read_inputs(inputs) or None
    )
    if result.remark:
        note(f"note: {result.remark}")
    if as_json:
        return print_json(result)
    threads_used = f"{result.threads} thread{'s' if result.threads != 1 else ''}"
    rows = [("on", f"{result.device}, {threads_used}"), ("load", f"{result.load_s:.2f} s")]
    if isinstance(result, DecoderBench):
        limit = f"{human_bytes(result.read_bandwidth_bytes_per_s)}/s this machine reads"
        rows += [
            ("prefill", f"{result.prefill_tokens_per_s:,.0f} tokens/s over {prompt_tokens} tokens"),
            ("decode", f"{result.decode_tokens_per_s:,.1f} tokens/s over {decode_tokens} tokens"),
            ("weights read", f"{human_bytes(result.weight_bytes_per_token)} a token"),
            ("bandwidth", f"{100 * result.bandwidth_fraction:.0f}% of the {limit}"),
        ]
    else:
        spread = f"{1000 * result.latency_s_min:.2f} to {1000 * result.latency_s_max:.2f} ms"
        rows.append(("one run", f"{1000 * result.latency_s:.2f} ms ({spread})"))
    print_result(facts([*rows, ("peak memory", human_bytes(result.peak_rss_bytes))]))


@click.command("eval", short_help="Measure how close an artifact is to its source.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--reference", required=True, metavar="MODEL", help="The source model, as `aicc compile` takes it.")
@click.option(
    "--text",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="UTF-8 text to compare on. [default: held-out English that comes with aicc]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@runtime_options
def evaluate(
    artifact: Path, reference: str, text: Path | None, as_json: bool, device: str | None, threads: int | None
) -> None:
    """Measure how close ARTIFACT is to the model it was compiled from.

    Both read the same text and predict each next token; shown are how far the predictions are
    apart (KL divergence in nats; 0 is identical), how often the likeliest token is the same, and
    the perplexity of both. The reference computes in float32.
    """
    from aicc.runtime import load
    from aicc.runtime.artifact import Artifact
    from aicc.runtime.errors import UsageError
    from aicc.runtime.generator import Model

    if Artifact.open(artifact).manifest.kind != "decoder":
        raise UsageError(f"{artifact} is a model of tensors.", "Compare its outputs with those of its source instead.")
    with compiler():
        from aicc.compiler.evaluate import measure_quality
        from aicc.compiler.importers import import_model
        from aicc.compiler.sources import resolve

        with Progress() as progress:
            source = resolve(reference, lambda line: progress("source", line))
            progress("import", f"reading {source.name}")
            imported = import_model(source, digest=False, progress=lambda line: progress("import", line))
            with load(artifact, device, threads) as model:
                assert isinstance(model, Model)
                note_compatibility(model.compatibility)
                quality = measure_quality(model, imported, text, lambda line: progress("compare", line))
    if as_json:
        return print_json(quality)
    print_result(
        facts(
            [
                ("KL divergence", f"{quality.kl_mean:.6f} nats on average, 99% below {quality.kl_p99:.5f}"),
                ("top-1 agreement", f"{100 * quality.top1_agreement:.2f}%"),
                ("perplexity", f"{quality.ppl:.4f} (source {quality.ppl_reference:.4f})"),
                ("text", f"{quality.text}, {quality.tokens:,} tokens"),
            ]
        )
    )
