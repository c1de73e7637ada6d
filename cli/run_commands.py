"""``aicc run`` and ``aicc chat``: one answer, or a conversation. Neither needs the compiler."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aicc.cli.options import (
    draft_option,
    input_option,
    kv_option,
    refuse_options,
    runtime_options,
    sampling_options,
    speculate_option,
)
from aicc.cli.output import note, note_compatibility, print_json, write_text

if TYPE_CHECKING:
    from aicc.runtime import Model
    from aicc.runtime.request import Piece, Request

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
CHAT_TOKENS = 2048  # long enough for any answer, short enough for one that repeats itself


@click.command(short_help="Answer one prompt, or run once on tensors.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@sampling_options(temperature=0.0, max_tokens=256)
@click.option("--raw", is_flag=True, help="Give the model the prompt as it is, without its chat template.")
@input_option
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where a model of tensors writes NAME.npy for each output.",
)
@click.option(
    "--signature", metavar="NAME", default="default", show_default=True, help="Entry point of a model of tensors."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@kv_option
@speculate_option
@draft_option
@runtime_options
def run(
    artifact: Path,
    prompt: str | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop: tuple[str, ...],
    raw: bool,
    inputs: tuple[str, ...],
    output_dir: Path | None,
    signature: str,
    as_json: bool,
    kv_tokens: int | None,
    speculate: bool,
    draft: Path | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Run ARTIFACT once.

    A language model answers PROMPT (- reads it from standard input); the text streams to stdout,
    speed and device go to stderr. A model of tensors takes --input and --output-dir instead.
    """
    from aicc.runtime.artifact import Artifact

    manifest = Artifact.open(artifact).manifest
    if manifest.kind != "decoder":
        from aicc.cli.run_tensors import run_tensors

        if prompt is not None:
            raise click.UsageError(f"{artifact} is a model of tensors: it takes --input NAME=FILE, not a prompt.")
        for_decoders = ("system", *SAMPLING, "raw", "kv_tokens", "speculate", "draft")
        refuse_options(for_decoders, f"{artifact} is a model of tensors.")
        if output_dir is None and not as_json:
            from aicc.runtime.session import what_it_takes

            takes = what_it_takes(manifest.signatures[signature].inputs) if signature in manifest.signatures else ""
            raise click.UsageError(
                f"Missing option '--output-dir': where {artifact}, a model of tensors, writes its outputs. {takes}"
            )
        return run_tensors(artifact, inputs, output_dir, signature, as_json, device, threads)
    for_tensors = ("inputs", "output_dir", "signature")
    refuse_options(for_tensors, f"{artifact} is a language model and takes a prompt.")
    if prompt is None:
        raise click.UsageError("Missing argument 'PROMPT' (- reads it from standard input).")
    options = _sampling(max_tokens, temperature, top_p, top_k, seed, stop)
    text = sys.stdin.read() if prompt == "-" else prompt
    with _load(artifact, device, threads, kv_tokens, speculate, draft) as (model, load_s):
        answer(model, text, system, raw, options, load_s, as_json)


def answer(
    model: Model, prompt: str, system: str | None, raw: bool, options: dict[str, Any], load_s: float, as_json: bool
) -> None:
    """Generate once, streaming the text to stdout or printing the document at the end."""
    templated = model.has_chat_template and not raw
    if raw and system is not None:
        raise click.UsageError("--system needs the chat template that --raw leaves out.")
    if not templated and not raw:
        if system is not None:
            raise click.UsageError("--system needs a chat template, and this model has none.")
        note("this model has no chat template; the prompt is given as it is")
    given: str | Sequence[int] = prompt
    if templated:
        given = model.chat_ids([*_system(system), {"role": "user", "content": prompt}])
    request, pieces = start(model, given, options)
    texts = []
    for piece in pieces:
        texts.append(piece.text)
        if not as_json:
            write_text(piece.text)
    if not as_json:
        write_text("\n")
    if request.finish_reason == "length":
        note("(the answer was cut off: --max-tokens or the context is used up)")
    timings = request.timings
    note(
        f"{timings.completion_tokens} tokens at {timings.decode_tokens_per_s:.1f} tokens/s, the first "
        f"{timings.prefill_s:.2f} s after a prompt of {timings.prompt_tokens}, on {model.device}; "
        f"loaded in {load_s:.2f} s"
    )
    if drafted := model.engine.counters.drafted_tokens:
        note(f"{model.engine.counters.accepted_tokens} of {drafted} guessed tokens were right")
    if as_json:
        from aicc.cli.documents import RunDocument, RunTimings, Usage

        print_json(
            RunDocument(
                text="".join(texts),
                token_ids=request.completion_ids,
                finish_reason=str(request.finish_reason),
                usage=Usage(
                    prompt_tokens=timings.prompt_tokens,
                    completion_tokens=timings.completion_tokens,
                    total_tokens=timings.prompt_tokens + timings.completion_tokens,
                ),
                timings=RunTimings(
                    load_s=load_s,
                    prefill_s=timings.prefill_s,
                    decode_s=timings.decode_s,
                    prefill_tokens_per_s=timings.prefill_tokens_per_s,
                    decode_tokens_per_s=timings.decode_tokens_per_s,
                ),
                device=model.device,
                target=model.target,
                chat_template=templated,
            )
        )


