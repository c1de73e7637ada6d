/* Quantised matrix products with AVX2 and FMA: half a panel, 8 outputs, at a time.
 *
 * vpmaddubsw multiplies unsigned by signed bytes and adds pairs into 16 bits, saturating. Nibbles stay far below that: eight
 * such sums fit, 8 * 2 * 15 * 127 = 30480, before they are widened. Bytes do not: 2 * 255 * 127 > 32767. So a byte
 * weight is made signed, q - 128, and its sign moved to the activation: 2 * 128 * 127 = 32512 fits. */
#ifndef AICC_LINEAR_AVX2_H
#define AICC_LINEAR_AVX2_H

#include <immintrin.h>

#include "panel.h"
#include "quantise.h"

#define AICC_BLOCK 8 /* weight vectors of a block: 32 inputs of 8 outputs */
#ifndef AICC_PREFETCH
#define AICC_PREFETCH 32768 /* as in linear_avx512vnni.h */
#endif

/* Block `b` of group `g`, outputs 8 half .. 8 half + 7, and in at[] the input of each vector within its group. */
AICC_INLINE void aicc_load_block(__m256i *v, int32_t *at, const uint8_t *panel, int32_t g, int32_t b, int32_t half,
                                 aicc_weight w) {
    if (w.format == AICC_Q8) {
        const uint8_t *from = panel + (size_t)g * (size_t)w.group * 16 + (size_t)b * 512 + half * 32;
        for (int32_t i = 0; i < AICC_BLOCK; i++) {
            v[i] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)(from + i * 64)), _mm256_set1_epi8(-128));
            at[i] = b * 32 + i * 4;
        }
        return;
    }
    const uint8_t *from = panel + (size_t)g * (size_t)w.group * 8 + (size_t)b * 256 + half * 32;
    const __m256i low = _mm256_set1_epi8(15);
    for (int32_t i = 0; i < AICC_BLOCK / 2; i++) {
        __m256i packed = _mm256_loadu_si256((const __m256i *)(const void *)(from + i * 64));
        v[i] = _mm256_and_si256(packed, low);
        v[i + 4] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low);
        at[i] = b * 16 + i * 4;
        at[i + 4] = w.group / 2 + b * 16 + i * 4;
    }
}

AICC_INLINE __m256i aicc_broadcast_quad(const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm256_set1_epi32(quad);
}

AICC_INLINE __m256i aicc_dot_block(__m256i dot, const __m256i *v, const int32_t *at, const int8_t *x, aicc_weight w) {
    const __m256i ones = _mm256_set1_epi16(1);
    if (w.format == AICC_Q8) {
        for (int32_t i = 0; i < AICC_BLOCK; i++) {
            __m256i signed_x = _mm256_sign_epi8(aicc_broadcast_quad(x + at[i]), v[i]);
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(v[i]), signed_x);
            dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
        }
        return dot;
    }
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (int32_t i = 0; i < AICC_BLOCK; i += 2) {
        even = _mm256_add_epi16(even, _mm256_maddubs_epi16(v[i], aicc_broadcast_quad(x + at[i])));
        odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(v[i + 1], aicc_broadcast_quad(x + at[i + 1])));
    }
    return _mm256_add_epi32(dot, _mm256_madd_epi16(_mm256_add_epi16(even, odd), ones));
}

/* What the sum of products starts at: the stored integers less `zero`, where bytes have already lost 128. */
AICC_INLINE __m256i aicc_start(const int8_t *row, int32_t g, aicc_weight w) {
    int32_t factor = (w.format == AICC_Q8 ? 128 : 0) - w.zero;
    return _mm256_set1_epi32(factor == 0 ? 0 : factor * aicc_row_sums(row, w.k, w.group)[g]);
}

