"""A real vision model for Ethos-U: the TOSA program computes exact integers, and Arm's compiler takes it."""

import csv
import platform
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from efficientnet_lite import all_names, calibration_photos, export, lines_of_text, photos
from integer_graph import evaluate
from onnx import TensorProto, helper, numpy_helper
from tolerances import TOLERANCES

from aicc.compiler.check import check_model
from aicc.compiler.graph_file import load_graph
from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import load
from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.provider import Fit
from aicc.runtime.target import all_targets, find_target
from aicc.targets.ethos_u.lowering import vela
from aicc.targets.ethos_u.provider import EthosUProvider

pinned = pytest.mark.skipif(platform.machine() != "x86_64", reason="the photographs' packages are pinned for x86-64")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lite0") / "efficientnet-lite0.onnx"
    export(path)
    return path


@pytest.fixture(scope="module")
def artifact(model: Path) -> Artifact:
    """EfficientNet-Lite0, calibrated with other photographs; the graph of integers is kept for comparison."""
    np.savez(model.with_name("photos.npz"), image=calibration_photos())
    path = model.with_suffix(".aicc")
    compile_model(str(model), "ethos-u:u55-128", path, calibration=model.with_name("photos.npz"), graph=True)
    return Artifact.open(path)


def logits(model: Path, images: np.ndarray) -> np.ndarray:
    """Of the float32 model ``[N, 1000]``."""
    session = onnxruntime.InferenceSession(model)
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


@pinned
def test_efficientnet_names_what_it_did_before_and_every_byte_is_that_of_exact_integers(
    artifact: Artifact, model: Path
) -> None:
    images = photos()
    with load(artifact.path) as session:
        assert session.device.endswith("(no Ethos-U)")
        found = np.concatenate([session.run({"image": image[None]})["logits"] for image in images])
    assert np.array_equal(found.argmax(axis=1), logits(model, images).argmax(axis=1))
    path = artifact.file("variants/ethos-u-u55-128/ports.json")
    (port,) = msgspec.json.decode(path.read_bytes())["outputs"]
    steps = np.rint(found / np.float32(port["scale"])).astype(np.int64) + port["zero_point"]
    graph = load_graph(artifact)
    assert np.array_equal(evaluate(graph, images[:1])[0], steps[0])


@pinned
def test_text_is_upright_where_it_was_before_and_every_byte_is_that_of_exact_integers(tmp_path: Path) -> None:
    """PP-OCR's classifier of directions whole, with its softmax, and means over more than 64 pixels."""
    lines = lines_of_text(("Hello world", "aicc 0.1", "Ethos-U55", "The quick fox"), 48, 192)
    np.savez(tmp_path / "x.npz", x=lines)
    sizes = {"x.2": 48, "x.3": 192}
    out = tmp_path / "cls.aicc"
    compile_model("rapidocr-cls", "ethos-u:u55-128", out, calibration=tmp_path / "x.npz", sizes=sizes, graph=True)
    source = onnxruntime.InferenceSession(resolve("rapidocr-cls").path)
    expected = np.concatenate([source.run(None, {"x": line[None]})[0] for line in lines])
    with load(out) as session:
        found = np.concatenate([next(iter(session.run({"x": line[None]}).values())) for line in lines])
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert set(expected.argmax(axis=1)) == {0, 1}
    artifact = Artifact.open(out)
    (port,) = msgspec.json.decode(artifact.file("variants/ethos-u-u55-128/ports.json").read_bytes())["outputs"]
    steps = np.rint(found / np.float32(port["scale"])).astype(np.int64) + port["zero_point"]
    graph = load_graph(artifact)
    assert np.array_equal(evaluate(graph, lines[:1])[0], steps[0])


