"""Decoders and encoders on a GPU, which here is one that Mesa simulates: as close to their source as float32 is."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnx
import pytest
import torch
from miniatures import make_decoder, make_encoder
from numpy.typing import NDArray
from onnx import numpy_helper
from sentences import mean_pooled, tokens_of
from token_batch import token_batch
from tolerances import TOLERANCES, assert_within, cosine
from webgpu_out_of_memory import memory_runs_out

from aicc.compiler.check import check_model
from aicc.compiler.evaluate import Divergence, read_text, reference
from aicc.compiler.importers import Source, import_model
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, Model, Session, load
from aicc.runtime.errors import IntegrityError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.provider import Fit
from aicc.runtime.server import create_app
from aicc.runtime.target import find_target
from aicc.targets.webgpu.device import adapters, is_simulated
from aicc.targets.webgpu.executables import Loaded
from aicc.targets.webgpu.plan import PLAN_FILE, Plan
from aicc.targets.webgpu.provider import WebGpuProvider

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from live_server import DEADLINE, listening, wait_until

if not adapters():
    pytest.skip(
        "There is no Vulkan driver here; `make vulkan` fetches one that needs no card.",
        allow_module_level=True,
    )

# Between them: grouped heads, biases, tied and untied tables, soft caps, windows, norms of heads and after blocks,
# partly rotated heads, layers without positions, layer norms, GELU by tanh, products of three kinds at once.
DECODERS = ("gemma2", "gemma3", "phi3", "smollm3", "starcoder2")
Rows = NDArray[np.float32]


def step(model: Model, tokens: list[NDArray[np.int64]], past: list[int], pages: list[list[int]]) -> Rows:
    """Logits of every new token of several sequences in one step."""
    return model._executable.forward(token_batch(tokens, past, pages)).copy()  # type: ignore[attr-defined]


def best(
    model: Model, tokens: list[NDArray[np.int64]], past: list[int], pages: list[list[int]]
) -> tuple[NDArray[np.int64], Rows]:
    """The likeliest token after each new one, and its logit, as the device chose."""
    return model._executable.forward_best(token_batch(tokens, past, pages))  # type: ignore[attr-defined]


def full(name: str) -> Any:
    """What needs long, and differs little from the others."""
    return pytest.param(name, marks=pytest.mark.full)


@pytest.mark.parametrize("name", [*DECODERS, *map(full, ("llama tied, with bias", "qwen3"))])
def test_a_decoder_computes_what_transformers_computes_at_once_and_in_steps(name: str, tmp_path: Path) -> None:
    miniature = make_decoder(name)
    miniature.save_pretrained(tmp_path)
    ids = torch.randint(3, 211, (2, 44), generator=torch.Generator().manual_seed(1))  # beyond every window
    with torch.no_grad():
        one, other = miniature(ids).logits.numpy()
    a, b = ids.numpy()
    compile_model(Source(tmp_path, "huggingface", "miniature"), "webgpu", tmp_path / "m.aicc", quant="fp32")
    with load(tmp_path / "m.aicc", kv_tokens=512) as model:
        assert_within("model", model.logits(a.tolist()), one)
        # Two sequences at different places: many rows, few rows, and one; pages in any order.
        pages = [[7, 1, 12], [3, 9, 2]]
        first = step(model, [a[:36], b[:3]], [0, 0], pages)
        second = step(model, [a[36:37], b[3:9]], [36, 3], pages)
        third = step(model, [a[37:], b[9:]], [37, 9], pages)
        last = step(model, [b[43:]], [43], pages[1:])
        tokens, highest = best(model, [b[43:]], [43], pages[1:])
    assert (tokens.tolist(), highest.tolist()) == ([last[0].argmax()], [last[0].max()])
    assert_within("model", np.concatenate([first[:36], second[:1], third[:7]]), one)
    assert_within("model", np.concatenate([first[36:], second[1:], third[7:]]), other)
    assert_within("model", last, other[43:])


@pytest.mark.parametrize("quant", ["fp16", "int8", "int4"])
def test_weights_of_every_kind_are_those_of_the_graph(quant: str, tmp_path: Path) -> None:
    make_decoder("qwen2", hidden_size=96).save_pretrained(tmp_path)
    source, ids, found = Source(tmp_path, "huggingface", "miniature"), list(range(3, 43)), []
    for target in ("webgpu", "reference:cpu"):
        compile_model(source, target, tmp_path / "m.aicc", quant=quant, kv="fp32", measure=False)  # type: ignore[arg-type]
        with load(tmp_path / "m.aicc") as model:
            found.append(model.logits(ids))
    assert_within("model", *found)


@pytest.fixture(scope="module")
def smollm2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("webgpu") / "smollm2.aicc"
    compile_model("smollm2-135m", "webgpu", path)
    return path


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[Model]:
    with load(smollm2_path, kv_tokens=1024) as model:
        yield model


def test_a_real_decoder_keeps_its_quality_in_prefill_and_decode_alone_and_four_at_once(smollm2: Model) -> None:
    ids = np.asarray(smollm2.tokenizer.encode(read_text(None)[0]), np.int64)
    alone, *four = ids[:20], *(ids[40 * i : 40 * i + 8] for i in range(1, 5))
    found = [step(smollm2, [alone[:18]], [0], [[30, 31, 32]])]
    found += [step(smollm2, [alone[n : n + 1]], [n], [[30, 31, 32]]) for n in range(18, 20)]
    pages = [[2 * i, 2 * i + 1] for i in range(4)]
    together = [step(smollm2, [text[:6] for text in four], [0] * 4, pages).reshape(4, 6, -1)]
    for n in range(6, 8):
        together.append(step(smollm2, [text[n : n + 1] for text in four], [n] * 4, pages)[:, None])
    divergence = Divergence()
    with reference(import_model(resolve("smollm2-135m"))) as expected:
        divergence.add(np.concatenate(found), expected(alone), alone)
        for text, logits in zip(four, np.concatenate(together, axis=1), strict=True):
            divergence.add(logits, expected(text), text)
    quality, limits = divergence.quality("held-out text"), TOLERANCES["quality"]["auto, webgpu"]
    assert quality.tokens >= limits["tokens"]
    assert quality.kl_mean <= limits["kl_mean"]
    assert quality.top1_agreement >= limits["top1_agreement"]


def test_a_simulated_gpu_is_said_to_be_one_and_quality_is_not_measured_on_it(smollm2_path: Path) -> None:
    artifact = Artifact.open(smollm2_path)
    (variant,) = artifact.manifest.variants
    if not is_simulated(adapters()[0]):
        pytest.skip("There is a real GPU here.")
    compatibility = WebGpuProvider().compatibility(variant)
    assert compatibility.fit is Fit.USABLE
    assert "no GPU" in compatibility.reason
    assert artifact.manifest.quality is None
    assert "quality was not measured" in artifact.file("report.json").read_text()


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    make_decoder("llama").save_pretrained(folder)
    compile_model(Source(folder, "huggingface", "miniature"), "webgpu", folder / "m.aicc", quant="fp16")
    return folder / "m.aicc"


@pytest.fixture(scope="module")
def small(small_path: Path) -> Iterator[Model]:
    with load(small_path, kv_tokens=512) as model:
        yield model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": np.array([211])}, "token"),
        ({"tokens": np.array([-1])}, "token"),
        ({"pages": np.array([10_000], np.int32)}, "page"),
        ({"past": np.array([99_999], np.int32)}, "context"),
        ({"past": np.array([16], np.int32)}, "page"),
        ({"logit_rows": np.array([1], np.int32)}, "batch"),
        ({"starts": np.array([0, 1, 2], np.int32)}, "contradicts"),
    ],
    ids=str,
)
def test_a_batch_that_makes_no_sense_is_an_error_and_the_model_goes_on(
    small: Model, change: dict[str, Any], said: str
) -> None:
    batch = msgspec.structs.replace(token_batch([[5]], [0], [[7]]), **change)
    with pytest.raises(UsageError, match=said):
        small._executable.forward(batch)  # type: ignore[attr-defined]
    assert np.isfinite(step(small, [np.array([5])], [0], [[7]])).all()


def lose(model: Model | Session) -> None:
    model._executable._launcher._device.destroy()  # type: ignore[attr-defined]


def lose_in_the_next_step(model: Model) -> None:
    """Where it is lost between two calls: wgpu does not bear that one thread destroys what another submits to."""
    launcher = model._executable._launcher  # type: ignore[attr-defined]
    run = launcher.run

    def lost(*arguments: Any, **options: Any) -> Any:
        launcher.run = run
        launcher._device.destroy()
        return run(*arguments, **options)

    launcher.run = lost


def test_callers_of_a_server_whose_device_or_memory_is_lost_are_told_to_come_back_and_are_then_served(
    smollm2: Model, minilm: Session
) -> None:
    asked = {"model": "text", "prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}
    sentence = {"model": "vectors", "input": "A cat sleeps."}
    with (
        listening(create_app({"text": smollm2, "vectors": minilm})) as url,
        httpx.Client(base_url=url, timeout=DEADLINE) as http,
    ):
        for path, body, model in (("/v1/completions", asked, smollm2), ("/v1/embeddings", sentence, minilm)):
            before = http.post(path, json=body).json()
            lose(model)
            told = {"was lost": http.post(path, json=body)}
            with memory_runs_out():  # while the device is opened again
                told["no memory left"] = http.post(path, json=body)
            again = http.post(path, json=body).json()
            for said, answer in told.items():
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_capacity")
                assert answer.headers["retry-after"]
                assert said in answer.json()["error"]["message"]
            assert said_by(again) == said_by(before)
        with http.stream(
            "POST", "/v1/completions", json=asked | {"max_tokens": 64, "ignore_eos": True, "stream": True}
        ) as stream:
            events = stream.iter_lines()
            next(events)
            lose_in_the_next_step(smollm2)
            assert "was lost" in [line for line in events if line][-1]
        wait_until(lambda: http.get("/health/ready").json()["models"][0]["sequences"] == 0, "forgetting what failed")
        ready = http.get("/health/ready").json()
    assert ready["status"] == "ready"
    assert ready["models"][0]["kv_pages_free"] == ready["models"][0]["kv_pages"]


def said_by(answer: dict[str, Any]) -> Any:
    """What an answer says, without what is another's every time."""
    return [choice["text"] for choice in answer["choices"]] if "choices" in answer else answer["data"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"size":"tokens"', '"size":"moons"', "a step grows with a size"),
        ('"of":"wanted"', '"of":"moons"', "a step grows with a size"),
        ('"name":"logits"', '"name":"moons"', "no buffer logits"),
        ('"name":"chosen"', '"name":"moons"', "no buffer chosen"),
        ('"name":"batch"', '"name":"moons"', "no buffer batch"),
        ('"groups":[{"times":', '"groups":[{"times":9999999999', "larger than any GPU takes"),
    ],
)
def test_a_plan_that_does_not_fit_its_host_is_refused(small_path: Path, old: str, new: str, said: str) -> None:
    artifact = Artifact.open(small_path)
    (variant,) = artifact.manifest.variants
    text = artifact.file(f"variants/{variant.name}/{PLAN_FILE}").read_text()
    assert old in text
    plan = msgspec.json.decode(text.replace(old, new), type=Plan)
    with pytest.raises(IntegrityError, match=said):
        Loaded(lambda: pytest.fail("it was put on the device"), plan, artifact.manifest.signatures)


