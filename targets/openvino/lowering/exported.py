"""Models that come as OpenVINO IR: nothing to convert, but the same weights file and the same attention.

The exported file is read as it is and its large constants become the weight parameters that
:class:`~aicc.targets.openvino.lowering.weights.WeightOutline` knows. A decoder comes with its KV
cache as a state; OpenVINO's own transformation puts paged attention in its place, and since that
has no stored form, each of them is stored as the stand-in the provider knows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import openvino as ov
from openvino import opset13 as op
from openvino._offline_transformations import paged_attention_transformation

from aicc.runtime.errors import UnsupportedError
from aicc.targets.openvino.layout import STAND_IN, AttentionLayer
from aicc.targets.openvino.lowering.decoder import pick_rows
from aicc.targets.openvino.lowering.weights import ELEMENT_TYPES

_ELSEWHERE = "Export the model to ONNX or GGUF and give that file."
# Arguments of the operator; from the first option on, the provider gives those that switch an option off.
_KEY_CACHE, _SCALE, _WINDOW, _SLOPES, _FIRST_OPTION = 3, 9, 10, 11, 13


def read_exported(xml: Path, graph: ir.Graph) -> ov.Model:
    """Read an exported model with its weights as parameters.

    Args:
        xml: The IR; its constants are mapped, not read.
        graph: What :mod:`aicc.compiler.importers.openvino_ir` made of it, quantised and outlined:
            its weights are inputs called ``weight:…``.
    """
    model = ov.Core().read_model(xml)
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    made: dict[str, ov.op.Parameter] = {}
    for node in graph:
        for index, value in enumerate(node.inputs):
            weight = _weight_behind(value)
            if weight is None or node.name not in nodes:
                continue
            name = str(weight.name)
            if name not in made:
                made[name] = op.parameter([int(size) for size in weight.shape], ELEMENT_TYPES[weight.dtype], name=name)
            stored = made[name].output(0)
            port = nodes[node.name].input(index)
            wanted = port.get_element_type()
            port.replace_source_output(stored if stored.get_element_type() == wanted else _convert(stored, wanted))
    model.add_parameters(list(made.values()))
    model.validate_nodes_and_infer_types()
    return model


def _weight_behind(value: ir.Value | None) -> ir.Value | None:
    """The outlined weight a value is, through the ``Transpose`` and ``Cast`` the graph has before a product."""
    while value is not None and (node := value.producer()) is not None:
        if node.domain != "" or node.op_type not in ("Transpose", "Cast"):
            return None
        value = node.inputs[0]
    return value if value is not None and str(value.name).startswith("weight:") else None


def page_attention(model: ov.Model) -> tuple[ov.Model, tuple[AttentionLayer, ...]]:
    """A decoder with its cache as a state, over flat tokens and with stand-ins for paged attention.

    Returns:
        The model with inputs ``input_ids [T]``, ``position_ids [T]``, ``logit_rows [L]``, its weights
        and what else of the batch it uses, and one result, ``logits [L, vocab]``; its attentions.

    Raises:
        UnsupportedError: Its attention has no paged form here.
    """
    try:
        paged_attention_transformation(model)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [""])[-1]
        raise UnsupportedError(
            f"OpenVINO finds no attention it can page in this model: {reason}", _ELSEWHERE
        ) from error
    found = [node for node in model.get_ops() if node.get_type_name() == "PagedAttentionExtension"]
    found.sort(key=lambda node: int(node.input_value(_KEY_CACHE).get_node().get_friendly_name().rpartition(".")[2]))
    if not found:
        raise UnsupportedError("the exported model has no attention over a KV cache.", _ELSEWHERE)
    layers = []
    for index, node in enumerate(found):
        layers.append(_layer(node, index))
        stand_in = _stand_in(node, layers[-1])
        stand_in.set_friendly_name(STAND_IN.format(index))
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(stand_in.output(0))
    logits = next(port for port in model.outputs if "logits" in port.get_names()).get_node().input_value(0)
    result, rows = pick_rows(logits)
    used = _parameters_behind(result)
    kept = [p for p in model.get_parameters() if p.get_friendly_name() in used | {"input_ids", "position_ids"}]
    flat = ov.Model([result], [*kept, rows], "decoder")
    flat.validate_nodes_and_infer_types()
    return flat, tuple(layers)


def _layer(node: ov.Node, index: int) -> AttentionLayer:
    facts = node.get_rt_info()
    kv_heads, size = (int(facts[key].value) for key in ("num_k_heads", "k_head_size"))
    if (kv_heads, size) != tuple(int(facts[key].value) for key in ("num_v_heads", "v_head_size")):
        raise UnsupportedError(f"the keys and values of attention {index} differ in heads or size.", _ELSEWHERE)
    for argument in range(_FIRST_OPTION, node.get_input_size()):
        value = _constant(node.input_value(argument))
        if value is None or value.any():
            what = f"attention {index} uses an option of paged attention (argument {argument}) that aicc does not run"
            raise UnsupportedError(f"{what}, such as sinks.", _ELSEWHERE)
    scale, window, slopes = (_constant(node.input_value(argument)) for argument in (_SCALE, _WINDOW, _SLOPES))
    if scale is None or window is None or slopes is None:
        raise UnsupportedError(f"the scale, window or slopes of attention {index} are computed.", _ELSEWHERE)
    return AttentionLayer(kv_heads, size, float(scale), int(window), tuple(map(float, slopes.reshape(-1))))


def _stand_in(node: ov.Node, layer: AttentionLayer) -> ov.Node:
    parts = node.input_values()[:3]
    query = parts[0].get_partial_shape()[1]
    if query.is_dynamic:
        raise UnsupportedError("an attention's number of heads is not known before it runs.", _ELSEWHERE)
    width = layer.kv_heads * layer.head_size
    widths = [query.get_length(), width, width]
    flat = [op.reshape(part, op.constant(np.array([-1, w])), False) for part, w in zip(parts, widths, strict=True)]
    return op.variadic_split(op.concat(flat, 1), op.constant(np.int64(1)), op.constant(np.array(widths)))


def _constant(value: ov.Output) -> np.ndarray | None:
    """What a small subgraph without parameters evaluates to; None if it has parameters."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return np.array(node.data)
    if _parameters_behind(node):
        return None
    return np.array(ov.Core().compile_model(ov.Model([op.result(value)], []), "CPU")({})[0])


def _parameters_behind(node: ov.Node) -> set[str]:
    """Names of the parameters a node depends on."""
    seen: set[str] = set()
    found: set[str] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        for value in current.input_values():
            source = value.get_node()
            if source.get_friendly_name() not in seen:
                seen.add(source.get_friendly_name())
                waiting.append(source)
                if source.get_type_name() == "Parameter":
                    found.add(source.get_friendly_name())
    return found


def _convert(value: ov.Output, dtype: ov.Type) -> ov.Output:
    return op.convert(value, dtype).output(0)
