/* Matrix products with float weights (float32, float16, bfloat16), widened in registers. */
#ifndef AICC_LINEAR_FLOAT_H
#define AICC_LINEAR_FLOAT_H

#include "panel.h"

/* `count` rows (a constant) of one panel. Four sums each, since one chain of multiply-adds would wait for itself. */
AICC_INLINE void aicc_float_rows(float *y, ptrdiff_t y_stride, const uint8_t *x, ptrdiff_t x_stride, int32_t count,
                                 const uint8_t *panel, aicc_weight w) {
    f32x16 sum[4][4] = {0};
    int32_t i = 0;
    for (; i + 4 <= w.k; i += 4)
        for (int32_t j = 0; j < 4; j++) {
            f32x16 column = aicc_load_as(w.format, panel, (size_t)(i + j) * AICC_LANES);
            for (int32_t r = 0; r < count; r++)
                sum[r][j] = aicc_fma16(aicc_splat(((const float *)(const void *)(x + r * x_stride))[i + j]), column, sum[r][j]);
        }
    for (int32_t j = 0; i + j < w.k; j++)
        for (int32_t r = 0; r < count; r++)
            sum[r][j] = aicc_fma16(aicc_splat(((const float *)(const void *)(x + r * x_stride))[i + j]),
                                   aicc_load_as(w.format, panel, (size_t)(i + j) * AICC_LANES), sum[r][j]);
    for (int32_t r = 0; r < count; r++)
        aicc_store(y + r * y_stride, (sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]));
}

AICC_INLINE void aicc_linear_float(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                   const uint8_t *weights, int32_t panels, aicc_weight w) {
    for (int32_t p = 0; p < panels; p++) {
        const uint8_t *panel = weights + (size_t)p * aicc_panel_bytes(w);
        float *to = y + p * AICC_LANES;
        int32_t r = 0;
        for (; r + 4 <= rows; r += 4)
            aicc_float_rows(to + r * y_stride, y_stride, (const uint8_t *)x + r * x_stride, x_stride, 4, panel, w);
        for (; r < rows; r++)
            aicc_float_rows(to + r * y_stride, y_stride, (const uint8_t *)x + r * x_stride, x_stride, 1, panel, w);
    }
}

#endif