def test_more_keys_and_values_than_a_buffer_holds_are_refused(small_path: Path) -> None:
    with pytest.raises(ResourceError, match="keys0 needs") as refused:
        load(small_path, kv_tokens=1 << 32)
    assert "--kv-tokens" in refused.value.remedy


@pytest.fixture(scope="module")
def sentences() -> dict[str, NDArray[np.int64]]:
    return tokens_of(resolve("minilm-l6").path)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    path = tmp_path_factory.mktemp("webgpu") / "minilm.aicc"
    compile_model("minilm-l6", "webgpu", path)
    with load(path) as session:
        yield session


def states(session: Session, inputs: dict[str, NDArray[np.int64]]) -> Rows:
    return session.run(inputs)["last_hidden_state"]  # type: ignore[return-value]


def test_a_real_encoder_gives_its_sources_embeddings_at_any_batch_and_length(
    minilm: Session, sentences: dict[str, NDArray[np.int64]], reference_encoder: Artifact
) -> None:
    with load(reference_encoder.path) as session:
        expected = states(session, sentences)
    mask = sentences["attention_mask"]
    found = states(minilm, sentences)
    assert cosine(mean_pooled(found, mask), mean_pooled(expected, mask)) >= TOLERANCES["cosine"]["embeddings"]
    for row in (0, len(mask) - 1):
        length = mask[row].sum()
        alone = states(minilm, {name: array[row : row + 1, :length] for name, array in sentences.items()})
        assert_within("model", alone[0], expected[row, :length])
    assert states(minilm, {name: array[:0] for name, array in sentences.items()}).shape[0] == 0
    assert states(minilm, {name: array[:2, :0] for name, array in sentences.items()}).shape == (2, 0, 384)


