"""Packages for GroqFlow's contract: they pass our check of it, a broken one does not, and they compute the model."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from miniatures import make_decoder
from onnx import helper, numpy_helper

from aicc.cli.main import main
from aicc.compiler.check import check_model
from aicc.compiler.importers import ImportedModel, Source, import_model
from aicc.compiler.optimize import optimize
from aicc.compiler.pipeline import compile_model
from aicc.compiler.quantization.policy import quantize
from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError, UnsupportedError
from aicc.runtime.target import find_target
from aicc.targets.groq import lowering
from aicc.targets.groq.contract import PACKAGE, Chip, Package, Program, check_package
from aicc.targets.groq.lowering import commands, lower
from aicc.targets.groq.partition import partition
from aicc.targets.groq.target import CHIP_BYTES, MAX_CHIPS
from aicc.targets.portable import Evaluate
from aicc.targets.static_decoder import BIAS, HIDDEN

HALF_ERROR = 0.02  # of the largest logit: eleven bits of mantissa through a few layers
TOKENS = 5


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, ImportedModel]:
    """A small decoder and its graph, weights already in 16 bits."""
    folder, model, target = tmp_path_factory.mktemp("llama"), make_decoder("llama"), find_target("groq")
    model.save_pretrained(folder)
    imported = import_model(Source(folder, "huggingface", "miniature"))
    optimize(imported, target)
    assert quantize(imported, target, "auto", None) == "float16, float16 embeddings"
    return model, imported


@pytest.fixture(scope="module")
def package(llama: tuple[torch.nn.Module, ImportedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of it."""
    folder = tmp_path_factory.mktemp("package")
    lower(llama[1], find_target("groq"), folder, None)  # type: ignore[arg-type]
    return folder


def _evaluate(path: Path) -> Evaluate:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


def _empty_step(path: Path, ids: np.ndarray, past: int) -> dict[str, np.ndarray]:
    """Inputs of a step with an empty cache, padded."""
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    size, context = shapes[BIAS][2:]
    keys = np.concatenate([np.where(np.arange(context - size) < past, 0, context), np.arange(past, past + size)])
    inputs = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    inputs["input_ids"] = np.pad(ids, (0, size - len(ids)))[None]
    inputs["position_ids"] = np.arange(past, past + size)[None]
    inputs[BIAS] = np.where(keys > np.arange(past, past + size)[:, None], HIDDEN, 0).astype(np.float16)[None, None]
    return inputs


