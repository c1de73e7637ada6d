/* Functions of one float, as polynomials a compiler vectorises: no tables, no branches, no libm.
 *
 * Errors are against the exact function (tests/native/test_rows.py samples all magnitudes): aicc_exp 2 ulp, aicc_tanh
 * 4 ulp, aicc_sigmoid 4 ulp, aicc_erf 3e-7 absolute. NaN gives NaN. Use them in plain loops over rows. */
#ifndef AICC_MATHS_H
#define AICC_MATHS_H

#include "base.h"

/* e^x; 0 below -87.33 (no denormals), infinity above 88.72. Argument reduced by n ln 2 in two parts (Cody & Waite),
 * then the degree 6 Taylor polynomial with its last terms fitted on |r| <= ln 2 / 2. */
AICC_INLINE float aicc_exp(float x) {
    float shifted = aicc_fma(x, 1.44269504f, 12582912.0f); /* the nearest integer n, in the lowest bits */
    float n = shifted - 12582912.0f;
    float r = aicc_fma(n, -0.693359375f, x);
    r = aicc_fma(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = aicc_fma(p, r, 1.3981999507e-3f);
    p = aicc_fma(p, r, 8.3334519073e-3f);
    p = aicc_fma(p, r, 4.1665795894e-2f);
    p = aicc_fma(p, r, 1.6666665459e-1f);
    p = aicc_fma(p, r, 5.0000001201e-1f);
    p = aicc_fma(p, r * r, r) + 1.0f;
    float y = aicc_from_bits(aicc_to_bits(p) + (aicc_to_bits(shifted) << 23)); /* p 2^n, where that is a normal number */
    y = x < -87.33654f ? 0.0f : y;
    return x <= 88.72283f ? y : x + aicc_from_bits(0x7f800000u); /* a NaN stays one */
}

/* 1 / (1 + e^-x). */
AICC_INLINE float aicc_sigmoid(float x) {
    return 1.0f / (1.0f + aicc_exp(-x));
}

AICC_INLINE float aicc_silu(float x) {
    return x / (1.0f + aicc_exp(-x));
}

/* Small |x|: an odd polynomial (Cephes); else 1 - 2 / (e^2|x| + 1). */
AICC_INLINE float aicc_tanh(float x) {
    float a = x < 0.0f ? -x : x, z = x * x;
    float p = -5.70498872745e-3f;
    p = aicc_fma(p, z, 2.06390887954e-2f);
    p = aicc_fma(p, z, -5.37397155531e-2f);
    p = aicc_fma(p, z, 1.33314422036e-1f);
    p = aicc_fma(p, z, -3.33332819422e-1f);
    float small = aicc_fma(p * z, x, x);
    float large = 1.0f - 2.0f / (aicc_exp(2.0f * a) + 1.0f);
    large = x < 0.0f ? -large : large;
    return a < 0.625f ? small : large;
}

/* The error function: Abramowitz & Stegun 7.1.26 has 1.5e-7; below 0.5 its Taylor series, exact at 0. */
AICC_INLINE float aicc_erf(float x) {
    float a = x < 0.0f ? -x : x, z = x * x;
    float s = -1.0f / 1320.0f;
    s = aicc_fma(s, z, 1.0f / 216.0f);
    s = aicc_fma(s, z, -1.0f / 42.0f);
    s = aicc_fma(s, z, 1.0f / 10.0f);
    s = aicc_fma(s, z, -1.0f / 3.0f);
    float small = aicc_fma(s * z, x, x) * 1.128379167f;
    float t = 1.0f / aicc_fma(0.3275911f, a, 1.0f);
    float p = 1.061405429f;
    p = aicc_fma(p, t, -1.453152027f);
    p = aicc_fma(p, t, 1.421413741f);
    p = aicc_fma(p, t, -0.284496736f);
    p = aicc_fma(p, t, 0.254829592f);
    float large = aicc_fma(-(p * t), aicc_exp(-z), 1.0f);
    large = x < 0.0f ? -large : large;
    return a < 0.5f ? small : large;
}

/* x Φ(x), by erf. */
AICC_INLINE float aicc_gelu(float x) {
    return 0.5f * x * (1.0f + aicc_erf(0.70710678f * x));
}

/* The tanh approximation of GELU. */
AICC_INLINE float aicc_gelu_tanh(float x) {
    return 0.5f * x * (1.0f + aicc_tanh(0.7978845608f * aicc_fma(0.044715f * x * x, x, x)));
}

#endif
