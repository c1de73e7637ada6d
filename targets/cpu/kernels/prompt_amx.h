/* The products of prompt.h with AMX: tdpbf16ps multiplies 16 rows of 32 inputs by 32 inputs of 16 outputs.
 *
 * AICC_SPREAD_INPUTS inputs of two panels are turned into bfloat16, which a first-level cache holds, and meet all rows, 32 at
 * a time: four tiles of sums for four loads. */
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

/* Groups [first, end) of a panel as bfloat16 [inputs / 2][16][2]. */
AICC_INLINE void aicc_spread_panel(uint16_t *to, const uint8_t *panel, int32_t first, int32_t end, aicc_weight w) {
    int32_t quads = w.group / 4;
    for (int32_t g = first; g < end; g++) {
        __m512 scale = aicc_group_scale(panel, g, w), minimum = aicc_group_minimum(panel, g, w);
        aicc_prefetch_group(panel, g, w);
        for (int32_t i = 0; i < quads; i++, to += 64)
            aicc_spread_quad(to, aicc_load_quad(panel, g, i, w), scale, minimum, w);
    }
}

/* Up to 16 rows: inputs of a row are `stride` bytes behind the row before, AICC_STRETCH of them `step` behind those before. */
typedef struct aicc_row_tiles {
    const uint8_t *at; /* null if there are no rows */
    ptrdiff_t stride, step;
} aicc_row_tiles;

/* One or two panels (a constant) for two tiles of rows, or one. `more`: y holds the sum of the inputs before.
 *
 * Rows are asked for with a hint that they are read once (t1): otherwise they push the panels out of the first-level
 * cache, and tiles wait for both. */
AICC_INLINE void aicc_prompt_block(float *y, ptrdiff_t y_stride, const aicc_row_tiles *rows, const uint16_t *spread,
                                   int32_t panels, int32_t k, bool more) {
    const uint16_t *other = spread + (size_t)k * AICC_LANES;
    const uint8_t *x = rows[0].at, *below_x = rows[1].at;
    float *below = y + AICC_TILE * y_stride;
    ptrdiff_t bytes = y_stride * (ptrdiff_t)sizeof(float);
    bool second = below_x;
    if (more) {
        _tile_loadd(AICC_SUMS_11, y, bytes);
        if (panels == 2) _tile_loadd(AICC_SUMS_12, y + AICC_LANES, bytes);
        if (second) _tile_loadd(AICC_SUMS_21, below, bytes);
        if (second && panels == 2) _tile_loadd(AICC_SUMS_22, below + AICC_LANES, bytes);
    } else {
        _tile_zero(AICC_SUMS_11);
        if (panels == 2) _tile_zero(AICC_SUMS_12);
        if (second) _tile_zero(AICC_SUMS_21);
        if (second && panels == 2) _tile_zero(AICC_SUMS_22);
    }
    for (int32_t i = 0; i < k; i += AICC_STRETCH, x += rows[0].step, below_x += rows[1].step) {
        _tile_stream_loadd(AICC_ROWS_1, x, rows[0].stride);
        _tile_loadd(AICC_PANEL_1, spread + i * AICC_LANES, 64);
        _tile_dpbf16ps(AICC_SUMS_11, AICC_ROWS_1, AICC_PANEL_1);
        if (second) {
            _tile_stream_loadd(AICC_ROWS_2, below_x, rows[1].stride);
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

/* The tiles of rows r .. r + 32 of `rows`, inputs from `first` on, and how many rows the first tile has. */
AICC_INLINE int32_t aicc_pair_of_tiles(aicc_row_tiles pair[2], const uint8_t *x, ptrdiff_t x_stride, int32_t rows, int32_t r,
                                       int32_t first) {
    int32_t count = 0;
    for (int32_t i = 0; i < 2; i++, r += AICC_TILE) {
        int32_t left = AICC_MIN(rows - r, AICC_TILE);
        if (i == 0) count = left;
        ptrdiff_t step = left * 2 * AICC_STRETCH;
        pair[i] = (aicc_row_tiles){0};
        if (left > 0) pair[i] = (aicc_row_tiles){x + r * x_stride + first / AICC_STRETCH * step, 2 * AICC_STRETCH, step};
    }
    return count;
}

/* Groups [g, end) of one or two panels (a constant) for all rows. */
AICC_INLINE void aicc_prompt_panels(float *y, ptrdiff_t y_stride, const uint8_t *x, ptrdiff_t x_stride, int32_t rows,
                                    const uint8_t *weights, int32_t g, int32_t end, int32_t panels, aicc_weight w, uint16_t *spread) {
    int32_t first = g * w.group, k = (end - g) * w.group;
    for (int32_t p = 0; p < panels; p++)
        aicc_spread_panel(spread + (size_t)(p * k) * AICC_LANES, weights + (size_t)p * aicc_panel_bytes(w), g, end, w);
    if (rows >= 2 * AICC_TILE) aicc_shape_prompt(AICC_TILE, AICC_TILE);
    for (int32_t r = 0; r < rows; r += 2 * AICC_TILE) {
        aicc_row_tiles pair[2];
        int32_t count = aicc_pair_of_tiles(pair, x, x_stride, rows, r, first);
        if (rows - r < 2 * AICC_TILE) aicc_shape_prompt(count, rows - r - count);
        aicc_prompt_block(y + r * y_stride, y_stride, pair, spread, panels, k, g > 0);
    }
}

/* AICC_SPREAD_INPUTS inputs at a time, for all units: their part of the rows stays in the second-level cache. */
AICC_INLINE void aicc_linear_prompt(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                    const uint8_t *weights, int32_t units, int32_t panels, aicc_weight w, uint16_t *spread) {
    int32_t groups = w.k / w.group, at_once = AICC_MAX(AICC_SPREAD_INPUTS / w.group, 1);
    for (int32_t g = 0; g < groups; g += at_once)
        for (int32_t unit = 0; unit < units; unit++)
            for (int32_t p = 0; p < panels; p += 2) {
                int32_t end = AICC_MIN(g + at_once, groups);
                const uint8_t *from = weights + (size_t)(unit * panels + p) * aicc_panel_bytes(w);
                float *to = y + unit * AICC_PROMPT_ROWS * y_stride + p * AICC_LANES;
                if (p + 1 < panels) aicc_prompt_panels(to, y_stride, x, x_stride, rows, from, g, end, 2, w, spread);
                else aicc_prompt_panels(to, y_stride, x, x_stride, rows, from, g, end, 1, w, spread);
            }
    _tile_release();
}

#endif