@pytest.mark.parametrize(("count", "scale"), [(1, 0.1), (2, 3.0), (10, 0.08), (256, 0.04)])
def test_a_softmax_is_within_a_step_of_the_exact_one(count: int, scale: float, tmp_path: Path) -> None:
    """Of rows along the channels of an image, whose axis is moved to the end and back."""
    x = np.clip(np.random.default_rng(count).normal(0, 50, (1, count, 2, 8)), -127, 127).astype(np.float32) * scale
    np.savez(tmp_path / "x.npz", x=x)
    node = helper.make_node("Softmax", ["x"], ["y"], name="last", axis=1)
    source = save(tmp_path / "soft.onnx", [node], [1, count, 2, 8], {})
    compile_model(source, "ethos-u:u65-256", tmp_path / "m.aicc", calibration=tmp_path / "x.npz", graph=True)
    artifact = Artifact.open(tmp_path / "m.aicc")
    ports = msgspec.json.decode(artifact.file("variants/ethos-u-u65-256/ports.json").read_bytes())
    step = ports["inputs"][0]["scale"]
    held = np.clip(np.rint(x / np.float32(step)) + ports["inputs"][0]["zero_point"], -128, 127)
    exact = np.exp(step * (held - held.max(axis=1, keepdims=True)))
    with load(tmp_path / "m.aicc") as session:
        found = session.run({"x": x})["y"]
    most = 128 - ports["outputs"][0]["zero_point"]  # what the output's range ends at
    exact = np.minimum(exact / exact.sum(axis=1, keepdims=True), most * ports["outputs"][0]["scale"])
    assert np.abs(found - exact).max() <= 1.01 * ports["outputs"][0]["scale"]


def test_images_are_enlarged_by_whole_numbers(tmp_path: Path) -> None:
    """By repeated pixels, and by convolutions that do not overlap: a detector's way back to the size of its input."""
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["a"], name="blocks", strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], name="cut"),
        helper.make_node("Resize", ["b", "", "scales"], ["y"], name="repeat", mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
    ]  # fmt: skip
    weights = {"w": random(3, 5, 2, 2), "scales": np.array([1, 1, 2, 3], np.float32)}
    source = save(tmp_path / "m.onnx", nodes, [1, 3, 6, 4], weights)
    compile_model(source, "ethos-u:u85-256", tmp_path / "m.aicc", calibration=sample(tmp_path, 3, 6, 4))
    image = random(4, 3, 6, 4)[:1]
    (expected,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": image})
    with load(tmp_path / "m.aicc") as session:
        found = session.run({"x": image})["y"]
    assert found.shape == expected.shape == (1, 5, 24, 24)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pinned
def test_a_check_finds_nothing_to_refuse_in_what_compiles(model: Path) -> None:
    assert check_model(Source(model, "onnx", "lite0"), find_target("ethos-u")).supported


@pinned
def test_the_artifact_has_arms_program_and_its_estimates_marked_as_modelled(artifact: Artifact) -> None:
    folder = "variants/ethos-u-u55-128"
    assert b"ethos-u" in artifact.file(f"{folder}/model_vela.tflite").read_bytes()
    with artifact.file(f"{folder}/vela_layers.csv").open(newline="") as file:
        layers = list(csv.DictReader(file))
    assert len(layers) >= 49
    assert {layer["Target"] for layer in layers} == {"NPU"}
    report = artifact.report()
    (note,) = [note for note in report["notes"] if "cycles" in note]
    assert note.startswith("modelled by Vela")
    where = {row["op"]: (row["delegated"], row["fallback"]) for row in report["coverage"]}
    assert where == {
        "Add": (9, 0), "Conv": (49, 0), "Gemm": (1, 0), "GlobalAveragePool": (1, 0), "Reshape": (1, 0),
        "QuantizeLinear": (0, 1), "DequantizeLinear": (0, 1),
    }  # fmt: skip
    assert artifact.manifest.producer["ethos-u-vela"] == vela.version()


@pytest.mark.full
@pinned
def test_on_all_pictures_the_answer_changes_only_where_the_source_is_not_sure(artifact: Artifact, model: Path) -> None:
    images = photos(all_names())
    expected = logits(model, images)
    with load(artifact.path) as session:
        found = np.concatenate([session.run({"image": image[None]})["logits"] for image in images])
    odds = np.exp(expected - expected.max(axis=1, keepdims=True))
    second, first = np.sort(odds / odds.sum(axis=1, keepdims=True), axis=1).T[-2:]
    same = found.argmax(axis=1) == expected.argmax(axis=1)
    print(f"{same.sum()} of {len(images)} the same; the source leads by {(first - second)[~same]} where it is not")
    sure = first - second > TOLERANCES["margin"]["top1"]
    assert sure.sum() > len(images) / 2
    assert np.array_equal(found[sure].argmax(axis=1), expected[sure].argmax(axis=1))


def save(path: Path, nodes: list[onnx.NodeProto], shape: list, weights: dict[str, np.ndarray]) -> Source:
    """A graph from ``x`` to ``y``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    onnx.save(inferred, path)
    return Source(path, "onnx", path.stem)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.3, shape).astype(np.float32)


def branches(folder: Path) -> Source:
    """What efficientnet lacks: strides that leave rows over, a dead channel, pooling, branches, tables, products."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="stem", strides=[2, 2]),
        helper.make_node("HardSwish", ["a"], ["b"], name="swish"),
        helper.make_node("MaxPool", ["b"], ["c"], name="max", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["b"], ["d"], name="average", kernel_shape=[1, 1]),
        helper.make_node("Concat", ["c", "d"], ["e"], name="join", axis=1),
        helper.make_node("Sigmoid", ["e"], ["f"], name="gate"),
        helper.make_node("Mul", ["e", "f"], ["g"], name="gated"),
        helper.make_node("Sub", ["g", "bias"], ["h"], name="shift"),
        helper.make_node("Transpose", ["h"], ["i"], name="turn", perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["i", "rows"], ["j"], name="flat"),
        helper.make_node("MatMul", ["j", "m"], ["y"], name="product"),
    ]
    filters = random(8, 3, 3, 3)
    filters[0] *= 1e-33  # which finds nothing, as in rapidocr-det
    weights = {"w": filters, "bias": random(1, 16, 1, 1), "m": random(16, 5), "rows": np.array([1, 49, 16])}
    return save(folder / "branches.onnx", nodes, [1, 3, 16, 16], weights)


