/* Exact integer sums with RISC-V vectors (1.0), of any length from 128 bits.
 *
 * There is no dot product, but a widening multiply-add of signed by unsigned bytes into 16 bits. A nibble times an
 * activation is at most 15 * 127, of which 16 fit; a byte is two nibbles, 16 high + low, so both formats run the same loop.
 * Only then are the four sums of an output added up. */
#ifndef AICC_LINEAR_RVV_H
#define AICC_LINEAR_RVV_H

#include <riscv_vector.h>

#define AICC_ROWS_AT_ONCE 1
#include "linear_rows.h"

#define AICC_FITTING 16 /* products of 15 * 127 that 16 bits hold */

AICC_INLINE int32_t aicc_dot_offset(aicc_weight w) {
    (void)w;
    return 0;
}

/* Four inputs, again and again. */
AICC_INLINE vint8m2_t aicc_repeat_quad(const int8_t *x, size_t length) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return __riscv_vreinterpret_v_i32m2_i8m2(__riscv_vmv_v_x_i32m2(quad, length / 4));
}

/* Sums of four neighbours each: narrowing shifts part even from odd lanes. */
AICC_INLINE vint32m2_t aicc_sum_fours(vint16m4_t v, size_t length) {
    vint32m4_t twos = __riscv_vreinterpret_v_i16m4_i32m4(v);
    vint16m2_t even = __riscv_vnsra_wx_i16m2(twos, 0, length / 2), odd = __riscv_vnsra_wx_i16m2(twos, 16, length / 2);
    vint64m4_t pairs = __riscv_vreinterpret_v_i32m4_i64m4(__riscv_vwadd_vv_i32m4(even, odd, length / 2));
    return __riscv_vadd_vv_i32m2(__riscv_vnsra_wx_i32m2(pairs, 0, length / 4),
                                 __riscv_vnsra_wx_i32m2(pairs, 32, length / 4), length / 4);
}

AICC_INLINE void aicc_dot_rows(i32x16 *dot, const uint8_t *values, aicc_weight w, int32_t g, const int8_t *x,
                               ptrdiff_t x_stride, int32_t count) {
    (void)x_stride, (void)count;
    int32_t bytes = w.format == AICC_Q8, vectors = w.group / (bytes ? 4 : 8);
    const uint8_t *from = values + (size_t)g * (size_t)vectors * 64;
    int32_t sums[AICC_LANES];
    for (size_t at = 0, length; at < 64; at += length) {
        length = __riscv_vsetvl_e8m2(64 - at);
        vint32m2_t total = __riscv_vmv_v_x_i32m2(0, length / 4);
        for (int32_t begin = 0; begin < vectors; begin += AICC_FITTING) {
            vint16m4_t low = __riscv_vmv_v_x_i16m4(0, length), high = low;
            for (int32_t v = begin; v < AICC_MIN(begin + AICC_FITTING, vectors); v++) {
                vuint8m2_t both = __riscv_vle8_v_u8m2(from + v * 64 + at, length);
                const int8_t *first = x + v * 4, *second = bytes ? first : first + w.group / 2;
                low = __riscv_vwmaccsu_vv_i16m4(low, aicc_repeat_quad(first, length),
                                                __riscv_vand_vx_u8m2(both, 15, length), length);
                high = __riscv_vwmaccsu_vv_i16m4(high, aicc_repeat_quad(second, length),
                                                 __riscv_vsrl_vx_u8m2(both, 4, length), length);
            }
            vint32m2_t upper = aicc_sum_fours(high, length);
            if (bytes) upper = __riscv_vsll_vx_i32m2(upper, 4, length / 4);
            total = __riscv_vadd_vv_i32m2(total, __riscv_vadd_vv_i32m2(upper, aicc_sum_fours(low, length), length / 4),
                                          length / 4);
        }
        __riscv_vse32_v_i32m2(sums + at / 4, total, length / 4);
    }
    memcpy(dot, sums, sizeof *dot);
}

#endif
