"""Calibrated static quantisation: real models in, graphs of integers with fixed scales out."""

import io
import json
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tolerances import TOLERANCES, assert_within, cosine

from aicc.compiler.importers import ImportedModel, Source, import_model
from aicc.compiler.pipeline import compile_model
from aicc.compiler.quantization.samples import Sample, read_samples
from aicc.compiler.quantization.static import calibrate
from aicc.compiler.sources import resolve
from aicc.runtime import load
from aicc.runtime.errors import MismatchError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.target import find_target

TEXT = """The library opened at nine, and by ten there was no free chair near the windows.
Water boils at a lower temperature in the mountains.

In 1969 two people walked on the Moon while a third waited in orbit for them to return.
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text(TEXT)
    return path


def lines(count: int) -> np.ndarray:
    """Strips as the text direction model reads them ``[count, 3, 48, 192]``: dark strokes on light paper."""
    rng = np.random.default_rng(0)
    strips = np.full((count, 3, 48, 192), 0.9, np.float32)
    for strip in strips:
        for left in range(8, 184, 12):
            top, bottom = sorted(rng.integers(8, 40, 2))
            strip[:, top : bottom + 1, left : left + rng.integers(2, 6)] = -0.8
    return strips


@pytest.fixture
def affine(tmp_path: Path) -> ImportedModel:
    """``x [n, 4] @ W [4, 3]``."""
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3) - 5, "W")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"], name="multiply")],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "affine.onnx")
    return import_model(Source(tmp_path / "affine.onnx", "onnx", "affine"))


def steps(model: ir.Model, name: str) -> tuple[float, int]:
    """Scale and zero point of the node that quantises a value."""
    node = next(node for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0].name == name)
    scale, zero = (value.const_value.numpy() for value in node.inputs[1:])
    return float(scale), int(zero)


@pytest.fixture(scope="module")
def float_answers(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What the vision model says to twelve lines before anything is quantised."""
    artifact = tmp_path_factory.mktemp("float") / "float.aicc"
    compile_model("rapidocr-cls", "reference:cpu", artifact)
    return answers(artifact, lines(12))


def answers(artifact: Path, images: np.ndarray) -> np.ndarray:
    with load(artifact) as model:
        return np.concatenate([next(iter(model.run({"x": image[None]}).values())) for image in images])


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_a_vision_model_keeps_its_answers(kind: str, float_answers: np.ndarray, tmp_path: Path) -> None:
    images = lines(12)
    np.savez(tmp_path / "lines.npz", x=images[:8])
    artifact = tmp_path / "q.aicc"
    report = compile_model(
        "rapidocr-cls", "reference:cpu", artifact, activations=kind, calibration=tmp_path / "lines.npz"
    )
    assert report.quantization == f"int8 by channel, {kind} activations (8 samples)"
    found, expected = answers(artifact, images), float_answers
    sure = expected.max(axis=1) > TOLERANCES["static"]["sure"]
    assert sure.sum() >= 10
    assert np.array_equal(found[sure].argmax(axis=1), expected[sure].argmax(axis=1))
    assert np.abs(found - expected).mean() < TOLERANCES["static"][kind]


def test_every_convolution_multiplies_integers_with_a_scale_for_each_channel() -> None:
    imported = import_model(resolve("rapidocr-cls"))
    calibrate(imported, find_target("reference:cpu"), [{"x": image[None]} for image in lines(2)])
    convolutions = [node for node in imported.graph.graph if node.op_type == "Conv"]
    assert len(convolutions) == 53
    for node in convolutions:
        image, weight, bias = (value.producer() for value in node.inputs)
        assert [n.op_type for n in (image, weight, bias)] == ["DequantizeLinear"] * 3
        values, scales = (value.const_value for value in weight.inputs[:2])
        assert (values.dtype, scales.shape[0]) == (ir.DataType.INT8, values.shape[0])
        assert bias.inputs[0].dtype == ir.DataType.INT32
        assert {use.node.op_type for use in node.outputs[0].uses()} == {"QuantizeLinear"}
    graph = imported.graph.graph
    assert [(value.name, value.dtype) for value in (*graph.inputs, *graph.outputs)] == [
        ("x", ir.DataType.FLOAT),
        ("save_infer_model/scale_0.tmp_1", ir.DataType.FLOAT),
    ]


