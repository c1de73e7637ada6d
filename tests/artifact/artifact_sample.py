"""A small real model as an artifact, and the format's rules written down a second time, apart from the code."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir

from aicc.compiler.package import ArtifactWriter
from aicc.compiler.quantization.blockwise import add_blockwise
from aicc.compiler.report import CompileReport, OpCoverage, PassRecord, PhaseRecord
from aicc.runtime.artifact import (
    Artifact,
    Format,
    LlmFacts,
    Manifest,
    MemoryFacts,
    Signature,
    SourceInfo,
    TensorSpec,
    Variant,
)

INPUT = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
NIBBLES = np.arange(512 * 64, dtype=np.uint8).reshape(512, 64) % 16


def tensor(name: str, array: np.ndarray) -> ir.Tensor:
    return ir.Tensor(array, name=name)


def small_graph() -> ir.Model:
    """``x [n, 64]`` through a 4-bit layer, a large constant attribute and a branch with its own weights."""
    rng = np.random.default_rng(1)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 64]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 24}, name="small")

    scales = rng.random((512, 2), dtype=np.float32)
    minimum = rng.random((512, 2, 1), dtype=np.float32)
    weight = add_blockwise(
        graph,
        "layer.weight",
        ir.LazyTensor(lambda: ir.Tensor(NIBBLES, dtype=ir.DataType.UINT4), ir.DataType.UINT4, ir.Shape([512, 64])),
        tensor("scales", scales),
        32,
        minimum=tensor("minimum", minimum),
    )
    transposed = ir.node("Transpose", [weight])
    product = ir.node("MatMul", [x, transposed.outputs[0]])
    bias = ir.node("Constant", [], attributes={"value": tensor("bias", rng.random(512, dtype=np.float32))})
    biased = ir.node("Add", [product.outputs[0], bias.outputs[0]])
    flag = ir.Value(name="flag", const_value=tensor("flag", np.array(True)))
    graph.register_initializer(flag)
    branches = {f"{name}_branch": branch(name, biased.outputs[0], rng) for name in ("then", "else")}
    chosen = ir.node("If", [flag], attributes=branches)
    graph.extend([transposed, product, bias, biased, chosen])
    y = chosen.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 512])
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=11)


def branch(name: str, value: ir.Value, rng: np.random.Generator) -> ir.Graph:
    shift = ir.Value(name=f"{name}.shift", const_value=tensor(f"{name}.shift", rng.random(512, dtype=np.float32)))
    add = ir.node("Add", [value, shift])
    add.outputs[0].name = f"{name}.out"
    graph = ir.Graph([], [add.outputs[0]], nodes=[add], name=name)
    graph.register_initializer(shift)
    return graph


def small_manifest() -> Manifest:
    rows = TensorSpec("x", "float32", ("n", 64))
    return Manifest(
        format=Format(0, 0),  # filled in by the writer
        name="small",
        kind="tensors",
        producer={"aicc": "0.1.0"},
        source=SourceInfo("small.onnx", "onnx", "0" * 64),
        quantization="int4 group 32",
        signatures={"main": Signature((rows,), (TensorSpec("y", "float32", ("n", 512)),))},
        variants=(Variant("cpu", "null:cpu", ("program.bin",), options={"threads": "1"}),),
        memory=MemoryFacts(weight_bytes=20_000),
        files=(),
    )


def decoder_facts() -> LlmFacts:
    return LlmFacts(context_length=2048, vocab_size=100, layers=2, kv_heads=1, head_dim=8, eos_token_ids=(2,))


def small_report(seconds: float = 1.5) -> CompileReport:
    fold = PassRecord("fold", 10, 9, seconds, changed=1)
    phases = [PhaseRecord("import", seconds, 1000), PhaseRecord("optimize", seconds, 2000, [fold])]
    return CompileReport("null:cpu", "int4 group 32", phases, [OpCoverage("MatMul", 1)])


def fill(writer: ArtifactWriter) -> None:
    """Everything an artifact has, except being finished."""
    writer.write_graph(small_graph())
    writer.write_tokenizer('{"version": "1.0"}', "{{ messages }}", {"eos_token": "</s>"})
    (writer.variant_directory("cpu") / "program.bin").write_bytes(b"a program")


def write_sample(output: Path, seconds: float = 1.5) -> Artifact:
    with ArtifactWriter(output) as writer:
        fill(writer)
        return writer.commit(small_manifest(), small_report(seconds))


def read_document(artifact: Path) -> dict:
    document = json.loads((artifact / "manifest.json").read_bytes())
    del document["digest"]
    return document


def sealed(document: object) -> bytes:
    """A manifest's bytes as ``docs/artifact-format.md`` defines them."""
    body = json.dumps(document, indent=2).encode().removesuffix(b"\n}")
    return body + b',\n  "digest": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def forge(artifact: Path, **changes: object) -> None:
    """Rewrite fields of a manifest (``llm__vocab_size=0`` goes deep) and seal it as if it were honest."""
    document = read_document(artifact)
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = document
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place[parent]
        place[last] = value
    (artifact / "manifest.json").write_bytes(sealed(document))


def forge_file(artifact: Path, relative: str, content: bytes) -> None:
    """Replace a file and describe it truthfully in the manifest, as someone malicious would."""
    (artifact / relative).write_bytes(content)
    document = read_document(artifact)
    entry = next(entry for entry in document["files"] if entry["path"] == relative)
    entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    (artifact / "manifest.json").write_bytes(sealed(document))
