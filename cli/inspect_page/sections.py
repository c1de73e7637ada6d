"""The sections of the page, from top to bottom. Each says in a sentence what its picture shows."""

from __future__ import annotations

from collections.abc import Sequence

from aicc.cli.inspect_page import pictures
from aicc.cli.inspect_page.layers import bytes_by_format, parts
from aicc.cli.inspect_page.markup import Child, Html, h, join
from aicc.cli.inspection import InspectDocument
from aicc.cli.output import human_bytes
from aicc.compiler.report import CompileReport, PhaseRecord
from aicc.runtime.artifact import TensorSpec


def header(document: InspectDocument) -> Html:
    """What it is: a sentence and the numbers at a glance."""
    manifest, llm = document.manifest, document.manifest.llm
    kind = "language model that generates text" if llm else "model that maps tensors to tensors"
    targets = ", ".join(variant.target for variant in manifest.variants)
    licence = f", licence {manifest.source.licence}" if manifest.source.licence else ""
    lead = h(
        "p",
        f"A {kind}, compiled for {targets} from ",
        h("code", manifest.source.name),
        f" ({manifest.source.kind}{licence}). Weights: {manifest.quantization}.",
        _class="lead",
    )
    tiles = [("On disk", human_bytes(document.bytes), f"{len(manifest.files)} files")]
    tiles.append(("Weights", human_bytes(manifest.memory.weight_bytes), manifest.quantization))
    if llm:
        tiles += [
            ("Read per token", human_bytes(llm.weight_bytes_per_token), "weights, while decoding"),
            (
                "Context",
                f"{llm.context_length:,}",
                f"tokens, {human_bytes(manifest.memory.kv_bytes_per_token)} of KV each",
            ),
            ("Architecture", f"{llm.layers} layers", f"{llm.kv_heads} KV heads of {llm.head_dim}"),
        ]
    else:
        signature = next(iter(manifest.signatures.values()), None)
        if signature:
            tiles.append(("Tensors", f"{len(signature.inputs)} → {len(signature.outputs)}", "inputs → outputs"))
    if quality := manifest.quality:
        agree = pictures.share(quality.top1_agreement, 1)  # type: ignore[arg-type]
        tiles.append(("Agrees with the source", agree, f"on the likeliest token; KL {quality.kl_mean:.5f} nats"))
    return join(
        h("h1", manifest.name),
        lead,
        h("dl", [h("div", h("dt", a), h("dd", b, h("small", c))) for a, b, c in tiles], _class="tiles"),
    )


def weights(document: InspectDocument) -> Html | None:
    """Where the bytes are, by part of the model and number format."""
    if document.report is None or not any(layer.bytes > 0 for layer in document.report.layers):
        return None
    layers = document.report.layers
    counts, model = bytes_by_format(layers), parts(layers)
    formats = list(counts)
    columns = pictures.layer_columns(model, formats)
    rows = [
        (part.label, ", ".join(part.formats), human_bytes(part.bytes), pictures.share(part.bytes, sum(counts.values())))
        for part in model
    ]
    return h(
        "section",
        h("h2", "Where the bytes are"),
        h("p", "One slice for each part of the model; its width is its bytes, its colour the number format."),
        pictures.legend(counts),
        pictures.model_strip(model, formats),
        [h("h3", "The repeated layers, one column each"), columns] if columns else None,
        h(
            "details",
            h("summary", f"All {len(model)} parts as a table"),
            _table(("part", "format", "bytes", "share"), rows, numbers=("bytes", "share")),
        ),
    )


def making(document: InspectDocument) -> Html | None:
    """The phases of the compile, and what each pass did to the graph."""
    report = document.report
    if report is None or not report.phases:
        return None
    seconds = sum(phase.seconds for phase in report.phases)
    way = [("source", document.manifest.source.name)]
    way += [(phase.name, _outcome(phase, report)) for phase in report.phases]
    way.append(("artifact", human_bytes(document.bytes)))
    measured = seconds > 0
    rows, before = [], 0.0
    peak = max(phase.peak_rss_bytes for phase in report.phases)
    for phase in report.phases:
        text = f"{phase.name}: {phase.seconds:.1f} of {seconds:.1f} seconds"
        rows.append(
            (
                phase.name,
                pictures.bar([("c0", phase.seconds)], seconds, text, offset=before),
                f"{phase.seconds:.1f} s",
                pictures.bar([("c4", phase.peak_rss_bytes)], peak, f"{human_bytes(phase.peak_rss_bytes)} at its end"),
                human_bytes(phase.peak_rss_bytes),
            )
        )
        before += phase.seconds
    columns = ("phase", "time", "seconds", "peak memory so far", "bytes")
    return h(
        "section",
        h("h2", "How it was made"),
        h("ol", [h("li", h("b", name), h("span", text)) for name, text in way], _class="way"),
        _table(columns, rows, numbers=("seconds", "bytes"), wide=("time",)) if measured else None,
        None if measured else h("p", "Without timings.json, seconds and memory are unknown.", _class="note"),
        _passes(document),
        [h("h3", "Notes"), h("ul", [h("li", text) for text in report.notes])] if report.notes else None,
    )


