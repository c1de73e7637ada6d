"""Where OpenVINO's own conversion of ONNX changes the meaning: put right where it can be, refused where not.

Found by running ONNX's node tests through the whole pipeline; `docs/ops.md` is made from the cases
that are kept. Each entry says which rule of the ONNX operator is not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir
import openvino as ov
from openvino import opset11, opset14
from openvino import opset13 as op
from openvino.passes import Manager, Matcher, MatcherPass, WrapType
from openvino.utils import replace_node

from aicc.compiler.lowering import Refusal

# --- refused -----------------------------------------------------------------------------------


def unfaithful(model: ir.Model, own: Collection[str]) -> list[Refusal]:
    """The nodes OpenVINO would convert without complaint and compute differently from ONNX.

    Args:
        model: The graph before conversion.
        own: Operators whose conversion is ours, not OpenVINO's.
    """
    found = []
    for node in model.graph.all_nodes():
        check = _CHECKS.get(node.op_type) if node.domain == "" and node.op_type not in own else None
        if check is not None and (reason := check(node)):
            found.append(Refusal(node.name or str(node.outputs[0].name), node.op_type, reason))
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.dtype == ir.DataType.BFLOAT16:
            found.append(
                Refusal(str(value.name), "", "a bfloat16 input or output has no numpy type; cast it in the graph")
            )
    return found


def lost_inputs(model: ir.Model, converted: ov.Model) -> list[Refusal]:
    """Inputs some node of the graph uses and the conversion has dropped: their values would be ignored."""
    kept = {name for port in converted.inputs for name in port.get_names()}
    return [
        Refusal(node.name or str(node.outputs[0].name), node.op_type, f"OpenVINO ignores its input {value.name!r}")
        for value in model.graph.inputs
        if value.name not in kept
        for node in value.consumers()
    ]


def _attention(node: ir.Node) -> str:
    if node.attributes.get_int("is_causal", 0) and _given(node, 4):
        return "with is_causal, past keys are counted as if they were new"
    return ""


def _dft(node: ir.Node) -> str:
    shape = node.inputs[0].shape
    if node.attributes.get_int("onesided", 0):
        return "one-sided transforms get another rank"
    if shape is None or not isinstance(shape[-1], int):
        return "whether the input is real or complex has to be known: a last dimension of 1 or 2"
    opset = node.graph.opset_imports.get("", 20) if isinstance(node.graph, ir.Graph) else 20
    if opset >= 20 and _axis(node, default=-2) % len(shape) != 1:
        return "it is always computed along axis 1"
    return ""


def _axis(node: ir.Node, default: int) -> int:
    """The DFT's axis since opset 20, an input; -1, which it can never be, if known only at run time."""
    if not _given(node, 2):
        return default
    tensor = ir.convenience.get_const_tensor(node.inputs[2])
    return -1 if tensor is None else int(tensor.numpy().reshape(-1)[0])


def _recurrent(node: ir.Node) -> str:
    if node.attributes.get_int("layout", 0):
        return "layout 1 (batch first) is ignored"
    if node.attributes.get_int("input_forget", 0):
        return "input_forget is ignored"
    if _given(node, 4) and not _all_full(node):
        return "lengths of the sequences are ignored"
    return "peepholes are ignored" if node.op_type == "LSTM" and _given(node, 7) else ""


def _all_full(node: ir.Node) -> bool:
    """Whether every sequence is known to be as long as the input."""
    shape, lengths = node.inputs[0].shape, ir.convenience.get_const_tensor(node.inputs[4])
    return shape is not None and lengths is not None and bool((lengths.numpy() == shape[0]).all())


def _resize(node: ir.Node) -> str:
    if node.attributes.get_int("antialias", 0):
        return "antialias filters differently"
    if node.attributes.get_int("exclude_outside", 0):
        return "exclude_outside is ignored"
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keep_aspect_ratio_policy is ignored"
    aligned = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "align_corners"
    if (
        aligned
        and _given(node, 2)
        and node.attributes.get_string("mode", "nearest") != "nearest"
        and not _whole(node.inputs[2])
    ):
        return "align_corners with scales that are no whole numbers places samples differently"
    return ""


def _roi_align(node: ir.Node) -> str:
    return (
        "mode max interpolates before it takes the maximum"
        if node.attributes.get_string("mode", "avg") == "max"
        else ""
    )


_CHECKS: dict[str, Callable[[ir.Node], str]] = {
    "Attention": _attention,
    "DFT": _dft,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
    "Resize": _resize,
    "RoiAlign": _roi_align,
}


def _given(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _whole(value: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and bool((tensor.numpy() % 1 == 0).all())


# --- put right ---------------------------------------------------------------------------------


def put_right(model: ov.Model) -> None:
    """Rewrite what the conversion or a kernel gets wrong, in subgraphs too."""
    manager = Manager()
    for kind, rewrite in _REWRITES.items():
        manager.register_pass(_Rewrite(kind, rewrite))
    manager.run_passes(model)


class _Rewrite(MatcherPass):
    """Replaces every operator of one type for which ``rewrite`` gives another."""

    def __init__(self, kind: str, rewrite: Callable[[ov.Node], ov.Node | None]) -> None:
        super().__init__()

        def callback(matcher: Matcher) -> bool:
            root = matcher.get_match_root()
            new = rewrite(root)
            if new is None:
                return False
            new.set_friendly_name(root.get_friendly_name())
            replace_node(root, new)
            return True

        self.register_matcher(Matcher(WrapType(kind), f"put right {kind}"), callback)


def _top_k(node: ov.Node) -> ov.Node | None:
    """Of equal values ONNX takes the one with the lower index first."""
    a = node.get_attributes()
    if a.get("stable"):
        return None
    order = "value" if a["sort"] == "none" else a["sort"]
    return opset11.topk(
        node.input_value(0), node.input_value(1), a["axis"], a["mode"], order, a["index_element_type"], stable=True
    )


def _max_pool(node: ov.Node) -> ov.Node | None:
    """A window that would start in the padding on the right is left out, as in PyTorch."""
    a = node.get_attributes()
    if a["rounding_type"] != "ceil":
        return None
    return opset14.max_pool(
        node.input_value(0), a["strides"], a["dilations"], a["pads_begin"], a["pads_end"], a["kernel"],
        "ceil_torch", a["auto_pad"], a["index_element_type"], a["axis"],
    )  # fmt: skip


def _tile(node: ov.Node) -> ov.Node | None:
    """The CPU kernel gives garbage for rank 4 and more when repeats are known only at run time."""
    data, repeats = node.input_values()
    rank = data.get_partial_shape().rank
    if repeats.get_node().get_type_name() == "Constant" or rank.is_dynamic or rank.get_length() < 4:
        return None
    sizes, zero, one = op.shape_of(data, "i64"), op.constant(np.int64(0)), op.constant(np.int64(1))
    repeats64 = op.convert(repeats, "i64")
    for axis in range(rank.get_length()):
        at = op.constant(np.int64(axis))
        size = op.gather(sizes, at, zero)
        index = op.mod(op.range(zero, op.multiply(size, op.gather(repeats64, at, zero)), one, "i64"), size)
        data = op.gather(data, index, at).output(0)
    return data.get_node()


_REWRITES: dict[str, Callable[[ov.Node], ov.Node | None]] = {
    "opset11.TopK": _top_k,
    "opset8.MaxPool": _max_pool,
    "opset1.Tile": _tile,
}
