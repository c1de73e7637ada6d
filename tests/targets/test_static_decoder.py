"""Decoders as graphs of fixed shapes in simple operators, the cache kept by the host, against transformers."""

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from miniatures import make_decoder
from token_batch import token_batch
from tolerances import assert_within

from aicc.compiler.facts import graph_signatures
from aicc.compiler.importers import ImportedModel, Source, import_model
from aicc.compiler.legalise import legalise
from aicc.compiler.passes.explicit_cache import decoder_steps, mask_inputs
from aicc.compiler.passes.static_shapes import is_static
from aicc.compiler.sizes import fix_sizes
from aicc.runtime.errors import ResourceError, UsageError
from aicc.runtime.provider import TokenBatch
from aicc.runtime.target import find_target
from aicc.targets.portable import Evaluate
from aicc.targets.static_decoder import StaticDecoder, Step

# Windows, capped scores, half of each head turned, normalised heads, means and Gelu: each a rule of its own.
NAMES = ("llama", "gemma3", "gemma2", "phi3", "qwen3", "starcoder2")
SIMPLE = ("Attention", "RotaryEmbedding", "RMSNormalization", "LayerNormalization", "Gelu", "Swish")
TARGET = msgspec.structs.replace(find_target("null:host"), op_rules=dict.fromkeys(SIMPLE, "decompose"), shapes="static")
CONTEXT, TOKENS = 32, 28


def _evaluate(model: ir.Model) -> Evaluate:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _decoder(imported: ImportedModel, *contexts: int) -> StaticDecoder:
    steps, biases = {}, set()
    fix_sizes(imported, TARGET, {"context": contexts})
    for step, model in decoder_steps(imported):
        legalise(model, TARGET)
        assert all(is_static(value) for node in model.graph for value in node.outputs)
        assert not {node.op_type for node in model.graph} & set(SIMPLE)
        steps[step] = _evaluate(model)
        biases |= {*mask_inputs(model)}
    return StaticDecoder(steps, biases, graph_signatures(imported.graph), "onnxruntime", 64)


def _batch(tokens: np.ndarray, past: int, page: int = 0) -> TokenBatch:
    """One sequence in three pages of 16, all its logits wanted."""
    return token_batch([tokens], [past], [range(page, page + 3)])


@pytest.mark.parametrize(
    ("name", "contexts"), [(name, (CONTEXT,)) for name in NAMES] + [("gemma3", (8, 16, CONTEXT))], ids=str
)
def test_pieces_of_any_length_compute_what_transformers_computes_at_once(
    name: str, contexts: tuple[int, ...], tmp_path: Path
) -> None:
    model = make_decoder(name)
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 211, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits.numpy()[0]
    decoder = _decoder(import_model(Source(tmp_path, "huggingface", "miniature")), *contexts)
    pieces = [_batch(ids.numpy()[0, a:b], a) for a, b in ((0, 5), (5, 13), (13, 14), (14, 23), (23, TOKENS))]
    assert_within("model", np.concatenate([decoder.forward(piece) for piece in pieces]), expected)
    decoder.close()


def test_a_sequence_longer_than_the_compiled_context_is_refused(tmp_path: Path) -> None:
    make_decoder("llama").save_pretrained(tmp_path)
    decoder = _decoder(import_model(Source(tmp_path, "huggingface", "miniature")), 16, CONTEXT)
    for past in range(0, CONTEXT, 8):
        decoder.forward(_batch(np.arange(3, 11), past))
    with pytest.raises(ResourceError, match="32 tokens of context"):
        decoder.forward(_batch(np.array([3]), CONTEXT))


def test_the_context_may_end_within_a_chunk(tmp_path: Path) -> None:
    """Near the end the cache leaves no room for a whole chunk, and single tokens go on."""
    model = make_decoder("llama")
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 211, (1, CONTEXT), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(ids).logits.numpy()[0]
    decoder = _decoder(import_model(Source(tmp_path, "huggingface", "miniature")), CONTEXT)
    pieces = [_batch(ids.numpy()[0, a:b], a) for a, b in ((0, 8), (8, 16), (16, 21), (21, 28), (28, CONTEXT))]
    assert_within("model", np.concatenate([decoder.forward(piece) for piece in pieces]), expected)


def test_a_sequence_runs_in_the_smallest_context_that_holds_it_and_goes_on_in_the_next(tmp_path: Path) -> None:
    make_decoder("llama").save_pretrained(tmp_path)
    decoder, ran = _decoder(import_model(Source(tmp_path, "huggingface", "miniature")), 8, CONTEXT), []

    def noting(step: Step, evaluate: Evaluate) -> Evaluate:
        return lambda inputs: ran.append((step.name, inputs["past_key_values.0.key"].shape[2])) or evaluate(inputs)

    decoder._steps = {step: noting(step, evaluate) for step, evaluate in decoder._steps.items()}
    for past, count in ((0, 4), (4, 3), (7, 1), (8, 1), (9, 16)):
        decoder.forward(_batch(np.arange(3, 3 + count), past))
    assert ran == [
        ("prefill-8", 4), ("prefill-8", 4), ("decode-8", 7), ("decode-32", 31), ("prefill-32", 16)
    ]  # fmt: skip


@pytest.mark.parametrize(("contexts", "wrong"), [((1, 8), "1 tokens"), ((8, 1000), "1000 tokens")])
def test_a_context_the_model_does_not_have_is_refused(contexts: tuple[int, ...], wrong: str, tmp_path: Path) -> None:
    make_decoder("llama").save_pretrained(tmp_path)
    imported = import_model(Source(tmp_path, "huggingface", "miniature"))
    with pytest.raises(UsageError, match=f"a context of {wrong} is none this model has"):
        fix_sizes(imported, TARGET, {"context": contexts})
