"""Hugging Face folders import to graphs that compute what transformers computes."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from miniatures import DECODERS, ENCODERS, decoder_logits, make_decoder, make_encoder, open_session
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from aicc.compiler.importers import Source, import_model
from aicc.compiler.importers.folder import read_folder
from aicc.compiler.models import pull
from aicc.runtime.artifact import EmbeddingFacts
from aicc.runtime.errors import IntegrityError, UnsupportedError

TOLERANCE = 1e-4


def imported_from(folder: Path):
    return import_model(Source(folder, "huggingface", "miniature"), importer="mobius")


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    make_decoder("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    model = make_decoder(name)
    model.save_pretrained(tmp_path)
    session = open_session(imported_from(tmp_path), tmp_path)
    ids = torch.randint(3, 211, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits.numpy()

    at_once = decoder_logits(session, ids.numpy(), [20])
    in_pieces = decoder_logits(session, ids.numpy(), [12, 13, 14, 20])

    np.testing.assert_allclose(at_once, expected, atol=TOLERANCE)
    np.testing.assert_allclose(in_pieces, expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_computes_what_transformers_computes_beside_padding(name: str, tmp_path: Path) -> None:
    model = make_encoder(name)
    model.save_pretrained(tmp_path)
    session = open_session(imported_from(tmp_path), tmp_path)
    ids = torch.randint(3, 211, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 15:], ids[1, 15:] = 0, model.config.pad_token_id
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()

    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": np.zeros((2, 20), np.int64)}
    found = session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})[0]

    present = mask.numpy() == 1
    np.testing.assert_allclose(found[present], expected[present], atol=TOLERANCE)


def test_minilm_keeps_its_embeddings(tmp_path: Path) -> None:
    folder = pull("minilm-l6")
    imported = import_model(Source(folder, "huggingface", "minilm-l6"))
    session = open_session(imported, tmp_path)
    tokenizer = Tokenizer.from_str(imported.tokenizer_json)
    encoded = tokenizer.encode_batch(["The sea is wide.", "A compiler turns one program into another, without a word."])
    ids = np.array([line.ids for line in encoded])
    mask = np.array([line.attention_mask for line in encoded])
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()

    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    found = session.run(None, feed)[0]

    pool = lambda hidden: (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)  # noqa: E731
    one, other = pool(found), pool(expected)
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > 0.99999
    assert imported.kind == "tensors"
    assert "sentence embedding: pool the last hidden state by mean_tokens and normalise it" in imported.notes
    assert imported.embedding == EmbeddingFacts("mean", normalize=True, max_tokens=256)


def write_sentence_transformer(folder: Path, modes: list[str], modules: list[str]) -> None:
    """The files that say how an encoder's states become one vector."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {
        f"pooling_mode_{mode}": mode in modes for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8} | pooling))
    types = [{"idx": i, "type": f"sentence_transformers.models.{name}"} for i, name in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(types))


@pytest.mark.parametrize(
    ("modes", "modules", "expected"),
    [
        (["cls_token"], ["Transformer", "Pooling"], EmbeddingFacts("cls", normalize=False, max_tokens=64)),
        (["max_tokens"], ["Transformer", "Pooling", "Normalize"], EmbeddingFacts("max", normalize=True, max_tokens=64)),
        (["lasttoken"], ["Transformer", "Pooling"], None),
        (["cls_token", "mean_tokens"], ["Transformer", "Pooling"], None),
        (["mean_tokens"], ["Transformer", "Pooling", "Dense"], None),
    ],
)
def test_an_embedding_is_known_if_it_is_exactly_what_can_be_made(
    tmp_path: Path, modes: list[str], modules: list[str], expected: EmbeddingFacts | None
) -> None:
    write_sentence_transformer(tmp_path, modes, modules)

    facts = read_folder(tmp_path, {"max_position_embeddings": 64})

    assert facts.embedding == expected
    assert any("embeddings cannot be served" in note for note in facts.notes) == (expected is None)


def test_modules_that_are_no_list_are_refused(tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path, ["mean_tokens"], [])
    (tmp_path / "modules.json").write_text('{"type": 1}')

    with pytest.raises(IntegrityError, match=r"modules\.json"):
        read_folder(tmp_path, {"max_position_embeddings": 64})


def test_weights_split_into_shards_import_as_one_model(tmp_path: Path) -> None:
    model = make_decoder("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    imported = imported_from(tmp_path)
    assert len(imported.weight_files) > 1
    weight = imported.graph.graph.initializers["model.layers.2.mlp.down_proj.weight"]
    np.testing.assert_array_equal(
        weight.const_value.numpy(), model.model.layers[2].mlp.down_proj.weight.detach().numpy()
    )


def test_bfloat16_weights_become_the_same_float32_numbers(tmp_path: Path) -> None:
    model = make_decoder("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    weight = imported_from(tmp_path).graph.graph.initializers["model.norm.weight"].const_value
    assert weight.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(weight.numpy(), model.model.norm.weight.detach().float().numpy())


def test_every_large_constant_is_lazy(llama_folder: Path) -> None:
    for name, value in imported_from(llama_folder).graph.graph.initializers.items():
        if name.endswith(".weight"):
            assert isinstance(value.const_value, ir.LazyTensor), name


def test_facts_come_from_the_folder(llama_folder: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"<s>": 1, "a": 3}, unk_token="a"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(llama_folder / "tokenizer.json"))
    (llama_folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    )
    (llama_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    (llama_folder / "chat_template.jinja").write_text("{{ messages }}")

    imported = imported_from(llama_folder)

    assert imported.kind == "decoder"
    assert imported.llm.eos_token_ids == (2, 7)
    assert (imported.llm.bos_token_id, imported.llm.add_bos) == (1, True)
    assert (imported.llm.layers, imported.llm.kv_heads, imported.llm.head_dim) == (3, 3, 12)
    assert imported.llm.context_length == 128
    assert imported.chat_template == "{{ messages }}"
    assert imported.tokenizer_config == {"bos_token": "<s>", "eos_token": "</s>"}


def test_context_is_cut_to_the_window_where_the_graph_attends_to_everything(llama_folder: Path) -> None:
    make_decoder("mistral", sliding_window=8).save_pretrained(llama_folder)
    imported = imported_from(llama_folder)
    assert imported.llm.context_length == 8
    assert any("attends to a window" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_would_not_be_exact_is_refused_by_name(llama_folder: Path, values: dict, named: str) -> None:
    change_config(llama_folder, **values)
    with pytest.raises(UnsupportedError, match=named):
        imported_from(llama_folder)


def test_an_architecture_not_known_here_names_the_other_importer(llama_folder: Path) -> None:
    change_config(llama_folder, model_type="mamba")
    with pytest.raises(UnsupportedError) as refused:
        imported_from(llama_folder)
    assert "--importer optimum" in refused.value.remedy


def test_context_is_cut_to_the_original_length_where_positions_are_scaled_beyond_it(tmp_path: Path) -> None:
    make_decoder("phi3 long positions").save_pretrained(tmp_path)
    imported = imported_from(tmp_path)
    assert imported.llm.context_length == 32
    assert any("turns positions by other angles" in note for note in imported.notes)