def sample(folder: Path, *shape: int) -> Path:
    np.savez(folder / "x.npz", x=random(4, *shape))
    return folder / "x.npz"


@pytest.mark.parametrize("variant", ["u55-32", "u65-512", "u85-2048"])
def test_branches_pools_and_tables_come_near_the_graph_they_stand_for(variant: str, tmp_path: Path) -> None:
    data = sample(tmp_path, 3, 16, 16)
    out = tmp_path / "m.aicc"
    compile_model(branches(tmp_path), f"ethos-u:{variant}", out, calibration=data)
    image = random(4, 3, 16, 16)[:1]
    (expected,) = onnxruntime.InferenceSession(tmp_path / "branches.onnx").run(None, {"x": image})
    with load(out) as session:
        found = session.run({"x": image})["y"]
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).max()


def test_names_of_tensors_change_neither_the_program_nor_the_makers_tables(tmp_path: Path) -> None:
    """Parts of a product are called ``<its result>/1``, and Vela writes names into CSV as they are."""
    x, weight = random(4, 1, 8), {"w": random(8, 8)}
    np.savez(tmp_path / "x.npz", x=x)
    results = []
    for name in ("a", "y/1", 'quo"te, and\nline */'):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], [name], name="first"),
            helper.make_node("MatMul", [name, "w"], ["y"], name="second"),
        ]
        out = tmp_path / f"{len(results)}.aicc"
        compile_model(
            save(tmp_path / "m.onnx", nodes, [1, 8], weight), "ethos-u:u55-128", out, calibration=tmp_path / "x.npz"
        )
        with load(out) as session:
            results.append(np.concatenate([session.run({"x": each})["y"] for each in x]))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    data, source = sample(tmp_path, 3, 16, 16), branches(tmp_path)
    for name in ("one", "two"):
        compile_model(source, "ethos-u:u55-128", tmp_path / f"{name}.aicc", calibration=data)
    one, two = (Artifact.open(tmp_path / f"{name}.aicc").manifest.files for name in ("one", "two"))
    assert one == two


