"""Vision models on a GPU, which here is one that Mesa simulates, and the kernels they are made of."""

import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from efficientnet_lite import export, photos
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from pictures import picture
from tolerances import TOLERANCES, assert_within

from aicc.compiler.check import check_model
from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, load
from aicc.runtime.errors import UnsupportedError, UsageError
from aicc.runtime.target import find_target
from aicc.targets.webgpu.device import adapters
from aicc.targets.webgpu.plan import PLAN_FILE, Plan

if not adapters():
    pytest.skip(
        "There is no Vulkan driver here; `make vulkan` fetches one that needs no card.",
        allow_module_level=True,
    )

LIMIT = TOLERANCES["difference"]["webgpu"]
WEBGPU = find_target("webgpu")
pinned = pytest.mark.skipif(platform.machine() != "x86_64", reason="the photographs' packages are pinned for x86-64")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
few = settings(max_examples=10, deadline=None)


def plan_of(path: Path) -> Plan:
    artifact = Artifact.open(path)
    (variant,) = artifact.manifest.variants
    return msgspec.json.decode(artifact.file(f"variants/{variant.name}/{PLAN_FILE}").read_bytes(), type=Plan)


def strokes(*shape: int) -> NDArray[np.float32]:
    """Letters, near enough for a detector of text to find them."""
    image = np.full(shape, 1.8, np.float32)
    for left in range(10, shape[-1] - 20, 12):
        image[..., 20:36, left : left + 4] = image[..., 20:24, left : left + 8] = -1.8
    return image


def source(path: Path, text: str, **weights: NDArray[Any]) -> Source:
    """A graph in ONNX text, with large weights beside it."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 22]> g {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, path)
    return Source(path, "onnx", "model")


def agrees(text: str, judge: str = "evaluator", **arrays: NDArray[Any]) -> Plan:
    """Compile and run a graph, and compare with ONNX's evaluator; arrays the text does not declare are weights."""
    signature = text.partition("=>")[0]
    fed = {name: array for name, array in arrays.items() if f" {name}" in signature.replace("(", " ")}
    weights = {name: array for name, array in arrays.items() if name not in fed}
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        model = source(Path(folder, "m.onnx"), text, **weights)
        kind = ReferenceEvaluator if judge == "evaluator" else onnxruntime.InferenceSession
        expected = kind(str(model.path)).run(None, fed)
        compile_model(model, WEBGPU, Path(folder, "m.aicc"))
        with load(Path(folder, "m.aicc")) as session:
            found = list(session.run(fed).values())
        for one, other in zip(found, expected, strict=True):
            assert_within("float32", one, other)
        return plan_of(Path(folder, "m.aicc"))


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def declared(name: str, array: NDArray[Any]) -> str:
    return f"float[{', '.join(map(str, array.shape))}] {name}"


@pytest.mark.parametrize(
    ("model", "sizes", "inputs"),
    [
        ("rapidocr-cls", {"x.2": 48, "x.3": 96}, picture(1, 3, 48, 96)),
        pytest.param(
            "rapidocr-rec",
            {"x.2": 48, "p2o.DynamicDimension.1": 96},
            picture(1, 3, 48, 96),
            marks=pytest.mark.full,
        ),
        (
            "rapidocr-det",
            {"p2o.DynamicDimension.1": 64, "p2o.DynamicDimension.2": 96},
            strokes(1, 3, 64, 96),
        ),
    ],
)
def test_models_that_read_text_give_what_onnxruntime_gives(
    model: str, sizes: dict[str, int], inputs: NDArray[np.float32], tmp_path: Path
) -> None:
    compile_model(model, WEBGPU, tmp_path / "m.aicc", sizes=sizes)
    with load(tmp_path / "m.aicc") as session:
        (found,) = session.run({"x": inputs}).values()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    (expected,) = onnxruntime.InferenceSession(resolve(model).path, options).run(None, {"x": inputs})
    assert expected.max() > 0.5  # it sees something
    assert np.abs(found - expected).max() < LIMIT


