/* Quantised matrix products in plain C: what the other instruction sets are tested against. */
#ifndef AICC_LINEAR_PORTABLE_H
#define AICC_LINEAR_PORTABLE_H

#include "panel.h"
#include "quantise.h"

/* dot[n] += Σ over the 4 inputs of one quad; bytes are [16][4], `shift` picks the nibble. */
AICC_INLINE void aicc_dot_quad(int32_t *dot, const uint8_t *bytes, int32_t shift, int32_t mask, const int8_t *x) {
    for (int32_t n = 0; n < AICC_LANES; n++)
        for (int32_t j = 0; j < 4; j++) dot[n] += ((bytes[n * 4 + j] >> shift) & mask) * x[j];
}

AICC_INLINE void aicc_dot_group(int32_t *dot, const uint8_t *values, aicc_weight w, int32_t g, const int8_t *x) {
    int32_t quads = w.group / 4;
    if (w.format == AICC_Q8) {
        for (int32_t quad = 0; quad < quads; quad++)
            aicc_dot_quad(dot, values + (size_t)(g * quads + quad) * 64, 0, 255, x + quad * 4);
        return;
    }
    for (int32_t v = 0; v < quads / 2; v++) {
        const uint8_t *bytes = values + (size_t)(g * quads / 2 + v) * 64;
        aicc_dot_quad(dot, bytes, 0, 15, x + v * 4);
        aicc_dot_quad(dot, bytes, 4, 15, x + (v + quads / 2) * 4);
    }
}

AICC_INLINE void aicc_linear_quantised(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                                       const uint8_t *weights, int32_t panels, aicc_weight w) {
    for (int32_t p = 0; p < panels; p++) {
        const uint8_t *panel = weights + (size_t)p * aicc_panel_bytes(w);
        for (int32_t r = 0; r < rows; r++) {
            const int8_t *row = (const int8_t *)x + r * x_stride;
            f32x16 result = {0};
            for (int32_t g = 0; g < w.k / w.group; g++) {
                int32_t dot[AICC_LANES];
                for (int32_t n = 0; n < AICC_LANES; n++) dot[n] = -w.zero * aicc_row_sums(row, w.k, w.group)[g];
                aicc_dot_group(dot, panel, w, g, row + (size_t)g * (size_t)w.group);
                i32x16 exact;
                memcpy(&exact, dot, sizeof exact);
                size_t at = (size_t)g * AICC_LANES;
                f32x16 scale = aicc_load_as(w.scales, aicc_panel_scales(panel, w), at) * aicc_row_scales(row, w.k)[g];
                result = aicc_fma16(__builtin_convertvector(exact, f32x16), scale, result);
                if (w.minima)
                    result = aicc_fma16(aicc_load_as(w.minima, aicc_panel_minima(panel, w), at),
                                        aicc_splat(aicc_row_totals(row, w.k, w.group)[g]), result);
            }
            aicc_store(y + r * y_stride + p * AICC_LANES, result);
        }
    }
}

#endif
