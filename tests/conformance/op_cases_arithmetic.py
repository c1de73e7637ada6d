"""Elementwise arithmetic, comparisons, logic, casts and products."""

import numpy as np
from op_case import Case, Constant, booleans, case, floats, integers, positive, scalar, unit

X = floats(2, 3, 4)
SPECIAL = np.array([0.0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan, 1e-40], np.float32)
HALVES = np.array([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 3.49], np.float32)

UNARY: list[Case] = [
    *(case(op, X) for op in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Sigmoid", "Sign", "Sin", "Tanh")),
    *(case(op, X) for op in ("Relu", "Softplus", "Softsign", "Selu", "Celu", "Mish", "HardSwish", "Elu", "Gelu")),
    *(case(op, X) for op in ("Sinh", "Cosh", "Tan", "Atan", "Asinh", "LeakyRelu", "ThresholdedRelu", "HardSigmoid")),
    *(case(op, unit(3, 4)) for op in ("Acos", "Asin", "Atanh")),
    *(case(op, positive(3, 4)) for op in ("Log", "Sqrt", "Reciprocal")),
    case("Acosh", positive(3, 4) + np.float32(1)),
    case("Abs", integers(3, 4, dtype=np.int32), label="int32"),
    case("Neg", integers(3, 4), label="int64"),
    case("Relu", X.astype(np.float16), label="float16", tolerance="float16"),
    case("Sigmoid", np.array([-100.0, -5, 0, 5, 100], np.float32), label="saturated"),
    case("Gelu", X, label="tanh", approximate="tanh"),
    case("Elu", X, label="alpha", alpha=0.3),
    case("Celu", X, label="alpha", alpha=2.0),
    case("LeakyRelu", X, label="slope", alpha=0.2),
    case("HardSigmoid", X, label="slope", alpha=0.3, beta=0.4),
    case("ThresholdedRelu", X, label="threshold", alpha=0.4),
    case("Selu", X, label="own constants", alpha=1.1, gamma=2.0),
    case("Swish", X, label="slope", alpha=1.5),
    case("Shrink", X, label="bias", lambd=0.5, bias=0.2),
    case("PRelu", X, Constant(positive(3, 1))),
    case("Round", HALVES, label="halves to even"),
    case("Not", booleans(3, 4)),
    case("IsNaN", SPECIAL),
    case("IsInf", SPECIAL),
    case("IsInf", SPECIAL, label="positive only", detect_negative=0),
    case("BitwiseNot", integers(3, 4, dtype=np.int32)),
    case("Clip", X, scalar(-0.5), scalar(0.7)),
    case("Clip", X, None, scalar(0.7), label="upper bound only"),
    case("Clip", integers(3, 4), scalar(-3, np.int64), scalar(4, np.int64), label="int64"),
    case("Clip", X, label="opset 10", opset=10, min=-0.5, max=0.7),
    case("Identity", X),
    case("Cast", X * 10, label="float32 to int64", to=7),
    case("Cast", X, label="float32 to float16", to=10, tolerance="float16"),
    case("Cast", X, label="float32 to bool", to=9),
    case("Cast", booleans(3, 4), label="bool to float32", to=1),
    case("Cast", integers(3, 4, low=0, high=200, dtype=np.uint8), label="uint8 to float32", to=1),
    case("Cast", integers(3, 4), label="int64 to int32", to=6),
    case("CastLike", X, integers(1)),
]

BINARY: list[Case] = [
    *(case(op, X, floats(3, 1)) for op in ("Add", "Sub", "Mul")),
    *(case(op, X, positive(3, 4)) for op in ("Div",)),
    case("Add", integers(2, 3), integers(3), label="int64"),
    case("Add", X.astype(np.float16), floats(4).astype(np.float16), label="float16", tolerance="float16"),
    case("Add", X, floats(5, 1, 1, 1), label="both broadcast"),
    case("Mul", integers(2, 3, dtype=np.int32), integers(3, dtype=np.int32), label="int32"),
    case(
        "Sub", integers(2, 3, low=5, high=9, dtype=np.uint8), integers(3, low=0, high=5, dtype=np.uint8), label="uint8"
    ),
    case("Div", integers(3, 4), Constant(np.array([3, -3, 2, 7])), label="int64 towards zero"),
    case("Pow", positive(3, 4), floats(4)),
    case("Pow", X, scalar(2.0), label="square"),
    case("Pow", positive(3, 4), scalar(3, np.int64), label="int64 exponent"),
    case("Mod", integers(3, 4), Constant(np.array([3, -3, 2, 7])), label="sign of the divisor"),
    case("Mod", integers(3, 4), Constant(np.array([3, -3, 2, 7])), label="fmod int64", fmod=1),
    case("Mod", X, scalar(0.7), label="fmod float32", fmod=1),
    *(case(op, X, X + floats(4)) for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    case("Equal", integers(3, 4), integers(4)),
    case("Equal", X, X, label="float32"),
    case("Equal", booleans(3, 4), booleans(4), label="bool"),
    case("GreaterOrEqual", integers(3, 4), integers(4), label="int64"),
    *(case(op, booleans(3, 4), booleans(4)) for op in ("And", "Or", "Xor")),
    *(
        case(op, integers(3, 4, dtype=np.int32), integers(4, dtype=np.int32))
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ),
    case(
        "BitShift",
        integers(3, 4, low=0, high=99, dtype=np.uint32),
        Constant(np.uint32(2)),
        label="left",
        direction="LEFT",
    ),
    case(
        "BitShift",
        integers(3, 4, low=0, high=99, dtype=np.uint32),
        Constant(np.uint32(2)),
        label="right",
        direction="RIGHT",
    ),
    case("Where", booleans(3, 1), X, floats(4)),
    case("Where", booleans(3, 1), integers(3, 4), integers(4), label="int64"),
    case("Max", X, floats(4), floats(3, 1), label="three inputs"),
    case("Max", integers(2, 3), integers(3), label="int64"),
    case("Min", X, floats(4)),
    case("Mean", X, floats(4), floats(3, 1)),
    case("Sum", X, floats(4), floats(3, 1)),
]

PRODUCTS: list[Case] = [
    case("MatMul", floats(2, 3, 4), Constant(floats(4, 5)), label="weight"),
    case("MatMul", floats(2, 3, 4), floats(2, 4, 5), label="batched"),
    case("MatMul", floats(2, 1, 3, 4), floats(5, 4, 2), label="batches broadcast"),
    case("MatMul", floats(4), floats(4, 3), label="vector on the left"),
    case("MatMul", floats(3, 4), floats(4), label="vector on the right"),
    case(
        "MatMul",
        floats(3, 4).astype(np.float16),
        Constant(floats(4, 5).astype(np.float16)),
        label="float16",
        tolerance="float16",
    ),
    case("Gemm", floats(3, 4), Constant(floats(4, 5)), Constant(floats(5))),
    case(
        "Gemm",
        floats(4, 3),
        Constant(floats(5, 4)),
        Constant(floats(3, 1)),
        label="transposed and scaled",
        transA=1,
        transB=1,
        alpha=0.5,
        beta=2.0,
    ),
    case("Gemm", floats(3, 4), floats(4, 5), label="without bias"),
    case("Einsum", floats(2, 3, 4), floats(2, 4, 5), label="bij,bjk->bik", equation="bij,bjk->bik"),
    case("Einsum", floats(3, 4), label="ij->ji", equation="ij->ji"),
    case("Einsum", floats(2, 3), floats(2, 3), label="ij,ij->i", equation="ij,ij->i"),
    case("Einsum", floats(2, 3, 4, 5), floats(2, 6, 4, 5), label="bnhd,bmhd->bhnm", equation="bnhd,bmhd->bhnm"),
    case("Det", floats(2, 3, 3)),
]

CASES = UNARY + BINARY + PRODUCTS