def test_threads_share_an_encoder_and_closing_it_waits_for_a_run(tmp_path: Path) -> None:
    """wgpu ends the process where a thread destroys a device that another submits to."""
    make_encoder("bert").save_pretrained(tmp_path)
    compile_model(Source(tmp_path, "huggingface", "miniature"), "webgpu", tmp_path / "m.aicc")
    session = load(tmp_path / "m.aicc")
    ids = np.random.default_rng(0).integers(3, 200, (4, 2, 9))
    inputs = [{"input_ids": i, "attention_mask": np.ones_like(i), "token_type_ids": np.zeros_like(i)} for i in ids]
    expected = [states(session, each) for each in inputs]
    ran = [0] * len(ids)

    def run_until_wrong(n: int) -> None:
        while np.array_equal(states(session, inputs[n]), expected[n]):
            ran[n] += 1

    with ThreadPoolExecutor(len(ids)) as pool:
        ended = [pool.submit(run_until_wrong, n) for n in range(len(ids))]
        wait_until(lambda: all(ran) or any(each.done() for each in ended), "a run in each thread")
        session.close()
    for each in ended:
        with pytest.raises(UsageError, match="the model was closed"):
            each.result()


def test_a_sequence_that_hides_all_its_tokens_is_nan_and_the_others_are_not(
    minilm: Session, sentences: dict[str, NDArray[np.int64]]
) -> None:
    few = {name: array[:3].copy() for name, array in sentences.items()}
    few["attention_mask"][1] = 0
    found = states(minilm, few)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[::2]).all()


