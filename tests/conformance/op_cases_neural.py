"""Attention, normalisation, convolution, pooling, resizing and recurrence."""

import numpy as np
from op_case import Case, Constant, case, floats, ints, positive, scalar

ORT = "onnxruntime"  # where the reference evaluator passes over an attribute or an input
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}  # grouped queries
Q, K, V = floats(2, 3, 32), floats(2, 5, 16), floats(2, 5, 16, scale=2.0)
PAST = (floats(2, 2, 6, 8), floats(2, 2, 6, 8, scale=2.0))
ANGLES = np.arange(10)[:, None] / 100.0 ** (np.arange(4) / 4)
COS, SIN = (Constant(f(ANGLES).astype(np.float32)) for f in (np.cos, np.sin))
POSITIONS = np.array([[0, 1, 2], [5, 6, 7]])

ATTENTION: list[Case] = [
    case("Attention", floats(2, 4, 3, 8), floats(2, 4, 5, 8), floats(2, 4, 5, 8, scale=2.0)),
    case("Attention", Q, K, V, label="grouped queries", **HEADS),
    case("Attention", Q, K, V, label="scale", scale=0.5, **HEADS),
    case("Attention", floats(2, 5, 32), K, V, label="causal", is_causal=1, **HEADS),
    case("Attention", Q, K, V, floats(3, 5), label="mask added", **HEADS),
    case("Attention", Q, K, V, Constant(np.tri(3, 5, 2, dtype=bool)), label="mask of booleans", **HEADS),
    case("Attention", Q, K, V, None, *PAST, label="past and present", outputs=3, **HEADS),
    case("Attention", Q, K, V, floats(3, 11), *PAST, label="mask and past", outputs=3, **HEADS),
    case("Attention", Q, K, V, None, *PAST, label="causal with past", outputs=3, is_causal=1, **HEADS),
    case("Attention", Q, K, V, label="softcap", softcap=2.0, **HEADS),
    case("RotaryEmbedding", floats(2, 3, 16), COS, SIN, POSITIONS, label="flat heads", num_heads=2),
    case("RotaryEmbedding", floats(2, 2, 3, 8), COS, SIN, POSITIONS, label="split heads"),
    case("RotaryEmbedding", floats(2, 2, 3, 8), COS, SIN, POSITIONS, label="interleaved", interleaved=1),
    case("RotaryEmbedding", floats(2, 2, 3, 12), COS, SIN, POSITIONS, label="part of the head", rotary_embedding_dim=8),
]

NORMALISATION: list[Case] = [
    case("RMSNormalization", floats(2, 3, 16), Constant(positive(16)), epsilon=1e-6),
    case("LayerNormalization", floats(2, 3, 16), Constant(positive(16)), Constant(floats(16))),
    case("LayerNormalization", floats(2, 3, 16), Constant(positive(16)), label="without bias", epsilon=1e-3),
    case(
        "LayerNormalization",
        floats(2, 3, 4),
        Constant(positive(3, 4)),
        Constant(floats(3, 4)),
        label="two axes",
        axis=1,
    ),
    case("GroupNormalization", floats(2, 6, 4, 4), Constant(positive(6)), Constant(floats(6)), num_groups=3),
    case("InstanceNormalization", floats(2, 3, 4, 5), Constant(positive(3)), Constant(floats(3))),
    case(
        "BatchNormalization",
        floats(2, 3, 4, 5),
        *(Constant(a) for a in (positive(3), floats(3), floats(3), positive(3))),
    ),
    case("MeanVarianceNormalization", floats(2, 3, 4, 5)),
    case("LpNormalization", floats(2, 3, 4), axis=1),
    case("LpNormalization", positive(2, 3, 4), label="p 1", p=1),  # positive: the evaluator forgets the magnitude
    case("LRN", floats(6, 6, 2, 2), size=3),  # square: the evaluator takes the batch for the channels
    case("Softmax", floats(2, 3, 4)),
    case("Softmax", floats(2, 3, 4), label="axis", axis=1),
    case("Softmax", floats(2, 3, 4), label="opset 11, flattened", opset=11, axis=1, judge=ORT),
    case("Softmax", np.array([[1000.0, 999, -np.inf]], np.float32), label="large and masked"),
    case("LogSoftmax", floats(2, 3, 4)),
    case("Hardmax", floats(2, 3, 4)),
    case("Dropout", floats(2, 3, 4)),
]

