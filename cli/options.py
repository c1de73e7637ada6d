"""Options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from aicc.compiler.sizes import Sizes

DEFAULT_TARGET = "openvino:cpu"  # runs wherever the project's own tests do
# As the compiler has them, which --help cannot afford to import.
QUANTS = ("auto", "fp32", "bf16", "fp16", "fp8", "int8", "int4")
KVS = ("auto", "fp32", "fp16", "int8")
ACTIVATIONS = ("auto", "mixed", "int8", "uint8", "int16", "uint16")
PARTITIONS = ("chip", "host")
IMPORTERS = ("auto", "mobius", "optimum")
_SIZE = re.compile("[1-9][0-9]{0,9}")
PHASES = ("import", "optimize", "quantize", "lower", "package")


def _sizes(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> Sizes:
    sizes: dict[str, int | tuple[int, ...]] = {}
    for text in given:
        name, _, listed = text.rpartition("=")
        numbers = listed.split(",")
        if not name or not all(_SIZE.fullmatch(n) and int(n) < 1 << 31 for n in numbers):
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise click.BadParameter(f"{shown!r} is not NAME=N with a whole number from 1 to {(1 << 31) - 1}.")
        if name in sizes:
            raise click.BadParameter(f"{name!r} is given twice.")
        sizes[name] = int(listed) if len(numbers) == 1 else tuple(map(int, numbers))
    return sizes


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that decide what is compiled, and for what."""
    options = [
        click.option(
            "--target",
            "-t",
            default=DEFAULT_TARGET,
            show_default=True,
            metavar="TARGET",
            help="What to compile for; `aicc targets` lists them. Several of one family, with commas between, share "
            "one artifact's weights; the best that a machine can run is what it loads.",
        ),
        click.option(
            "--quant",
            type=click.Choice(QUANTS),
            default="auto",
            show_default=True,
            help="Number format of the weights. auto keeps a quantised source as published where the target can "
            "and stores other language models as int8; models of tensors stay as they are. int8 and int4 leave weights "
            "that the source has in so few bits already, unless --group-size is given too. fp8 is e4m3 with scales by "
            "row. Not every target has bf16 and fp8.",
        ),
        click.option(
            "--group-size",
            type=click.IntRange(min=1),
            metavar="N",
            help="Weights that share a scale, for int8 and int4. Smaller is closer to the source and larger on disk.",
        ),
        click.option(
            "--kv",
            type=click.Choice(KVS),
            default="auto",
            show_default=True,
            help="Number format of a decoder's KV cache. auto is the target's own choice; int8 has a scale for each "
            "head and token.",
        ),
        click.option(
            "--size",
            "sizes",
            multiple=True,
            metavar="NAME=N",
            callback=_sizes,
            help="For targets of fixed shapes: the size of a dimension that the model leaves open, by its name there "
            "or else as INPUT.AXIS, or context=N, the tokens a decoder is made for; context=N,M makes "
            "graphs for each, and a text runs in the smallest that holds it. May be given several times.",
        ),
        click.option(
            "--partition",
            type=click.Choice(PARTITIONS),
            default="chip",
            show_default=True,
            help="Who runs the graph. With chip, the chip runs all of it, or it is refused. With host, on hexagon, the "
            "device's own processor runs what the chip refuses; the report of a compile names it, and the bytes that "
            "go to and fro.",
        ),
        click.option(
            "--importer",
            type=click.Choice(IMPORTERS),
            default="auto",
            show_default=True,
            help="What reads Hugging Face and GGUF models. auto takes mobius, and optimum (optimum-intel, in an "
            "environment of its own) for Hugging Face folders of an architecture mobius does not know; what optimum "
            "exports is for openvino targets only.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--device`` and ``--threads``, of every command that loads an artifact."""
    command = click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="Threads to compute with. [default: all usable]"
    )(command)
    return click.option(
        "--device",
        metavar="TARGET",
        help="Target, family or device the artifact must have been compiled for. Nothing else is used "
        "instead. [default: the best variant of its family that this machine can run]",
    )(command)


def kv_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--kv-tokens``, of commands that run a language model."""
    return click.option(
        "--kv-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens the KV cache holds, over all conversations at once. [default: one full context]",
    )(command)


def speculate_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--speculate``, of commands that generate text."""
    return click.option(
        "--speculate",
        is_flag=True,
        help="Guess tokens from what the text says already, and compute several in a step: faster where it "
        "repeats itself. What is said does not depend on it, as far as the chip computes a token alike "
        "alone and among others.",
    )(command)


def draft_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--draft``, of commands that generate text."""
    return click.option(
        "--draft",
        type=click.Path(path_type=Path),
        metavar="ARTIFACT",
        help="A much smaller model with the same tokenizer, which guesses tokens instead of --speculate: faster "
        "where it is often right. What is said does not depend on it either.",
    )(command)


def refuse_options(names: Sequence[str], why: str) -> None:
    """Refuse options of the running command that would have no effect.

    Args:
        names: Parameters of the command.
        why: What the artifact is that has no use for them.

    Raises:
        click.UsageError: One was given.
    """
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)} would have no effect: {why}")


def input_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--input``, of commands that run a model of tensors."""
    return click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME=FILE",
        help="An input of a model of tensors, from a .npy file. Repeatable.",
    )(command)


def sampling_options(temperature: float, max_tokens: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that say how tokens are chosen; ranges are checked by the runtime."""
    options = [
        click.option("--system", metavar="TEXT", help="System message the conversation starts with."),
        click.option(
            "--max-tokens",
            type=int,
            metavar="N",
            default=max_tokens,
            show_default=True,
            help="Most tokens to generate.",
        ),
        click.option(
            "--temperature",
            type=float,
            metavar="T",
            default=temperature,
            show_default=True,
            help="0 takes the likeliest token.",
        ),
        click.option(
            "--top-p",
            type=float,
            metavar="P",
            default=1.0,
            show_default=True,
            help="Draw among this share of likelihood.",
        ),
        click.option(
            "--top-k", type=int, metavar="K", default=0, show_default=True, help="Draw among the K likeliest; 0 is all."
        ),
        click.option(
            "--seed", type=int, metavar="N", help="Seed of the draws, to repeat an answer. [default: a fresh one]"
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text appears. Repeatable."),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
