"""GGUF files import with their own integers, and compute what the model they were made from computes."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import jinja2
import numpy as np
import onnx_ir as ir
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType
from gguf.constants import GGML_QUANT_SIZES
from gguf_samples import ARCHITECTURES, SIZES, write_gguf
from miniatures import decoder_logits, make_decoder, open_session
from tokenizers import Tokenizer

from aicc.compiler.importers import ImportedModel, Source, import_model
from aicc.compiler.importers.gguf_blocks import FORMATS, block_tensors
from aicc.compiler.models import pull
from aicc.compiler.quantization.blockwise import match_blockwise
from aicc.runtime.errors import UnsupportedError

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = json.loads((GOLDEN / "smollm2-135m-instruct.json").read_text())
GEMMA3 = {"num_hidden_layers": 7, "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]}


def sizes_of(name: str) -> dict:
    gemma = {"query_pre_attn_scalar": 16} if name.startswith("gemma") else {}
    return SIZES | gemma | (GEMMA3 if name == "gemma3" else {})


def imported_from(path: Path) -> ImportedModel:
    return import_model(Source(path, "gguf", "miniature"))


def logits_of(imported: ImportedModel, folder: Path, ids: torch.Tensor) -> np.ndarray:
    return decoder_logits(open_session(imported, folder), ids.numpy(), [12, ids.shape[1]])


def some_ids() -> torch.Tensor:
    return torch.randint(3, 60, (1, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def smollm() -> ImportedModel:
    return imported_from(pull("smollm2-135m"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_computes_what_it_was_converted_from(name: str, tmp_path: Path) -> None:
    model = make_decoder(name, **sizes_of(name))
    path = write_gguf(tmp_path / "m.gguf", model, ARCHITECTURES[name])
    found = logits_of(imported_from(path), tmp_path, some_ids())
    with torch.no_grad():
        np.testing.assert_allclose(found, model(some_ids()).logits.numpy(), atol=1e-4)


IN_32S = [kind for kind in FORMATS if GGML_QUANT_SIZES[kind][0] == 32]


@pytest.mark.parametrize("kind", [GgmlType.F16, GgmlType.BF16, *IN_32S], ids=lambda kind: kind.name)
def test_quantised_weights_compute_as_their_dequantised_values(kind: GgmlType, tmp_path: Path) -> None:
    model = make_decoder("llama", **SIZES, tie_word_embeddings=True)
    path = write_gguf(tmp_path / "m.gguf", model, "llama", kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                blocks = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy()))
        expected = model(some_ids()).logits.numpy()
    np.testing.assert_allclose(logits_of(imported_from(path), tmp_path, some_ids()), expected, atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_blocks_as_integers_are_exactly_ggmls_numbers(kind: GgmlType) -> None:
    random = np.random.default_rng(0)
    size = GGML_QUANT_SIZES[kind][1]
    blocks = random.integers(0, 256, (18, size), dtype=np.uint8)
    halves = {"Q6_K": [208], "Q4_0": [0], "Q5_0": [0], "Q8_0": [0]}.get(kind.name, [0, 2])
    for start in halves:  # the float16 fields; random bytes there would be infinities
        blocks[:, start : start + 2] = random.normal(0, 0.1, (18, 1)).astype(np.float16).view(np.uint8)
    rows = blocks.reshape(6, -1)

    parts = block_tensors(rows, kind)

    scales = np.repeat(parts.scales.numpy().astype(np.float32), parts.group, axis=1)
    weight = parts.values.numpy().astype(np.float32) * scales
    if parts.minimum is not None:
        weight += np.repeat(parts.minimum.numpy()[..., 0].astype(np.float32), parts.group, axis=1)
    np.testing.assert_array_equal(weight, gguf.quants.dequantize(rows, kind))


def test_a_format_without_integer_form_is_dequantised_and_noted(tmp_path: Path) -> None:
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
    model = make_decoder("qwen2", **sizes | {"num_attention_heads": 4, "num_key_value_heads": 2})
    imported = imported_from(write_gguf(tmp_path / "m.gguf", model, "qwen2", GgmlType.TQ2_0))
    weight = imported.graph.graph.initializers["model.layers.0.mlp.up_proj.weight"].const_value
    blocks = gguf.quants.quantize(model.model.layers[0].mlp.up_proj.weight.detach().numpy(), GgmlType.TQ2_0)
    np.testing.assert_array_equal(weight.numpy(), gguf.quants.dequantize(blocks, GgmlType.TQ2_0))
    assert any("ffn_up" in note and "TQ2_0" in note and "dequantised" in note for note in imported.notes)


def test_frequencies_are_divided_by_the_files_factors(tmp_path: Path) -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = make_decoder("llama", **SIZES, rope_parameters=scaled | {"original_max_position_embeddings": 32})
    plain = 1e4 ** (-np.arange(8) / 8)
    model.register_buffer("rope_freqs", torch.from_numpy(plain) / model.model.rotary_emb.inv_freq)
    path = write_gguf(tmp_path / "m.gguf", model, "llama")
    with torch.no_grad():
        expected = model(some_ids()).logits.numpy()
    np.testing.assert_allclose(logits_of(imported_from(path), tmp_path, some_ids()), expected, atol=1e-4)


def test_linear_position_scaling_is_kept(tmp_path: Path) -> None:
    model = make_decoder("qwen2", **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "m.gguf", model, "qwen2", extra=scaling)
    with torch.no_grad():
        expected = model(some_ids()).logits.numpy()
    np.testing.assert_allclose(logits_of(imported_from(path), tmp_path, some_ids()), expected, atol=1e-4)


def test_smollm_keeps_every_quantised_matrix(smollm: ImportedModel) -> None:
    assert "matrices read as the Q4_1 integers they are: 210" in smollm.notes
    assert "matrices read as the Q8_0 integers they are: 1" in smollm.notes


def test_smollm_shares_one_embedding_between_both_ends(smollm: ImportedModel) -> None:
    embedding = next(n for n in smollm.graph.graph if n.op_type == "Gather" and "embed" in n.inputs[0].name).inputs[0]
    assert {use.node.op_type for use in embedding.uses()} == {"Gather", "Transpose"}
    matched = match_blockwise(embedding)
    assert (matched.bits, matched.group_size, matched.offset) == (8, 32, "none")
    assert matched.scales.dtype == ir.DataType.FLOAT16


def test_smollm_facts(smollm: ImportedModel) -> None:
    facts = smollm.llm
    assert (facts.context_length, facts.vocab_size, facts.layers) == (8192, 49152, 30)
    assert (facts.kv_heads, facts.head_dim, facts.eos_token_ids, facts.add_bos) == (3, 64, (2,), False)
    assert smollm.tokenizer_config["eos_token"] == "<|im_end|>"
    assert smollm.info.licence == "apache-2.0"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"])
def test_smollm_tokenises_as_the_reference(smollm: ImportedModel, case: dict) -> None:
    text = case["text"]
    if case["kind"] == "chat":
        template = jinja2.Environment().from_string(smollm.chat_template)
        text = template.render(messages=[{"role": "user", "content": text}], add_generation_prompt=True)
    assert Tokenizer.from_str(smollm.tokenizer_json).encode(text).ids == case["prompt_ids"]


def test_smollm_logits_are_the_references(smollm: ImportedModel, tmp_path: Path) -> None:
    session = open_session(smollm, tmp_path)
    references = np.load(GOLDEN / "smollm2-135m-instruct.npz")
    for index, case in enumerate(CASES):
        found = decoder_logits(session, np.array([case["prompt_ids"]]), [len(case["prompt_ids"])])[0, -1]
        expected = references[f"logits_{index}"]
        assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.99999
        assert found.argmax() == expected.argmax()


def test_a_model_without_an_end_says_so(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_decoder("llama", **SIZES), "llama")
    assert any("no token that ends a text" in note for note in imported_from(path).notes)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux which pages of the file are resident")
def test_importing_reads_the_header_and_no_weight() -> None:
    path = pull("smollm2-135m")
    script = (
        "import sys; from pathlib import Path\n"
        "from aicc.compiler.importers import Source, import_model\n"
        "model = import_model(Source(Path(sys.argv[1]), 'gguf', 'm'), digest=False)\n"
        "lines = open('/proc/self/smaps').read().splitlines()\n"
        "at = next(i for i, line in enumerate(lines) if line.endswith(sys.argv[1]))\n"
        "print(next(line.split()[1] for line in lines[at:] if line.startswith('Rss:')))\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) * 1024 < 0.05 * path.stat().st_size


@pytest.mark.parametrize(
    ("extra", "named"),
    [({"expert_count": 8}, "mixture of experts"), ({"rope.scaling.type": "yarn"}, "yarn")],
)
def test_forms_of_a_model_not_known_here_are_refused(tmp_path: Path, extra: dict, named: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_decoder("llama", **SIZES), "llama", extra=extra)
    with pytest.raises(UnsupportedError, match=named):
        imported_from(path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "wonder")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="wonder"):
        imported_from(path)