@pytest.mark.full
@pinned
def test_a_classifier_names_what_it_did_before_in_a_kernel_for_each_convolution(tmp_path: Path) -> None:
    export(tmp_path / "lite0.onnx")
    compile_model(str(tmp_path / "lite0.onnx"), WEBGPU, tmp_path / "m.aicc")
    image = photos(("chelsea.png",))
    with load(tmp_path / "m.aicc") as session:
        found = session.run({"image": image})["logits"]
    expected = onnxruntime.InferenceSession(tmp_path / "lite0.onnx").run(None, {"image": image})[0]
    assert np.abs(found - expected).max() < LIMIT
    assert found.argmax() == expected.argmax()
    plan = plan_of(tmp_path / "m.aicc")
    assert [step.node.split()[0] for step in plan.steps] == ["Conv"] * 49 + ["GlobalAveragePool", "Gemm"]
    assert len(plan.pipelines) < len(plan.steps)  # equal shapes have one kernel
    between = [buffer.bytes.times for buffer in plan.buffers[2:] if buffer.constant < 0]
    assert len(between) == 3  # a residual, what is computed, and what it is computed from
    for step in plan.steps:
        assert step.buffers[-1] not in step.buffers[:-1]


ACTIVATION = "s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (n)  h = Mul (n, s)  y = Add (h, x)"


def test_all_that_follows_a_convolution_element_by_element_is_part_of_its_kernel() -> None:
    text = f"""(float[1, 4, 6, 5] x) => (float[1, 4, 6, 5] y) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        n = BatchNormalization (c, scale, bias, mean, variance)
        {ACTIVATION}
    }}"""
    statistics = {"scale": normal(4), "bias": normal(4), "mean": normal(4), "variance": np.abs(normal(4)) + 1}
    plan = agrees(text, x=normal(1, 4, 6, 5), w=normal(4, 4, 3, 3), b=normal(4), **statistics)
    assert len(plan.steps) == 1


def test_what_is_read_twice_is_computed_once() -> None:
    text = """(float[1, 4, 6, 5] x) => (float[1, 4, 6, 5] y, float[1, 4, 1, 1] p) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (c)
        p = GlobalAveragePool (r)
        y = Mul (r, p)
    }"""
    plan = agrees(text, x=normal(1, 4, 6, 5), w=normal(4, 4, 3, 3))
    assert [step.node.split()[0] for step in plan.steps] == ["Conv", "GlobalAveragePool", "output"]


@few
@given(
    groups=st.sampled_from([1, 2, 3]),
    taken=st.integers(1, 3),
    made=st.integers(1, 6),
    image=st.tuples(st.integers(5, 11), st.integers(5, 11)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    transposed=st.booleans(),
)
def test_convolutions_of_any_form(
    groups: int, taken: int, made: int, image: Any, window: Any, strides: Any, dilations: Any, pads: Any,
    transposed: bool,
) -> None:  # fmt: skip
    x = normal(2, groups * taken, *image)
    weights = normal(groups * taken, made, *window) if transposed else normal(groups * made, taken, *window)
    form = f"group = {groups}, strides = {list(strides)}, dilations = {list(dilations)}, pads = {list(pads)}"
    op = "ConvTranspose" if transposed else "Conv"
    text = f"({declared('x', x)}) => (float[n, c, h, w] y) {{ y = {op} <{form}> (x, weights, bias) }}"
    judge = "onnxruntime" if transposed else "evaluator"  # which knows no groups there
    agrees(text, judge, x=x, weights=weights, bias=normal(groups * made))


def shapes_that_broadcast(rank: int) -> Any:
    """Sizes, and for each of two tensors which of them it has."""
    return st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), max_size=rank)


@few
@given(batch=shapes_that_broadcast(2), m=st.integers(1, 70), k=st.integers(1, 9), n=st.integers(1, 70))
def test_products_of_any_sizes_and_batches(batch: Any, m: int, k: int, n: int) -> None:
    x = normal(*(size if one else 1 for size, one, _ in batch), m, k)
    y = normal(*(size if other else 1 for size, _, other in batch), k, n)
    agrees(f"({declared('x', x)}, {declared('y', y)}) => (float z) {{ z = MatMul (x, y) }}", x=x, y=y)


@few
@given(
    sizes=shapes_that_broadcast(4),
    perm=st.permutations(range(4)),
    axis=st.integers(0, 3),
    keep=st.sampled_from([0, 1]),
    op=st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax", "Softmax", "ArgMax", "LogSoftmax"]),
)
def test_chains_of_broadcasts_transpositions_and_rows(sizes: Any, perm: Any, axis: int, keep: int, op: str) -> None:
    sizes = [(1, True, True)] * (4 - len(sizes)) + sizes
    x = normal(*(size if one else 1 for size, one, _ in sizes))
    y = normal(*(size if other else 1 for size, _, other in sizes))
    last = {
        "Softmax": f"z = Softmax <axis = {axis}> (t)",
        "LogSoftmax": f"z = LogSoftmax <axis = {axis}> (t)",
        "ArgMax": f"z = ArgMax <axis = {axis}, keepdims = {keep}> (t)",
    }.get(op, f"a = Constant <value_ints = [{axis}]> ()  z = {op} <keepdims = {keep}> (t, a)")
    text = f"""({declared("x", x)}, {declared("y", y)}) => ({"int64" if op == "ArgMax" else "float"} z) {{
        s = Sub (x, y)  e = Sigmoid (s)  m = Mul (e, s)  t = Transpose <perm = {list(perm)}> (m)
        {last}
    }}"""
    agrees(text, x=x, y=y)


