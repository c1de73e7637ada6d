/* Exact integer sums with Arm's sdot, and for several rows smmla where there is i8mm.
 *
 * sdot: each 32-bit lane adds the products of four signed bytes. A nibble is a signed byte as it is; a whole byte is made
 * one by taking 128 off. One register of 16 activations serves four quads, each picked as a lane of it. smmla multiplies
 * [2 rows][8 inputs] by [2 outputs][8 inputs]: two quads are zipped to give the latter. */
#ifndef AICC_LINEAR_NEON_H
#define AICC_LINEAR_NEON_H

#include <arm_neon.h>

#define AICC_ROWS_AT_ONCE 4
#include "linear_rows.h"

typedef enum aicc_part { AICC_LOW, AICC_HIGH, AICC_WHOLE } aicc_part;

AICC_INLINE int32_t aicc_dot_offset(aicc_weight w) {
    return w.format == AICC_Q8 ? -128 : 0;
}

/* Weights of 4 outputs and one quad, of the bytes' low or high nibbles or of whole bytes. */
AICC_INLINE int8x16_t aicc_signed_weights(const uint8_t *bytes, aicc_part part) {
    uint8x16_t v = vld1q_u8(bytes);
    if (part == AICC_WHOLE) v = veorq_u8(v, vdupq_n_u8(128));
    else v = part == AICC_LOW ? vandq_u8(v, vdupq_n_u8(15)) : vshrq_n_u8(v, 4);
    return vreinterpretq_s8_u8(v);
}

/* The quad that is lane `lane` (a literal) of x[r], times all 16 outputs. */
#define AICC_DOT_LANE(lane) \
    for (int32_t i = 0; i < 4; i++) { \
        int8x16_t v = aicc_signed_weights(bytes + (lane) * 64 + i * 16, part); \
        for (int32_t r = 0; r < count; r++) sums[r][i] = vdotq_laneq_s32(sums[r][i], v, inputs[r], lane); \
    }

/* Four vectors of 64 bytes times 16 activations of each row: sums[r] are its 16 outputs. */
AICC_INLINE void aicc_dot_four(int32x4_t sums[][4], const uint8_t *bytes, aicc_part part, const int8_t *x,
                               ptrdiff_t x_stride, int32_t count) {
    int8x16_t inputs[AICC_ROWS_AT_ONCE];
    for (int32_t r = 0; r < count; r++) inputs[r] = vld1q_s8(x + r * x_stride);
    AICC_DOT_LANE(0)
    AICC_DOT_LANE(1)
    AICC_DOT_LANE(2)
    AICC_DOT_LANE(3)
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define AICC_ROWS_BY_TWO 1
AICC_INLINE int8x16_t aicc_two_quads(int32x4_t v) {
    return vreinterpretq_s8_s32(v);
}

/* The same for two rows at a time: sums[2 p + i] of rows 2 p and 2 p + 1 are outputs 8 i .. 8 i + 7, as [4][2 rows][2]. */
AICC_INLINE void aicc_multiply_four(int32x4_t sums[][4], const uint8_t *bytes, aicc_part part, const int8_t *x,
                                    ptrdiff_t x_stride, int32_t count) {
    for (int32_t eight = 0; eight < 2; eight++) {
        int8x16_t inputs[AICC_ROWS_AT_ONCE / 2];
        for (int32_t p = 0; p < count / 2; p++)
            inputs[p] = vcombine_s8(vld1_s8(x + 2 * p * x_stride + eight * 8), vld1_s8(x + (2 * p + 1) * x_stride + eight * 8));
        for (int32_t i = 0; i < 4; i++) {
            const uint8_t *from = bytes + eight * 128 + i * 16;
            int32x4_t first = vreinterpretq_s32_s8(aicc_signed_weights(from, part));
            int32x4_t second = vreinterpretq_s32_s8(aicc_signed_weights(from + 64, part));
            int8x16_t low = aicc_two_quads(vzip1q_s32(first, second)), high = aicc_two_quads(vzip2q_s32(first, second));
            for (int32_t p = 0; p < count / 2; p++) {
                int32x4_t *to = &sums[2 * p + i / 2][i % 2 * 2];
                to[0] = vmmlaq_s32(to[0], inputs[p], low);
                to[1] = vmmlaq_s32(to[1], inputs[p], high);
            }
        }
    }
}

/* Outputs of each row together, from what aicc_multiply_four has left. */
AICC_INLINE void aicc_part_rows(int32x4_t sums[][4], int32_t count) {
    for (int32_t p = 0; p < count / 2; p++) {
        int32x4_t row[2][4];
        for (int32_t i = 0; i < 4; i++) {
            int64x2_t even = vreinterpretq_s64_s32(sums[2 * p + i / 2][i % 2 * 2]);
            int64x2_t odd = vreinterpretq_s64_s32(sums[2 * p + i / 2][i % 2 * 2 + 1]);
            row[0][i] = vreinterpretq_s32_s64(vtrn1q_s64(even, odd));
            row[1][i] = vreinterpretq_s32_s64(vtrn2q_s64(even, odd));
        }
        memcpy(sums[2 * p], row, sizeof row);
    }
}
#else
#define AICC_ROWS_BY_TWO 0
#define aicc_multiply_four aicc_dot_four
#define aicc_part_rows(sums, count)
#endif

AICC_INLINE void aicc_dot_rows(i32x16 *dot, const uint8_t *values, aicc_weight w, int32_t g, const int8_t *x,
                               ptrdiff_t x_stride, int32_t count) {
    int32x4_t sums[AICC_ROWS_AT_ONCE][4];
    int by_two = AICC_ROWS_BY_TWO && count % 2 == 0, bytes_each = w.format == AICC_Q8 ? 16 : 8;
    const uint8_t *bytes = values + (size_t)g * (size_t)(w.group * bytes_each);
    for (int32_t r = 0; r < count; r++)
        for (int32_t i = 0; i < 4; i++) sums[r][i] = vdupq_n_s32(0);
#define AICC_FOUR(part, input) \
    if (by_two) aicc_multiply_four(sums, bytes + i * 16, part, x + (input), x_stride, count); \
    else aicc_dot_four(sums, bytes + i * 16, part, x + (input), x_stride, count);
    if (w.format == AICC_Q8)
        for (int32_t i = 0; i < w.group; i += 16) { AICC_FOUR(AICC_WHOLE, i) }
    else
        for (int32_t i = 0; i < w.group / 2; i += 16) {
            AICC_FOUR(AICC_LOW, i)
            AICC_FOUR(AICC_HIGH, w.group / 2 + i)
        }
#undef AICC_FOUR
    if (by_two) aicc_part_rows(sums, count);
    memcpy(dot, sums, (size_t)count * sizeof *dot);
}

#endif