AICC_INLINE __m256 aicc_add_group(__m256 y, __m256i dot, const int8_t *row, int32_t g, __m256 scale, __m256 minimum,
                                  aicc_weight w) {
    scale = _mm256_mul_ps(scale, _mm256_set1_ps(aicc_row_scales(row, w.k)[g]));
    y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, y);
    if (w.minima) y = _mm256_fmadd_ps(minimum, _mm256_set1_ps(aicc_row_totals(row, w.k, w.group)[g]), y);
    return y;
}

/* Eight scales or minima of a group, from a stream of `type`. */
AICC_INLINE __m256 aicc_load_group(const uint8_t *stream, int32_t type, int32_t g, int32_t half) {
    size_t index = (size_t)g * AICC_LANES + (size_t)half * 8;
    if (type == AICC_NONE) return _mm256_setzero_ps();
    if (type == AICC_F32) return _mm256_loadu_ps((const float *)(const void *)stream + index);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(stream + 2 * index)));
}

#define AICC_CHUNK 64 /* rows whose unfinished integer sums are kept, for groups of several blocks */

/* Half a panel for some rows: each block meets all rows before the next is loaded; float sums wait in y. */
AICC_INLINE void aicc_linear_half(float *y, ptrdiff_t y_stride, const int8_t *x, ptrdiff_t x_stride, int32_t rows,
                                  const uint8_t *panel, int32_t half, aicc_weight w) {
    __m256i unfinished[AICC_CHUNK];
    for (int32_t g = 0; g < w.k / w.group; g++) {
        __m256 scale = aicc_load_group(aicc_panel_scales(panel, w), w.scales, g, half);
        __m256 minimum = aicc_load_group(aicc_panel_minima(panel, w), w.minima, g, half);
        for (int32_t b = 0; b < w.group / 32; b++) {
            __m256i v[AICC_BLOCK];
            int32_t at[AICC_BLOCK];
            aicc_load_block(v, at, panel, g, b, half, w);
            for (int32_t r = 0; r < rows; r++) {
                const int8_t *row = x + r * x_stride;
                __m256i dot = aicc_dot_block(b == 0 ? aicc_start(row, g, w) : unfinished[r], v, at, row + g * w.group, w);
                if (b + 1 < w.group / 32) {
                    unfinished[r] = dot;
                    continue;
                }
                __m256 before = g == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(y + r * y_stride);
                _mm256_storeu_ps(y + r * y_stride, aicc_add_group(before, dot, row, g, scale, minimum, w));
            }
        }
    }
}

/* One row of a whole panel, its sums in registers. */
AICC_INLINE void aicc_linear_row(float *y, const int8_t *row, const uint8_t *panel, aicc_weight w) {
    __m256 result[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    int32_t groups = w.k / w.group, lines = (int32_t)(aicc_panel_bytes(w) / 64);
    for (int32_t g = 0; g < groups; g++) {
        for (int32_t line = 0; line < (lines + groups - 1) / groups; line++)
            _mm_prefetch((const char *)panel + AICC_PREFETCH + (g * lines / groups + line) * 64, _MM_HINT_T1);
        for (int32_t half = 0; half < 2; half++) {
            __m256i dot = aicc_start(row, g, w);
            for (int32_t b = 0; b < w.group / 32; b++) {
                __m256i v[AICC_BLOCK];
                int32_t at[AICC_BLOCK];
                aicc_load_block(v, at, panel, g, b, half, w);
                dot = aicc_dot_block(dot, v, at, row + g * w.group, w);
            }
            result[half] = aicc_add_group(result[half], dot, row, g,
                                          aicc_load_group(aicc_panel_scales(panel, w), w.scales, g, half),
                                          aicc_load_group(aicc_panel_minima(panel, w), w.minima, g, half), w);
        }
    }
    _mm256_storeu_ps(y, result[0]);
    _mm256_storeu_ps(y + 8, result[1]);
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
            for (int32_t half = 0; half < 2; half++)
                aicc_linear_half(to + r * y_stride + half * 8, y_stride, (const int8_t *)x + r * x_stride, x_stride,
                                 AICC_MIN(rows - r, AICC_CHUNK), panel, half, w);
    }
}

#endif
