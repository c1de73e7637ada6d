"""ONNX files import as they are, after checking that they are what they say."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from aicc.compiler.importers import ImportedModel, Source, import_model
from aicc.compiler.models import pull
from aicc.runtime.errors import IntegrityError, UnsupportedError

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
PUBLISHED = {
    "minilm-l6-int8": {
        "input_ids": np.array([[101, 7592, 102, 0]]),
        "attention_mask": np.array([[1, 1, 1, 0]]),
        "token_type_ids": np.zeros((1, 4), np.int64),
    },
    "rapidocr-det": {"x": np.random.default_rng(0).random((1, 3, 64, 96), np.float32)},
    "rapidocr-rec": {"x": np.random.default_rng(0).random((1, 3, 48, 96), np.float32)},
    "rapidocr-cls": {"x": np.random.default_rng(0).random((1, 3, 48, 192), np.float32)},
    "silero-vad": {
        "input": np.random.default_rng(0).random((1, 576), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000),
    },
    "silero-vad-16k": {
        "input": np.random.default_rng(0).random((1, 576), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
    },
}


def imported_from(path: Path) -> ImportedModel:
    return import_model(Source(path, "onnx", "model"))


def make_model(**changes) -> onnx.ModelProto:
    """``y = x · W`` with W ``[2, 3]`` inside the file."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", changes.get("opset", 17))], ir_version=10)


def write_external(
    folder: Path, location: str, offset: int = 0, length: int = 24, dims: tuple[int, ...] = (2, 3)
) -> Path:
    """The same model with W in another file, named as the caller wants."""
    model = make_model()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    del weight.dims[:]
    weight.dims.extend(dims)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "model"
    inner.mkdir()
    (inner / "weights.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    return inner


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_computes_as_before(name: str, tmp_path: Path) -> None:
    path = pull(name)
    imported = imported_from(path)
    ir.save(imported.graph, tmp_path / "again.onnx")
    expected = onnxruntime.InferenceSession(path).run(None, PUBLISHED[name])
    found = onnxruntime.InferenceSession(tmp_path / "again.onnx").run(None, PUBLISHED[name])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert imported.kind == "tensors"


def test_a_stateful_model_keeps_its_state_and_control_flow() -> None:
    graph = imported_from(pull("silero-vad")).graph.graph
    assert [value.name for value in graph.inputs] == ["input", "state", "sr"]
    assert [value.name for value in graph.outputs] == ["output", "stateN"]
    assert any(node.op_type == "If" for node in graph)


def test_external_data_stays_in_its_file_until_asked_for(folder: Path) -> None:
    imported = imported_from(write_external(folder, "weights.bin"))
    weight = imported.graph.graph.initializers["w"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    np.testing.assert_array_equal(weight.numpy(), WEIGHT)
    assert imported.weight_files == [folder / "model.onnx", folder / "weights.bin"]


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "..\\secret.bin", "sub/../../secret.bin", ""])
def test_external_data_outside_the_folder_is_refused(folder: Path, location: str) -> None:
    with pytest.raises(IntegrityError, match=r"tensor 'w' names the file .* outside the model's folder"):
        imported_from(write_external(folder, location))


def test_external_data_behind_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    with pytest.raises(IntegrityError, match="outside the model's folder"):
        imported_from(write_external(folder, "link.bin"))


def test_links_inside_a_hub_snapshot_lead_to_its_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "blobs" / "1").write_bytes(WEIGHT.tobytes())
    (snapshot / "weights.bin").symlink_to("../../blobs/1")
    imported = imported_from(write_external(snapshot, "weights.bin"))
    np.testing.assert_array_equal(imported.graph.graph.initializers["w"].const_value.numpy(), WEIGHT)


@pytest.mark.parametrize(
    "lie",
    [
        {"offset": 8},
        {"length": 48},
        {"length": 12},
        {"offset": -4},
        {"dims": (2, 30)},
        {"dims": (2, -3)},
        {"offset": 1 << 70},
    ],
)
def test_external_data_that_is_not_there_is_refused(folder: Path, lie: dict) -> None:
    with pytest.raises(IntegrityError, match="tensor 'w'"):
        imported_from(write_external(folder, "weights.bin", **lie))