def test_what_an_encoder_does_not_take_is_refused(minilm: Session, sentences: dict[str, NDArray[np.int64]]) -> None:
    with pytest.raises(UsageError, match="513 tokens long, and this model takes 512"):
        states(minilm, {name: np.ones((1, 513), np.int64) for name in sentences})
    with pytest.raises(UsageError, match="size of the table"):
        states(minilm, sentences | {"input_ids": sentences["input_ids"] + 30_000})


@pytest.mark.parametrize("name", ["distilbert", "roberta", *map(full, ("bert", "xlm-roberta"))])
def test_every_encoder_computes_what_transformers_computes_with_holes_in_the_mask(name: str, tmp_path: Path) -> None:
    miniature = make_encoder(name)
    miniature.save_pretrained(tmp_path)
    compile_model(Source(tmp_path, "huggingface", "miniature"), "webgpu", tmp_path / "m.aicc")
    ids = torch.randint(3, 211, (17, 40), generator=torch.Generator().manual_seed(1))  # more than one run's rows
    mask = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) > 0.3).long()
    with torch.no_grad():
        expected = miniature(ids, attention_mask=mask).last_hidden_state.numpy()
    with load(tmp_path / "m.aicc") as session:
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        names = [spec.name for spec in session.signatures["default"].inputs]
        assert_within("model", states(session, {n: inputs[n].numpy() for n in names}), expected)


def test_an_encoder_compiled_for_fixed_sizes_is_one_still(tmp_path: Path) -> None:
    make_encoder("bert").save_pretrained(tmp_path)
    source = Source(tmp_path, "huggingface", "miniature")
    inputs = {name: np.ones((2, 9), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    found = []
    for sizes in ({}, {"batch": 2, "sequence_len": 9}):
        compile_model(source, "webgpu", tmp_path / "m.aicc", sizes=sizes)
        with load(tmp_path / "m.aicc") as session:
            found.append(states(session, inputs))
    assert_within("model", *found)


def test_what_is_no_operation_on_rows_is_refused_by_node(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 24]> odd (int64[batch, length] ids) => (float[batch, length, 32] y) '
        "{ x = Gather (table, ids)  y = CumSum (x, axis) }"
    )
    table = np.ones((50, 32), np.float32)
    proto.graph.initializer.extend(
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(2), "axis")]
    )
    proto.graph.node[1].name = "running_sum"
    onnx.save(proto, tmp_path / "odd.onnx")
    source = Source(tmp_path / "odd.onnx", "onnx", "odd")
    with pytest.raises(UnsupportedError, match=r"CumSum \(running_sum\): it has no kernel"):
        compile_model(source, "webgpu", tmp_path / "m.aicc")
    assert check_model(source, find_target("webgpu")).refused[0].node == "running_sum"
