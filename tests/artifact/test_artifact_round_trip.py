"""What is packaged comes back, byte for byte and number for number."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from artifact_sample import INPUT, NIBBLES, fill, small_graph, small_manifest, small_report, write_sample
from onnx.reference import ReferenceEvaluator
from tokenizers import Tokenizer
from tokenizers.models import BPE

from aicc.compiler.graph_file import load_graph
from aicc.compiler.package import ArtifactWriter
from aicc.compiler.weights import WeightFile, tensor_bytes
from aicc.runtime.artifact import GRAPH_PATH, WEIGHTS_PATH, Artifact, MemoryFacts


def run(model: ir.Model) -> np.ndarray:
    return ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": INPUT})[0]


def bytes_of(artifact: Path) -> dict[str, bytes]:
    return {str(p.relative_to(artifact)): p.read_bytes() for p in sorted(artifact.rglob("*")) if p.is_file()}


def test_a_graph_read_back_computes_the_same_numbers(pristine):
    np.testing.assert_array_equal(run(load_graph(Artifact.open(pristine))), run(small_graph()))


def test_the_manifest_comes_back_with_files_and_format_filled_in(pristine):
    manifest = Artifact.open(pristine).manifest
    expected = msgspec.structs.replace(small_manifest(), format=manifest.format, files=manifest.files)
    assert manifest == expected
    assert [entry.path for entry in manifest.files] == [
        "model.onnx",
        "report.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/config.json",
        "tokenizer/tokenizer.json",
        "variants/cpu/program.bin",
        "weights/model.bin",
    ]


def test_every_hash_is_verified(pristine):
    Artifact.open(pristine).verify()


def test_the_last_83_bytes_of_a_manifest_are_the_digest_of_all_before(pristine):
    content = (pristine / "manifest.json").read_bytes()
    digest = hashlib.sha256(content[:-83]).hexdigest()
    assert content[-83:].decode() == f',\n  "digest": "{digest}"\n}}\n'


def test_large_tensors_are_outside_the_graph_wherever_they_stand(pristine):
    proto = onnx.load_model(pristine / GRAPH_PATH, load_external_data=False)
    bias = next(node for node in proto.graph.node if node.op_type == "Constant").attribute[0].t
    branch = next(node for node in proto.graph.node if node.op_type == "If").attribute[0].g
    outside = {t.name for t in [*proto.graph.initializer, bias, *branch.initializer] if t.data_location}
    assert outside == {"layer.weight.values", "layer.weight.scales", "layer.weight.minimum", "bias", "then.shift"}


def test_external_tensors_are_aligned_inside_a_page_padded_file(pristine):
    size = (pristine / WEIGHTS_PATH).stat().st_size
    proto = onnx.load_model(pristine / GRAPH_PATH, load_external_data=False)
    for tensor in proto.graph.initializer:
        entry = {field.key: field.value for field in tensor.external_data}
        if entry:
            assert entry["location"] == "weights/model.bin"
            assert int(entry["offset"]) % 64 == 0
            assert int(entry["offset"]) + int(entry["length"]) <= size
    assert size % 4096 == 0


def test_4_bit_values_are_stored_two_in_a_byte_low_nibble_first(pristine):
    values = load_graph(Artifact.open(pristine)).graph.initializers["layer.weight.values"].const_value
    assert values.tobytes()[:4] == bytes([0x10, 0x32, 0x54, 0x76])
    np.testing.assert_array_equal(values.numpy().astype(np.uint8), NIBBLES)


def test_tensors_read_back_are_views_of_one_mapping(pristine):
    graph = load_graph(Artifact.open(pristine)).graph
    arrays = [graph.initializers[f"layer.weight.{role}"].const_value.raw for role in ("scales", "minimum")]
    assert all(not array.flags.writeable and not array.flags.owndata for array in arrays)


@pytest.mark.parametrize("dtype", [d for d in ir.DataType if d.name not in ("UNDEFINED", "STRING")])
def test_every_type_keeps_its_bytes(dtype, tmp_path):
    raw = np.random.default_rng(0).integers(0, 2 if dtype.name == "BOOL" else 256, 3072, dtype=np.uint8).tobytes()
    proto = onnx.TensorProto(name="t", data_type=int(dtype), dims=[3072 * 8 // dtype.bitwidth], raw_data=raw)
    value = ir.Value(name="t", const_value=ir.from_proto(proto))
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="types")
    graph.register_initializer(value)
    with ArtifactWriter(tmp_path / "types.aicc") as writer:
        writer.write_graph(ir.Model(graph, ir_version=11))
        (writer.variant_directory("cpu") / "program.bin").touch()
        artifact = writer.commit(small_manifest(), small_report())
    again = load_graph(artifact).graph.initializers["t"].const_value
    assert again.tobytes() == raw
    assert (again.dtype, again.shape) == (dtype, value.const_value.shape)


def test_the_model_can_be_lowered_after_it_was_written(tmp_path):
    model = small_graph()
    before = ir.to_proto(model)
    constants = [value.const_value for value in model.graph.initializers.values()]
    with ArtifactWriter(tmp_path / "a.aicc") as writer:
        writer.write_graph(model)
    assert all(v.const_value is c for v, c in zip(model.graph.initializers.values(), constants, strict=True))
    assert ir.to_proto(model) == before


def test_a_graph_over_external_data_no_longer_needs_it(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    ir.save(small_graph(), source / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    with ArtifactWriter(tmp_path / "a.aicc") as writer:
        writer.write_graph(ir.load(source / "model.onnx"))
        (writer.variant_directory("cpu") / "program.bin").touch()
        artifact = writer.commit(small_manifest(), small_report())
    (source / "model.data").unlink()
    np.testing.assert_array_equal(run(load_graph(artifact)), run(small_graph()))


def test_a_graph_can_be_read_from_an_artifact_and_packaged_again(pristine, tmp_path):
    model = load_graph(Artifact.open(pristine))
    with ArtifactWriter(tmp_path / "again.aicc") as writer:
        writer.write_graph(model)
        again = (writer.path / WEIGHTS_PATH).read_bytes()
    assert (pristine / WEIGHTS_PATH).read_bytes().startswith(again)


def test_equal_constants_are_stored_once(tmp_path):
    store = WeightFile(tmp_path / "weights.bin", tmp_path / "weights.bin")
    first, second = store.add(b"a" * 100), store.add(memoryview(np.arange(5)))
    assert (first, second) == (0, 128)
    assert store.add(memoryview(b"a" * 100)) == first
    assert store.add(b"") == 192
    store.finish()
    assert (tmp_path / "weights.bin").stat().st_size == store.size == 4096
    assert hashlib.sha256((tmp_path / "weights.bin").read_bytes()).hexdigest() == store.sha256
    store.close()


def test_lowering_and_graph_share_their_constants(tmp_path):
    with ArtifactWriter(tmp_path / "a.aicc") as writer:
        for value in small_graph().graph.initializers.values():
            writer.weights.add(tensor_bytes(value.const_value))
        size = writer.weights.size
        writer.write_graph(small_graph())
        rest = 3 * 512 * 4  # the constant and the two branches
        assert writer.weights.size <= size + rest + 3 * 64


def test_an_artifact_without_large_tensors_has_no_weights_file(tmp_path):
    with ArtifactWriter(tmp_path / "a.aicc") as writer:
        (writer.variant_directory("cpu") / "program.bin").touch()
        manifest = msgspec.structs.replace(small_manifest(), memory=MemoryFacts(weight_bytes=0))
        artifact = writer.commit(manifest, small_report())
    assert not artifact.has(WEIGHTS_PATH)


def test_the_same_input_gives_the_same_bytes_except_for_timings(tmp_path):
    first = bytes_of(write_sample(tmp_path / "first.aicc", seconds=1.0).path)
    second = bytes_of(write_sample(tmp_path / "second.aicc", seconds=2.0).path)
    assert first.pop("timings.json") != second.pop("timings.json")
    assert first == second


def test_the_report_is_read_with_its_timings(pristine):
    assert Artifact.open(pristine).report() == msgspec.to_builtins(small_report())


def test_without_timings_the_report_has_no_seconds(sample):
    (sample / "timings.json").unlink()
    report = Artifact.open(sample).report()
    assert report["phases"][0] == {"name": "import", "passes": []}


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"phases": 3}', b'{"phases": [{"name": "x"}]}'])
def test_damaged_timings_do_not_hide_the_report(sample, content):
    (sample / "timings.json").write_bytes(content)
    assert Artifact.open(sample).report()["target"] == "null:cpu"


def test_weights_are_mapped_read_only(pristine):
    weights = Artifact.open(pristine).weights()
    assert weights.readonly
    assert bytes(weights) == (pristine / WEIGHTS_PATH).read_bytes()


def test_a_variant_is_found_by_name_target_or_family(pristine):
    artifact = Artifact.open(pristine)
    assert {artifact.variant(name).name for name in (None, "cpu", "null:cpu", "null")} == {"cpu"}


def test_an_unpublished_artifact_can_be_judged_before_it_is_committed(tmp_path):
    with ArtifactWriter(tmp_path / "a.aicc") as writer:
        fill(writer)
        staged = writer.stage(small_manifest(), small_report())
        np.testing.assert_array_equal(run(load_graph(staged)), run(small_graph()))
        assert not (tmp_path / "a.aicc").exists()
        better = msgspec.structs.replace(small_manifest(), name="judged")
        assert writer.commit(better, small_report()).manifest.name == "judged"
    Artifact.open(tmp_path / "a.aicc").verify()


def test_files_are_for_people_to_read(pristine):
    assert (pristine / "manifest.json").read_text().startswith('{\n  "format": {\n    "major": 1,')
    assert json.loads((pristine / "tokenizer/config.json").read_text()) == {"eos_token": "</s>"}
    assert (pristine / "tokenizer/chat_template.jinja").read_text() == "{{ messages }}"


def test_writing_lazy_weights_needs_the_memory_of_one(tmp_path):
    program = """if True:
        import resource, sys
        import numpy as np, onnx_ir as ir
        from aicc.compiler.package import ArtifactWriter
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="lazy")
        for i in range(16):
            make = lambda i=i: ir.Tensor(np.full((2048, 1024), i, dtype=np.float32))
            lazy = ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape([2048, 1024]), cache=True)
            graph.register_initializer(ir.Value(name=f"w{i}", const_value=lazy))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with ArtifactWriter(sys.argv[1]) as writer:
            writer.write_graph(ir.Model(graph, ir_version=11))
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, writer.weights.size)
    """
    output = subprocess.check_output([sys.executable, "-c", program, tmp_path / "a.aicc"], text=True)
    growth_kb, written = map(int, output.split())
    assert written == 16 * 8 << 20
    assert growth_kb < 32 << 10


def test_the_documented_way_to_open_the_graph_with_stock_tools_works(pristine):
    text = (Path(__file__).parents[2] / "docs" / "artifact-format.md").read_text()
    program = text.split("```python\n")[1].split("```")[0].replace("smollm2.aicc", str(pristine))
    names: dict = {}
    exec(program, names)
    onnx.checker.check_model(pristine / GRAPH_PATH)
    np.testing.assert_allclose(names["session"].run(None, {"x": INPUT})[0], run(small_graph()), rtol=1e-6)


@pytest.mark.parametrize(("letters", "shortened"), [("abc", True), ("ab ", False)])
def test_a_tokenizer_reads_the_same_text_however_its_merges_are_written(tmp_path, letters: str, shortened: bool):
    first, second, third = letters
    vocabulary = {text: i for i, text in enumerate([*letters, first + second, first + second + third])}
    merges = [(first, second), (first + second, third)]
    published = Tokenizer(BPE(vocabulary, merges))
    with ArtifactWriter(tmp_path / "m.aicc") as writer:
        fill(writer)
        writer.write_tokenizer(published.to_str(), None, {})
        writer.commit(small_manifest(), small_report())
    path = tmp_path / "m.aicc" / "tokenizer" / "tokenizer.json"
    assert isinstance(json.loads(path.read_text())["model"]["merges"][0], str) == shortened
    for text in (letters * 3, letters + first, second + letters):
        assert Tokenizer.from_file(str(path)).encode(text).ids == published.encode(text).ids