def test_an_encoder_calibrated_with_sentences_gives_nearly_the_same_vectors(text: Path, tmp_path: Path) -> None:
    compile_model("minilm-l6", "reference:cpu", tmp_path / "q.aicc", activations="int16", calibration=text)
    compile_model("minilm-l6", "reference:cpu", tmp_path / "float.aicc")
    sentences = ["A cat sleeps on the sofa.", "Interest rates rose again in March."]
    with load(tmp_path / "q.aicc") as quantised, load(tmp_path / "float.aicc") as source:
        found, expected = quantised.embedder.embed(sentences), source.embedder.embed(sentences)
    assert cosine(found, expected) > TOLERANCES["cosine"]["embeddings_int16_calibrated"]


@pytest.mark.parametrize(
    ("operator", "shape", "weight", "attributes"),
    [
        ("Conv", [1, 4, 9, 8], [6, 4, 3, 2], {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ("Conv", [1, 4, 9, 8], [8, 1, 3, 3], {"group": 4}),
        ("Conv", [1, 4, 9], [6, 4, 3], {"pads": [1, 1]}),
        ("Gemm", [16, 8], [8, 5], {}),
        ("Gemm", [16, 8], [5, 8], {"transB": 1}),
    ],
)
def test_biases_make_up_for_what_rounding_does_to_weights(
    operator: str, shape: list[int], weight: list[int], attributes: dict, tmp_path: Path
) -> None:
    """On average over the samples; one large weight in each channel leaves the others few steps."""
    rng = np.random.default_rng(0)
    transposed = operator == "Gemm" and not attributes
    outputs = weight[1] if transposed else weight[0]
    values = rng.normal(0, 0.02, weight).astype(np.float32)
    if transposed:
        values[0] = 3
    else:
        values.reshape(outputs, -1)[:, 0] = 3
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w", "b"], ["y"], name="product", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, "w"), numpy_helper.from_array(np.ones(outputs, np.float32), "b")],
    )
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    onnx.save(model, tmp_path / "m.onnx")
    imported = import_model(Source(tmp_path / "m.onnx", "onnx", "m"))
    samples = [{"x": rng.uniform(0, 1, shape).astype(np.float32)} for _ in range(3)]
    calibrate(imported, find_target("reference:cpu").with_activations("int16"), samples)
    ir.save(imported.graph, tmp_path / "q.onnx")
    off = 0
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source, quantised = (onnxruntime.InferenceSession(tmp_path / name, settings) for name in ("m.onnx", "q.onnx"))
    for sample in samples:
        off = off + quantised.run(None, sample)[0] - source.run(None, sample)[0]
    assert np.abs(off).max() > TOLERANCES["static"]["mean"]  # single results have been rounded
    assert np.abs(off.mean(axis=(0, *range(2, off.ndim)))).max() / len(samples) < TOLERANCES["static"]["mean"]


def test_eight_bits_clip_an_outlier_and_sixteen_keep_it(affine: ImportedModel) -> None:
    usual = np.random.default_rng(0).uniform(-1, 1, (200_000, 4)).astype(np.float32)
    usual[0, 0] = 1000
    again = ImportedModel(affine.graph.clone(), affine.kind, affine.info)
    calibrate(affine, find_target("reference:cpu").with_activations("int8"), [{"x": usual}])
    calibrate(again, find_target("reference:cpu").with_activations("int16"), [{"x": usual}])
    assert steps(affine.graph, "x")[0] < 0.02
    assert steps(again.graph, "x") == (pytest.approx(1000 / 32767, rel=1e-3), 0)


def test_samples_of_a_decoder_are_runs_of_its_text_without_a_past(text: Path) -> None:
    samples = read_samples(text, import_model(resolve("smollm2-135m"), digest=False))
    assert len(samples) == 1
    (sample,) = samples
    assert sample["input_ids"].shape == sample["attention_mask"].shape == sample["position_ids"].shape
    assert sample["past_key_values.0.key"].shape == (1, 3, 0, 64)


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def member(path: Path, data: bytes) -> Path:
    """An archive of one member that says it is the array ``x``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", data)
    return path


def header(shape: tuple[int, ...]) -> bytes:
    """Of a float32 array."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(("shape", "count"), [((5, 4), 5), ((5, 1, 4), 5), ((3, 2, 4), 3)])
def test_samples_stand_along_the_first_axis(
    shape: tuple[int, ...], count: int, affine: ImportedModel, tmp_path: Path
) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    samples: list[Sample] = read_samples(saved(tmp_path / "a.npz", x=array), affine)
    assert len(samples) == count
    assert np.array_equal(np.concatenate([sample["x"] for sample in samples]), array.reshape(-1, 4))


def test_a_folder_gives_the_samples_of_all_its_files(affine: ImportedModel, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, value in (("b", 2), ("a", 1)):
        saved(tmp_path / "data" / f"{name}.npz", x=np.full((1, 4), value, np.float32))
    assert [sample["x"][0, 0] for sample in read_samples(tmp_path / "data", affine)] == [1, 2]


def test_calibration_data_that_does_not_fit_is_refused_with_what_the_model_takes(
    affine: ImportedModel, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "broken.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    good = saved(tmp_path / "good.npz", x=np.zeros((1, 4), np.float32)).read_bytes()
    central = good.index(b"PK\x01\x02")
    cases = {
        tmp_path / "nothing.npz": "does not exist",
        tmp_path / "empty": "has no files",
        tmp_path / "text.txt": "the model reads neither text nor one picture",
        tmp_path / "broken.npz": "'x' is missing",
        saved(tmp_path / "name.npz", z=np.zeros((1, 4), np.float32)): "'x' is missing",
        saved(tmp_path / "more.npz", x=np.zeros((1, 4), np.float32), z=np.zeros(1)): "'z' is no input",
        saved(tmp_path / "wide.npz", x=np.zeros((1, 4))): "has dtype float64",
        saved(tmp_path / "shape.npz", x=np.zeros((1, 5), np.float32)): "x float32[n, 4]",
        saved(tmp_path / "none.npz", x=np.zeros((0, 4), np.float32)): "has no sample",
        saved(tmp_path / "object.npz", x=np.array([None, 1])): "cannot be read",
        member(tmp_path / "words.npz", b"no array"): "'x' is no array",
        member(tmp_path / "header.npz", b"\x93NUMPY\x01\x00\x05\x00((((\n"): "cannot be read",
        member(tmp_path / "huge.npz", header((1 << 50, 4))): "cannot be read",
        member(tmp_path / "cut.npz", header((9, 4)) + bytes(100)): "cannot be read",
        written(tmp_path / "locked.npz", good[: central + 8] + b"\x01" + good[central + 9 :]): "cannot be read",
        written(tmp_path / "method.npz", good[: central + 10] + b"\x4d" + good[central + 11 :]): "cannot be read",
        saved(tmp_path / "nan.npz", x=np.array([[0, 1, np.nan, 2]], np.float32)): "'x' has values that are not finite",
    }
    for path, message in cases.items():
        with pytest.raises(UsageError) as caught:
            read_samples(path, affine)
        assert message in str(caught.value), path


@pytest.fixture
def looks(tmp_path: Path) -> ImportedModel:
    """``x [1, 3, 4, 6]`` to its negative, from a folder that says how pictures become ``x``."""
    folder = tmp_path / "model"
    folder.mkdir()
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 6]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], name="turn")], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), folder / "m.onnx")
    settings = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 4, "width": 6}, "resample": 0,
        "rescale_factor": 1 / 255, "image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.5, 0.25],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return import_model(Source(folder / "m.onnx", "onnx", "m"))


