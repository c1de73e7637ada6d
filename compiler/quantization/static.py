"""Calibrated static quantisation: activations get scales fixed at compile time, from inputs the user gives.

onnxruntime's quantiser does it, on the optimised graph at full precision: it runs the samples, finds
the range of every activation, and writes ``QuantizeLinear`` and ``DequantizeLinear`` around each
operator (QDQ). Weights become symmetric int8 with a scale for each output channel, biases int32,
which then make up for what rounding does to the weights (``bias.py``). Eight bits have few steps, so
the outermost 1 in 10,000 of an activation's values are clipped; sixteen bits have enough for the
whole range.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from aicc.compiler.disk import scratch
from aicc.compiler.importers import ImportedModel
from aicc.compiler.quantization.bias import correct_biases
from aicc.compiler.quantization.policy import Quant, quantize
from aicc.compiler.quantization.samples import Sample
from aicc.compiler.quiet import quiet
from aicc.runtime.errors import ResourceError, UnsupportedError, UsageError, first_line
from aicc.runtime.target import Target

# So many of an 8-bit activation's values lie inside its range. EfficientNet-Lite0 on 22 images, mean cosine of the
# logits to float32: 0.9830 with the whole range, 0.9826 with 99.999%, 0.9842 with 99.99%, 0.9761 with 99.9%.
PERCENTILE = 99.99
# A channel with next to no weights gets steps that chips' multipliers can express: with steps of 2e-9 beside the
# others' 2e-3, Qualcomm's emulator gave 6.9 for 0. onnxruntime's own settings for that chip have the same number.
_LEAST_RANGE = 1e-4
_TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8, "int16": QuantType.QInt16, "uint16": QuantType.QUInt16}
_EXTERNAL_BYTES = 1 << 30  # weights beyond this are written beside the graph, whose file may have 2 GiB
_OPSET = 21  # the first with 16-bit activations; a scale for each channel needs 13
_CONTROL = {"If", "Loop", "Scan"}


def check_calibration(target: Target, given: bool, quant: Quant, activations: str) -> None:
    """Refuse what calibration cannot do for a target, before any work is done.

    Args:
        target: What is compiled for.
        given: Whether there is calibration data.
        quant: The weight format that was asked for.
        activations: What activations are to be, ``auto`` if that was not said.

    Raises:
        UsageError: The target needs data and there is none, or has no use for it, or the weights cannot be int8.
    """
    if given and target.calibration == "never":
        raise UsageError(f"{target.name} does not fix scales of activations.", "Leave --calibrate out.")
    if not given and target.calibration == "required":
        raise UsageError(
            f"{target.name} computes with integers only, and their scales come from sample inputs.",
            "Give some with --calibrate: a .npz file of inputs by name, a text, or a folder of pictures.",
        )
    if not given and target.calibration == "optional" and activations != "auto":
        raise UsageError(
            f"{target.name} quantises activations with scales from sample inputs only.", "Give some with --calibrate."
        )
    if given and quant not in ("auto", "int8"):
        raise UsageError(f"calibrated weights are int8, and --quant is {quant}.", "Leave --quant out.")


def folds(node: ir.Node) -> bool:
    """Whether calibration makes a node that computes vanish: by name of what onnxruntime's basic optimisations fold.

    A normalisation, and zeros around an image, go into the convolution that they belong to.
    """
    if node.op_type in ("DequantizeLinear", "Identity", "QuantizeLinear"):
        return True
    if node.op_type == "BatchNormalization":
        before = node.inputs[0].producer()
        return before is not None and before.op_type == "Conv" and len(before.outputs[0].uses()) == 1
    return node.op_type == "Pad" and _zeros_around_an_image(node)


def _zeros_around_an_image(pad: ir.Node) -> bool:
    """Whether a Pad adds nothing but zeros, to no channel, for convolutions alone."""
    inputs = [*pad.inputs[1:], None, None]
    pads = ir.convenience.get_const_tensor(inputs[0]) if inputs[0] is not None else None
    value = ir.convenience.get_const_tensor(inputs[1]) if inputs[1] is not None else None
    if pad.attributes.get_string("mode", "constant") != "constant" or pads is None or len(pad.inputs) > 3:
        return False
    if inputs[1] is not None and (value is None or value.numpy().any()):
        return False
    ends = pads.numpy().reshape(2, -1)
    return not ends[:, :2].any() and {use.node.op_type for use in pad.outputs[0].uses()} == {"Conv"}


def calibrate(imported: ImportedModel, target: Target, samples: Sequence[Sample]) -> str:
    """Quantise a graph with scales that samples of its inputs give, in place.

    Args:
        imported: Model whose graph is replaced by one with QDQ nodes; inputs and outputs keep names and types.
        target: Its first choice of activations is taken: ``int16`` is symmetric, the others have a zero point.
        samples: Inputs by name, as the graph takes them; at least one.

    Returns:
        A description of the result, such as ``int8 by channel, int8 activations (20 samples)``.

    Raises:
        UnsupportedError: onnxruntime cannot run or quantise the graph.
        ResourceError: No room for it on disk.
    """
    if imported.exported is not None:
        raise UnsupportedError(
            f"{imported.importer} gives a vendor's own graph, which cannot be calibrated.", "Use another --importer."
        )
    kind = target.activations[0]
    quantize(imported, target, "fp32", None)
    with scratch("calibrate") as folder:
        try:
            imported.graph = _quantised(imported.graph, kind, set(target.float_operators), samples, folder)
        except OSError as error:
            raise ResourceError(
                f"the graph cannot be written to {folder}: {error}.", "Free some space or point TMPDIR elsewhere."
            ) from error
        except Exception as error:  # onnxruntime's own classes share no narrower base
            raise UnsupportedError(
                f"onnxruntime cannot calibrate the graph: {first_line(error)}.",
                "Check the samples, and that the graph computes nothing infinite with them.",
            ) from error
    return f"int8 by channel, {kind} activations ({len(samples)} samples)"


def _quantised(model: ir.Model, kind: str, floats: set[str], samples: Sequence[Sample], folder: Path) -> ir.Model:
    """The QDQ form of a graph, some operators left in floats, its tensors in memory."""
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    external = weights > _EXTERNAL_BYTES
    source, prepared, quantised = (folder / f"{name}.onnx" for name in ("source", "prepared", "quantised"))
    outside = {"external_data": "source.data"} if external else {}
    ir.save(model, source, **outside)
    if model.graph.opset_imports[""] < _OPSET:
        newer = onnx.version_converter.convert_version(onnx.load(source), _OPSET)
        onnx.save(newer, source, save_as_external_data=external)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        # Folds batch normalisation into convolutions and transposes into weights, so that weights are constants.
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=external)
        operators = {node.op_type for node in ir.load(prepared).graph} - _CONTROL - floats
        quantize_static(
            prepared,
            quantised,
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(operators),
            per_channel=True,
            activation_type=_TYPES[kind],
            weight_type=QuantType.QInt8,
            use_external_data_format=external,
            calibrate_method=CalibrationMethod.Percentile if kind.endswith("int8") else CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": kind == "int16",
                "CalibPercentile": PERCENTILE,
                "CalibStridedMinMax": 1,  # one sample's activations in memory at a time, whatever the method
                "ForceQuantizeNoInputCheck": True,
                "MinimumRealRange": _LEAST_RANGE,
            },
        )
        result = ir.load(quantised)
        ir.external_data.load_to_model(result)
        correct_biases(prepared, result, samples)
    RemoveUnusedOpsetsPass()(result)
    return result


class _Reader(CalibrationDataReader):
    """Samples in the form onnxruntime reads them."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._left = iter(samples)

    def get_next(self) -> Sample | None:  # type: ignore[override]
        return next(self._left, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._samples[start_index:end_index])

    def __len__(self) -> int:
        return len(self._samples)
