/* Quantised matrix products with AVX-512 VNNI: vpdpbusd multiplies 64 unsigned weights by 64 signed activations.
 *
 * Weights are taken in blocks of 32 inputs, eight vectors unpacked once into registers, where they meet up to eight rows
 * whose sums stay in registers too. With one row (decode) that goes at the speed of memory; with eight, three quarters
 * of the time is vpdpbusd (two thirds with minima), the rest being what scales cost. */
#ifndef AICC_LINEAR_AVX512VNNI_H
#define AICC_LINEAR_AVX512VNNI_H

#include <immintrin.h>
#include <stdbool.h>

#include "panel.h"
#include "quantise.h"

#define AICC_BLOCK 8 /* weight vectors of a block: 32 inputs of 16 outputs */
#ifndef AICC_ROWS_AT_ONCE
#define AICC_ROWS_AT_ONCE 8 /* two registers each */
#endif

AICC_INLINE __m512 aicc_ps(f32x16 v) {
    __m512 r;
    memcpy(&r, &v, sizeof r);
    return r;
}

/* Block `b` of group `g`: the eight vectors, and in at[] the input of each within its group. */
AICC_INLINE void aicc_load_block(__m512i *v, int32_t *at, const uint8_t *panel, int32_t g, int32_t b, aicc_weight w) {
    if (w.format == AICC_Q8) {
        const uint8_t *from = panel + (size_t)g * (size_t)w.group * 16 + (size_t)b * 512;
        for (int32_t i = 0; i < AICC_BLOCK; i++) {
            v[i] = _mm512_loadu_si512(from + i * 64);
            at[i] = b * 32 + i * 4;
        }
        return;
    }
    const uint8_t *from = panel + (size_t)g * (size_t)w.group * 8 + (size_t)b * 256;
    const __m512i low = _mm512_set1_epi8(15);
    for (int32_t i = 0; i < AICC_BLOCK / 2; i++) {
        __m512i packed = _mm512_loadu_si512(from + i * 64);
        v[i] = _mm512_and_si512(packed, low);
        v[i + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
        at[i] = b * 16 + i * 4;
        at[i + 4] = w.group / 2 + b * 16 + i * 4;
    }
}

AICC_INLINE __m512i aicc_broadcast_quad(const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm512_set1_epi32(quad);
}

/* What the sum of products starts at, so that `zero` is taken off every weight: -zero * sum. */
AICC_INLINE __m512i aicc_start(const int8_t *row, int32_t g, aicc_weight w) {
    if (w.zero == 0) return _mm512_setzero_si512();
    __m512i sum = _mm512_set1_epi32(aicc_row_sums(row, w.k, w.group)[g]);
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, w.zero == 8 ? 3 : 7));
}

AICC_INLINE __m512 aicc_add_group(__m512 y, __m512i dot, const int8_t *row, int32_t g, __m512 scale, __m512 minimum,
                                  aicc_weight w) {
    scale = _mm512_mul_ps(scale, _mm512_set1_ps(aicc_row_scales(row, w.k)[g]));
    y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, y);
    if (w.minima) y = _mm512_fmadd_ps(minimum, _mm512_set1_ps(aicc_row_totals(row, w.k, w.group)[g]), y);
    return y;
}

AICC_INLINE __m512 aicc_group_scale(const uint8_t *panel, int32_t g, aicc_weight w) {
    return aicc_ps(aicc_load_as(w.scales, aicc_panel_scales(panel, w), (size_t)g * AICC_LANES));
}

AICC_INLINE __m512 aicc_group_minimum(const uint8_t *panel, int32_t g, aicc_weight w) {
    if (!w.minima) return _mm512_setzero_ps();
    return aicc_ps(aicc_load_as(w.minima, aicc_panel_minima(panel, w), (size_t)g * AICC_LANES));
}

/* Panels follow each other in memory, so what lies AICC_PREFETCH ahead is needed soon, whichever stream it belongs to.
 * Streams that start anew with every panel are more than the hardware foresees: without this, decode runs at a third
 * of the speed of memory. */
