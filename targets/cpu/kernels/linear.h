/* y = x Wᵀ for some rows of x and some panels of W: the one door to all matrix products.
 *
 * aicc_linear computes y[r * y_stride + 16 p + n] for rows r < `rows`, panels p < `panels` (a constant, 1 .. AICC_MOST_PANELS)
 * and lanes n < 16. Lanes past the weight's last output are zeros times x. What it means, whatever computes it:
 *
 *   float formats (`parts` is 1): four partial sums, of inputs i = 0, 1, 2, 3 modulo 4, each from 0 in rising order with fused
 *     multiply-adds; the result is (s0 + s1) + (s2 + s3). x is float rows, x_stride bytes apart.
 *   Q8, Q4: x is quantised rows (quantise.h) of the same k and group, x_stride bytes apart. Over groups g in order:
 *       dot  = Σ q_w q_x - zero * sum[g]                         exact, int32
 *       y    = fma(float(dot), scale_w[g] * scale_x[g], y)
 *       y    = fma(minimum[g], total[g], y)                      if the weight has minima
 *
 *     a row of two records (`parts` is 2; x_stride is that of both) gives the sum of what each of them gives.
 *     Where `spread` is not null, it is memory, and rows are those of prompts, in tiles, both as prompt.h says; `units` times
 *     as many panels are computed for them, for others once.
 *
 * So a row's result does not depend on the rows beside it. The instruction sets differ at most in whether a
 * multiply-add rounds once or twice. */
#ifndef AICC_LINEAR_H
#define AICC_LINEAR_H

#include "engine.h"
#include "linear_float.h"
#include "prompt.h"
#if defined(AICC_AMX)
#include "linear_amx.h"
#elif defined(AICC_AVX512VNNI)
#include "linear_avx512vnni.h"
#elif defined(AICC_AVX2)
#include "linear_avx2.h"
#elif defined(AICC_NEON)
#include "linear_neon.h"
#elif defined(AICC_RVV)
#include "linear_rvv.h"
#else
#include "linear_portable.h"
#endif

AICC_INLINE void aicc_linear(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows, int32_t parts,
                             const uint8_t *w, int32_t units, int32_t panels, aicc_weight form, uint16_t *spread) {
    if (!aicc_is_quantised(form)) {
        aicc_linear_float(y, y_stride, x, x_stride, rows, w, panels, form);
        return;
    }
    if (spread) {
        aicc_linear_prompt(y, y_stride, x, x_stride, rows, w, units, panels, form, spread);
        return;
    }
    if (parts == 1) {
        aicc_linear_quantised(y, y_stride, x, x_stride, rows, w, panels, form);
        return;
    }
    /* Two records follow each other as rows do, so they are computed as rows: weights are unpacked once for both. */
    ptrdiff_t record = (ptrdiff_t)aicc_row_bytes(form.k, form.group);
    for (int32_t begin = 0; begin < rows; begin += AICC_TILE_ROWS / 2) {
        float both[AICC_TILE_ROWS * AICC_MOST_PANELS * AICC_LANES];
        int32_t count = AICC_MIN(rows - begin, AICC_TILE_ROWS / 2), columns = panels * AICC_LANES;
        aicc_linear_quantised(both, columns, (const uint8_t *)x + begin * x_stride, record, 2 * count, w, panels, form);
        for (int32_t r = 0; r < count; r++)
            for (int32_t n = 0; n < columns; n++)
                y[(begin + r) * y_stride + n] = both[2 * r * columns + n] + both[(2 * r + 1) * columns + n];
    }
}

#endif
