/* Quantised matrix products with AMX: tdpbsud multiplies 16 rows of 64 signed activations by 64 x 16 unsigned weights.
 *
 * A group of a panel is a tile as it lies in memory, quads of inputs by 16 outputs; nibbles are spread to bytes first,
 * once for all rows. Sums of a group leave the tile for their scales. Few rows (decoding) are faster without tiles. */
#ifndef AICC_LINEAR_AMX_H
#define AICC_LINEAR_AMX_H

#include "tiles_amx.h"

#define AICC_FEWEST_ROWS 24 /* that are worth a tile: with 8 it has half the speed of VNNI, with 16 four fifths */

/* Numbers of the tiles: sums and activations of the first and the second 16 rows, and weights. They must be literals. */
#define AICC_SUMS_1 0
#define AICC_SUMS_2 1
#define AICC_INPUTS_1 2
#define AICC_INPUTS_2 3
#define AICC_WEIGHTS 4

/* All panels for up to 32 rows. */
AICC_INLINE void aicc_linear_tiles(float *y, ptrdiff_t y_stride, const int8_t *x, ptrdiff_t x_stride, int32_t rows,
                                   const uint8_t *weights, int32_t panels, aicc_weight w) {
    _Alignas(64) int32_t sums[2 * AICC_TILE][AICC_LANES];
    _Alignas(64) uint8_t spread[AICC_TILE * 64];
    int32_t depth = w.group % 64 ? 32 : 64, first = AICC_MIN(rows, AICC_TILE), second = rows - first;
    aicc_tile_shapes shapes = {.palette = 1};
    aicc_shape_tile(&shapes, AICC_SUMS_1, first, 64);
    aicc_shape_tile(&shapes, AICC_SUMS_2, second, 64);
    aicc_shape_tile(&shapes, AICC_INPUTS_1, first, depth);
    aicc_shape_tile(&shapes, AICC_INPUTS_2, second, depth);
    aicc_shape_tile(&shapes, AICC_WEIGHTS, depth / 4, 64);
    _tile_loadconfig(&shapes);
    for (int32_t p = 0; p < panels; p++) {
        const uint8_t *panel = weights + (size_t)p * aicc_panel_bytes(w);
        float *to = y + p * AICC_LANES;
        for (int32_t g = 0; g < w.k / w.group; g++) {
            aicc_prefetch_group(panel, g, w);
            _tile_zero(AICC_SUMS_1);
            if (second) _tile_zero(AICC_SUMS_2);
            for (int32_t begin = 0; begin < w.group; begin += depth) {
                const int8_t *inputs = x + g * w.group + begin;
                const uint8_t *tile = panel + (size_t)(g * w.group + begin) * 16;
                for (int32_t i = 0; w.format == AICC_Q4 && i < depth / 4; i++)
                    _mm512_storeu_si512(spread + i * 64, aicc_load_quad(panel, g, begin / 4 + i, w));
                if (w.format == AICC_Q4) tile = spread;
                _tile_loadd(AICC_WEIGHTS, tile, 64);
                _tile_loadd(AICC_INPUTS_1, inputs, x_stride);
                _tile_dpbsud(AICC_SUMS_1, AICC_INPUTS_1, AICC_WEIGHTS);
                if (!second) continue;
                _tile_loadd(AICC_INPUTS_2, inputs + AICC_TILE * x_stride, x_stride);
                _tile_dpbsud(AICC_SUMS_2, AICC_INPUTS_2, AICC_WEIGHTS);
            }
            _tile_stored(AICC_SUMS_1, sums, 64);
            if (second) _tile_stored(AICC_SUMS_2, sums[AICC_TILE], 64);
            __m512 scale = aicc_group_scale(panel, g, w), minimum = aicc_group_minimum(panel, g, w);
            for (int32_t r = 0; r < rows; r++) {
                const int8_t *row = x + r * x_stride;
                __m512i dot = _mm512_add_epi32(_mm512_load_si512(sums[r]), aicc_start(row, g, w));
                __m512 before = g == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to + r * y_stride);
                _mm512_storeu_ps(to + r * y_stride, aicc_add_group(before, dot, row, g, scale, minimum, w));
            }
        }
    }
    _tile_release();
}

AICC_INLINE void aicc_linear_quantised(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                       const uint8_t *weights, int32_t panels, aicc_weight w) {
    int32_t done = 0;
    for (int32_t count; rows - done >= AICC_FEWEST_ROWS; done += count) {
        count = AICC_MIN(rows - done, 2 * AICC_TILE);
        aicc_linear_tiles(y + done * y_stride, y_stride, (const int8_t *)x + done * x_stride, x_stride, count, weights, panels, w);
    }
    if (done < rows)
        aicc_linear_vnni(y + done * y_stride, y_stride, (const int8_t *)x + done * x_stride, x_stride, rows - done, weights,
                         panels, w);
}

#endif