def _outcome(phase: PhaseRecord, report: CompileReport) -> str:
    """What a phase made of the model, in two words."""
    if phase.name == "quantize":
        return report.quantization
    if phase.name == "lower":
        return report.target
    return f"{phase.passes[-1].nodes_after:,} nodes left" if phase.passes else ""


def _passes(document: InspectDocument) -> Child:
    """What each pass made of the graph: nodes kept, and nodes that went."""
    phases = document.report.phases if document.report else []
    passes = [(phase.name, p) for phase in phases for p in phase.passes]
    if not passes:
        return None
    most = max(max(p.nodes_before, p.nodes_after) for _, p in passes)
    rows = []
    for phase, p in passes:
        gone, new = max(0, p.nodes_before - p.nodes_after), max(0, p.nodes_after - p.nodes_before)
        text = f"{p.nodes_before} nodes before, {p.nodes_after} after"
        drawn = pictures.bar([("c0", p.nodes_after - new), ("gone", gone), ("c1", new)], most, text)
        change = f"−{gone:,}" if gone else f"+{new:,}" if new else "±0"
        rows.append((p.name, phase, drawn, f"{p.nodes_before:,} → {p.nodes_after:,}", change, f"{p.changed:,}"))
    refused = [(p.name, place, why) for _, p in passes for place, why in p.refused.items()]
    return [
        h("h3", "Passes over the graph"),
        h("p", "Nodes each pass left (solid), took away (hatched) or added (orange), and the matches it rewrote."),
        _table(
            ("pass", "phase", "graph", "nodes", "change", "rewrites"),
            rows,
            numbers=("nodes", "change", "rewrites"),
            wide=("graph",),
        ),
        h(
            "details",
            h("summary", f"{len(refused)} near misses left as they were, and why"),
            _table(("pass", "where", "why"), refused),
        )
        if refused
        else None,
    ]


def coverage(document: InspectDocument) -> Html | None:
    """Where the nodes of each operator run."""
    rows = document.report.coverage if document.report else []
    if not rows:
        return None
    delegated, fallback, refused = (sum(getattr(row, k) for row in rows) for k in ("delegated", "fallback", "refused"))
    every = delegated + fallback + refused
    most = max(row.delegated + row.fallback + row.refused for row in rows)
    text = f"{delegated:,} of {every:,} nodes run on the chip"
    text += f", {fallback:,} on the host" if fallback else ""
    text += f", {refused:,} were refused" if refused else ""
    drawn = []
    for row in sorted(rows, key=lambda row: (-row.refused, -row.fallback, -row.delegated)):
        label = f"{row.op}: {row.delegated} on the chip, {row.fallback} on the host, {row.refused} refused"
        segments = [("good", row.delegated), ("warn", row.fallback), ("bad", row.refused)]
        counts = tuple(f"{n:,}" if n else "" for n in (row.delegated, row.fallback, row.refused))
        drawn.append((h("code", row.op), pictures.bar(segments, most, label), *counts, row.reason))
    columns = ("operator", "nodes", "chip", "host", "refused", "reason")
    # Columns with nothing to say are left out: mostly everything runs on the chip.
    shown = [i for i in range(len(columns)) if i < 3 or any(row[i] for row in drawn)]
    table = _table(
        [columns[i] for i in shown],
        [[row[i] for i in shown] for row in drawn],
        numbers=("chip", "host", "refused"),
        wide=("nodes",),
    )
    return h(
        "section",
        h("h2", "Which operators run on the chip"),
        h("p", f"{text}."),
        h("details", h("summary", f"All {len(rows)} operators"), table, **({"open": ""} if len(rows) <= 24 else {})),
    )