def test_prefill_and_decode_compute_the_model_in_16_bits(llama: tuple[torch.nn.Module, ImportedModel], package: Path):
    ids = torch.randint(3, 211, (1, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = llama[0](ids).logits.numpy()[0]
    prompt = _evaluate(package / "prefill.onnx")(_empty_step(package / "prefill.onnx", ids.numpy()[0, :TOKENS], 0))
    step = _empty_step(package / "decode.onnx", ids.numpy()[0, TOKENS:], TOKENS)
    for name in step:
        if name.startswith("past_key_values."):
            step[name][:, :, :TOKENS] = prompt[name.replace("past_key_values", "present")][:, :, :TOKENS]
    answer = _evaluate(package / "decode.onnx")(step)
    got = np.concatenate([prompt["logits"][0, :TOKENS], answer["logits"][0]]).astype(np.float32)
    assert np.abs(got - expected).max() < HALF_ERROR * np.abs(expected).max()


def test_the_package_says_what_its_graphs_are(package: Path):
    checked = check_package(package)
    assert [program.graph for program in checked.programs] == ["prefill.onnx", "decode.onnx"]
    assert (package / "compile.sh").read_text().count("groq-compiler") == 2
    assert "aa-latest" in (package / "compile.sh").read_text()


def _widen(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 17


def _open_shape(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.name in ("input_ids", "position_ids", BIAS):
            value.type.tensor_type.shape.dim[-2].dim_param = "batch"
    del model.graph.value_info[:]


def _float_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Cast", ["logits"], ["wide"], to=onnx.TensorProto.FLOAT))
    model.graph.output.append(onnx.helper.make_tensor_value_info("wide", onnx.TensorProto.FLOAT, None))


@pytest.mark.parametrize("harm", [_widen, _open_shape, _float_output])
def test_a_graph_that_breaks_the_contract_is_refused(package: Path, harm, tmp_path: Path):
    for file in package.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = onnx.load(tmp_path / "decode.onnx", load_external_data=False)
    harm(model)
    (tmp_path / "decode.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=r"decode\.onnx is not what GroqFlow takes"):
        check_package(tmp_path)


def test_chips_that_leave_a_node_out_are_refused(package: Path, tmp_path: Path):
    for file in package.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = msgspec.json.decode((package / PACKAGE).read_bytes(), type=Package)
    short = [msgspec.structs.replace(p, chips=(Chip(0, 1, 0, 0, 0, 0),)) for p in found.programs]
    (tmp_path / PACKAGE).write_bytes(msgspec.json.encode(msgspec.structs.replace(found, programs=tuple(short))))
    with pytest.raises(IntegrityError, match="every node once"):
        check_package(tmp_path)


def _chain(layers: int, width: int, rows: int = 1) -> ir.Model:
    """Square products of some rows one behind another; no weight has a value."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([rows, width]))
    graph = ir.Graph([x], [], nodes=[], name="chain", opset_imports={"": 16})
    for layer in range(layers):
        half = ir.TensorType(ir.DataType.FLOAT16)
        weight = ir.Value(name=f"w{layer}", type=half, shape=ir.Shape([width, width]))
        weight.const_value = ir.LazyTensor(
            lambda: ir.tensor(np.zeros(1)), dtype=half.dtype, shape=weight.shape, name=weight.name
        )
        graph.register_initializer(weight)
        node = ir.node("MatMul", [graph[-1].outputs[0] if layer else x, weight])
        node.outputs[0].type, node.outputs[0].shape = half, x.shape
        graph.append(node)
    graph.outputs.append(graph[-1].outputs[0])
    return ir.Model(graph, ir_version=8)


def test_layers_are_spread_evenly_and_what_crosses_is_counted():
    chips = partition(_chain(layers=12, width=4096))  # 201 million parameters
    assert len(chips) == 8
    assert sum(chip.last - chip.first + 1 for chip in chips) == 12
    assert max(chip.weight_bytes for chip in chips) == 2 * 2 * 4096**2
    assert {chip.received_bytes for chip in chips[1:]} == {2 * 4096}


def test_what_a_chip_computes_has_to_fit_beside_its_weights():
    """Two layers a chip would do for the parameters, and each makes 82 MB of 82 MB."""
    chips = partition(_chain(layers=8, width=4096, rows=10_000))
    assert len(chips) == 8
    assert {chip.activation_bytes for chip in chips[1:]} == {2 * 2 * 4096 * 10_000}
    with pytest.raises(ResourceError, match=r"MatMul \(.*needs 1,344,274,432 bytes at a time"):
        partition(_chain(layers=2, width=4096, rows=80_000))


def test_a_package_with_more_on_a_chip_than_fits_is_refused(tmp_path: Path):
    half = onnx.TensorProto.FLOAT16
    values = [helper.make_tensor_value_info(name, half, [1, 60_000_000]) for name in "xyz"]
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[2:], value_info=values[1:2])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), tmp_path / "m.onnx")
    package = Package(16, 220 << 20, (Program("m.onnx", 0, 0, (Chip(0, 1, 0, 0, 0, 0),)),))
    (tmp_path / PACKAGE).write_bytes(msgspec.json.encode(package))
    with pytest.raises(IntegrityError, match="chip 0 would hold 360,000,000 bytes of 230,686,720"):
        check_package(tmp_path)


def test_more_than_the_largest_topology_is_refused():
    with pytest.raises(ResourceError, match="more than 64 chips"):
        partition(_chain(layers=70, width=8192))


@pytest.mark.parametrize(
    ("target", "owner"), [("groq", "64 x LPU"), ("cerebras", "WSE3"), ("reference", "this machine")]
)
def test_a_check_speaks_of_the_memory_that_the_model_runs_in(target: str, owner: str, tmp_path: Path):
    make_decoder("llama").save_pretrained(tmp_path)
    report = check_model(Source(tmp_path, "huggingface", "miniature"), find_target(target))
    assert report.memory_of == owner
    if target == "groq":
        assert report.memory_available == MAX_CHIPS * CHIP_BYTES
        assert report.memory_bytes < 10_000_000  # no process is on the chip


def test_a_graph_with_a_newer_operator_is_refused_by_node(tmp_path: Path):
    node = onnx.helper.make_node("BitwiseNot", ["x"], ["y"], name="flip")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "m.onnx")
    imported = import_model(Source(tmp_path / "m.onnx", "onnx", "m"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match=r"BitwiseNot \(flip\) is not in opset 16"):
        lower(imported, find_target("groq"), tmp_path / "out", None)  # type: ignore[arg-type]


def test_tools_on_the_path_are_run_and_their_refusal_is_ours(
    llama: tuple[torch.nn.Module, ImportedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tools = tmp_path / "bin"
    tools.mkdir()
    compiler = tools / "groq-compiler"
    compiler.write_text("#!/bin/sh\necho no room >&2\nexit 3\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    (tmp_path / "a").mkdir()
    with pytest.raises(UnsupportedError, match=r"groq-compiler refused prefill\.onnx: no room"):
        lower(llama[1], find_target("groq"), tmp_path / "a", None)  # type: ignore[arg-type]
    compiler.write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "b").mkdir()
    with pytest.raises(MismatchError, match="aa-latest is not"):
        lower(llama[1], find_target("groq"), tmp_path / "b", None)  # type: ignore[arg-type]


def test_a_tool_that_hangs_is_stopped_in_words(
    llama: tuple[torch.nn.Module, ImportedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiler = tmp_path / "groq-compiler"
    compiler.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(lowering, "_TOOL_SECONDS", 0.1)
    (tmp_path / "a").mkdir()
    with pytest.raises(ResourceError, match="groq-compiler did not end"):
        lower(llama[1], find_target("groq"), tmp_path / "a", None)  # type: ignore[arg-type]


def test_several_chips_are_a_daisy_chain(package: Path):
    program = msgspec.structs.replace(check_package(package).programs[0], chips=(Chip(0, 0, 0, 0, 0, 0),) * 4)
    compiler, assembler = commands(program)
    assert {"--multichip=DF_A14_4_CHIP", "--partition-mode=daisy-chain"} <= set(compiler)
    assert "DF_A14_4_CHIP" in assembler


def test_a_real_encoder_passes_the_check(tmp_path: Path, capsys):
    assert main(["compile", "minilm-l6", "--target", "groq", "-o", str(tmp_path / "m.aicc")]) == 0
    checked = check_package(tmp_path / "m.aicc" / "variants" / "groq-lpu")
    assert [len(program.chips) for program in checked.programs] == [1]


@pytest.mark.full
def test_a_real_decoder_passes_the_check(tmp_path: Path):
    assert main(["compile", "smollm2-135m", "--target", "groq", "-o", str(tmp_path / "s.aicc")]) == 0
    checked = check_package(tmp_path / "s.aicc" / "variants" / "groq-lpu")
    assert [len(program.chips) for program in checked.programs] == [4, 4]


def one_node(path: Path, operator: str, kind: int, weight: np.ndarray) -> str:
    """``y`` from ``x`` and ``w``."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 8])],
        [helper.make_tensor_value_info("y", kind, [1, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return str(path)


def test_what_no_package_can_take_is_said_of_the_model(tmp_path: Path) -> None:
    whole = one_node(tmp_path / "whole.onnx", "MatMul", onnx.TensorProto.INT32, np.ones((8, 8), np.int32))
    nan = one_node(tmp_path / "nan.onnx", "MatMul", onnx.TensorProto.FLOAT, np.full((8, 8), np.nan, np.float32))
    text = one_node(tmp_path / "text.onnx", "Reshape", onnx.TensorProto.STRING, np.array([1, 8]))
    for model, says in (
        (whole, "does not take the model: x is INT32"),
        (nan, "weight w has a value of nan"),
        (text, "x is string; an artifact takes and gives tensors of numbers"),
    ):
        with pytest.raises(UnsupportedError, match=says):
            compile_model(model, "groq", tmp_path / "m.aicc")
    assert not (tmp_path / "m.aicc").exists()
