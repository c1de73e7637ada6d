/* Integer sums in plain C: what the other instruction sets are tested against. */
#ifndef AICC_LINEAR_PORTABLE_H
#define AICC_LINEAR_PORTABLE_H

#define AICC_ROWS_AT_ONCE 1
#include "linear_rows.h"

AICC_INLINE int32_t aicc_dot_offset(aicc_weight w) {
    (void)w;
    return 0;
}

/* sums[n] += Σ over the 4 inputs of one quad; bytes are [16][4], `shift` picks the nibble. */
AICC_INLINE void aicc_dot_quad(int32_t *sums, const uint8_t *bytes, int32_t shift, int32_t mask, const int8_t *x) {
    for (int32_t n = 0; n < AICC_LANES; n++)
        for (int32_t j = 0; j < 4; j++) sums[n] += ((bytes[n * 4 + j] >> shift) & mask) * x[j];
}

AICC_INLINE void aicc_dot_rows(i32x16 *dot, const uint8_t *values, aicc_weight w, int32_t g, const int8_t *x,
                               ptrdiff_t x_stride, int32_t count) {
    (void)x_stride, (void)count;
    int32_t sums[AICC_LANES] = {0}, quads = w.group / 4;
    if (w.format == AICC_Q8) {
        for (int32_t quad = 0; quad < quads; quad++)
            aicc_dot_quad(sums, values + (size_t)(g * quads + quad) * 64, 0, 255, x + quad * 4);
    } else {
        for (int32_t v = 0; v < quads / 2; v++) {
            const uint8_t *bytes = values + (size_t)(g * quads / 2 + v) * 64;
            aicc_dot_quad(sums, bytes, 0, 15, x + v * 4);
            aicc_dot_quad(sums, bytes, 4, 15, x + (v + quads / 2) * 4);
        }
    }
    memcpy(dot, sums, sizeof *dot);
}

#endif
