"""``aicc plan``: a model on chips nobody needs to have yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import msgspec

from aicc.compiler.coverage import weight_bytes_per_token
from aicc.compiler.facts import weight_layers
from aicc.compiler.importers import ImportedModel, preview_model
from aicc.compiler.optimize import optimize
from aicc.compiler.plan.chips import Estimate, Range, model_of
from aicc.compiler.plan.workload import Workload, read_workload
from aicc.compiler.quantization.policy import Quant, quantize
from aicc.compiler.sources import name_of, resolve, user_path
from aicc.runtime import machine
from aicc.runtime.errors import UsageError
from aicc.runtime.target import Target

Progress = Callable[[str, str], None]
_HOUR, _MILLION = 3600, 1_000_000


class TargetPlan(msgspec.Struct):
    """What one target takes. Bytes and chips are exact; rates, energy and cost are modelled, never measured.

    Attributes:
        target: Its name.
        basis: ``modelled``: the rates, and what follows from them, come from the constants in docs/plan.md.
        weight_bytes: Weights as the target stores them.
        kv_bytes: The cache of one full context; 0 for models of tensors.
        chips: Chips that hold both.
        chip_memory_bytes: Memory of one; 0 where it is this machine's.
        memory_used: Fraction of the chips' memory, or of what this machine has available; above 1 it does not fit.
        prefill_tokens_per_s: One prompt; null for models of tensors.
        decode_tokens_per_s: One sequence at a time; null for models of tensors.
        runs_per_s: Runs one after another; null for decoders.
        joules_per_token: Of all chips, or per run; null where nothing is published.
        cost_per_million: Of tokens decoded, or runs, one sequence at a time; null without a price.
        notes: What the numbers leave out.
    """

    target: str
    basis: str
    weight_bytes: int
    kv_bytes: int
    chips: int
    chip_memory_bytes: int
    memory_used: float
    prefill_tokens_per_s: Range | None
    decode_tokens_per_s: Range | None
    runs_per_s: Range | None
    joules_per_token: Range | None
    cost_per_million: Range | None
    notes: list[str]


class PlanReport(msgspec.Struct):
    """What ``aicc plan --json`` prints.

    Attributes:
        model: What was planned for.
        kind: ``decoder`` or ``tensors``.
        parameters: Weights, each counted once. Exact.
        macs: Multiplications with additions to decode one token at the full context, or with weights in one run.
            Exact but for attention that does not look at the whole context.
        prompt: Tokens of the prompt that prefill is for, and what unknown sizes of a model of tensors are taken to be.
        context: Tokens in the cache; 0 for models of tensors.
        utilisation: Fraction of the time the chips are in use, for the cost.
        targets: One plan for each target.
        notes: What the importer decided.
    """

    model: str
    kind: str
    parameters: int
    macs: int
    prompt: int
    context: int
    utilisation: float
    targets: list[TargetPlan]
    notes: list[str]


def plan_model(
    model: str,
    targets: Sequence[Target],
    *,
    prompt: int = 512,
    context: int | None = None,
    quant: Quant = "auto",
    prices: Mapping[str, float] | None = None,
    utilisation: float = 1.0,
    progress: Progress = lambda phase, message: None,
) -> PlanReport:
    """Plan a model for each of some targets; no weight is read.

    Args:
        model: What ``aicc compile`` takes, or a folder (or the ``config.json``) of a model whose weights are not there.
        targets: Each of them has a cost model.
        prompt: Tokens of the prompt.
        context: Tokens in the cache; None takes 2,048, or all the model has if that is less.
        quant: Weight format, for targets that store fewer bits.
        prices: Of one chip for an hour, by target; those without have no cost.
        utilisation: Fraction of the time the chips are in use.
        progress: Told the phase and what is being done.

    Raises:
        UsageError: A target has no cost model, or not for this kind of model; or the tokens do not fit the context.
        AiccError: As an import would.
    """
    models = [model_of(target.name) for target in targets]
    imported = _headers(model, targets[0], progress)
    full = imported.llm.context_length if imported.llm else 0
    context = min(2048, full) if context is None or not full else context
    if full and not prompt <= context <= full:
        raise UsageError(
            f"a prompt of {prompt} tokens in a context of {context} is not what {model} can have: it holds {full}.",
            "Choose --prompt and --context in that order of size.",
        )
    plans = []
    for target, estimate in zip(targets, models, strict=True):
        progress("plan", target.name)
        work, weight_bytes = _workload(imported, target, prompt, quant)
        price = (prices or {}).get(target.name)
        if work.unsized:
            text = f"{work.unsized} products are left out: their sizes are not known before it runs"
            imported.notes = [*dict.fromkeys([*imported.notes, text])]
        plans.append(_plan(target, work, weight_bytes, estimate(work, prompt, context), context, price, utilisation))
    return PlanReport(
        model=imported.info.name,
        kind=imported.kind,
        parameters=work.parameters,
        macs=work.macs(context),
        prompt=prompt,
        context=context,
        utilisation=utilisation,
        targets=plans,
        notes=imported.notes,
    )


def _headers(model: str, target: Target, progress: Progress) -> ImportedModel:
    """The graph of a model, or of its config alone where that is all there is."""
    path = user_path(model)
    folder = path.parent if path.name == "config.json" and path.is_file() else path
    progress("plan", f"reading the headers of {model}")
    weights = (file for kind in ("safetensors", "gguf", "onnx") for file in folder.glob(f"*.{kind}"))
    if (folder / "config.json").is_file() and not any(weights):
        from aicc.compiler.importers.huggingface import import_config

        return import_config(folder, name_of(folder))
    source = resolve(str(folder) if folder.is_dir() else model, lambda line: progress("plan", line))
    return preview_model(source, target=target)


def _workload(imported: ImportedModel, target: Target, tokens: int, quant: Quant) -> tuple[Workload, int]:
    """The sizes, and the bytes of all weights as the target stores them."""
    copy = dataclasses.replace(imported, graph=imported.graph.clone(), notes=[])
    optimize(copy, target)
    work = read_workload(copy, tokens)
    bits = {weight_format.bits for weight_format in target.weight_formats}
    if bits == {16}:
        return work, 2 * work.parameters
    quantize(copy, target, quant, None)
    stored = sum(layer.bytes for layer in weight_layers(copy.graph))
    return dataclasses.replace(work, bytes_per_token=weight_bytes_per_token(copy.graph)), stored


def _plan(
    target: Target,
    work: Workload,
    weight_bytes: int,
    estimate: Estimate,
    context: int,
    price: float | None,
    utilisation: float,
) -> TargetPlan:
    kv_bytes = work.kv_bytes(context)
    rates = estimate.decode
    available = estimate.chips * estimate.memory_bytes or machine.memory().available
    cost = energy = None
    if price is not None:
        each = estimate.chips * price / _HOUR / utilisation * _MILLION
        cost = Range(each / rates.high, each / rates.low)
    if estimate.watts is not None:
        energy = Range(estimate.watts.low / rates.high, estimate.watts.high / rates.low)
    return TargetPlan(
        target=target.name,
        basis="modelled",
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        chips=estimate.chips,
        chip_memory_bytes=estimate.memory_bytes,
        memory_used=(weight_bytes + kv_bytes) / available,
        prefill_tokens_per_s=estimate.prefill,
        decode_tokens_per_s=rates if work.decoder else None,
        runs_per_s=None if work.decoder else rates,
        joules_per_token=energy,
        cost_per_million=cost,
        notes=list(estimate.notes),
    )
