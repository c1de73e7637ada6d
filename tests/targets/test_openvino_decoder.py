"""A real decoder on openvino:cpu: right at full precision, close at 4 bits, the same in any batch."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from token_batch import token_batch
from tolerances import TOLERANCES, cosine

from aicc.compiler.pipeline import compile_model
from aicc.runtime import Model, load
from aicc.runtime.artifact import Artifact

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CASES = json.loads((GOLDEN / "smollm2-135m-instruct.json").read_text())
LOGITS = np.load(GOLDEN / "smollm2-135m-instruct.npz")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """SmolLM2 at float32."""
    path = tmp_path_factory.mktemp("fp32") / "smollm2.aicc"
    compile_model("smollm2-135m", "openvino:cpu", path, quant="fp32", measure=False)
    with load(path) as model:
        yield model


@pytest.fixture(scope="module")
def compact(demo_artifact: Artifact) -> Iterator[Model]:
    """SmolLM2 as it is compiled by default."""
    with load(demo_artifact.path) as model:
        yield model


@pytest.mark.parametrize("case", range(len(CASES)))
def test_full_precision_gives_the_golden_logits(exact: Model, case: int) -> None:
    found = exact.logits(CASES[case]["prompt_ids"])[-1]
    assert cosine(found, LOGITS[f"logits_{case}"]) >= TOLERANCES["cosine"]["logits"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"])
def test_full_precision_finds_every_top_token_that_is_clearly_ahead(exact: Model, case: dict[str, Any]) -> None:
    prompt, greedy = case["prompt_ids"], case["greedy_ids"]
    found = exact.logits(prompt + greedy)[len(prompt) - 1 : -1].argmax(axis=1)
    clear = np.array(case["margins"]) > TOLERANCES["margin"]["top1"]
    assert clear.any()
    assert np.array_equal(found[clear], np.array(greedy)[clear])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"])
def test_prompts_have_the_golden_ids(compact: Model, case: dict[str, Any]) -> None:
    message = [{"role": "user", "content": case["text"]}]
    ids = compact.chat_ids(message) if case["kind"] == "chat" else compact.tokenizer.encode(case["text"])
    assert list(ids) == case["prompt_ids"]


def test_the_plugin_fuses_norms_rotations_attention_and_keeps_weights_compressed(compact: Model) -> None:
    graph = compact._executable._compiled.get_runtime_model()  # type: ignore[attr-defined]
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in graph.get_ops())
    layers = compact.manifest.llm.layers
    assert kinds["PagedAttention"] == layers
    assert kinds["RMS"] == 2 * layers + 1
    assert kinds["RoPE"] == 2 * layers
    assert kinds["FullyConnected"] == 4 * layers + 1  # q+k+v, output, gate+up, down; and the logits
    assert kinds["Transpose"] == 0
    stored = Counter(
        node.get_rt_info()["outputPrecisions"].astype(str)
        for node in graph.get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Const"
    )
    assert stored["u4"] == 4 * layers


def _forward(model: Model, sequences: list[list[int]], past: list[int], pages: list[list[int]]) -> NDArray[np.float32]:
    """Last-token logits of several sequences in one step."""
    return model._executable.forward(token_batch(sequences, past, pages, last_rows=True)).copy()


def test_sequences_in_one_batch_do_not_see_each_other(exact: Model) -> None:
    sequences = [case["prompt_ids"] for case in CASES[:4]]
    together = _forward(exact, sequences, [0] * 4, [[4 * i, 4 * i + 1] for i in range(4)])
    alone = np.concatenate([_forward(exact, [s], [0], [[40, 41]]) for s in sequences])
    assert cosine(together, alone) >= TOLERANCES["cosine"]["logits"]


def test_a_prompt_in_pieces_and_a_decode_are_as_one_prompt(exact: Model) -> None:
    ids = CASES[5]["prompt_ids"]
    whole = _forward(exact, [ids], [0], [[50, 51]])
    _forward(exact, [ids[:20]], [0], [[60, 61]])
    _forward(exact, [ids[20:-1]], [20], [[60, 61]])
    last = _forward(exact, [ids[-1:]], [len(ids) - 1], [[60, 61]])
    assert cosine(whole, last) >= TOLERANCES["cosine"]["logits"]


def test_scales_are_stored_as_the_cpu_plugin_multiplies_with_them(demo_artifact: Artifact) -> None:
    graph = demo_artifact.file("variants/openvino-cpu/model.xml").read_text()
    types = Counter(re.findall(r'<layer [^>]*type="Const"[^>]*>\s*<data [^>]*element_type="(\w+)"', graph))
    assert types["u4"]
    assert types["f16"] == 0


def test_equal_reshapes_and_concatenations_are_stored_once(demo_artifact: Artifact) -> None:
    graph = ElementTree.parse(demo_artifact.file("variants/openvino-cpu/model.xml")).getroot()
    inputs: dict[str, list[tuple[str | None, ...]]] = defaultdict(list)
    for edge in graph.iter("edge"):
        inputs[edge.attrib["to-layer"]].append((edge.get("to-port"), edge.get("from-layer"), edge.get("from-port")))
    kinds = {layer.attrib["id"]: layer.get("type") for layer in graph.iter("layer")}
    made = Counter((kind, *sorted(inputs[key])) for key, kind in kinds.items() if kind in ("Concat", "Reshape"))
    assert made
    assert max(made.values()) == 1


def test_a_long_prompt_leaves_no_embedding_rows_in_memory(compact: Model, demo_artifact: Artifact) -> None:
    compact.logits([1])  # the first step packs the weights and gives everything back
    before = _resident_kib(demo_artifact.file("weights/model.bin"))  # other tests' models may map the file too
    compact.logits(list(range(1000, 49000, 200)))
    after = _resident_kib(demo_artifact.file("weights/model.bin"))
    assert after
    assert max(after[mapping] - before.get(mapping, 0) for mapping in after) < 1024


def _resident_kib(path: Path) -> dict[str, int]:
    """What of a file is in this process's memory, by the mapping's addresses."""
    pattern = rf"^([0-9a-f]+-[0-9a-f]+) .* {re.escape(str(path))}$[\s\S]*?^Rss:\s+(\d+) kB$"
    return {span: int(kib) for span, kib in re.findall(pattern, Path("/proc/self/smaps").read_text(), re.MULTILINE)}
