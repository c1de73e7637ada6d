"""``aicc run`` and ``aicc chat`` on real models: text, tensors, JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aicc_command import WEIGHT, Run, made_with_an_older_openvino

from aicc.cli.documents import RunDocument, RunTensorsDocument
from aicc.cli.run_tensors import write_outputs
from aicc.runtime.artifact import Artifact
from aicc.runtime.machine import processor
from aicc.runtime.target import find_target

QUESTION = "Name the capital of France."


def document(text: str, kind: type) -> msgspec.Struct:
    """The one JSON object a command printed, checked against its class; unknown fields are mistakes."""
    names = set(json.loads(text))
    parsed = msgspec.json.decode(text, type=kind)
    assert names == {field.encode_name for field in msgspec.structs.fields(kind)}
    return parsed


def test_an_answer_is_text_and_nothing_else_on_stdout(aicc: Run, demo_artifact: Artifact):
    done = aicc("run", demo_artifact.path, QUESTION)
    assert done.code == 0
    assert "Paris" in done.out
    assert done.out.endswith("\n")
    assert "tokens/s" in done.err
    assert "OpenVINO CPU" in done.err


@pytest.mark.skipif(not find_target("cpu").runs_on(processor()), reason="the cpu family does not run here")
def test_a_draft_model_changes_nothing_and_how_often_it_was_right_is_told(aicc: Run, cpu_artifact: Artifact):
    words = ["run", cpu_artifact.path, QUESTION, "--kv-tokens", 512]
    plain, drafted = aicc(*words), aicc(*words, "--draft", cpu_artifact.path)
    assert drafted.out == plain.out
    assert re.search(r"[1-9]\d* of [1-9]\d* guessed tokens were right", drafted.err)


def test_a_draft_that_cannot_be_is_refused(aicc: Run, demo_artifact: Artifact, tensors_artifact: Path):
    for words, named in [
        (["run", demo_artifact.path, "Hi", "--draft", tensors_artifact], "no language model"),
        (["run", demo_artifact.path, "Hi", "--draft", demo_artifact.path, "--speculate"], "exclude each other"),
        (["serve", f"a={demo_artifact.path}", demo_artifact.path, "--draft", demo_artifact.path], "one language model"),
        (["serve", demo_artifact.path, "--draft", tensors_artifact], "no language model"),
    ]:
        done = aicc(*words)
        assert done.code == 2
        assert named in done.err
        assert done.out == ""


def test_the_same_answer_as_json(aicc: Run, demo_artifact: Artifact):
    answer = document(aicc("run", demo_artifact.path, QUESTION, "--json").out, RunDocument)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert len(answer.token_ids) == answer.usage.completion_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.timings.decode_tokens_per_s > 0
    assert answer.device.startswith("OpenVINO CPU")
    assert answer.target == "openvino:cpu"
    assert answer.chat_template


def test_a_prompt_comes_from_stdin_and_goes_in_raw(aicc: Run, demo_artifact: Artifact):
    words = ["run", demo_artifact.path, "-", "--raw", "--max-tokens", 4, "--json"]
    answer = document(aicc(*words, stdin="The capital of France is").out, RunDocument)
    assert "Paris" in answer.text
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 4)
    assert answer.usage.prompt_tokens == 5
    assert not answer.chat_template


def test_a_seed_repeats_an_answer_and_a_stop_string_ends_it(aicc: Run, demo_artifact: Artifact):
    words = ["run", demo_artifact.path, QUESTION, "--temperature", 1, "--seed", 7, "--max-tokens", 12]
    first, again = aicc(*words), aicc(*words)
    assert first.out == again.out
    stop = first.out[5:9]
    assert aicc(*words, "--stop", stop).out == first.out[: first.out.index(stop)] + "\n"


@pytest.mark.parametrize("command", ["run", "chat"])
def test_the_kv_cache_is_as_large_as_asked(aicc: Run, demo_artifact: Artifact, command: str):
    done = aicc(
        command, demo_artifact.path, *(["-"] if command == "run" else []), "--kv-tokens", 32, stdin="word " * 100
    )
    assert done.code == (2 if command == "run" else 0)
    assert "context holds 32" in done.err


def test_a_system_message_needs_the_template(aicc: Run, demo_artifact: Artifact):
    done = aicc("run", demo_artifact.path, QUESTION, "--raw", "--system", "Be brief.")
    assert (done.code, done.out) == (2, "")
    assert "--system" in done.err


def test_a_conversation_through_a_pipe_remembers_and_forgets(aicc: Run, demo_artifact: Artifact):
    which = "Which word did I ask you to remember?"
    lines = ["Remember the word: zebra.", which, "/reset", "/frob", which, "/exit", "never read"]
    done = aicc("chat", demo_artifact.path, "--temperature", 0, "--max-tokens", 24, stdin="\n".join(lines))
    assert done.code == 0
    *remembered, forgotten = done.out.splitlines()
    assert len(remembered) >= 2
    assert "zebra" in remembered[-1]
    assert "zebra" not in forgotten
    assert "the conversation is forgotten" in done.err
    assert "no command /frob" in done.err


def test_tensors_go_in_and_out_as_npy_files(aicc: Run, tensors_artifact: Path, arrays: dict[str, Path], tmp_path: Path):
    inputs = [word for name, path in arrays.items() for word in ("--input", f"{name}={path}")]
    done = aicc("run", tensors_artifact, *inputs, "--output-dir", tmp_path / "out", "--json")
    result = document(done.out, RunTensorsDocument)
    expected = np.ones((2, 4), np.float32) @ WEIGHT + [-1, -2, -3]
    assert [(output.name, output.dtype, output.shape) for output in result.outputs] == [
        ("sum/0", "float32", [2, 3]),
        ("relu", "float32", [2, 3]),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["relu.npy", "sum_0.npy"]
    np.testing.assert_allclose(np.load(result.outputs[0].file), expected, rtol=1e-6)
    np.testing.assert_allclose(np.load(result.outputs[1].file), np.maximum(expected, 0), rtol=1e-6)


def test_outputs_that_cannot_all_be_written_replace_none(tmp_path: Path):
    (tmp_path / "first.npy").write_bytes(b"of an earlier run")
    with pytest.raises(ValueError, match="allow_pickle"):
        write_outputs({"first": np.ones(3), "second": np.array([{}], dtype=object)}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first.npy"]
    assert (tmp_path / "first.npy").read_bytes() == b"of an earlier run"


@pytest.mark.parametrize("command", ["run", "bench"])
def test_what_is_not_as_it_was_compiled_is_said_of_tensors(
    aicc: Run, tensors_artifact: Path, arrays: dict[str, Path], tmp_path: Path, command: str
):
    old = made_with_an_older_openvino(tensors_artifact, tmp_path / "old.aicc")
    inputs = [word for name, path in arrays.items() for word in ("--input", f"{name}={path}")]
    assert "note: it was made with OpenVINO 2025.0.0" in aicc(command, old, *inputs, "--json").err
    assert "note: " not in aicc(command, tensors_artifact, *inputs, "--json").err


def test_what_is_not_as_it_was_compiled_is_said_of_a_language_model(aicc: Run, old_demo: Path):
    said = "note: it was made with OpenVINO 2025.0.0"
    assert said in aicc("run", old_demo, QUESTION, "--max-tokens", 1).err
    assert said in aicc("chat", old_demo).err


WITHOUT_THE_COMPILER = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError, as if it were not installed
from aicc.cli.main import main
code = main(sys.argv[1:])
assert not [name for name in sys.modules if name.startswith("aicc.compiler.")], "the compiler was imported"
sys.exit(code)
"""
COMPILE_EXTRA = [
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "mobius",
    "transformers",
    "torch",
    "gguf",
    "safetensors",
]


def run_without_the_compiler(*words: object) -> subprocess.CompletedProcess:
    program = WITHOUT_THE_COMPILER.format(blocked=COMPILE_EXTRA)
    return subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)


def test_a_model_runs_where_the_compiler_is_not_installed(demo_artifact: Artifact):
    done = run_without_the_compiler("run", demo_artifact.path, QUESTION, "--json")
    assert done.returncode == 0, done.stderr
    assert "Paris" in json.loads(done.stdout)["text"]


@pytest.mark.parametrize("command", ["compile", "check"])
def test_compiling_without_the_compiler_says_what_to_install(onnx_file: Path, command: str):
    program = WITHOUT_THE_COMPILER.format(blocked=COMPILE_EXTRA).split("assert")[0] + "sys.exit(code)"
    words = [sys.executable, "-c", program, command, str(onnx_file)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'aicc[compile]'" in done.stderr


def test_a_model_of_tensors_that_is_given_nothing_says_all_it_takes(aicc: Run, tensors_artifact: Path):
    done = aicc("run", tensors_artifact)
    assert done.code == 2
    assert "'--output-dir'" in done.err
    assert "The model takes: x float32[n, 4], y float32[3]." in done.err