def test_what_the_chip_cannot_run_is_refused_by_node_with_a_remedy(tmp_path: Path) -> None:
    data, out = sample(tmp_path, 4), tmp_path / "m.aicc"
    norm = save(tmp_path / "norm.onnx", [helper.make_node("LpNormalization", ["x"], ["y"], name="last")], [1, 4], {})
    gate = [helper.make_node("Sigmoid", ["x"], ["y"], name="gate")]
    free, fixed = save(tmp_path / "n.onnx", gate, [1, "k"], {}), save(tmp_path / "g.onnx", gate, [1, 4], {})
    with pytest.raises(UnsupportedError, match=r"LpNormalization \(last\).*Cut the graph"):
        compile_model(norm, "ethos-u:u55-128", out, calibration=data)
    assert [refusal.node for refusal in check_model(norm, find_target("ethos-u")).refused] == ["last"]
    pool = helper.make_node("AveragePool", ["x"], ["y"], name="pool", kernel_shape=[2, 2], auto_pad="SAME_UPPER")
    padded = save(tmp_path / "p.onnx", [pool], [1, 3, 5, 5], {})
    np.savez(tmp_path / "images.npz", x=random(4, 3, 5, 5))
    with pytest.raises(UnsupportedError, match=r"AveragePool \(pool\): auto_pad"):
        compile_model(padded, "ethos-u:u55-128", out, calibration=tmp_path / "images.npz")
    assert [refusal.reason for refusal in check_model(padded, find_target("ethos-u")).refused] == [
        "auto_pad and ceil_mode have to be left out"
    ]
    with pytest.raises(UsageError, match="--size k=N"):
        compile_model(free, "ethos-u:u55-128", out, calibration=data)
    with pytest.raises(UsageError, match="--calibrate"):
        compile_model(fixed, "ethos-u:u55-128", out)
    assert not (tmp_path / "m.aicc").exists()


