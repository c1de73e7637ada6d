"""The compile half for OpenVINO: outline weights → convert → flatten (decoders) → attach → store.

A model that came as OpenVINO IR is read instead of converted, and goes the same way from there.

The result is OpenVINO's own intermediate representation, read by every plugin; a plugin turns it
into machine code when it is loaded, with the options stored beside it.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import msgspec
import onnx_ir as ir
import openvino as ov
from openvino.frontend import FrontEndManager

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.facts import kv_dtype
from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import LoweredVariant, Refusal, WeightStore
from aicc.compiler.passes.attention_mask import attention_visibility
from aicc.compiler.quantization.blockwise import match_blockwise
from aicc.compiler.report import PassRecord
from aicc.runtime.errors import UnsupportedError, first_line
from aicc.runtime.target import Target
from aicc.targets.openvino.layout import DECODER_FILE, GRAPH_FILE, STAND_IN, AttentionLayer, DecoderLayout
from aicc.targets.openvino.lowering.conversions import DecoderConversions
from aicc.targets.openvino.lowering.decoder import flatten_tokens, share_equal_nodes
from aicc.targets.openvino.lowering.exported import page_attention, read_exported
from aicc.targets.openvino.lowering.faithful import lost_inputs, put_right, unfaithful
from aicc.targets.openvino.lowering.frontend_errors import refused_nodes
from aicc.targets.openvino.lowering.ir_file import write_ir
from aicc.targets.openvino.lowering.weights import WeightOutline, transpose_in_products

# OpenVINO's names of the types a KV cache may have.
_KV_TYPES = {"float32": "f32", "float16": "f16", "uint8": "u8"}


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write ``model.xml`` (and ``decoder.json``) for one of OpenVINO's devices.

    Args:
        imported: The optimised and quantised graph; it is not changed.
        target: One of this family's targets.
        directory: Where the variant's files go.
        weights: The artifact's weights file.

    Raises:
        UnsupportedError: An operator has no conversion; names the nodes.
    """
    refuse_operators(imported.graph, target)
    decoder = imported.kind == "decoder"
    started = time.perf_counter()
    outline = WeightOutline(imported.graph.clone(), weights, half_scales="float16" in target.compute_dtypes)
    if imported.exported is None:
        model, before, layers = _converted(imported, outline)
    else:
        model = read_exported(imported.exported, outline.model.graph)
        before = len(model.get_ops())
        model, layers = page_attention(model) if decoder else (model, ())
    outline.attach(model)
    share_equal_nodes(model)
    files = [GRAPH_FILE]
    if decoder:
        Path(directory, DECODER_FILE).write_bytes(msgspec.json.encode(DecoderLayout(layers)))
        files.append(DECODER_FILE)
    write_ir(model, outline.placed, weights, Path(directory, GRAPH_FILE))
    record = PassRecord("convert to OpenVINO", before, len(model.get_ops()), time.perf_counter() - started)
    version = {"openvino": ov.__version__.split("-")[0]}
    return LoweredVariant(
        files=files,
        requires=version,
        producer=version,
        options=_options(imported, target),
        coverage=full_coverage(imported.graph),
        passes=[record],
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if decoder else 0,
    )


def _converted(imported: ImportedModel, outline: WeightOutline) -> tuple[ov.Model, int, tuple[AttentionLayer, ...]]:
    """The graph in OpenVINO's operators, how many there were at first, and the attentions of a decoder."""
    if imported.llm is None:
        model = _convert(outline.model, None)
        before = len(model.get_ops())
        transpose_in_products(model)
        return model, before, ()
    conversions = DecoderConversions()
    visible = attention_visibility(imported.graph, imported.llm.context_length)
    model = _convert(outline.model, conversions)
    before = len(model.get_ops())
    model = flatten_tokens(model)
    transpose_in_products(model)
    layers = []
    for index, (attention, view) in enumerate(zip(conversions.attentions, visible.values(), strict=True)):
        attention.stand_in.set_friendly_name(STAND_IN.format(index))
        layers.append(AttentionLayer(attention.kv_heads, attention.head_size, attention.scale, view.window))
    return model, before, tuple(layers)


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """The nodes OpenVINO has no conversion for, from shapes alone."""
    if any(node.domain in target.graph_domains for node in imported.graph.graph):
        return []  # OpenVINO's own operators
    outline = WeightOutline(imported.graph.clone(), _NoWeights(), half_scales=True)
    conversions = DecoderConversions() if imported.kind == "decoder" else None
    if found := unfaithful(imported.graph, own=conversions.operators if conversions else ()):
        return found
    try:
        _convert(outline.model, conversions)
    except UnsupportedError as error:
        return refused_nodes(imported.graph, str(error.__cause__)) or [Refusal("", "", error.message.rstrip("."))]
    return []


class _NoWeights:
    """A store for a conversion whose result is thrown away: nothing is read, so nothing is added."""

    def add(self, data: bytes | memoryview) -> int:
        raise AssertionError("checking a graph reads no weight")


def _convert(model: ir.Model, conversions: DecoderConversions | None) -> ov.Model:
    frontend = FrontEndManager().load_by_framework("onnx")
    for extension in conversions.extensions() if conversions else ():
        frontend.add_extension(extension)
    proto = ir.to_proto(model)
    _refuse(unfaithful(model, own=conversions.operators if conversions else ()))
    try:
        converted = frontend.convert(frontend.load(io.BytesIO(proto.SerializeToString())))
    except Exception as error:  # the frontend raises its own hierarchy, with a C++ trace in the text
        if isinstance(error.__cause__, UnsupportedError):
            raise error.__cause__ from None
        found = refused_nodes(model, str(error))
        named = "; ".join(f"{refusal.node} ({refusal.op}): {refusal.reason}" for refusal in found[:5])
        what = f"{len(found)} node(s): {named}" if found else f"this graph: {first_line(error)}"
        raise UnsupportedError(f"OpenVINO cannot convert {what}.", "Compile for --target reference.") from error
    if conversions is None:  # a decoder's masks and past keys are not lost: the paged attention has them
        _refuse(lost_inputs(model, converted))
    put_right(converted)
    return converted


def _refuse(found: list[Refusal]) -> None:
    if found:
        named = "; ".join(f"{refusal.node} ({refusal.op}): {refusal.reason}" for refusal in found[:5])
        raise UnsupportedError(
            f"OpenVINO would not compute {len(found)} node(s) as ONNX defines them: {named}.",
            "Compile for --target reference.",
        )


def _options(imported: ImportedModel, target: Target) -> dict[str, str]:
    """What the plugin must be loaded with so that the numbers are those that were measured.

    Full-precision weights ask for full-precision arithmetic. Quantised ones leave the plugin its
    own choice, the chip's fast half precision, but not quantised activations: those cost more
    quality than the weights do, and only weights with integer zero points gain from them.
    """
    blockwise = [weight for node in imported.graph.graph if (weight := match_blockwise(node.outputs[0]))]
    options = {}
    if imported.kind == "decoder":
        options["KV_CACHE_PRECISION"] = _KV_TYPES[kv_dtype(imported.graph, target)]
    if not blockwise:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    if not blockwise or any(weight.offset == "float" for weight in blockwise):
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    return options
