/* How weights lie in memory: panels of 16 output rows, the same for every instruction set.
 *
 * A weight W [n][k] is ceil(n / 16) panels after each other, each `aicc_panel_bytes` long and aligned to 64 bytes; rows
 * past n are zeros. `k` is a multiple of `group`; whoever packs pads with zeros. One panel is up to three streams, each
 * starting at a multiple of 64 bytes:
 *
 *   values   AICC_F32, AICC_F16, AICC_BF16: [k][16].
 *            AICC_Q8: [k / 4][16][4] unsigned bytes: 16 rows of 4 consecutive k fill a vector of 64 bytes.
 *            AICC_Q4: the quads of a group two by two: with Q = group / 4 quads in a group, vector v = 0 .. Q/2 - 1 of a
 *            group is [16][4] bytes; a byte's low nibble belongs to quad v and its high nibble to quad v + Q/2.
 *   scales   Q8 and Q4: [k / group][16] of type `scales` (AICC_F32 or AICC_F16).
 *   minima   Q8 and Q4, if `minima` is not AICC_NONE: [k / group][16] of that type.
 *
 * The value of a quantised weight is scale * (q - zero) + minimum, q the stored unsigned integer. `zero` is one number
 * for the whole weight: 8 for symmetric int4, 128 for symmetric int8 (both stored with that added), 0 where minima
 * do the work (minimum = -scale * zero point, if that is what the source has). */
#ifndef AICC_PANEL_H
#define AICC_PANEL_H

#include "base.h"

/* The form of a weight; constants everywhere, so that kernels are compiled for exactly this. */
typedef struct aicc_weight {
    int32_t format; /* AICC_F32, AICC_F16, AICC_BF16, AICC_Q8 or AICC_Q4 */
    int32_t k;      /* inputs; quantised: a multiple of group */
    int32_t group;  /* 32, 64, 128, ...: a multiple of 32; 0 for float formats */
    int32_t zero;   /* 0, 8 or 128 */
    int32_t scales; /* AICC_F32 or AICC_F16; AICC_NONE for float formats */
    int32_t minima; /* AICC_F32, AICC_F16 or AICC_NONE */
} aicc_weight;

AICC_INLINE int aicc_is_quantised(aicc_weight w) {
    return w.format == AICC_Q8 || w.format == AICC_Q4;
}

AICC_INLINE size_t aicc_values_bytes(aicc_weight w) {
    size_t count = (size_t)w.k * AICC_LANES;
    size_t bytes = w.format == AICC_Q4 ? count / 2 : w.format == AICC_Q8 ? count : count * (size_t)aicc_type_bytes(w.format);
    return AICC_ROUND_UP(bytes, AICC_ALIGN);
}

AICC_INLINE size_t aicc_group_stream_bytes(aicc_weight w, int32_t type) {
    if (!aicc_is_quantised(w)) return 0;
    return AICC_ROUND_UP((size_t)(w.k / w.group) * AICC_LANES * (size_t)aicc_type_bytes(type), AICC_ALIGN);
}

AICC_INLINE size_t aicc_panel_bytes(aicc_weight w) {
    return aicc_values_bytes(w) + aicc_group_stream_bytes(w, w.scales) + aicc_group_stream_bytes(w, w.minima);
}

AICC_INLINE const uint8_t *aicc_panel_scales(const uint8_t *panel, aicc_weight w) {
    return panel + aicc_values_bytes(w);
}

AICC_INLINE const uint8_t *aicc_panel_minima(const uint8_t *panel, aicc_weight w) {
    return panel + aicc_values_bytes(w) + aicc_group_stream_bytes(w, w.scales);
}

/* The stored integer of lane `n` at input `i`. */
AICC_INLINE int32_t aicc_panel_integer(const uint8_t *panel, aicc_weight w, int32_t n, int32_t i) {
    if (w.format == AICC_Q8) return panel[(i / 4) * 64 + n * 4 + i % 4];
    int32_t group = i / w.group, inside = i % w.group, half = w.group / 2;
    int32_t quad = inside % half / 4;
    uint8_t byte = panel[(size_t)group * (size_t)w.group * 8 + (size_t)(quad * 64 + n * 4 + i % 4)];
    return inside < half ? byte & 15 : byte >> 4;
}

/* y[0 .. k) = row `row` of the weight at `panels`, as float: embedding rows out of a (tied) output matrix. */
AICC_INLINE void aicc_gather_row(float *y, const uint8_t *panels, int32_t row, aicc_weight w) {
    const uint8_t *panel = panels + (size_t)(row / AICC_LANES) * aicc_panel_bytes(w);
    int32_t n = row % AICC_LANES;
    if (!aicc_is_quantised(w)) {
        for (int32_t i = 0; i < w.k; i++) y[i] = aicc_load_one(w.format, panel, (size_t)i * AICC_LANES + (size_t)n);
        return;
    }
    for (int32_t g = 0; g < w.k / w.group; g++) {
        size_t at = (size_t)g * AICC_LANES + (size_t)n;
        float scale = aicc_load_one(w.scales, aicc_panel_scales(panel, w), at);
        float minimum = w.minima ? aicc_load_one(w.minima, aicc_panel_minima(panel, w), at) : 0.0f;
        for (int32_t i = g * w.group; i < (g + 1) * w.group; i++)
            y[i] = aicc_fma(scale, (float)(aicc_panel_integer(panel, w, n, i) - w.zero), minimum);
    }
}

#endif
