"""A model of tensors with large constants in every place ONNX has for them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir

from aicc.compiler.facts import graph_signatures
from aicc.compiler.package import ArtifactWriter
from aicc.compiler.report import CompileReport
from aicc.runtime.artifact import Artifact, Format, Manifest, MemoryFacts, Signature, SourceInfo, Variant

WIDTH = 512
_rng = np.random.default_rng(3)
WEIGHT, BIAS, SHIFT = (_rng.standard_normal(shape, dtype=np.float32) for shape in ((8, WIDTH), (WIDTH,), (WIDTH,)))

# An initializer, an attribute, and an initializer of a subgraph.
_TEXT = f"""
<ir_version: 11, opset_import: ["" : 21]>
small (float[rows, 8] x, bool negate, int64[2] fixed) => (float[rows, {WIDTH}] y, int64[2] doubled) {{
    product = MatMul (x, weight)
    bias = Constant ()
    biased = Add (product, bias)
    y = If (negate) <
        then_branch = negated () => (float[rows, {WIDTH}] z) {{ z = Neg (biased) }},
        else_branch = shifted () => (float[rows, {WIDTH}] w) {{ w = Add (biased, shift) }}
    >
    doubled = Add (fixed, fixed)
}}
"""


def expected(x: np.ndarray, negate: bool) -> np.ndarray:
    biased = x @ WEIGHT + BIAS
    return -biased if negate else biased + SHIFT


def small_graph() -> ir.Model:
    proto = onnx.parser.parse_model(_TEXT)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "weight"))
    for node in proto.graph.node:
        if node.op_type == "Constant":
            node.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(BIAS)))
        if node.op_type == "If":
            (branch,) = (a.g for a in node.attribute if a.name == "else_branch")
            branch.initializer.append(onnx.numpy_helper.from_array(SHIFT, "shift"))
    return ir.from_proto(proto)


def write_small(output: Path, *targets: str, more: Mapping[str, Signature] = MappingProxyType({})) -> Artifact:
    """The model for some targets, with more signatures than the one of its graph."""
    graph = small_graph()
    manifest = Manifest(
        format=Format(0, 0),
        name="small",
        kind="tensors",
        producer={},
        source=SourceInfo("small", "onnx", "0" * 64),
        quantization="float32",
        signatures=graph_signatures(graph) | more,
        variants=tuple(Variant(target.replace(":", "-"), target, ()) for target in targets),
        memory=MemoryFacts(weight_bytes=1000),
        files=(),
    )
    with ArtifactWriter(output) as writer:
        writer.write_graph(graph)
        return writer.commit(manifest, CompileReport(target=targets[0], quantization="float32"))
