"""A real decoder as native code: right at full precision, close at 4 bits, the same bits in any batch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from token_batch import token_batch
from tolerances import TOLERANCES, cosine

from aicc.compiler.pipeline import compile_model
from aicc.runtime import Artifact, Model, load
from aicc.runtime.errors import IntegrityError, ResourceError, UsageError

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CASES = json.loads((GOLDEN / "smollm2-135m-instruct.json").read_text())
LOGITS = np.load(GOLDEN / "smollm2-135m-instruct.npz")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """SmolLM2 at float32."""
    path = tmp_path_factory.mktemp("fp32") / "smollm2.aicc"
    compile_model("smollm2-135m", "cpu", path, quant="fp32", measure=False)
    with load(path, kv_tokens=2048) as model:
        yield model


@pytest.fixture(scope="module")
def compact_path(cpu_artifact: Artifact) -> Path:
    """SmolLM2 as it is compiled by default."""
    return cpu_artifact.path


@pytest.fixture(scope="module")
def compact(compact_path: Path) -> Iterator[Model]:
    with load(compact_path, kv_tokens=2048) as model:
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


def _forward(model: Model, sequences: list[list[int]], past: list[int], pages: list[list[int]]) -> NDArray[np.float32]:
    """Last-token logits of several sequences in one step."""
    return model._executable.forward(token_batch(sequences, past, pages, last_rows=True)).copy()  # type: ignore[attr-defined]


def test_a_row_is_the_same_to_the_last_bit_alone_beside_others_and_in_pieces(compact: Model) -> None:
    sequences = [case["prompt_ids"] for case in CASES[:4]]
    together = _forward(compact, sequences, [0] * 4, [[4 * i, 4 * i + 1] for i in range(4)])
    for index, ids in enumerate(sequences):
        assert np.array_equal(_forward(compact, [ids], [0], [[40, 41]])[0], together[index])
        _forward(compact, [ids[:3]], [0], [[60, 61]])
        _forward(compact, [ids[3:-1]], [3], [[60, 61]])
        assert np.array_equal(_forward(compact, [ids[-1:]], [len(ids) - 1], [[60, 61]])[0], together[index])


def test_prompts_and_generated_tokens_in_one_step_are_as_in_steps_of_their_own(compact: Model) -> None:
    sequences = [case["prompt_ids"] for case in CASES[:4]]
    pages = [[4 * i, 4 * i + 1] for i in range(4)]

    def forward(sequences: list[list[int]], first_prompt: int) -> NDArray[np.float32]:
        batch = token_batch(
            sequences, [0] * len(sequences), pages[: len(sequences)], last_rows=True, first_prompt=first_prompt
        )
        return compact._executable.forward(batch).copy()  # type: ignore[attr-defined]

    alone = np.concatenate([forward([ids], int(i < 2)) for i, ids in enumerate(sequences)])
    assert np.array_equal(forward(sequences, 2), alone)


def test_the_number_of_threads_changes_no_bit(compact: Model, compact_path: Path) -> None:
    ids = CASES[5]["prompt_ids"]
    with load(compact_path, threads=1, kv_tokens=256) as alone:
        assert "1 threads" in alone._executable.device
        assert np.array_equal(alone.logits(ids), compact.logits(ids))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": np.array([49152])}, "token"),
        ({"tokens": np.array([-1])}, "token"),
        ({"pages": np.array([10_000], np.int32)}, "page"),
        ({"past": np.array([99_999], np.int32)}, "context"),
        ({"past": np.array([16], np.int32)}, "page"),
        ({"logit_rows": np.array([1], np.int32)}, "batch"),
        ({"tokens": np.array([5], np.int32)}, "int32"),
        ({"starts": np.array([0, 1, 2], np.int32)}, "contradicts"),
        ({"first_prompt": 2}, "batch"),
        ({"first_prompt": -1}, "batch"),
    ],
    ids=str,
)
def test_a_batch_that_makes_no_sense_is_an_error_and_the_model_goes_on(
    compact: Model, change: dict[str, Any], said: str
) -> None:
    batch = msgspec.structs.replace(token_batch([[5]], [0], [[7]]), **change)
    with pytest.raises(UsageError, match=said):
        compact._executable.forward(batch)  # type: ignore[attr-defined]
    assert np.isfinite(_forward(compact, [[5]], [0], [[7]])).all()


def test_no_threads_are_left_and_nothing_runs_after_closing(compact_path: Path) -> None:
    model = load(compact_path, kv_tokens=64)
    executable = model._executable  # type: ignore[union-attr]
    model.close()
    model.close()
    with pytest.raises(UsageError, match="closed"):
        executable.forward(token_batch([[5]], [0], [[0]]))


@pytest.mark.parametrize("threads", [0, 1000])
def test_threads_that_cannot_be_started_are_refused(compact_path: Path, threads: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        load(compact_path, threads=threads)


def test_a_thread_the_system_refuses_is_no_damage_of_the_model(compact_path: Path) -> None:
    said = _in_a_process(
        "import resource, sys\n"
        "from aicc.runtime import load\n"
        "from aicc.runtime.errors import ResourceError\n"
        "load(sys.argv[1], kv_tokens=64).close()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 8 << 20))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)\n"
        "try: load(sys.argv[1], threads=256, kv_tokens=64)\n"
        "except ResourceError as error: print(error)\n",
        compact_path,
    )
    assert "refused to start a thread" in said
    assert "--threads" in said


def _in_a_process(code: str, path: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_weights_of_another_model_are_noticed(compact_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compact_path, tmp_path / "m.aicc"))
    with (copy / "weights/model.bin").open("r+b") as file:
        file.seek(16)
        file.write(b"another!")
    with pytest.raises(IntegrityError, match="weights"):
        load(copy)


@pytest.mark.parametrize("tokens", [2**31 * 16, 2**36 + 16, 2**62])
def test_more_tokens_than_any_memory_holds_are_refused_and_never_wrapped(compact_path: Path, tokens: int) -> None:
    with pytest.raises(ResourceError, match="there is no memory"):
        load(compact_path, kv_tokens=tokens)
