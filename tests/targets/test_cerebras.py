"""Decoders as torch-dialect MLIR: the maker's tool takes the files, and torch computes the model from their text."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from miniatures import make_decoder

from aicc.compiler.importers import ImportedModel, Source, import_model
from aicc.compiler.models import pull
from aicc.compiler.optimize import optimize
from aicc.compiler.passes.explicit_cache import specialise_decoder
from aicc.compiler.quantization.policy import quantize
from aicc.compiler.sizes import fix_sizes
from aicc.compiler.sources import resolve
from aicc.compiler.weights import WeightFile
from aicc.runtime.errors import MismatchError, ResourceError, UnsupportedError
from aicc.runtime.target import find_target
from aicc.targets.cerebras import tool
from aicc.targets.cerebras.lowering import PACKAGE, Package, Program, lower
from aicc.targets.cerebras.mlir import write_function
from aicc.targets.cerebras.placement import place
from aicc.targets.cerebras.target import CODE_BYTES, CORE_BYTES, FABRICS
from aicc.targets.cerebras.tool import find_tool, run_tool
from aicc.targets.static_decoder import BIAS, HIDDEN

HALF_ERROR = 0.02  # of the largest logit: eleven bits of mantissa through a few layers
NAMES = ("llama", "qwen3", "starcoder2")  # norms of their own kind, Gelu and biases among them
TOKENS = 5
_TYPES = {"f16": torch.float16, "f32": torch.float32, "si64": torch.int64}
_STATEMENT = re.compile(r"\s*(%\w+) = ([\w.]+)(?: ([^:]*?))?(?:\(dense.*| :.*)?$")


def _import(name: str, folder: Path) -> tuple[torch.nn.Module, ImportedModel]:
    model, target = make_decoder(name), find_target("cerebras")
    model.save_pretrained(folder)
    imported = import_model(Source(folder, "huggingface", "miniature"))
    optimize(imported, target)
    quantize(imported, target, "auto", None)
    return model, imported


def _lower(imported: ImportedModel, folder: Path, variant: str = "cerebras") -> Package:
    store = WeightFile(folder / "weights.bin", Path("weights.bin"))
    lower(imported, find_target(variant), folder, store)
    store.finish()
    store.close()
    return msgspec.json.decode((folder / PACKAGE).read_bytes(), type=Package)


def _run(folder: Path, program: Program, inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Compute a function from its text, every line of it by torch's operator of that name."""
    stored = (folder / "weights.bin").read_bytes()
    values: dict[str, Any] = {}
    for index, argument in enumerate(program.arguments):
        if argument.offset is None or argument.bytes is None:
            values[f"%arg{index}"] = torch.from_numpy(inputs[argument.name])
        else:
            part = np.frombuffer(
                stored, argument.dtype, argument.bytes // np.dtype(argument.dtype).itemsize, argument.offset
            )
            values[f"%arg{index}"] = torch.from_numpy(part.copy()).reshape(argument.shape)
    results: list[torch.Tensor] = []
    for line in (folder / program.source).read_text().splitlines()[1:-1]:
        if line.strip().startswith("return "):
            results = [values[name] for name in re.findall(r"%\w+", line)]
            continue
        match = _STATEMENT.match(line)
        assert match, line
        values[match[1]] = _statement(match[2], match[3] or "", line, values)
    return dict(zip(program.results, results, strict=True))


