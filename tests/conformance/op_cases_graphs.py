"""Quantisation, control flow, losses, and the small graphs models are made of."""

import numpy as np
import onnx
from op_case import Case, Constant, case, floats, graph_case, integers, positive, scalar

X = floats(3, 8)
BYTE, SIGNED = np.uint8, np.int8


def bytes_(*shape: int) -> Constant:
    """Stored uint8 values."""
    return Constant(integers(*shape, low=0, high=256, dtype=np.uint8))


def signed(*shape: int) -> Constant:
    """Stored int8 values."""
    return Constant(integers(*shape, low=-127, high=128, dtype=np.int8))


NIBBLES = Constant(integers(4, 32, low=0, high=16, dtype=onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.UINT4)))
ZEROS = Constant(integers(4, 2, low=0, high=16, dtype=onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.UINT4)))

QUANTISED: list[Case] = [
    case("QuantizeLinear", X, scalar(0.02), scalar(128, BYTE), tolerance="quantised"),
    case("QuantizeLinear", X, scalar(0.02), scalar(3, SIGNED), label="int8", tolerance="quantised"),
    case(
        "QuantizeLinear",
        X,
        Constant(positive(8)),
        Constant(np.zeros(8, SIGNED)),
        label="by column",
        axis=1,
        tolerance="quantised",
    ),
    case("DequantizeLinear", integers(3, 8, low=0, high=256, dtype=BYTE), scalar(0.02), scalar(128, BYTE)),
    case("DequantizeLinear", signed(6, 4), Constant(positive(6)), label="weight by row", axis=0),
    case("DequantizeLinear", NIBBLES, Constant(positive(4, 2)), ZEROS, label="uint4 blocks", axis=1, block_size=16),
    case("DequantizeLinear", signed(4, 32), Constant(positive(4, 2)), label="int8 blocks", axis=1, block_size=16),
    case("DynamicQuantizeLinear", X, outputs=3, tolerance="quantised"),
    case(
        "MatMulInteger", integers(3, 8, low=0, high=256, dtype=BYTE), signed(8, 4), scalar(120, BYTE), scalar(0, SIGNED)
    ),
    case("MatMulInteger", integers(3, 8, low=0, high=256, dtype=BYTE), bytes_(8, 4), label="no zero points"),
    case("ConvInteger", integers(1, 2, 5, 5, low=0, high=256, dtype=BYTE), bytes_(3, 2, 3, 3), scalar(128, BYTE)),
    case(
        "QLinearMatMul",
        integers(3, 8, low=0, high=256, dtype=BYTE),
        scalar(0.02),
        scalar(128, BYTE),
        bytes_(8, 4),
        scalar(0.01),
        scalar(120, BYTE),
        scalar(0.05),
        scalar(100, BYTE),
        tolerance="quantised",
    ),
    case(
        "QLinearConv",
        integers(1, 2, 5, 5, low=0, high=256, dtype=BYTE),
        scalar(0.02),
        scalar(128, BYTE),
        bytes_(3, 2, 3, 3),
        scalar(0.01),
        scalar(120, BYTE),
        scalar(0.1),
        scalar(100, BYTE),
        tolerance="quantised",
    ),
]

# `then` and `else` see the outer graph; a loop carries a value and collects one.
IF = """
    y = If (c) <
        then_branch = then () => (float[m, n] t) { t = Abs (x) },
        else_branch = else () => (float[m, n] e) { e = Neg (x) }
    >
"""
LOOP = """
    n = Constant <value = int64 {3}> ()
    go = Constant <value = bool {1}> ()
    y0, y1 = Loop (n, go, x) <body = body (int64 i, bool more, float[n] carried)
                                     => (bool again, float[n] next, float[n] seen) {
        again = Identity (more)
        next = Add (carried, carried)
        seen = Relu (next)
    }>
"""
SCAN = """
    y0, y1 = Scan (start, x) <num_scan_inputs = 1, body = body (float[n] state, float[n] row)
                                                          => (float[n] sum, float[n] seen) {
        sum = Add (state, row)
        seen = Identity (sum)
    }>
"""