def test_a_check_and_a_compile_refuse_the_same_normalisation(tmp_path: Path) -> None:
    """One is folded into the convolution right before it; a detector has another, behind a sum."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", *["s"] * 4], ["b"], name="folded"),
        helper.make_node("ConvTranspose", ["b", "v"], ["c"], name="wide", strides=[2, 2]),
        helper.make_node("Add", ["c", "shift"], ["d"], name="shift"),
        helper.make_node("BatchNormalization", ["d", *["s"] * 4], ["y"], name="left"),
    ]
    weights = {"w": random(4, 3, 3, 3), "v": random(4, 4, 2, 2), "s": np.ones(4, np.float32)}
    weights["shift"] = random(1, 4, 1, 1)
    source = save(tmp_path / "m.onnx", nodes, [1, 3, 8, 8], weights)
    (refusal,) = check_model(source, find_target("ethos-u")).refused
    assert (refusal.op, refusal.node) == ("BatchNormalization", "left")
    with pytest.raises(UnsupportedError, match=re.escape(f"BatchNormalization (left): {refusal.reason}")):
        compile_model(source, "ethos-u", tmp_path / "m.aicc", calibration=sample(tmp_path, 3, 8, 8))


def test_a_check_bears_deep_graphs_batches_and_pads_that_calibration_leaves(tmp_path: Path) -> None:
    chip, names = find_target("ethos-u"), ["x", *(f"t{i}" for i in range(599)), "y"]
    deep = [helper.make_node("Relu", [x], [y]) for x, y in pairwise(names)]
    assert check_model(save(tmp_path / "deep.onnx", deep, [1, 4], {}), chip).supported
    assert not check_model(
        save(tmp_path / "norm.onnx", [*deep[:-1], helper.make_node("LpNormalization", ["t598"], ["y"])], [1, 4], {}),
        chip,
    ).supported
    weights = {"w": random(2, 3, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    convolved = helper.make_node("Conv", ["p", "w"], ["y"], name="conv")
    for mode, refused in (("constant", []), ("reflect", ["pad"])):
        pad = helper.make_node("Pad", ["x", "pads"], ["p"], name="pad", mode=mode)
        source = save(tmp_path / f"{mode}.onnx", [pad, convolved], [1, 3, 8, 8], weights)
        assert [refusal.node for refusal in check_model(source, chip).refused] == refused
    four = save(tmp_path / "four.onnx", [helper.make_node("Relu", ["x"], ["y"])], [4, 3, 8, 8], {})
    with pytest.raises(
        UnsupportedError, match=r"^ethos-u:u55-128 runs one image at a time.* Export it with a batch of 1\.$"
    ):
        compile_model(four, "ethos-u", tmp_path / "m.aicc", calibration=sample(tmp_path, 4, 3, 8, 8))


def test_without_the_tools_a_compile_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("aicc.targets.ethos_u.lowering")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tosa_serializer", None)
    gate = save(tmp_path / "g.onnx", [helper.make_node("Sigmoid", ["x"], ["y"], name="gate")], [1, 4], {})
    with pytest.raises(MismatchError, match="pip install --no-deps tosa-tools"):
        compile_model(gate, "ethos-u:u55-128", tmp_path / "m.aicc", calibration=sample(tmp_path, 4))


def test_a_compiler_that_hangs_is_stopped_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vela, "_SECONDS", 0.01)
    gate = save(tmp_path / "g.onnx", [helper.make_node("Sigmoid", ["x"], ["y"], name="gate")], [1, 4], {})
    with pytest.raises(ResourceError, match=r"did not finish .* and was stopped"):
        compile_model(gate, "ethos-u:u55-128", tmp_path / "m.aicc", calibration=sample(tmp_path, 4))
    assert not (tmp_path / "m.aicc").exists()


def test_a_program_too_large_for_the_memory_is_refused_with_both_sizes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="wide", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "a"], ["b"], name="twice"),
        helper.make_node("Conv", ["b", "v"], ["c"], name="mixed", pads=[8, 8, 8, 8], dilations=[8, 8]),
        helper.make_node("Add", ["a", "c"], ["y"], name="sum"),
    ]
    source = save(
        tmp_path / "large.onnx", nodes, [1, 3, 640, 640], {"w": random(32, 3, 3, 3), "v": random(32, 32, 3, 3)}
    )
    np.savez(tmp_path / "x.npz", x=random(1, 3, 640, 640))
    with pytest.raises(ResourceError, match=r"needs [\d,]+ bytes of SRAM .* has 4,194,304"):
        compile_model(source, "ethos-u:u55-128", tmp_path / "m.aicc", calibration=tmp_path / "x.npz")


def test_a_damaged_program_and_one_from_newer_tools_are_refused(tmp_path: Path) -> None:
    gate = save(tmp_path / "g.onnx", [helper.make_node("Sigmoid", ["x"], ["y"], name="gate")], [1, 4], {})
    compile_model(gate, "ethos-u:u85-256", tmp_path / "m.aicc", calibration=sample(tmp_path, 4))
    artifact = Artifact.open(tmp_path / "m.aicc")
    (variant,) = artifact.manifest.variants
    newer = msgspec.structs.replace(variant, requires={"tosa-tools": "2999.1.0"})
    assert EthosUProvider().compatibility(newer).fit is Fit.RECOMPILE
    with load(artifact.path) as session:
        artifact.file("variants/ethos-u-u85-256/model.tosa").write_bytes(b"TOSA" * 9)
        with pytest.raises(IntegrityError, match=r"model\.tosa.*Compile the model again"):
            session.run({"x": np.zeros((1, 4), np.float32)})


def test_every_variant_is_one_that_vela_knows() -> None:
    command = [sys.executable, "-P", "-m", "ethosu.vela", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    targets = [target for target in all_targets().values() if target.family == "ethos-u"]
    assert {f"ethos-{target.variant}" for target in targets} == set(re.findall(r"ethos-u\d+-\d+(?=[,}])", text))
    assert find_target("ethos-u").variant == "u55-128"