def pixmap(path: Path, pixels: np.ndarray) -> Path:
    """A picture ``[height, width, 3]`` of 8 bits in the simplest format there is."""
    return written(path, f"P6 {pixels.shape[1]} {pixels.shape[0]} 255 ".encode() + pixels.tobytes())


def test_pictures_are_prepared_as_the_model_says(looks: ImportedModel, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    shown = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    large = shown.repeat(3, axis=1).repeat(3, axis=2)  # whose nearest pixels are those of the small ones
    pixmap(tmp_path / "album" / "a.ppm", shown[0])
    pixmap(tmp_path / "album" / "b.ppm", large[1])
    found = np.concatenate([sample["x"] for sample in read_samples(tmp_path / "album", looks)])
    expected = (shown / np.float32(255) - np.float32([0.5, 0.25, 0])) / np.float32([0.5, 0.5, 0.25])
    assert_within("float32", found, expected.astype(np.float32).transpose(0, 3, 1, 2))


def test_pictures_that_cannot_be_prepared_are_refused_in_words(looks: ImportedModel, tmp_path: Path) -> None:
    picture = pixmap(tmp_path / "a.ppm", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UsageError, match=r"broken\.ppm is no picture"):
        read_samples(written(tmp_path / "broken.ppm", picture.read_bytes()[:20]), looks)
    config, vit = tmp_path / "model" / "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"}
    for settings, kind, message in (
        (vit | {"size": {"height": 5, "width": 5}}, UsageError, r"shape \[1, 3, 5, 5\]"),
        (vit | {"image_mean": [1]}, UsageError, "does not say how"),
        ({"image_processor_type": "OwnProcessor", "auto_map": {"AutoImageProcessor": "x.Y"}}, UnsupportedError, "Own"),
    ):
        config.write_text(json.dumps(settings))
        with pytest.raises(kind, match=message):
            read_samples(picture, looks)
    config.unlink()
    with pytest.raises(UsageError, match=r"no preprocessor_config\.json beside the model"):
        read_samples(picture, looks)