@click.command(short_help="Talk to a model.")
@click.argument("artifact", type=click.Path(path_type=Path))
@sampling_options(temperature=0.3, max_tokens=CHAT_TOKENS)
@kv_option
@speculate_option
@draft_option
@runtime_options
def chat(
    artifact: Path,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop: tuple[str, ...],
    kv_tokens: int | None,
    speculate: bool,
    draft: Path | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Talk to ARTIFACT.

    Type a message and press Enter. /reset forgets the conversation, /exit (or Ctrl-D) leaves;
    Ctrl-C stops an answer and keeps what was said so far.
    """
    from aicc.runtime.artifact import Artifact
    from aicc.runtime.errors import UsageError

    if Artifact.open(artifact).manifest.kind != "decoder":
        raise UsageError(f"{artifact} is a model of tensors and cannot chat.", "Run it: aicc run ARTIFACT --input …")
    options = _sampling(max_tokens, temperature, top_p, top_k, seed, stop)
    with _load(artifact, device, threads, kv_tokens, speculate, draft) as (model, load_s):
        note(
            f"{model.manifest.name} on {model.device}, loaded in {load_s:.2f} s; /reset, /exit, Ctrl-C stops an answer"
        )
        converse(model, _system(system), options)


def converse(model: Model, opening: list[dict[str, str]], options: dict[str, Any]) -> None:
    """The loop of a conversation: read, answer, remember."""
    from aicc.runtime.errors import ContextLengthError, UsageError

    model.chat_template.check()  # a model without one says so now, not after the first message
    messages = list(opening)
    for line in _lines():
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(opening)
            note("the conversation is forgotten")
            continue
        if line.startswith("/"):
            note(f"there is no command {line.split()[0]}; there are /reset and /exit")
            continue
        messages.append({"role": "user", "content": line})
        try:
            text = _say(model, messages, options)
        except ContextLengthError as full:
            messages.pop()
            note(f"{full.message} /reset starts anew.")
            continue
        except UsageError as refused:  # the template will not have this conversation
            messages.pop()
            note(str(refused))
            continue
        messages.append({"role": "assistant", "content": text})


def _say(model: Model, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    """Answer the conversation; Ctrl-C keeps what was said so far."""
    text, reason = "", ""
    try:
        _, pieces = start(model, model.chat_ids(messages), options)
        with closing(pieces):
            for piece in pieces:
                text += piece.text
                reason = piece.finish_reason or ""
                write_text(piece.text)
    except KeyboardInterrupt:
        reason = "interrupted"
    write_text("\n")
    if reason == "interrupted":
        note("(stopped)")
    elif reason == "length":
        note("(the answer was cut off: --max-tokens or the context is used up)")
    return text


def _lines() -> Iterator[str]:
    """Messages typed by a person, or lines of a pipe, until the end of input."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  - gives input() editing and history
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            if terminal:
                write_text("\n")
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            write_text("\n")
            continue
        if line:
            yield line


def start(
    model: Model, prompt: str | Sequence[int], options: dict[str, Any]
) -> tuple[Request, Generator[Piece, None, None]]:
    """A request and the pieces it will give; its timings are complete when they end."""
    from aicc.runtime.sampling import SamplingParams

    pieces: deque[Piece] = deque()
    request = model.request(prompt, SamplingParams(**options), pieces.append)
    return request, model.drive(request, pieces)


class _load:
    """Context manager: the model of an artifact and the seconds loading took."""

    def __init__(
        self,
        artifact: Path,
        device: str | None,
        threads: int | None,
        kv_tokens: int | None,
        speculate: bool,
        draft: Path | None,
    ) -> None:
        from aicc.runtime import SpeculationOptions, load

        if speculate and draft is not None:
            raise click.UsageError("--draft and --speculate exclude each other: leave one of them out.")

        started = time.perf_counter()
        speculation = SpeculationOptions() if speculate else None
        self._model: Any = load(artifact, device, threads, kv_tokens, speculation=speculation, draft=draft)
        self._seconds = time.perf_counter() - started
        note_compatibility(self._model.compatibility)

    def __enter__(self) -> tuple[Model, float]:
        return self._model, self._seconds

    def __exit__(self, *_: object) -> None:
        self._model.close()


def _system(text: str | None) -> list[dict[str, str]]:
    return [] if text is None else [{"role": "system", "content": text}]


def _sampling(
    max_tokens: int, temperature: float, top_p: float, top_k: int, seed: int | None, stop: tuple[str, ...]
) -> dict[str, Any]:
    """The options as fields of ``SamplingParams``, checked before the model is loaded."""
    from aicc.runtime.sampling import SamplingParams

    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
    }
    SamplingParams(**options)  # type: ignore[arg-type]
    return options
