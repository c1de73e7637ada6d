"""From sizes to time: one model for each chip, each giving its fastest and its slowest reading.

The bandwidth of on-chip memory explains a processor's decoding and is wrong by orders of magnitude for chips that
hold the whole model in it: there a token waits for one operation, exchange or reduction after another. So those
chips get a time a layer, made of the work and of what is waited for (constants.toml says where each is from).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from aicc.compiler.plan.constants import values
from aicc.compiler.plan.workload import Product, Workload
from aicc.runtime.errors import UsageError


class Range(msgspec.Struct, frozen=True):
    """From the slowest (or cheapest) reading of the model to the fastest (or dearest).

    Attributes:
        low: The lower end.
        high: The upper end.
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one chip's model says.

    Attributes:
        chips: Needed to hold weights and cache.
        memory_bytes: Of one chip; 0 where the memory is the host's.
        decode: Tokens/s of one sequence; for a model of tensors, runs/s.
        prefill: Tokens/s of one prompt; None for a model of tensors.
        watts: Of all chips together; None if nothing was published.
        notes: What the numbers leave out.
    """

    chips: int
    memory_bytes: int
    decode: Range
    prefill: Range | None
    watts: Range | None
    notes: tuple[str, ...] = ()


def groq(work: Workload, prompt: int, context: int, chips: int = 0, bits: int = 16) -> Estimate:
    """Groq's chips: weights fed from their memory, operations and exchanges waited for.

    The fast end splits layers by columns over the chips that hold them, as the maker's service does; the slow end
    has one chip after another work, as the public compiler's daisy chain does.

    Args:
        work: The model.
        prompt: Tokens of the prompt.
        context: Tokens in the cache.
        chips: How many; 0 takes the least power of two that holds everything.
        bits: Of weights and activations, 8 or 16.
    """
    c = values("groq")
    stored = work.parameters * bits // 8 + work.kv_bytes(context)
    if not chips:
        least = math.ceil(max(stored / c["memory"], work.parameters / c["parameters"]))
        chips = 1 << (max(1, least) - 1).bit_length()
    k_size, parallel = (c["rows_int8"], c["parallel_int8"]) if bits == 8 else (c["rows_fp16"], c["parallel_fp16"])

    def seconds(product: Product, rows: int) -> float:
        sub_operations = rows * math.ceil(product.k / k_size) * math.ceil(product.n / c["columns"])
        feed = product.k * product.n * bits / 8 / c["weight_feed"]
        return max(sub_operations / parallel, feed) / c["clock"]

    waits = c["operation"] * (c["operations"] * work.layers + 1 if work.decoder else work.layers)
    split = max(1.0, chips / work.layers)
    exchanges = c["exchanges"] * work.layers if split > 1 else chips - 1
    once = sum(seconds(p, p.rows) for p in work.products)
    once += work.kv_bytes(context) / c["weight_feed"] / c["clock"]
    fast = once / split + waits + exchanges * c["exchange"] * (chips > 1)
    # What Llama-2-70B waits for beside its operations need not all be links: the slow end has it in any decoder.
    waited = max(chips - 1, c["exchanges"] * work.layers if work.decoder else 0)
    slow = once / c["utilisation"] + waits + waited * c["exchange"]
    read = sum(seconds(p, 1 if p.last_only else prompt) for p in work.products)
    read *= work.prompt_macs(prompt) / max(1, work.prompt_macs(prompt) - work.attention_width * prompt * prompt)
    handed = prompt * work.products[0].k * bits / 8 / c["link"] if chips > 1 else 0.0  # a prompt, to the next chip
    prefill = _rates(read / c["utilisation"] + (chips - 1) * handed + slow, max(read / chips, handed) + fast, prompt)
    notes = [f"GroqFlow's rule of thumb, {c['parameters'] / 1e6:.0f} million parameters a chip, is counted in"]
    if chips > 64:
        notes.append("GroqFlow knows topologies of up to 64 chips")
    return Estimate(
        chips,
        int(c["memory"]),
        _rates(max(slow, fast), min(slow, fast)),
        prefill if work.decoder else None,
        Range(chips * c["power_low"], chips * c["power_high"]),
        tuple(notes),
    )


def cerebras(work: Workload, prompt: int, context: int, generation: str = "wse3") -> Estimate:
    """Wafers of Cerebras: each layer on a square of cores, its reductions waited for.

    Args:
        work: The model.
        prompt: Tokens of the prompt.
        context: Tokens in the cache.
        generation: ``wse2`` or ``wse3``.

    Raises:
        UsageError: A model of tensors, which the model was not made for.
    """
    if not work.decoder:
        raise UsageError("the cost model of cerebras is for decoders.", "Leave that target out.")
    c = values("cerebras", f"cerebras-{generation}")
    room = c["core_memory"] - c["core_reserved"]
    stored = 2 * work.parameters + work.kv_bytes(context)
    wafers = math.ceil(stored / (c["cores"] * room))
    layer = (2 * sum(p.macs for p in work.products if not p.last_only) + work.kv_bytes(context)) / work.layers
    cores = math.ceil(layer / room)
    side = math.ceil(math.sqrt(cores))
    work_cycles = work.macs(context) / work.layers / cores / c["macs"]

    def token(hop: float, overhead: float) -> float:
        reductions = c["collectives"] * (c["start"] + hop * side)
        return work.layers * ((work_cycles + reductions) / c["clock"] + overhead)

    fast, slow = token(c["hop_fast"], c["overhead_fast"]), token(c["hop_slow"], c["overhead_slow"])
    read = work.prompt_macs(prompt) / (cores * work.layers * c["macs"] * c["clock"])
    return Estimate(
        wafers,
        int(c["cores"] * c["core_memory"]),
        _rates(slow, fast),
        _rates(read / c["prefill_low"] + slow, read / c["prefill_high"] + fast, prompt),
        Range(wafers * c["power"], wafers * c["power"]),
        (f"each layer on {side}×{side} cores", *(("links between wafers are not counted",) if wafers > 1 else ())),
    )


def cpu(work: Workload, prompt: int, context: int, variant: str) -> Estimate:
    """The cpu family on the two cores of benchmarks/results: memory bandwidth, then the matrix rate.

    Args:
        work: The model, with the bytes a token reads.
        prompt: Tokens of the prompt.
        context: Tokens in the cache.
        variant: The family's variant.

    Raises:
        UsageError: A model of tensors, or a variant without measurements.
    """
    c = values("cpu", f"cpu-{variant}")
    if not work.decoder or "decode_low" not in c:
        known = "cpu:avx512-vnni, and decoders"
        raise UsageError(f"the cost model of the cpu family is for {known}.", "Measure others: aicc bench.")
    read = work.bytes_per_token + work.kv_bytes(context)
    aside = c["prefill_layer"] * work.layers * prompt
    products = 2 * work.prompt_macs(prompt) / c["matrix"]
    return Estimate(
        1,
        0,
        _rates(read / c["bandwidth"] / c["decode_low"], read / c["bandwidth"] / c["decode_high"]),
        _rates(products / c["prefill_low"] + aside, products / c["prefill_high"] + aside, prompt),
        None,
        (f"for memory of {c['bandwidth'] / 1e9:.0f} GB/s and the two cores of benchmarks/results",),
    )


def _rates(slow: float, fast: float, count: int = 1) -> Range:
    return Range(count / slow, count / fast)


Model = Callable[[Workload, int, int], Estimate]


def model_of(target: str) -> Model:
    """The cost model of a target.

    Raises:
        UsageError: There is none.
    """
    family, _, variant = target.partition(":")
    if family == "groq":
        return groq
    if family == "cerebras":
        return lambda work, prompt, context: cerebras(work, prompt, context, variant)
    if family == "cpu":
        return lambda work, prompt, context: cpu(work, prompt, context, variant)
    raise UsageError(
        f"there is no cost model for {target}.",
        "There is one for groq, cerebras and cpu:avx512-vnni; what runs here is measured by aicc bench.",
    )
