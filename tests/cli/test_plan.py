"""`aicc plan`: counted where it can be, modelled and said so elsewhere, and no weight read."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from aicc.cli.main import main
from aicc.compiler.models import pull

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A model of 138 GB of which only the config is here."""
    (tmp_path / "llama-70b").mkdir()
    (tmp_path / "llama-70b" / "config.json").write_text(json.dumps(LLAMA_70B))
    return tmp_path / "llama-70b"


def test_a_config_alone_is_enough(llama: Path, capsys):
    arguments = ["plan", str(llama / "config.json"), "--target", "groq,cerebras", "--context", "4096", "--json"]
    assert main([*arguments, "--price", "2", "--price", "groq=0.5", "--utilisation", "0.5"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == 68_976_648_192
    groq, cerebras = report["targets"]
    assert [each["basis"] for each in report["targets"]] == ["modelled", "modelled"]
    assert groq["weight_bytes"] == 2 * report["parameters"]
    assert groq["kv_bytes"] == 2 * 2 * 80 * 8 * 128 * 4096
    assert groq["chips"] & (groq["chips"] - 1) == 0
    assert groq["chips"] * groq["chip_memory_bytes"] >= groq["weight_bytes"] + groq["kv_bytes"]
    assert cerebras["chips"] == 4
    for each, price in ((groq, 0.5), (cerebras, 2)):
        rate, cost = each["decode_tokens_per_s"], each["cost_per_million"]
        assert 0 < rate["low"] < rate["high"]
        assert cost["low"] == pytest.approx(each["chips"] * price / 3600 / rate["high"] / 0.5 * 1e6)


def test_a_real_model_for_a_processor_and_the_chips(capsys):
    assert main(["plan", "smollm2-135m", "--target", "groq,cerebras:wse2,cpu:avx512-vnni"]) == 0
    out, err = capsys.readouterr()
    assert "134,515,008" in out
    assert "modelled, not measured" in out
    assert "cpu:avx512-vnni" in out
    assert "benchmarks/results" in err


def test_a_model_of_tensors_has_runs_and_may_be_the_one_file_of_a_folder(capsys):
    assert main(["plan", str(pull("rapidocr-rec").parent), "--target", "groq", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "tensors"
    assert report["targets"][0]["runs_per_s"]["low"] > 0
    assert report["targets"][0]["decode_tokens_per_s"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--target", "openvino:cpu"], 2, "no cost model for openvino:cpu"),
        (["--target", "cpu:riscv64"], 2, "cost model of the cpu family is for"),
        (["--target", "tricorder"], 2, "no target 'tricorder'"),
        (["--prompt", "5000", "--context", "4096"], 2, "holds 4096"),
        (["--context", "5000"], 2, "holds 4096"),
        (["--utilisation", "nan"], 2, "nan is no fraction"),
        (["--price", "cheap"], 2, "'cheap' is no price"),
        (["--price", "cpu=1"], 2, "not among the targets"),
        (["--utilisation", "0"], 2, "utilisation"),
    ],
)
def test_what_cannot_be_planned_is_said(tmp_path: Path, capsys, arguments: list[str], code: int, says: str):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B | {"num_hidden_layers": 1}))
    assert main(["plan", str(tmp_path), *arguments]) == code
    assert says in capsys.readouterr().err


def test_a_product_of_nothing_takes_one_chip_and_no_byte(tmp_path: Path, capsys):
    text = "<ir_version: 8, opset_import: ['': 18]> g (float[1, 8] x) => (float[1, 0] y) "
    model = onnx.parser.parse_model(text.replace("'", '"') + "<float[8, 0] w = {}> { y = MatMul (x, w) }")
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["plan", str(tmp_path / "m.onnx"), "--target", "groq", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["targets"]
    assert (plan["chips"], plan["weight_bytes"]) == (1, 0)