def quality(document: InspectDocument) -> Html | None:
    """What compiling cost, measured against the source."""
    quality = document.manifest.quality
    if quality is None:
        return None
    worst = max(quality.ppl, quality.ppl_reference)
    agree = quality.top1_agreement
    rows = [
        (
            "Same most likely token",
            pictures.bar([("good", agree)], 1, f"{pictures.share(agree, 1)} of positions"),  # type: ignore[arg-type]
            pictures.share(agree, 1),  # type: ignore[arg-type]
        ),
        (
            "Perplexity of the source",
            pictures.bar([("c5", quality.ppl_reference)], worst, f"{quality.ppl_reference:.3f}"),
            f"{quality.ppl_reference:.3f}",
        ),
        (
            "Perplexity of this artifact",
            pictures.bar([("c0", quality.ppl)], worst, f"{quality.ppl:.3f}"),
            f"{quality.ppl:.3f}",
        ),
    ]
    return h(
        "section",
        h("h2", "What compiling cost in quality"),
        h(
            "p",
            f"Over {quality.tokens:,} tokens of text, its predictions differ from the source's at full "
            f"precision by {quality.kl_mean:.5f} nats on average (KL divergence; 99 of 100 tokens below "
            f"{quality.kl_p99:.4f}). Zero would be no difference.",
        ),
        _table(("measure", "", "value"), rows, numbers=("value",), wide=("",)),
        h("p", "The text: ", h("code", quality.text), _class="note"),
    )


def devices(document: InspectDocument) -> Html:
    """Where this machine can run it."""
    rows = [
        (
            h("code", fit.target),
            f"{fit.device} ({fit.description})" if fit.description else "none",
            h("span", fit.fit, _class=f"badge {fit.fit}"),
            fit.reason or "Made for exactly this.",
        )
        for fit in document.devices
    ]
    return h(
        "section",
        h("h2", "Where it runs"),
        h("p", "Told on the machine that wrote this page, without loading the model."),
        h("p", "Unless another is asked for, it loads ", h("code", document.default), " there.")
        if len(document.devices) > 1
        else None,
        _table(("compiled for", "device here", "fit", "because"), rows),
    )


def contents(document: InspectDocument) -> Html:
    """Signatures, files and what made them."""
    manifest = document.manifest
    signatures = [
        (name, role, h("code", spec.name), spec.dtype, h("code", _shape(spec)))
        for name, signature in manifest.signatures.items()
        for role, specs in (("input", signature.inputs), ("output", signature.outputs))
        for spec in specs
    ]
    files = [(h("code", entry.path), human_bytes(entry.bytes), h("code", entry.sha256)) for entry in manifest.files]
    made = [(name, version) for name, version in manifest.producer.items()]
    made += [(f"source sha256 ({manifest.source.kind})", h("code", manifest.source.sha256))]
    made += [("importer", document.report.importer)] if document.report and document.report.importer else []
    made += [] if document.portable else [("portable graph", "none: other targets are compiled from the source")]
    made += [("source revision", manifest.source.revision)] if manifest.source.revision else []
    checked = {True: "All files were hashed and match.", None: "Hashes were not checked (--verify does)."}
    return h(
        "section",
        h("h2", "What is inside"),
        h(
            "details",
            h("summary", f"Signatures: {len(signatures)} tensors"),
            _table(("signature", "role", "tensor", "type", "shape"), signatures),
        ),
        h(
            "details",
            h("summary", f"Files: {len(files)}. {checked[document.verified]}"),
            _table(("path", "bytes", "sha256"), files, numbers=("bytes",)),
        ),
        h("details", h("summary", "What made it, from what"), _table(("", ""), made)),
    )


def footer(document: InspectDocument) -> Html:
    """Which file and format this is about."""
    form = document.manifest.format
    return h(
        "footer", "Artifact ", h("code", document.path), f", format {form.major}.{form.minor}, shown by aicc inspect."
    )


def _shape(spec: TensorSpec) -> str:
    return "×".join(str(d) for d in spec.shape) or "scalar"


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = (), wide: Sequence[str] = ()
) -> Html:
    """A table; columns named in ``numbers`` are aligned to the right, those in ``wide`` get the room."""
    classes = [
        "num" if c in numbers else "wide" if c in wide else "name" if i == 0 else "" for i, c in enumerate(columns)
    ]

    def cell(tag: str, text: str, name: str) -> Html:
        return h(tag, text, _class=name) if name else h(tag, text)

    head = h("tr", [cell("th", column, name) for column, name in zip(columns, classes, strict=True)])
    body = [h("tr", [cell("td", text, name) for text, name in zip(row, classes, strict=True)]) for row in rows]
    return h("div", h("table", h("thead", head), h("tbody", body)), _class="scroll")
