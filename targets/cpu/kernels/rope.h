/* Rotary position embedding of one head of one token, in place.
 *
 * `cosine` and `sine` are the row of the token's position, `rotary / 2` floats each. Not interleaved (the usual form):
 * element i pairs with i + rotary / 2; interleaved: 2i with 2i + 1. Elements from `rotary` on stay as they are. */
#ifndef AICC_ROPE_H
#define AICC_ROPE_H

#include "base.h"

AICC_INLINE void aicc_rope(float *head, const float *cosine, const float *sine, int32_t rotary, int32_t interleaved) {
    int32_t half = rotary / 2, far = interleaved ? 1 : half, step = interleaved ? 2 : 1;
    for (int32_t i = 0; i < half; i++) {
        float a = head[i * step], b = head[i * step + far];
        head[i * step] = a * cosine[i] - b * sine[i];
        head[i * step + far] = a * sine[i] + b * cosine[i];
    }
}

#endif
