/* The products of prompt.h with AMX: tdpbf16ps multiplies 16 rows of 32 inputs by 32 inputs of 16 outputs.
 *
 * Two panels are turned into bfloat16, which fits a first-level cache or nearly so, and meet all rows, 32 at a time:
 * four tiles of sums for four loads. */
#ifndef AICC_PROMPT_AMX_H
#define AICC_PROMPT_AMX_H

#include "tiles_amx.h"

/* Numbers of the tiles: sums of rows 1 and 2 by panels 1 and 2, inputs of rows 1 and 2, weights of panels 1 and 2. */
#define AICC_SUMS_11 0
#define AICC_SUMS_12 1
#define AICC_SUMS_21 2
#define AICC_SUMS_22 3
#define AICC_ROWS_1 4
#define AICC_ROWS_2 5
#define AICC_PANEL_1 6
#define AICC_PANEL_2 7

/* Two vectors as bfloat16 [16][2]. */
AICC_INLINE void aicc_store_pairs(uint16_t *to, f32x16 even, f32x16 odd) {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                           19, 3, 18, 2, 17, 1, 16, 0);
    __m512i apart = (__m512i)_mm512_cvtne2ps_pbh(aicc_ps(odd), aicc_ps(even));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(pairs, apart));
}

/* 16 outputs of the inputs i .. i + 3 whose integers are the bytes of `quad`, as two vectors [16][2] of bfloat16. */
AICC_INLINE void aicc_spread_quad(uint16_t *to, __m512i quad, __m512 scale, __m512 minimum, aicc_weight w) {
    const __m512i byte = _mm512_set1_epi32(255), zero = _mm512_set1_epi32(w.zero);
    f32x16 v[4];
    for (int32_t i = 0; i < 4; i++) {
        __m512i q = _mm512_and_si512(_mm512_srli_epi32(quad, 8 * (unsigned)i), byte);
        if (w.zero) q = _mm512_sub_epi32(q, zero);
        __m512 value = _mm512_cvtepi32_ps(q);
        value = w.minima ? _mm512_fmadd_ps(value, scale, minimum) : _mm512_mul_ps(value, scale);
        memcpy(&v[i], &value, sizeof value);
    }
    aicc_store_pairs(to, v[0], v[1]);
    aicc_store_pairs(to + 32, v[2], v[3]);
}

/* A panel as bfloat16 [k / 2][16][2]. */
AICC_INLINE void aicc_spread_panel(uint16_t *to, const uint8_t *panel, aicc_weight w) {
    int32_t quads = w.group / 4;
    for (int32_t g = 0; g < w.k / w.group; g++) {
        __m512 scale = aicc_group_scale(panel, g, w), minimum = aicc_group_minimum(panel, g, w);
        aicc_prefetch_group(panel, g, w);
        for (int32_t i = 0; i < quads; i++)
            aicc_spread_quad(to + (size_t)(g * quads + i) * 64, aicc_load_quad(panel, g, i, w), scale, minimum, w);
    }
}

