"""``aicc plan``: compare chips before anyone has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from aicc.cli.compile_commands import compiler
from aicc.cli.options import QUANTS
from aicc.cli.output import Progress, facts, human_bytes, note, print_json, print_result, table

if TYPE_CHECKING:
    from aicc.compiler.plan.chips import Range
    from aicc.compiler.plan.planning import PlanReport, TargetPlan
    from aicc.runtime.target import Target


@click.command(short_help="Compare chips for a model: bytes, chips, speed, cost.")
@click.argument("model")
@click.option(
    "--target",
    "-t",
    default="groq,cerebras",
    show_default=True,
    metavar="T[,T…]",
    help="Chips to compare: groq, cerebras:wse3, cerebras:wse2, cpu:avx512-vnni.",
)
@click.option("--prompt", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens of the prompt.")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Tokens in the KV cache. [default: 2048, or all the model holds if that is less]",
)
@click.option(
    "--quant",
    type=click.Choice(QUANTS),
    default="auto",
    show_default=True,
    help="Number format of the weights, on targets that store fewer than 16 bits.",
)
@click.option(
    "--price",
    multiple=True,
    metavar="[TARGET=]MONEY",
    help="What one chip costs for an hour, for all targets or for one; give it once for each.",
)
@click.option(
    "--utilisation",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Fraction of the time the chips are in use, for the cost.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def plan(
    model: str,
    target: str,
    prompt: int,
    context: int | None,
    quant: str,
    price: tuple[str, ...],
    utilisation: float,
    as_json: bool,
) -> None:
    """Compare what MODEL takes on some chips, without a chip and without reading weights.

    MODEL is what `aicc compile` takes, or the config.json of a Hugging Face model whose weights were never fetched.
    Bytes, multiplications and chips are counted. Speed, energy and cost are modelled, not measured: a range, from
    constants that docs/plan.md lists with their sources and holds against published figures.
    """
    from aicc.runtime.target import find_target

    targets = list({found.name: found for found in map(find_target, map(str.strip, target.split(",")))}.values())
    prices = _prices(price, targets)
    if math.isnan(utilisation):  # click's range lets it pass
        raise click.BadParameter("nan is no fraction.", param_hint="--utilisation")
    with compiler():
        from aicc.compiler.plan.planning import plan_model

        with Progress() as progress:
            report = plan_model(
                model,
                targets,
                prompt=prompt,
                context=context,
                quant=quant,  # type: ignore[arg-type]
                prices=prices,
                utilisation=utilisation,
                progress=progress,
            )
    if as_json:
        return print_json(report)
    _print(report)


def _prices(given: tuple[str, ...], targets: Sequence[Target]) -> dict[str, float]:
    """Prices by target, those named after those for all."""
    from aicc.runtime.target import find_target

    prices: dict[str, float] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        name, _, amount = text.rpartition("=")
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise click.BadParameter(f"{text!r} is no price.", param_hint="--price")
        chosen = [find_target(name).name] if name else [target.name for target in targets]
        if not set(chosen) <= {target.name for target in targets}:
            raise click.BadParameter(f"{name} is not among the targets.", param_hint="--price")
        prices |= dict.fromkeys(chosen, value)
    return prices


def _print(report: PlanReport) -> None:
    decoder = report.kind == "decoder"
    per = f"a token after {report.context:,}" if decoder else "a run"
    rows = [
        ("model", report.model),
        ("parameters", f"{report.parameters:,}"),
        ("multiplications", f"{report.macs:,} {per}"),
    ]
    if decoder:
        rows.append(
            ("planned for", f"prompts of {report.prompt:,} tokens, a context of {report.context:,}, one sequence")
        )
    speeds = ("prefill, tokens/s", "decode, tokens/s") if decoder else ("runs/s",)
    unit = "token" if decoder else "run"
    priced = any(each.cost_per_million for each in report.targets)
    cost = (f"cost of a million {unit}s",) if priced else ()
    columns = ("target", "weights", "KV cache", "chips", "memory used", *speeds, f"J/{unit}", *cost)
    lines = [_line(each, decoder, priced) for each in report.targets]
    print_result(facts(rows), table("modelled, not measured", columns, lines, right=columns[1:]))
    for text in (*report.notes, *(f"{each.target}: {text}" for each in report.targets for text in each.notes)):
        note(f"note: {text}")
    for each in report.targets:
        if each.memory_used > 1:
            note(f"note: {each.target}: it does not fit the memory available here")


def _line(plan: TargetPlan, decoder: bool, priced: bool) -> list[str]:
    speeds = (plan.prefill_tokens_per_s, plan.decode_tokens_per_s) if decoder else (plan.runs_per_s,)
    return [
        plan.target,
        human_bytes(plan.weight_bytes),
        human_bytes(plan.kv_bytes) if decoder else "",
        f"{plan.chips:,}",
        f"{plan.memory_used:.0%}",
        *map(_range, speeds),
        _range(plan.joules_per_token),
        *((_range(plan.cost_per_million),) if priced else ()),
    ]


def _range(value: Range | None) -> str:
    if value is None:
        return ""
    low, high = (_significant(end) for end in (value.low, value.high))
    return low if low == high else f"{low}–{high}"


def _significant(number: float) -> str:
    """Two significant digits, which is more than the model knows."""
    rounded = float(f"{number:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
