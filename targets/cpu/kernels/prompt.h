/* Matrix products for the rows of prompts, where there are tiles of bfloat16 (AICC_PROMPTS): many rows make it worth
 * while to turn a weight into bfloat16 once for all of them.
 *
 * A quantised weight and the row it meets are rounded to bfloat16, to nearest, ties to even; their products are exact
 * in float32. y is the sum over stretches of AICC_STRETCH inputs in order; a stretch's sum is that of its even inputs
 * plus that of its odd ones, each in rising order. What is below 2^-126 counts as zero. So a row's result does not
 * depend on the rows beside it, but it is not the result that the same row has outside a prompt (linear.h).
 *
 * Rows of prompts lie in tiles, which is how they are read: AICC_TILE rows (fewer at the end of a batch), counted from its
 * first row of a prompt, are bfloat16 [k / AICC_STRETCH][rows][AICC_STRETCH] at the beginning of where their quantised
 * forms would be. */
#ifndef AICC_PROMPT_H
#define AICC_PROMPT_H

#include "engine.h"
#include "panel.h"
#if defined(AICC_PROMPTS)
#include <immintrin.h>
#endif

#define AICC_STRETCH 32       /* inputs that a tile holds */
#define AICC_SPREAD_PANELS 2  /* that lie side by side as bfloat16 */
#define AICC_SPREAD_INPUTS 768 /* of them at a time: as much as a first-level cache of 48 KiB holds */

/* Bits of x as bfloat16; of a NaN, of a NaN. */
AICC_INLINE uint16_t aicc_round_bits(float x) {
    uint32_t bits = aicc_to_bits(x), rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    if ((bits & 0x7f800000u) == 0) rounded = bits & 0x80000000u;
    return (uint16_t)(((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded) >> 16);
}

/* A row of a prompt: AICC_STRETCH inputs lie at `at`, the next of them `step` bytes on. */
typedef struct aicc_prompt_row {
    uint8_t *at;
    ptrdiff_t step;
} aicc_prompt_row;

/* Row number `row` of a batch, where rows have `row_bytes` each in a buffer. */
AICC_INLINE aicc_prompt_row aicc_row_of_prompt(const aicc_frame *f, uint8_t *rows, ptrdiff_t row_bytes, int32_t row) {
    int32_t inside = (row - f->first_prompt_row) % AICC_TILE, first = row - inside;
    uint8_t *tile = rows + first * row_bytes;
    return (aicc_prompt_row){tile + inside * 2 * AICC_STRETCH, AICC_MIN(f->rows - first, AICC_TILE) * 2 * AICC_STRETCH};
}

AICC_INLINE uint16_t *aicc_prompt_input(aicc_prompt_row row, int32_t i) {
    return (uint16_t *)(void *)(row.at + i / AICC_STRETCH * row.step) + i % AICC_STRETCH;
}

/* x[0 .. count) as inputs first .. first + count of a row. */
AICC_INLINE void aicc_round_columns(aicc_prompt_row row, int32_t first, int32_t count, const float *x) {
    int32_t i = 0;
#if defined(AICC_PROMPTS)
    for (; first % AICC_LANES == 0 && i + AICC_LANES <= count; i += AICC_LANES) {
        __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
        _mm256_storeu_si256((__m256i *)(void *)aicc_prompt_input(row, first + i), rounded);
    }
#endif
    for (; i < count; i++) *aicc_prompt_input(row, first + i) = aicc_round_bits(x[i]);
}

AICC_INLINE void aicc_round_row(aicc_prompt_row row, int32_t k, const float *x, int32_t width) {
    aicc_round_columns(row, 0, width, x);
    for (int32_t i = width; i < k; i++) *aicc_prompt_input(row, i) = 0;
}

/* aicc_linear_prompt: some units of panels for some rows, the first of which is the first of a tile; y of a unit is
 * AICC_PROMPT_ROWS rows behind that of the one before. `spread` is memory for AICC_SPREAD_PANELS of AICC_SPREAD_INPUTS
 * inputs, or a group if that is more. */
#if defined(AICC_PROMPTS)
#include "prompt_amx.h"
#else
AICC_INLINE void aicc_linear_prompt(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                    const uint8_t *weights, int32_t units, int32_t panels, aicc_weight w, uint16_t *spread) {
    (void)spread;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t n = 0; n < units * panels * AICC_LANES; n++) {
            int32_t unit = n / (panels * AICC_LANES);
            int32_t inside = r % AICC_TILE, first = r - inside;
            aicc_prompt_row row = {(uint8_t *)x + first * x_stride + inside * 2 * AICC_STRETCH,
                                   AICC_MIN(rows - first, AICC_TILE) * 2 * AICC_STRETCH};
            const uint8_t *panel = weights + (size_t)(n / AICC_LANES) * aicc_panel_bytes(w);
            float sum = 0.0f, part[2] = {0.0f, 0.0f};
            for (int32_t i = 0; i < w.k; i++) {
                size_t at = (size_t)(i / w.group) * AICC_LANES + (size_t)(n % AICC_LANES);
                float minimum = w.minima ? aicc_load_one(w.minima, aicc_panel_minima(panel, w), at) : 0.0f;
                float scale = aicc_load_one(w.scales, aicc_panel_scales(panel, w), at);
                float weight = aicc_fma(scale, (float)(aicc_panel_integer(panel, w, n % AICC_LANES, i) - w.zero), minimum);
                float left = aicc_from_bits((uint32_t)*aicc_prompt_input(row, i) << 16);
                float right = aicc_from_bits((uint32_t)aicc_round_bits(weight) << 16);
                part[i % 2] = aicc_fma(left, right, part[i % 2]);
                if (i % AICC_STRETCH < AICC_STRETCH - 1) continue;
                sum += part[0] + part[1];
                part[0] = part[1] = 0.0f;
            }
            y[(unit * AICC_PROMPT_ROWS + r) * y_stride + n % (panels * AICC_LANES)] = sum;
        }
}
#endif

#endif