def _statement(name: str, rest: str, line: str, values: dict[str, Any]) -> Any:
    if name.startswith("torch.constant."):
        kind = name.removeprefix("torch.constant.")
        return {"int": int, "bool": "true".__eq__, "str": lambda s: s.strip('"'), "none": lambda _: None}[kind](rest)
    if name.startswith("torch.vtensor.literal"):
        text, shape, kind = re.search(r"dense<(.*)> : tensor<((?:\d+x)*)(\w+)>", line).groups()  # type: ignore[union-attr]
        numbers = torch.tensor(eval(text), dtype=_TYPES[kind])
        return numbers.expand([int(size) for size in shape.split("x")[:-1]]) if numbers.dim() == 0 else numbers
    operands = [values[operand] for operand in re.findall(r"%\w+", rest)]
    if name == "torch.prim.ListConstruct":
        return operands
    packet, _, overload = name.removeprefix("torch.aten.").partition(".")
    operator = getattr(torch.ops.aten, packet)
    if packet == "add" or packet == "sub":
        return operator(operands[0], operands[1], alpha=operands[2])
    if packet == "mean":
        return operator(*operands[:3])
    if packet == "gelu":
        return operator(operands[0], approximate=operands[1])
    if packet == "_to_copy":
        return operands[0].to({5: torch.float16, 6: torch.float32, 4: torch.int64}[operands[1]])
    return getattr(operator, overload)(*operands) if overload else operator(*operands)


def _inputs(program: Program, ids: np.ndarray, past: int) -> dict[str, np.ndarray]:
    """Inputs of a step, padded, its cache empty."""
    shapes = {a.name: a.shape for a in program.arguments if a.offset is None}
    size, context = shapes[BIAS][2:]
    keys = np.concatenate([np.where(np.arange(context - size) < past, 0, context), np.arange(past, past + size)])
    inputs = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    inputs["input_ids"] = np.pad(ids, (0, size - len(ids)))[None]
    if "position_ids" in inputs:
        inputs["position_ids"] = np.arange(past, past + size)[None]
    inputs[BIAS] = np.where(keys > np.arange(past, past + size)[:, None], HIDDEN, 0).astype(np.float16)[None, None]
    return inputs


