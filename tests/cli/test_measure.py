"""``aicc bench``, ``aicc eval`` and ``aicc serve``: each does on the command line what its own tests show in full."""

import json
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import msgspec
from aicc_command import AICC, Run

from aicc.runtime.artifact import Artifact, Quality
from aicc.runtime.bench import DecoderBench, TensorBench

TEXT = """The lighthouse keeper climbed the stairs every evening to light the lamp. Ships far out at sea
turned away from the rocks when they saw it, and in the morning he wrote their names into a book."""


def test_bench_measures_speed_memory_and_the_share_of_the_bandwidth(aicc: Run, demo_artifact: Artifact):
    done = aicc("bench", demo_artifact.path, "--prompt-tokens", 16, "--decode-tokens", 4, "--repeat", 1, "--json")
    result = msgspec.json.decode(done.out, type=DecoderBench)
    assert set(json.loads(done.out)) == {field.name for field in msgspec.structs.fields(DecoderBench)}
    assert min(result.prefill_tokens_per_s, result.decode_tokens_per_s, result.load_s, result.peak_rss_bytes) > 0
    assert result.weight_bytes_per_token == demo_artifact.manifest.llm.weight_bytes_per_token
    assert result.bandwidth_fraction == (
        result.decode_tokens_per_s * result.weight_bytes_per_token / result.read_bandwidth_bytes_per_s
    )


def test_bench_of_a_model_of_tensors_takes_its_inputs(aicc: Run, tensors_artifact: Path, arrays: dict[str, Path]):
    inputs = [word for name, path in arrays.items() for word in ("--input", f"{name}={path}")]
    result = msgspec.json.decode(aicc("bench", tensors_artifact, *inputs, "--json").out, type=TensorBench)
    assert result.inputs == {"x": [2, 4], "y": [3]}
    assert "one run" in aicc("bench", tensors_artifact, "--repeat", 2).out


def test_bench_says_what_is_not_as_it_was_compiled(aicc: Run, old_demo: Path):
    done = aicc("bench", old_demo, "--prompt-tokens", 2, "--decode-tokens", 1, "--repeat", 1, "--json")
    remark = msgspec.json.decode(done.out, type=DecoderBench).remark
    assert remark.startswith("it was made with OpenVINO 2025.0.0")
    assert done.err == f"note: {remark}\n"


def test_eval_compares_an_artifact_with_its_source_on_a_text_and_says_what_is_not_as_compiled(
    aicc: Run, old_demo: Path, tmp_path: Path
):
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["eval", old_demo, "--reference", "smollm2-135m", "--text", tmp_path / "text.txt", "--json"]
    done = aicc(*words)
    result = msgspec.json.decode(done.out, type=Quality)
    assert set(json.loads(done.out)) == {field.name for field in msgspec.structs.fields(Quality)}
    assert 0 <= result.kl_mean < 0.02
    assert result.kl_mean <= result.kl_p99
    assert result.top1_agreement >= 0.9
    assert abs(result.ppl / result.ppl_reference - 1) < 0.05
    assert result.text.startswith("text.txt sha256:")
    assert result.tokens > 30
    assert "note: it was made with OpenVINO 2025.0.0" in done.err


def test_eval_needs_a_language_model(aicc: Run, tensors_artifact: Path):
    done = aicc("eval", tensors_artifact, "--reference", "smollm2-135m")
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_serve_says_what_is_not_as_compiled_and_answers_until_ctrl_c(old_demo: Path):
    words = [AICC, "serve", f"demo={old_demo}", "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = re.search(r"http://\S+/v1", server.stderr.readline())[0]
    assert server.stderr.readline().startswith("note: it was made with OpenVINO 2025.0.0")
    while "ready on" not in (line := server.stderr.readline()):
        assert line, "it ended before it was ready"
    with urllib.request.urlopen(f"{url}/models") as answer:
        assert json.load(answer)["data"][0]["id"] == "demo"
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=60)
    assert (server.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_serve_refuses_an_address_others_can_reach(aicc: Run, demo_artifact: Artifact):
    done = aicc("serve", demo_artifact.path, "--host", "0.0.0.0")
    assert done.code == 2
    assert "--insecure" in done.err
