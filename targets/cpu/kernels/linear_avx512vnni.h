/* Quantised matrix products with AVX-512 VNNI: vpdpbusd multiplies 64 unsigned weights by 64 signed activations.
 *
 * Weights are taken in blocks of 32 inputs, eight vectors unpacked once into registers. For one row (decode) the float
 * sums stay in a register and the kernel goes at the speed of memory. For several (prefill, many sequences) each block
 * meets all rows before the next is loaded, and the sums wait in y, which lies in the first cache. */
#ifndef AICC_LINEAR_AVX512VNNI_H
#define AICC_LINEAR_AVX512VNNI_H

#include <immintrin.h>

#include "panel.h"
#include "quantise.h"

#define AICC_BLOCK 8 /* weight vectors of a block: 32 inputs of 16 outputs */

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
#define AICC_PREFETCH 8192
#endif

AICC_INLINE void aicc_prefetch_group(const uint8_t *panel, int32_t g, aicc_weight w) {
    int32_t groups = w.k / w.group, lines = (int32_t)(aicc_panel_bytes(w) / 64);
    for (int32_t line = 0; line < (lines + groups - 1) / groups; line++)
        _mm_prefetch((const char *)panel + AICC_PREFETCH + (g * lines / groups + line) * 64, _MM_HINT_T0);
}

AICC_INLINE void aicc_linear_row(float *y, const int8_t *row, const uint8_t *panel, aicc_weight w) {
    __m512 result = _mm512_setzero_ps();
    for (int32_t g = 0; g < w.k / w.group; g++) {
        /* Two chains, as one would wait for itself. */
        __m512i dot = aicc_start(row, g, w), other = _mm512_setzero_si512();
        aicc_prefetch_group(panel, g, w);
        for (int32_t b = 0; b < w.group / 32; b++) {
            __m512i v[AICC_BLOCK];
            int32_t at[AICC_BLOCK];
            aicc_load_block(v, at, panel, g, b, w);
            for (int32_t i = 0; i < AICC_BLOCK; i += 2) {
                dot = _mm512_dpbusd_epi32(dot, v[i], aicc_broadcast_quad(row + g * w.group + at[i]));
                other = _mm512_dpbusd_epi32(other, v[i + 1], aicc_broadcast_quad(row + g * w.group + at[i + 1]));
            }
        }
        result = aicc_add_group(result, _mm512_add_epi32(dot, other), row, g, aicc_group_scale(panel, g, w),
                                aicc_group_minimum(panel, g, w), w);
    }
    _mm512_storeu_ps(y, result);
}

#define AICC_CHUNK 64 /* rows whose unfinished integer sums are kept, for groups of several blocks */

AICC_INLINE void aicc_linear_rows(float *y, ptrdiff_t y_stride, const int8_t *x, ptrdiff_t x_stride, int32_t rows,
                                  const uint8_t *panel, aicc_weight w) {
    __m512i unfinished[AICC_CHUNK];
    for (int32_t g = 0; g < w.k / w.group; g++) {
        __m512 scale = aicc_group_scale(panel, g, w), minimum = aicc_group_minimum(panel, g, w);
        for (int32_t b = 0; b < w.group / 32; b++) {
            __m512i v[AICC_BLOCK];
            int32_t at[AICC_BLOCK];
            aicc_load_block(v, at, panel, g, b, w);
            for (int32_t r = 0; r < rows; r++) {
                const int8_t *row = x + r * x_stride, *inputs = row + g * w.group;
                __m512i dot = b == 0 ? aicc_start(row, g, w) : unfinished[r];
                for (int32_t i = 0; i < AICC_BLOCK; i++)
                    dot = _mm512_dpbusd_epi32(dot, v[i], aicc_broadcast_quad(inputs + at[i]));
                if (b + 1 < w.group / 32) {
                    unfinished[r] = dot;
                    continue;
                }
                __m512 before = g == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(y + r * y_stride);
                _mm512_storeu_ps(y + r * y_stride, aicc_add_group(before, dot, row, g, scale, minimum, w));
            }
        }
    }
}

AICC_INLINE void aicc_linear_quantised(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                       const uint8_t *weights, int32_t panels, aicc_weight w) {
    for (int32_t p = 0; p < panels; p++) {
        const uint8_t *panel = weights + (size_t)p * aicc_panel_bytes(w);
        float *to = y + p * AICC_LANES;
        if (rows == 1) {
            aicc_linear_row(to, x, panel, w);
            continue;
        }
        for (int32_t r = 0; r < rows; r += AICC_CHUNK)
            aicc_linear_rows(to + r * y_stride, y_stride, (const int8_t *)x + r * x_stride, x_stride,
                             AICC_MIN(rows - r, AICC_CHUNK), panel, w);
    }
}

#endif