@pytest.mark.parametrize("name", NAMES)
def test_the_text_the_tool_took_computes_the_model(name: str, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    model, imported = _import(name, tmp_path / "model")
    package = _lower(imported, tmp_path / "out")
    prefill, decode = package.programs
    ids = torch.randint(3, 211, (1, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits.numpy()[0]
    prompt = _run(tmp_path / "out", prefill, _inputs(prefill, ids.numpy()[0, :TOKENS], 0))
    step = _inputs(decode, ids.numpy()[0, TOKENS:], TOKENS)
    for cache in step:
        if cache.startswith("past_key_values."):
            new = prompt[cache.replace("past_key_values", "present")]
            step[cache][:, :, :TOKENS] = new[:, :, :TOKENS].numpy()
    logits = [prompt["logits"][0, :TOKENS], _run(tmp_path / "out", decode, step)["logits"][0]]
    got = torch.cat(logits).float().numpy()
    assert np.abs(got - expected).max() < HALF_ERROR * np.abs(expected).max()
    assert decode.cirh["cirh.MatMul"] == decode.torch["aten.mm"]
    assert decode.cirh["cirh.Softmax"] == decode.torch["aten._softmax"]


def test_a_real_decoder_block_goes_through_the_tool(tmp_path: Path):
    """The first layer of SmolLM2, with its embeddings and output, from the published file."""
    pull("smollm2-135m")
    source, target = resolve("smollm2-135m"), find_target("cerebras")
    imported = import_model(source, digest=False)
    fix_sizes(imported, target, {})
    _keep_layers(imported, 1)
    optimize(imported, target)
    quantize(imported, target, "auto", None)
    package = _lower(imported, tmp_path)
    assert [program.tokens for program in package.programs] == [128, 1]
    assert all(program.cirh["cirh.MatMul"] == 8 for program in package.programs)
    assert {region.part for region in package.placement} == {"embeddings", "layers.0"}
    assert all(0 < region.bytes_per_core <= CORE_BYTES - CODE_BYTES for region in package.placement)


def _keep_layers(imported: ImportedModel, layers: int) -> None:
    """Cut the layers after the first ones out of a decoder: the norm behind the last reads the first's sum."""
    graph = imported.graph.graph
    norms = [node for node in graph if node.op_type == "RMSNormalization"]
    per_layer = (len(norms) - 1) // imported.llm.layers  # type: ignore[union-attr]
    norms[-1].replace_input_with(0, norms[layers * per_layer].inputs[0])
    for value in [v for v in graph.outputs if re.match(r"present\.(\d+)\.", str(v.name))]:
        if int(str(value.name).split(".")[1]) >= layers:
            graph.outputs.remove(value)
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(imported.graph)
    for value in [v for v in graph.inputs if not v.uses()]:
        graph.inputs.remove(value)
    imported.llm = msgspec.structs.replace(imported.llm, layers=layers)  # type: ignore[type-var]


def test_layers_lie_side_by_side_on_the_wafer(tmp_path: Path):
    _, imported = _import("llama", tmp_path)
    model = specialise_decoder(imported.graph, imported.llm.context_length, 1, 32)
    for generation, (across, down) in FABRICS.items():
        regions = place(model, generation)
        assert [region.part for region in regions] == [
            "embeddings",
            *(f"layers.{i}" for i in range(imported.llm.layers)),
        ]
        taken = {(x, y) for r in regions for x in range(r.x, r.x + r.width) for y in range(r.y, r.y + r.height)}
        assert len(taken) == sum(region.width * region.height for region in regions)
        assert all(x < across and y < down for x, y in taken)
        for region in regions:
            assert region.width * region.height >= math.ceil(region.bytes / (CORE_BYTES - CODE_BYTES))


def test_what_a_wafer_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, imported = _import("llama", tmp_path)
    monkeypatch.setitem(FABRICS, "wse3", (3, 3))
    with pytest.raises(ResourceError, match="and a wafer has 9"):
        place(specialise_decoder(imported.graph, imported.llm.context_length, 1, 32), "wse3")


def test_an_operator_the_tool_refuses_is_ours_to_say(tmp_path: Path):
    kind = "!torch.vtensor<[2,2],f16>"
    (tmp_path / "x.mlir").write_text(
        f"func @main(%a: {kind}) -> {kind} {{\n  %n = torch.constant.none\n"
        f"  %r = torch.aten.linear %a, %a, %n : {kind}, {kind}, !torch.none -> {kind}\n  return %r : {kind}\n}}\n"
    )
    with pytest.raises(UnsupportedError, match=r"refused x\.mlir: failed to legalize operation 'torch\.aten\.linear'"):
        run_tool(find_tool(), tmp_path / "x.mlir", tmp_path / "y.mlir")


@pytest.mark.parametrize(
    "text",
    [
        '(float16[1,8] x) => (float16[1,8] y) { y = Gelu <approximate = "none, torch.evil"> (x) }',
        "(float16[1,8] x) => (bool[1,8] y) { y = Cast <to = 9> (x) }",
        "(float16[8,8] x, float16[8] w) => (float16[8] y) { y = MatMul (x, w) }",
        "(float16[1,8] x, int64[1] axes) => (float16[1,1] y) { y = ReduceMean (x, axes) }",
        "(float16[1,8] x) => (float16[1,1] y) { y = ReduceMean (x) }",
        "() => (float16[1] y) { y = RandomNormal <shape = [1], dtype = 10> () }",
    ],
)
def test_what_cannot_be_written_is_refused_by_node(text: str):
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 20]> g {text}'))
    with pytest.raises(UnsupportedError, match=r"\(y\) has no form"):
        write_function(model)


def test_a_tool_that_hangs_is_stopped_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stuck = tmp_path / "torch-cirh-opt"
    stuck.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(tool, "_SECONDS", 0.1)
    with pytest.raises(ResourceError, match="did not end in"):
        run_tool(stuck, tmp_path / "x.mlir", tmp_path / "y.mlir")


def test_models_of_tensors_are_refused(tmp_path: Path):
    source = resolve("silero-vad-16k")
    with pytest.raises(UnsupportedError, match="decoders alone"):
        lower(import_model(source, digest=False), find_target("cerebras"), tmp_path, None)  # type: ignore[arg-type]


def test_another_machine_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tool.platform, "machine", lambda: "aarch64")
    with pytest.raises(MismatchError, match="x86-64 Linux"):
        find_tool()
