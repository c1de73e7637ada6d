/* Quantised matrix products for instruction sets that have nothing to gain from a loop of their own: they define
 * AICC_ROWS_AT_ONCE and aicc_dot_rows, exact integer sums of one group for some rows, and what follows is the same for all. */
#ifndef AICC_LINEAR_ROWS_H
#define AICC_LINEAR_ROWS_H

#include "panel.h"
#include "quantise.h"

/* dot[r] = Σ (q_w + aicc_dot_offset) q_x over group `g`, for `count` rows (a constant, at most AICC_ROWS_AT_ONCE). */
AICC_INLINE void aicc_dot_rows(i32x16 *dot, const uint8_t *values, aicc_weight w, int32_t g, const int8_t *x,
                               ptrdiff_t x_stride, int32_t count);
/* What the kernel adds to every stored integer of a format: -128 where bytes are made signed. */
AICC_INLINE int32_t aicc_dot_offset(aicc_weight w);

AICC_INLINE void aicc_linear_block(float *y, ptrdiff_t y_stride, const int8_t *x, ptrdiff_t x_stride, int32_t count,
                                   const uint8_t *panel, aicc_weight w) {
    f32x16 result[AICC_ROWS_AT_ONCE] = {0};
    for (int32_t g = 0; g < w.k / w.group; g++) {
        size_t at = (size_t)g * AICC_LANES;
        f32x16 weight_scale = aicc_load_as(w.scales, aicc_panel_scales(panel, w), at), minimum = {0};
        if (w.minima) minimum = aicc_load_as(w.minima, aicc_panel_minima(panel, w), at);
        i32x16 dot[AICC_ROWS_AT_ONCE];
        aicc_dot_rows(dot, panel, w, g, x + (size_t)g * (size_t)w.group, x_stride, count);
        for (int32_t r = 0; r < count; r++) {
            const int8_t *row = x + r * x_stride;
            dot[r] -= (w.zero + aicc_dot_offset(w)) * aicc_row_sums(row, w.k, w.group)[g];
            f32x16 scale = weight_scale * aicc_row_scales(row, w.k)[g];
            result[r] = aicc_fma16(__builtin_convertvector(dot[r], f32x16), scale, result[r]);
            if (w.minima) result[r] = aicc_fma16(minimum, aicc_splat(aicc_row_totals(row, w.k, w.group)[g]), result[r]);
        }
    }
    for (int32_t r = 0; r < count; r++) aicc_store(y + r * y_stride, result[r]);
}

AICC_INLINE void aicc_linear_quantised(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                       const uint8_t *weights, int32_t panels, aicc_weight w) {
    for (int32_t p = 0; p < panels; p++) {
        const uint8_t *panel = weights + (size_t)p * aicc_panel_bytes(w);
        float *to = y + p * AICC_LANES;
        int32_t r = 0;
        for (; r + AICC_ROWS_AT_ONCE <= rows; r += AICC_ROWS_AT_ONCE)
            aicc_linear_block(to + r * y_stride, y_stride, (const int8_t *)x + r * x_stride, x_stride, AICC_ROWS_AT_ONCE, panel, w);
        for (; r < rows; r++)
            aicc_linear_block(to + r * y_stride, y_stride, (const int8_t *)x + r * x_stride, x_stride, 1, panel, w);
    }
}

#endif