CONVOLUTION: list[Case] = [
    case("Conv", floats(2, 3, 8, 9), Constant(floats(4, 3, 3, 3)), Constant(floats(4)), pads=[1, 1, 1, 1]),
    case("Conv", floats(2, 4, 9, 9), Constant(floats(4, 1, 3, 3)), label="depthwise", group=4, strides=[2, 2]),
    case("Conv", floats(2, 4, 9, 9), Constant(floats(6, 2, 3, 3)), label="grouped, dilated", group=2, dilations=[2, 2]),
    case(
        "Conv",
        floats(2, 3, 8, 9),
        Constant(floats(4, 3, 3, 3)),
        label="same padding",
        auto_pad="SAME_UPPER",
        strides=[2, 2],
    ),
    case("Conv", floats(2, 3, 20), Constant(floats(4, 3, 5)), label="1D", pads=[2, 2]),
    case("Conv", floats(1, 2, 4, 5, 6), Constant(floats(3, 2, 2, 2, 2)), label="3D"),
    case("Conv", floats(1, 3, 6, 6), floats(4, 3, 3, 3), label="weights at run time", static=True),
    case("ConvTranspose", floats(1, 3, 4, 5), Constant(floats(3, 2, 3, 3)), strides=[2, 2], pads=[1, 1, 1, 1]),
    case(
        "ConvTranspose",
        floats(1, 3, 4, 5),
        Constant(floats(3, 2, 2, 2)),
        label="output padding",
        strides=[2, 2],
        output_padding=[1, 0],
    ),
    case("MaxPool", floats(1, 3, 8, 9), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", floats(1, 3, 8, 9), label="rounded up", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case(
        "MaxPool",
        floats(1, 1, 2, 2),
        label="rounded up, nothing left",
        kernel_shape=[1, 1],
        strides=[2, 2],
        ceil_mode=1,
    ),
    case("MaxPool", floats(1, 3, 8, 8), label="indices", outputs=2, kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxPool", floats(1, 3, 12), label="1D", kernel_shape=[3]),
    case("AveragePool", floats(1, 3, 8, 9), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case(
        "AveragePool",
        floats(1, 3, 8, 9),
        label="padding counted",
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
        count_include_pad=1,
    ),
    case("AveragePool", floats(1, 3, 8, 8), label="rounded up", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("LpPool", floats(1, 3, 8, 8), kernel_shape=[2, 2], strides=[2, 2]),
    *(case(op, floats(2, 3, 4, 5)) for op in ("GlobalAveragePool", "GlobalMaxPool")),
    case("Col2Im", floats(1, 12, 9), ints(4, 4), ints(2, 2)),
    case("DeformConv", floats(1, 1, 3, 3), Constant(floats(1, 1, 2, 2)), floats(1, 8, 2, 2)),
    case(
        "MaxUnpool",
        positive(1, 1, 2, 2),
        Constant(np.array([[[[5, 7], [13, 15]]]])),
        kernel_shape=[2, 2],
        strides=[2, 2],
    ),
]


def resize(label: str, *arguments: Constant | None, **attributes: object) -> Case:
    """A Resize of one image, after its region of interest."""
    return case("Resize", floats(1, 2, 4, 6), None, *arguments, label=label, **attributes)


DOUBLE = Constant(np.array([1, 1, 2, 2], np.float32))
SMALLER = Constant(np.array([1, 1, 0.6, 0.6], np.float32))
IMAGES: list[Case] = [
    resize("nearest", DOUBLE, coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    case("Resize", floats(1, 2, 4, 6), Constant(np.zeros(0, np.float32)), DOUBLE, label="nearest, opset 11", opset=11),
    resize("linear", DOUBLE, mode="linear"),
    resize("linear, sizes", None, ints(1, 2, 7, 5), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    resize("linear, smaller", SMALLER, mode="linear"),
    resize("linear, corners aligned", DOUBLE, mode="linear", coordinate_transformation_mode="align_corners"),
    resize("linear, corners aligned, smaller", SMALLER, mode="linear", coordinate_transformation_mode="align_corners"),
    resize("cubic", DOUBLE, mode="cubic"),
    resize("cubic, outside excluded", DOUBLE, mode="cubic", exclude_outside=1),
    resize("antialias", SMALLER, mode="linear", antialias=1),
    resize("aspect ratio kept", None, ints(7, 8), axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    case("GridSample", floats(1, 2, 4, 5), np.clip(floats(1, 3, 3, 2), -1, 1)),
    case(
        "GridSample",
        floats(1, 2, 4, 5),
        floats(1, 3, 3, 2),
        label="nearest, border",
        mode="nearest",
        padding_mode="border",
    ),
    case("GridSample", floats(1, 2, 4, 5), floats(1, 3, 3, 2), label="cubic", mode="cubic", align_corners=1),
    case("AffineGrid", floats(2, 2, 3), ints(2, 3, 4, 5), align_corners=1),
    case(
        "RoiAlign",
        floats(1, 2, 8, 8),
        Constant(np.array([[0, 0, 6, 6], [1, 2, 5, 7]], np.float32)),
        Constant(np.array([0, 0])),
        output_height=3,
        output_width=3,
        sampling_ratio=2,
    ),
    case(
        "RoiAlign",
        floats(1, 2, 8, 8),
        Constant(np.array([[0, 0, 6, 6]], np.float32)),
        Constant(np.array([0])),
        label="max",
        mode="max",
        output_height=3,
        output_width=3,
        sampling_ratio=2,
    ),
]


def recurrent(op: str, label: str, *more: Constant | None, directions: int = 1, **attributes: object) -> Case:
    """Four steps of two sequences of width 3, hidden width 5; all outputs."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    weights = [Constant(floats(directions, gates * 5, 3)), Constant(floats(directions, gates * 5, 5, scale=0.5))]
    count = 3 if op == "LSTM" else 2
    return case(op, floats(4, 2, 3), *weights, *more, label=label, outputs=count, hidden_size=5, **attributes)


STATE = Constant(floats(1, 2, 5))
LENGTHS = Constant(np.array([4, 2], np.int32))
RECURRENT: list[Case] = [
    recurrent("LSTM", ""),
    recurrent("LSTM", "bias and state", Constant(floats(1, 40)), None, STATE, STATE, static=True),
    recurrent("LSTM", "stored state, batch not known", None, None, STATE, STATE),
    recurrent("LSTM", "state at run time", None, None, floats(1, 2, 5), floats(1, 2, 5, scale=2.0)),
    recurrent("LSTM", "both directions", directions=2, direction="bidirectional"),
    recurrent("LSTM", "lengths", None, LENGTHS, judge=ORT),
    recurrent("LSTM", "peepholes", None, None, None, None, Constant(floats(1, 15))),
    recurrent("LSTM", "input and forget gate coupled", input_forget=1, judge=ORT),
    recurrent("GRU", "", Constant(floats(1, 30))),
    recurrent("GRU", "reset before the product", Constant(floats(1, 30)), linear_before_reset=1),
    recurrent("RNN", "reverse", direction="reverse"),
    case(
        "GRU",
        floats(2, 4, 3),
        Constant(floats(1, 15, 3)),
        Constant(floats(1, 15, 5, scale=0.5)),
        label="batch first",
        outputs=2,
        hidden_size=5,
        layout=1,
    ),
]

SIGNALS: list[Case] = [
    case("DFT", floats(1, 8, 2), static=True, tolerance="transform"),
    case("DFT", floats(1, 8, 1), label="one-sided", onesided=1, static=True, tolerance="transform"),
    case("DFT", floats(1, 8, 2), label="inverse", inverse=1, static=True, tolerance="transform"),
    case("DFT", floats(1, 8, 3, 1), label="opset 17", opset=17, axis=1, static=True, tolerance="transform"),
    case("DFT", floats(1, 8, 3, 1), None, scalar(2, np.int64), label="real, axis", static=True, tolerance="transform"),
    case("DFT", floats(1, 8, 3, 1), None, scalar(2, np.int64), label="real, sizes not known", tolerance="transform"),
    case("DFT", floats(1, 8, 3, 2), None, np.array(2), label="axis at run time", static=True, tolerance="transform"),
    case("STFT", floats(1, 32, 1), scalar(8, np.int64), Constant(positive(16)), tolerance="transform"),
]

CASES = ATTENTION + NORMALISATION + CONVOLUTION + IMAGES + RECURRENT + SIGNALS
