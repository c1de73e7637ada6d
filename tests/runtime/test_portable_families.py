"""The families that evaluate the portable graph: `null` anywhere, `reference` through onnxruntime."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_tensors import WIDTH, expected, small_graph, write_small
from tiny_decoder import tiny_graph, write_tiny

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.importers import ImportedModel
from aicc.compiler.package import ArtifactWriter
from aicc.runtime import Artifact, load
from aicc.runtime.artifact import GRAPH_PATH, FileEntry, SourceInfo
from aicc.runtime.errors import IntegrityError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.provider import DecoderExecutable, Fit, LoadOptions, provider_of
from aicc.runtime.target import Target, find_target
from aicc.targets.null.lowering import lower
from aicc.targets.portable import read_graph

FAMILIES = ("null:host", "reference:cpu")


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory) -> Path:
    return write_small(tmp_path_factory.mktemp("small") / "small.aicc", *FAMILIES).path


@pytest.mark.parametrize("target", FAMILIES)
@pytest.mark.parametrize("negate", [True, False])
def test_constants_in_every_place_reach_the_evaluator(small_artifact, target, negate):
    x = np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)
    with load(small_artifact, device=target) as session:
        outputs = session.run({"x": x, "negate": np.array(negate), "fixed": np.array([1, 2])})
    assert outputs["y"].shape == (3, WIDTH)
    np.testing.assert_allclose(outputs["y"], expected(x, negate), rtol=1e-5, atol=1e-5)
    assert outputs["doubled"].tolist() == [2, 4]


def test_the_null_family_generates_what_the_reference_does(tmp_path):
    generated = []
    for target in FAMILIES:
        with load(write_tiny(tmp_path / target.split(":")[0], vocab=300, target=target).path) as model:
            assert isinstance(model._executable, DecoderExecutable)
            generated.append(model.generate([1, 5, 9], max_tokens=20, ignore_eos=True).token_ids)
            generated.append(model.logits([3, 4, 5]))
    assert generated[0] == generated[2]
    np.testing.assert_allclose(generated[1], generated[3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens", [10**15, 2**62, 10**30])
def test_more_tokens_than_any_memory_holds_are_refused(tmp_path, tokens):
    artifact = write_tiny(tmp_path, vocab=300, target="null:host")
    with pytest.raises(ResourceError, match=f"no memory for keys and values of {tokens} tokens"):
        load(artifact.path, kv_tokens=tokens)


@pytest.mark.parametrize("target", FAMILIES)
def test_a_provider_names_its_device_and_judges_variants(small_artifact, target):
    provider = provider_of(find_target(target))
    (device,) = provider.devices()
    assert device.name == find_target(target).device
    variant = Artifact.open(small_artifact).variant(target)
    elsewhere = provider.compatibility(variant)  # says nothing of what it was made with
    assert elsewhere.fit is Fit.USABLE
    assert "installed" in elsewhere.reason


def damaged(artifact: Artifact, change) -> Artifact:
    """The artifact with another graph, listed as if it were the one that was written."""
    model = onnx.load_model_from_string((artifact.path / GRAPH_PATH).read_bytes())
    change(model)
    data = model.SerializeToString()
    (artifact.path / GRAPH_PATH).write_bytes(data)
    files = [file for file in artifact.manifest.files if file.path != GRAPH_PATH]
    files.append(FileEntry(GRAPH_PATH, len(data), hashlib.sha256(data).hexdigest()))
    return Artifact(artifact.path, msgspec.structs.replace(artifact.manifest, files=tuple(files)))


def set_place(key: str, value: str, where: str = "weight"):
    def change(model: onnx.ModelProto) -> None:
        tensors = {"weight": model.graph.initializer[0]}
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    tensors["attribute"] = attribute.t
                tensors |= {tensor.name: tensor for tensor in attribute.g.initializer}
        tensor = tensors[where]
        (entry,) = (entry for entry in tensor.external_data if entry.key == key)
        entry.value = value

    return change


@pytest.mark.parametrize("keep_external", [True, False])
@pytest.mark.parametrize("where", ["weight", "attribute", "shift"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "/etc/passwd"),
        ("location", "../../model.bin"),
        ("offset", "1000000000"),
        ("offset", "-64"),
        ("length", "1000000000"),
        ("length", "many"),
    ],
)
def test_a_graph_that_points_outside_the_weights_is_refused(tmp_path, keep_external, where, key, value):
    artifact = damaged(write_small(tmp_path / "small.aicc", "null:host"), set_place(key, value, where))
    with pytest.raises(IntegrityError, match="not inside"):
        read_graph(artifact, keep_external)


def test_a_changed_graph_is_not_evaluated(tmp_path):
    artifact = write_small(tmp_path / "small.aicc", "null:host")
    graph = artifact.file(GRAPH_PATH)
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        load(artifact.path)


@pytest.mark.parametrize("target", FAMILIES)
def test_values_the_graph_cannot_compute_with_are_a_clear_error(tmp_path, target):
    def look_up(model: onnx.ModelProto) -> None:
        model.graph.node[-1].op_type = "Gather"  # fixed[fixed], out of range for [1, 2]

    artifact = damaged(write_small(tmp_path / "small.aicc", target), look_up)
    provider = provider_of(find_target(target))
    executable = provider.load(artifact, artifact.variant(), LoadOptions())
    inputs = {"x": np.zeros((3, 8), np.float32), "negate": np.array(True), "fixed": np.array([1, 2])}
    with pytest.raises(UsageError, match="cannot run the model on these inputs"):
        executable.run("default", inputs)


@pytest.mark.parametrize("target", FAMILIES)
def test_a_node_the_evaluator_lacks_is_refused_when_loading(tmp_path, target):
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Nonsense"

    artifact = damaged(write_small(tmp_path / "small.aicc", target), rename)
    provider = provider_of(find_target(target))
    with pytest.raises(UnsupportedError, match="Nonsense"):
        provider.load(artifact, artifact.variant(), LoadOptions())


def test_every_node_is_counted_those_of_branches_included():
    assert {c.op: c.delegated for c in full_coverage(small_graph())} == {
        "Add": 3,
        "Constant": 1,
        "If": 1,
        "MatMul": 1,
        "Neg": 1,
    }


def test_a_refused_operator_is_named_with_its_node():
    target = Target(
        family="x",
        variant="y",
        description="",
        lowering=None,
        provider=None,
        device="",
        op_rules={"Neg": "refuse"},
        evidence="prepared",
    )
    with pytest.raises(UnsupportedError, match=r"x:y cannot run 1 node\(s\) of this graph: Neg \("):
        refuse_operators(small_graph(), target)


def test_a_decoded_token_reads_every_weight_but_one_row_of_the_tables_it_looks_up_in():
    vocab, hidden = 300, 32
    graph = tiny_graph(vocab)
    sizes = {name: value.const_value.nbytes for name, value in graph.graph.initializers.items()}
    looked_up = sizes["embedding"]
    expected_bytes = sum(sizes.values()) - looked_up + looked_up // vocab
    assert looked_up == vocab * hidden * 4
    assert weight_bytes_per_token(graph) == expected_bytes


def test_what_the_null_familys_evaluator_would_compute_wrongly_is_refused(tmp_path):
    norm = """
        <ir_version: 8, opset_import: ["" : 13]>
        old (float[1, 2, 3] x, float[2] s, float[2] b, float[2] m, float[2] v) => (float[1, 2, 3] y) {
            y = BatchNormalization (x, s, b, m, v)
        }
    """
    imported = ImportedModel(ir.from_onnx_text(norm), "tensors", SourceInfo("old", "onnx", "0" * 64))
    with ArtifactWriter(tmp_path / "old.aicc") as writer:
        with pytest.raises(UnsupportedError, match=r"BatchNormalization \(.+\) before opset 14"):
            lower(imported, find_target("null"), writer.variant_directory("v"), writer.weights)
        imported.graph.opset_imports[""] = 15
        assert lower(imported, find_target("null"), tmp_path, writer.weights).files == []