SEQUENCE = "s = SequenceConstruct (a, b)  i = Constant <value = int64 {1}> ()  "

CONTROL: list[Case] = [
    graph_case("If", "condition true", IF, x=X, c=np.array(True)),
    graph_case("If", "condition false", IF, x=X, c=np.array(False)),
    graph_case("Loop", "", LOOP, x=floats(8)),  # one axis: the evaluator joins what it should stack
    graph_case("Scan", "running sum", SCAN, start=floats(8), x=X),
    graph_case("SequenceAt", "in the graph", SEQUENCE + "y = SequenceAt (s, i)", a=X, b=X + 1),
    graph_case("ConcatFromSequence", "in the graph", SEQUENCE + "y = ConcatFromSequence <axis = 0> (s)", a=X, b=X + 1),
]

GELU = """
    r = Constant <value_float = 1.41421356> ()
    one = Constant <value_float = 1.0> ()
    half = Constant <value_float = 0.5> ()
    d = Div (x, r)
    e = Erf (d)
    p = Add (e, one)
    m = Mul (x, p)
    y = Mul (m, half)
"""
INTEGER_PRODUCT = """
    q, s, z = DynamicQuantizeLinear (x)
    i = MatMulInteger (q, w, z)
    f = Cast <to = 1> (i)
    y = Mul (f, s)
"""
COMPUTED_SHAPE = """
    n = Shape (x)
    i = Constant <value_ints = [1]> ()
    d = Gather (n, i)
    m = Constant <value_ints = [-1]> ()
    t = Concat <axis = 0> (m, d)
    y = Reshape (x, t)
"""
NORMALISATION = """
    a = Constant <value_ints = [-1]> ()
    m = ReduceMean (x, a)
    c = Sub (x, m)
    two = Constant <value_float = 2.0> ()
    s = Pow (c, two)
    v = ReduceMean (s, a)
    e = Constant <value_float = 1e-5> ()
    u = Add (v, e)
    r = Sqrt (u)
    y = Div (c, r)
"""
WEIGHT = integers(8, 4, low=-127, high=128, dtype=SIGNED)

SMALL_GRAPHS: list[Case] = [
    graph_case("Sigmoid", "gated (SiLU)", "s = Sigmoid (x)  y = Mul (x, s)", x=X),
    graph_case("Erf", "GELU written out", GELU, x=X),
    graph_case(
        "DynamicQuantizeLinear",
        "then an integer product",
        INTEGER_PRODUCT,
        tolerance="quantised product",
        x=X,
        w=WEIGHT,
    ),
    graph_case("Shape", "of a shape that is computed", COMPUTED_SHAPE, x=floats(2, 3, 4)),
    graph_case("ReduceMean", "layer normalisation written out", NORMALISATION, x=X),
    graph_case("Constant", "", "c = Constant <value_floats = [1.0, 2.0]> ()  y = Mul (x, c)", x=floats(3, 2)),
    graph_case("Identity", "two names of one value", "y0 = Relu (x)  y1 = Identity (y0)", x=X),
]

LOSSES: list[Case] = [
    case("SoftmaxCrossEntropyLoss", X, Constant(np.array([1, 0, 7])), label="mean"),
    case("NegativeLogLikelihoodLoss", X, Constant(np.array([1, 0, 7])), label="sum", reduction="sum"),
    case(
        "TfIdfVectorizer",
        integers(12, low=0, high=4, dtype=np.int32),
        mode="TF",
        min_gram_length=1,
        max_gram_length=1,
        max_skip_count=0,
        ngram_counts=[0],
        ngram_indexes=[0, 1, 2],
        pool_int64s=[0, 1, 2],
    ),
]

CASES = QUANTISED + CONTROL + SMALL_GRAPHS + LOSSES
