"""The side-by-side benchmark: its workers, its numbers, its table and its picture."""

import argparse
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import conditions
import decoder
import peers
import plot
import pytest
import table

from aicc.compiler.models import pull
from aicc.runtime.artifact import Artifact

ROOT = Path(__file__).parent.parent.parent
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))


def engine(artifact: Path, worker: str = "run_aicc.py") -> decoder.Engine:
    python, options = Path(sys.executable), {"context": 64}
    return decoder.Engine("aicc", "some", python, worker, artifact, 10**6, 10**6, 10**4, options, ("openvino",))


@pytest.fixture(scope="module")
def document(demo_artifact: Artifact) -> dict:
    """A whole comparison of the artifact with itself."""
    engines = [engine(demo_artifact.path)]
    prompts = decoder.held_out_prompts(demo_artifact.path, 5)
    measured = decoder.compare(engines, threads=1, rounds=2, texts=prompts, decode_tokens=3)
    sizes = {"model": "m", "threads": 1, "rounds": 2, "prompt_tokens": 5, "decode_tokens": 3}
    return decoder.facts() | sizes | {"engines": decoder.report(engines, measured, {"int8": 1e12}, flops=1e9)}


def test_every_round_adds_a_load_and_two_timed_prompts_in_a_process_of_its_own(document):
    (row,) = document["engines"]
    assert {name: len(values) for name, values in row["samples"].items()} == {
        "load_s": 2,
        "first_token_s": 2,
        "prefill_tokens_per_s": 4,
        "decode_tokens_per_s": 4,
        "peak_rss_bytes": 2,
        "read_bandwidth_bytes_per_s": 2,
        "bandwidth_fraction": 2,
        "engine": 4,
    }
    assert row["load_s"]["min"] <= row["load_s"]["median"] <= row["load_s"]["max"] < row["first_token_s"]["max"]
    samples = row["samples"]
    pairs = zip(samples["decode_tokens_per_s"][::2], samples["decode_tokens_per_s"][1::2], strict=True)
    fractions = [
        sum(pair) / 2 * 10**6 / b for pair, b in zip(pairs, samples["read_bandwidth_bytes_per_s"], strict=True)
    ]
    assert samples["bandwidth_fraction"] == pytest.approx(fractions)
    assert row["bandwidth_fraction"] == pytest.approx(median(fractions))
    assert row["matrix_peak_fraction"] == pytest.approx(row["prefill_tokens_per_s"]["median"] * 1e9 / 1e12)
    assert row["matrix_peak_of"] == "int8"
    assert set(row["versions"]) == {"aicc", "openvino"}


def test_a_rate_is_held_against_the_number_format_it_is_multiplied_in(document):
    (row,) = document["engines"]
    tiles = replace(engine(Path()), products="bfloat16")
    (other,) = decoder.report(
        [tiles], {"samples": {"aicc": row["samples"]}, "versions": {"aicc": {}}}, {"int8": 1e12, "bfloat16": 5e11}, 1e9
    )
    assert other["matrix_peak_fraction"] == pytest.approx(2 * row["matrix_peak_fraction"])


def test_an_engine_that_cannot_load_is_reported_with_its_name(tmp_path):
    with pytest.raises(decoder.WorkerError, match=r"aicc: .*nothing"):
        decoder.measure(engine(tmp_path / "nothing"), 1, [[1, 2]], 1)


def test_only_some_artifacts_are_measured_and_nothing_is_made_for_the_peers(demo_artifact: Artifact):
    parser = argparse.ArgumentParser()
    decoder.add_engine_options(parser)
    path = demo_artifact.path
    options = parser.parse_args(["--artifact", f"a={path}", "--artifact", f"b={path}", "--only", "aicc b"])
    (chosen,), tokenizer_of = decoder.chosen_engines(options, context=64)
    assert (chosen.name, chosen.model, chosen.options, tokenizer_of) == ("aicc b", path, {"context": 64}, path)
    assert chosen.kv_bytes == demo_artifact.manifest.memory.kv_bytes_per_token
    assert chosen.weight_bytes <= chosen.stored_bytes


def test_memory_over_weights_and_kv_is_what_neither_of_them_explains(demo_artifact: Artifact):
    prompts = decoder.held_out_prompts(demo_artifact.path, 128)
    found = conditions.start(engine(demo_artifact.path), 1, prompts)
    resident = sum(found[f"memory_{kind}_bytes"] for kind in ("RssAnon", "RssFile", "RssShmem"))
    assert found["memory_VmHWM_bytes"] >= 0.99 * resident > 0  # the kernel counts in batches
    assert found["memory_over_weights_and_kv_bytes"] == found["memory_VmHWM_bytes"] - 10**6 - 224 * 10**4


def test_a_result_is_named_by_its_day_its_processor_and_unusual_bits():
    document = {"date": "2026-11-24T10:00:00+00:00", "machine": {"processor": "Intel(R) Xeon(R) @ 2.70GHz"}}
    assert decoder.result_name(document, 4) == "2026-11-24-intel-r-xeon-r-2-70ghz"
    assert decoder.result_name(document, 8) == "2026-11-24-intel-r-xeon-r-2-70ghz-int8"


def test_no_two_prompts_are_the_same(demo_artifact: Artifact):
    prompts = list(islice(decoder.held_out_prompts(demo_artifact.path, 64), 40))
    assert len({tuple(prompt) for prompt in prompts}) == 40
    assert {len(prompt) for prompt in prompts} == {64}


def test_sizes_of_a_gguf_with_tied_embeddings_count_every_weight_once():
    sizes = peers.gguf_sizes(pull("smollm2-135m"))
    assert sizes.layers == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert sizes.head == 49152 * 576
    assert 0.95 < sizes.read / pull("smollm2-135m").stat().st_size < 1
    assert sizes.stored == sizes.read
    assert sizes.kv == 30 * 2 * 3 * 64 * 2
    assert sizes.formats == "79% Q4_1, 21% Q8_0"


def test_table_and_picture_are_made_from_the_result_alone(document):
    again = json.loads(json.dumps(document))
    assert table.table(document) == table.table(again)
    assert plot.draw(document) == plot.draw(again)
    lines = table.table(document).splitlines()
    assert len({line.count("|") for line in lines[:3]}) == 1
    assert lines[2].startswith("| aicc | some |")
    assert ElementTree.fromstring(plot.draw(document)).tag.endswith("svg")


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_the_picture_beside_each_result_is_drawn_from_it(result: Path):
    assert result.with_suffix(".svg").read_text() == plot.draw(json.loads(result.read_text()))


def test_the_benchmark_in_the_readme_is_the_result_it_names():
    text = (ROOT / "README.md").read_text()
    result = table.named_result(text)
    assert result in RESULTS
    assert table.fill(text, result) == text