/* One or two panels (a constant) for up to 32 rows, the second 16 of them if `second`. */
AICC_INLINE void aicc_prompt_block(float *y, ptrdiff_t y_stride, const uint8_t *x, ptrdiff_t x_stride, bool second,
                                   const uint16_t *spread, int32_t panels, int32_t k) {
    const uint16_t *other = spread + (size_t)k * AICC_LANES;
    float *below = y + AICC_TILE * y_stride;
    ptrdiff_t bytes = y_stride * (ptrdiff_t)sizeof(float);
    _tile_zero(AICC_SUMS_11);
    if (panels == 2) _tile_zero(AICC_SUMS_12);
    if (second) _tile_zero(AICC_SUMS_21);
    if (second && panels == 2) _tile_zero(AICC_SUMS_22);
    for (int32_t i = 0; i < k; i += AICC_STRETCH) {
        _tile_loadd(AICC_ROWS_1, x + 2 * i, x_stride);
        _tile_loadd(AICC_PANEL_1, spread + i * AICC_LANES, 64);
        _tile_dpbf16ps(AICC_SUMS_11, AICC_ROWS_1, AICC_PANEL_1);
        if (second) {
            _tile_loadd(AICC_ROWS_2, x + AICC_TILE * x_stride + 2 * i, x_stride);
            _tile_dpbf16ps(AICC_SUMS_21, AICC_ROWS_2, AICC_PANEL_1);
        }
        if (panels < 2) continue;
        _tile_loadd(AICC_PANEL_2, other + i * AICC_LANES, 64);
        _tile_dpbf16ps(AICC_SUMS_12, AICC_ROWS_1, AICC_PANEL_2);
        if (second) _tile_dpbf16ps(AICC_SUMS_22, AICC_ROWS_2, AICC_PANEL_2);
    }
    _tile_stored(AICC_SUMS_11, y, bytes);
    if (panels == 2) _tile_stored(AICC_SUMS_12, y + AICC_LANES, bytes);
    if (second) _tile_stored(AICC_SUMS_21, below, bytes);
    if (second && panels == 2) _tile_stored(AICC_SUMS_22, below + AICC_LANES, bytes);
}

/* Tiles for that many rows of the first 16 and of the second, by panels. */
AICC_INLINE void aicc_shape_prompt(int32_t first, int32_t second) {
    aicc_tile_shapes shapes = {.palette = 1};
    aicc_shape_tile(&shapes, AICC_SUMS_11, first, 64);
    aicc_shape_tile(&shapes, AICC_SUMS_12, first, 64);
    aicc_shape_tile(&shapes, AICC_SUMS_21, second, 64);
    aicc_shape_tile(&shapes, AICC_SUMS_22, second, 64);
    aicc_shape_tile(&shapes, AICC_ROWS_1, first, 64);
    aicc_shape_tile(&shapes, AICC_ROWS_2, second, 64);
    aicc_shape_tile(&shapes, AICC_PANEL_1, AICC_TILE, 64);
    aicc_shape_tile(&shapes, AICC_PANEL_2, AICC_TILE, 64);
    _tile_loadconfig(&shapes);
}

/* One or two panels (a constant) for all rows. */
AICC_INLINE void aicc_prompt_panels(float *y, ptrdiff_t y_stride, const uint8_t *x, ptrdiff_t x_stride, int32_t rows,
                                    const uint8_t *weights, int32_t panels, aicc_weight w, uint16_t *spread) {
    for (int32_t p = 0; p < panels; p++)
        aicc_spread_panel(spread + (size_t)(p * w.k) * AICC_LANES, weights + (size_t)p * aicc_panel_bytes(w), w);
    int32_t whole = rows / (2 * AICC_TILE) * (2 * AICC_TILE), rest = rows - whole, first = AICC_MIN(rest, AICC_TILE);
    if (whole) aicc_shape_prompt(AICC_TILE, AICC_TILE);
    for (int32_t r = 0; r < whole; r += 2 * AICC_TILE)
        aicc_prompt_block(y + r * y_stride, y_stride, x + r * x_stride, x_stride, true, spread, panels, w.k);
    if (!rest) return;
    aicc_shape_prompt(first, rest - first);
    aicc_prompt_block(y + whole * y_stride, y_stride, x + whole * x_stride, x_stride, rest > first, spread, panels, w.k);
}

AICC_INLINE void aicc_linear_prompt(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                    const uint8_t *weights, int32_t panels, aicc_weight w, uint16_t *spread) {
    int32_t p = 0;
    for (; p + 2 <= panels; p += 2)
        aicc_prompt_panels(y + p * AICC_LANES, y_stride, x, x_stride, rows, weights + (size_t)p * aicc_panel_bytes(w), 2, w, spread);
    if (p < panels)
        aicc_prompt_panels(y + p * AICC_LANES, y_stride, x, x_stride, rows, weights + (size_t)p * aicc_panel_bytes(w), 1, w, spread);
    _tile_release();
}

#endif