def test_without_pillow_pictures_say_what_to_install(
    looks: ImportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MismatchError, match=r"aicc\[images\]"):
        read_samples(pixmap(tmp_path / "a.ppm", np.zeros((4, 6, 3), np.uint8)), looks)


def test_arrays_that_take_more_memory_than_there_is_are_not_unpacked(affine: ImportedModel, tmp_path: Path) -> None:
    path = member(tmp_path / "bomb.npz", header((1 << 45, 4)) + bytes(1000))
    data, unpacked = bytearray(path.read_bytes()), struct.pack("<I", (1 << 32) - 2)
    at = data.index(b"PK\x01\x02")
    entry = data[at : data.index(b"PK\x05\x06")]
    entry[24:28] = unpacked
    count = 1 << 14  # of such members, 64 TiB in all
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(entry) * count, at, 0)
    path.write_bytes(data[:at] + entry * count + end)
    with pytest.raises(ResourceError, match="bytes, and"):
        read_samples(path, affine)


def test_samples_that_make_infinities_are_refused(affine: ImportedModel) -> None:
    with pytest.raises(UnsupportedError, match="infinite"):
        calibrate(affine, find_target("reference:cpu"), [{"x": np.full((2, 4), np.inf, np.float32)}])


def test_options_that_contradict_each_other_are_refused_before_any_work(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.npz"
    for target, options, message in (
        ("openvino:cpu", {"calibration": nowhere}, "does not fix scales"),
        ("reference:cpu", {"activations": "int8"}, "--calibrate"),
        ("reference:cpu", {"calibration": nowhere, "quant": "int4"}, "--quant is int4"),
    ):
        with pytest.raises(UsageError, match=message):
            compile_model("rapidocr-cls", target, tmp_path / "m.aicc", **options)
