"""A decoder small enough to run anywhere, with weights that are random but always the same.

It has everything a real one has for the runtime: two layers of causal attention with rotary
positions over past keys and values, and the inputs and outputs importers give.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from aicc.compiler.facts import graph_signatures
from aicc.compiler.package import ArtifactWriter
from aicc.compiler.report import CompileReport
from aicc.runtime.artifact import Artifact, Format, LlmFacts, Manifest, MemoryFacts, SourceInfo, Variant

HIDDEN, HEADS, KV_HEADS, SIZE = 32, 4, 2, 8
CONTEXT = 256
EOS = 2

_LAYER = """
    n{i} = RMSNormalization (x{i}, norm)
    q{i} = MatMul (n{i}, wq{i})
    k{i} = MatMul (n{i}, wk{i})
    v{i} = MatMul (n{i}, wv{i})
    qr{i} = RotaryEmbedding <num_heads: int = 4> (q{i}, cos, sin, position_ids)
    kr{i} = RotaryEmbedding <num_heads: int = 2> (k{i}, cos, sin, position_ids)
    a{i}, present__{i}__key, present__{i}__value = Attention
        <is_causal: int = 1, q_num_heads: int = 4, kv_num_heads: int = 2>
        (qr{i}, kr{i}, v{i}, , past_key_values__{i}__key, past_key_values__{i}__value)
    o{i} = MatMul (a{i}, wo{i})
    x{next} = Add (x{i}, o{i})
"""
_CACHES = [f"{i}__{kind}" for i in range(2) for kind in ("key", "value")]
_TEXT = f"""
<ir_version: 11, opset_import: ["" : 24]>
tiny (int64[batch, sequence] input_ids, int64[batch, total] attention_mask, int64[batch, sequence] position_ids,
      {", ".join(f"float[batch, {KV_HEADS}, past, {SIZE}] past_key_values__{name}" for name in _CACHES)})
  => (float[batch, sequence, vocab] logits,
      {", ".join(f"float[batch, {KV_HEADS}, total, {SIZE}] present__{name}" for name in _CACHES)})
{{
    x0 = Gather (embedding, input_ids)
    {_LAYER.format(i=0, next=1)}
    {_LAYER.format(i=1, next=2)}
    final = RMSNormalization (x2, norm)
    logits = MatMul (final, head)
}}
"""


def tiny_graph(vocab: int) -> ir.Model:
    rng = np.random.default_rng(7)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    angles = np.arange(CONTEXT)[:, None] / 100.0 ** (np.arange(SIZE // 2) * 2 / SIZE)
    weights = {"norm": np.ones(HIDDEN, np.float32), "embedding": random(vocab, HIDDEN), "head": random(HIDDEN, vocab)}
    weights |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    for i in range(2):
        weights |= {f"wq{i}": random(HIDDEN, HIDDEN), f"wo{i}": random(HIDDEN, HIDDEN)}
        weights |= {f"wk{i}": random(HIDDEN, KV_HEADS * SIZE), f"wv{i}": random(HIDDEN, KV_HEADS * SIZE)}
    proto = onnx.parser.parse_model(_TEXT.replace("vocab]", f"{vocab}]"))
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    model = ir.from_proto(proto)
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.name = value.name.replace("__", ".")  # ONNX text has no dots in names
    return model


def write_tiny(
    output: Path,
    vocab: int,
    tokenizer_json: str | None = None,
    template: str | None = None,
    target: str = "reference:cpu",
) -> Artifact:
    """An artifact of the tiny decoder, as a family that evaluates portable graphs would make it."""
    graph = tiny_graph(vocab)
    facts = LlmFacts(CONTEXT, vocab, layers=2, kv_heads=KV_HEADS, head_dim=SIZE, eos_token_ids=(EOS,))
    manifest = Manifest(
        format=Format(0, 0),
        name="tiny",
        kind="decoder",
        producer={},
        source=SourceInfo("tiny", "onnx", "0" * 64),
        quantization="float32",
        signatures=graph_signatures(graph),
        variants=(Variant(target.replace(":", "-"), target, ()),),
        memory=MemoryFacts(weight_bytes=1000),
        files=(),
        llm=facts,
    )
    with ArtifactWriter(output) as writer:
        writer.write_graph(graph)
        if tokenizer_json is not None:
            writer.write_tokenizer(tokenizer_json, template, {"bos_token": "<|im_start|>"})
        return writer.commit(manifest, CompileReport(target=target, quantization="float32"))