@few
@given(
    image=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.integers(0, 1),
    counted=st.sampled_from([0, 1]),
    op=st.sampled_from(["MaxPool", "AveragePool"]),
)
def test_poolings_of_any_form(image: Any, window: Any, strides: Any, pads: int, counted: int, op: str) -> None:
    x = normal(1, 2, *image)
    edge = [min(pads, *(size - 1 for size in window))] * 4  # the reference evaluator mixes the axes' own up
    form = f"kernel_shape = {list(window)}, strides = {list(strides)}, pads = {edge}"
    form += f", count_include_pad = {counted}" if op == "AveragePool" else ""
    agrees(f"({declared('x', x)}) => (float[n, c, h, w] y) {{ y = {op} <{form}> (x) }}", x=x)


def test_bytes_and_truth_go_in_and_come_out_as_what_they_are() -> None:
    text = """(uint8[2, 3] q, bool[3] keep, int64[2] rows) => (float[2, 3] y, bool[2, 3] big, int64[2, 3] best) {
        f = Cast <to = 1> (q)
        g = Gather (f, rows)
        zero = Constant <value_float = 0.0> ()
        y = Where (keep, g, zero)
        limit = Constant <value_float = 100.0> ()
        big = Greater (f, limit)
        whole = Cast <to = 6> (f)
        best = Cast <to = 7> (whole)
    }"""
    arrays = {"q": np.array([[0, 255, 100], [101, 7, 9]], np.uint8), "keep": np.array([True, False, True])}
    agrees(text, **arrays, rows=np.array([1, -2]))


def test_bounds_that_no_axis_reaches_are_no_numbers_of_the_device() -> None:
    most = np.iinfo(np.int64).max
    text = "(float[4, 5] x) => (float y) { y = Slice (x, starts, ends) }"
    agrees(text, x=normal(4, 5), starts=np.array([1, 2]), ends=np.array([3, most]))


def test_an_integer_that_is_too_large_for_the_device_is_refused(tmp_path: Path) -> None:
    text = "(float[3] t, int64[1] i) => (float[1] y) { y = Gather (t, i) }"
    compile_model(source(tmp_path / "m.onnx", text), WEBGPU, tmp_path / "m.aicc")
    with load(tmp_path / "m.aicc") as session, pytest.raises(UsageError, match="i has an integer of more than 32 bits"):
        session.run({"t": np.ones(3, np.float32), "i": np.array([1 << 32])})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(float[4] x) => (float[2] v, int64[2] i) { k = Constant <value_ints = [2]> () v, i = TopK (x, k) }", "TopK"),
        ("(int64[4] x) => (int64[4] y) { y = Mul (x, x) }", "Mul .+int64, whose values are kept in 32 bits"),
        ("(double[4] x) => (double[4] y) { y = Relu (x) }", "the input x has no kernel .+double"),
        ("(float[2, 3] x) => (int64[2, n] y) { y = NonZero (x) }", "NonZero"),
        (
            "(int64[2] x) => (bool[2] y) { c = Constant <value_ints = [1, 9876543210]> () y = Less (x, c) }",
            "Less .+ integer of more than 32 bits|the output y .+ integer of more than 32 bits",
        ),
    ],
)
def test_a_node_without_a_kernel_is_refused_by_name_from_headers_too(text: str, said: str, tmp_path: Path) -> None:
    model = source(tmp_path / "m.onnx", text)
    with pytest.raises(UnsupportedError, match=said):
        compile_model(model, WEBGPU, tmp_path / "m.aicc")
    assert not (tmp_path / "m.aicc").exists()
    report = check_model(model, WEBGPU)
    assert not report.supported
    assert re.search(said, report.refused[0].reason)


def test_sizes_that_are_open_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.2, x\.3"):
        compile_model("rapidocr-cls", WEBGPU, tmp_path / "m.aicc")