def test_a_missing_data_file_is_named(folder: Path) -> None:
    with pytest.raises(IntegrityError, match=r"gone\.bin"):
        imported_from(write_external(folder, "gone.bin"))


def test_a_constant_with_too_few_bytes_is_refused(tmp_path: Path) -> None:
    model = make_model()
    model.graph.initializer[0].raw_data = b"1234"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=r"tensor 'w' .* needs 24 bytes and has 4"):
        imported_from(tmp_path / "m.onnx")


def test_a_constant_inside_a_branch_is_checked_too(tmp_path: Path) -> None:
    bad = numpy_helper.from_array(np.zeros(3, np.float32), "c")
    bad.raw_data = b""
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value=bad)],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [3])],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    with pytest.raises(IntegrityError, match="tensor 'c'"):
        imported_from(tmp_path / "m.onnx")


@pytest.mark.parametrize("opset", [1, 999])
def test_an_opset_not_known_is_refused(tmp_path: Path, opset: int) -> None:
    (tmp_path / "m.onnx").write_bytes(make_model(opset=opset).SerializeToString())
    with pytest.raises(UnsupportedError, match=f"opset {opset}"):
        imported_from(tmp_path / "m.onnx")


def test_a_graph_that_breaks_onnx_rules_is_refused(tmp_path: Path) -> None:
    model = make_model()
    model.graph.node[0].input[0] = "nowhere"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=r"breaks ONNX's rules: .*nowhere"):
        imported_from(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("operator", "inputs", "attribute"),
    [("Gelu", 1, "approximate"), ("Pad", 2, "mode"), ("MaxPool", 1, "auto_pad"), ("ScatterElements", 3, "reduction")],
)
def test_a_word_that_an_attribute_may_not_be_is_refused(
    tmp_path: Path, operator: str, inputs: int, attribute: str
) -> None:
    model = make_model(opset=20)
    more = {"kernel_shape": [2]} if operator == "MaxPool" else {}
    names = ["h", "pads", "u"][:inputs]
    model.graph.node[0].output[0] = "h"
    model.graph.node.append(helper.make_node(operator, names, ["y"], name="n", **{attribute: 'tanh" x'}, **more))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.int64), "pads"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "u"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=rf"{attribute} of {operator} \(n\) is"):
        imported_from(tmp_path / "m.onnx")


def test_inputs_with_a_default_become_constants(tmp_path: Path) -> None:
    model = make_model()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    imported = imported_from(tmp_path / "m.onnx")
    assert [value.name for value in imported.graph.graph.inputs] == ["x"]
    assert imported.notes == ["1 inputs with a default became constants"]


def test_functions_are_inlined(tmp_path: Path) -> None:
    model = make_model()
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(
        helper.make_function(
            "own", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
    )
    model.graph.node[0].output[0] = "z"
    model.graph.node.append(helper.make_node("Double", ["z"], ["y"], domain="own"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    imported = imported_from(tmp_path / "m.onnx")
    assert [node.op_type for node in imported.graph.graph] == ["MatMul", "Add"]


def test_functions_that_multiply_each_other_are_refused_before_they_are_inlined(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own",
            f"f{i}",
            ["a"],
            ["b"],
            [
                helper.make_node(f"f{i + 1}", ["a"], ["t"], domain="own"),
                helper.make_node(f"f{i + 1}", ["t"], ["b"], domain="own"),
            ],
            opsets,
        )
        for i in range(34)
    ]
    functions.append(helper.make_function("own", "f34", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets))
    model = make_model()
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "f0", "own"
    model.functions.extend(functions)
    path = tmp_path / "bomb.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match="nodes once its functions stand in place"):
        imported_from(path)


def test_the_tokenizer_beside_the_model_comes_along(folder: Path) -> None:
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    imported = imported_from(write_external(folder, "weights.bin"))
    assert Tokenizer.from_str(imported.tokenizer_json).encode("a").ids == [0]
