"""``aicc inspect``: what an artifact is, how it was made and where it can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aicc.cli.output import facts, human_bytes, note, print_json, print_result, table, write_atomically

if TYPE_CHECKING:
    from aicc.cli.inspection import InspectDocument


@click.command(short_help="Show what an artifact is, how it was made, where it runs.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--verify", is_flag=True, help="Hash every file and compare it with the manifest.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write one self-contained page with pictures: layers, bytes, passes, coverage, quality.",
)
def inspect(artifact: Path, as_json: bool, verify: bool, html: Path | None) -> None:
    """Show what ARTIFACT is, how it was made, and where this machine can run it.

    Nothing is loaded or executed. Without --verify only the manifest's own digest and every file's
    presence and size are checked; with it, every byte.
    """
    from aicc.cli.inspection import look_into

    document = look_into(artifact, verify)
    if html is not None:
        from aicc.cli.inspect_page import render

        page = render(document).encode()
        write_atomically({html: lambda file: file.write(page)})
        note(f"wrote {html}")
    if as_json:
        return print_json(document)
    _print(document)


def _print(document: InspectDocument) -> None:
    manifest, llm, quality = document.manifest, document.manifest.llm, document.manifest.quality
    rows = [
        ("name", manifest.name),
        ("kind", manifest.kind),
        ("source", " ".join(filter(None, (manifest.source.name, manifest.source.revision, manifest.source.licence)))),
        ("weights", f"{manifest.quantization}, {human_bytes(manifest.memory.weight_bytes)}"),
        ("on disk", f"{human_bytes(document.bytes)} in {len(manifest.files)} files"),
    ]
    if llm is not None:
        rows += [
            ("context", f"{llm.context_length:,} tokens, {human_bytes(manifest.memory.kv_bytes_per_token)} of KV each"),
            ("decoding reads", f"{human_bytes(llm.weight_bytes_per_token)} of weights a token"),
        ]
    else:
        for name, signature in manifest.signatures.items():
            for role, specs in (("input", signature.inputs), ("output", signature.outputs)):
                title = f"{name} {role}s" if len(manifest.signatures) > 1 else f"{role}s"
                for number, s in enumerate(specs):
                    rows.append(("" if number else title, f"{s.name} {s.dtype}[{', '.join(map(str, s.shape))}]"))
    if quality is not None:
        text = (
            f"KL {quality.kl_mean:.5f} nats, top-1 agreement {100 * quality.top1_agreement:.2f}%, "
            f"perplexity {quality.ppl:.3f} (source {quality.ppl_reference:.3f}), {quality.tokens:,} tokens"
        )
        rows.append(("quality", text))
    if document.report is not None and document.report.importer:
        rows.append(("importer", document.report.importer))
    if not document.portable:
        rows.append(("graph", "no portable one: other targets are compiled from the source"))
    if len(manifest.variants) > 1:
        rows.append(("loads here", f"{document.default}, unless --device asks for another"))
    rows.append(("made by", ", ".join(f"{name} {version}" for name, version in manifest.producer.items())))
    rows.append(("files", "hashed, all match" if document.verified else "sizes match (--verify hashes them)"))
    print_result(facts(rows))
    fits = [(fit.target, fit.description or "none", fit.fit, fit.reason) for fit in document.devices]
    print_result(table("where it runs", ("compiled for", "device here", "fit", "reason"), fits))
    if document.report is not None and document.report.phases:
        phases = [
            (
                phase.name,
                f"{phase.seconds:.1f} s" if phase.seconds else "",
                human_bytes(phase.peak_rss_bytes) if phase.peak_rss_bytes else "",
                f"{phase.passes[0].nodes_before:,} → {phase.passes[-1].nodes_after:,}" if phase.passes else "",
            )
            for phase in document.report.phases
        ]
        numbers = ("time", "peak memory", "nodes")
        print_result(table("how it was made", ("phase", *numbers), phases, right=numbers))