#ifndef AICC_PREFETCH
#define AICC_PREFETCH 32768
#endif

AICC_INLINE void aicc_prefetch_group(const uint8_t *panel, int32_t g, aicc_weight w) {
    int32_t groups = w.k / w.group, lines = (int32_t)(aicc_panel_bytes(w) / 64);
    for (int32_t line = 0; line < (lines + groups - 1) / groups; line++)
        _mm_prefetch((const char *)panel + AICC_PREFETCH + (g * lines / groups + line) * 64, _MM_HINT_T1);
}

/* One panel for `rows` rows (a constant, 1 .. AICC_ROWS_AT_ONCE), whose sums all stay in registers. */
AICC_INLINE void aicc_linear_tile(float *y, ptrdiff_t y_stride, const int8_t *x, ptrdiff_t x_stride, int32_t rows,
                                  const uint8_t *panel, bool ahead, aicc_weight w) {
    __m512 result[AICC_ROWS_AT_ONCE];
    for (int32_t r = 0; r < rows; r++) result[r] = _mm512_setzero_ps();
    for (int32_t g = 0; g < w.k / w.group; g++) {
        /* Few rows have two chains of products each, as one would wait for itself. */
        __m512i dot[AICC_ROWS_AT_ONCE], other[2] = {0};
        for (int32_t r = 0; r < rows; r++) dot[r] = aicc_start(x + r * x_stride, g, w);
        if (ahead) aicc_prefetch_group(panel, g, w);
        for (int32_t b = 0; b < w.group / 32; b++) {
            __m512i v[AICC_BLOCK];
            int32_t at[AICC_BLOCK];
            aicc_load_block(v, at, panel, g, b, w);
#pragma GCC unroll 8
            for (int32_t i = 0; i < AICC_BLOCK; i++)
                for (int32_t r = 0; r < rows; r++) {
                    __m512i quad = aicc_broadcast_quad(x + r * x_stride + g * w.group + at[i]);
                    if (rows <= 2 && i % 2) other[r] = _mm512_dpbusd_epi32(other[r], v[i], quad);
                    else dot[r] = _mm512_dpbusd_epi32(dot[r], v[i], quad);
                }
        }
        __m512 scale = aicc_group_scale(panel, g, w), minimum = aicc_group_minimum(panel, g, w);
        for (int32_t r = 0; r < rows; r++)
            result[r] = aicc_add_group(result[r], rows <= 2 ? _mm512_add_epi32(dot[r], other[r]) : dot[r], x + r * x_stride, g,
                                       scale, minimum, w);
    }
    for (int32_t r = 0; r < rows; r++) _mm512_storeu_ps(y + r * y_stride, result[r]);
}

AICC_INLINE void aicc_linear_vnni(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                  const uint8_t *weights, int32_t panels, aicc_weight w) {
    const int8_t *from = x;
    for (int32_t p = 0; p < panels; p++) {
        const uint8_t *panel = weights + (size_t)p * aicc_panel_bytes(w);
        float *to = y + p * AICC_LANES;
        int32_t r = 0;
        for (; r + AICC_ROWS_AT_ONCE <= rows; r += AICC_ROWS_AT_ONCE)
            aicc_linear_tile(to + r * y_stride, y_stride, from + r * x_stride, x_stride, AICC_ROWS_AT_ONCE, panel, r == 0, w);
#define AICC_TAIL(n) \
    case n: aicc_linear_tile(to + r * y_stride, y_stride, from + r * x_stride, x_stride, n, panel, r == 0, w); break;
        switch (rows - r) {
            AICC_TAIL(1) AICC_TAIL(2) AICC_TAIL(3) AICC_TAIL(4) AICC_TAIL(5) AICC_TAIL(6) AICC_TAIL(7)
        default: break;
        }
#undef AICC_TAIL
    }
}

#if !defined(AICC_AMX)
AICC_INLINE void aicc_linear_quantised(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                       const uint8_t *weights, int32_t panels, aicc_weight w) {
    aicc_linear_vnni(y, y_stride, x, x_stride, rows, weights, panels, w);
}
#endif

#endif
