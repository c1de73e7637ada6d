/* Normalisation of one row of floats. Sums run in 16 lanes (aicc_sum_lanes), so their order is fixed. */
#ifndef AICC_NORM_H
#define AICC_NORM_H

#include <math.h>

#include "base.h"

/* Σ f(x[i]) with f = (x - centre)^power, power 1 or 2 (a constant). */
AICC_INLINE float aicc_row_sum(const float *x, int32_t width, float centre, int32_t power) {
    f32x16 sum = {0};
    int32_t i = 0;
    for (; i + AICC_LANES <= width; i += AICC_LANES) {
        f32x16 v = aicc_load(x + i) - centre;
        sum = power == 2 ? aicc_fma16(v, v, sum) : sum + v;
    }
    float rest[AICC_LANES] = {0};
    for (int32_t j = 0; i + j < width; j++) {
        float v = x[i + j] - centre;
        rest[j] = power == 2 ? v * v : v;
    }
    return aicc_sum_lanes(sum + aicc_load(rest));
}

/* y = x / sqrt(mean(x^2) + epsilon) * weight. `weight` may be null; y may be x. */
AICC_INLINE void aicc_rms_norm(float *y, const float *x, const float *weight, int32_t width, float epsilon) {
    float inverse = 1.0f / sqrtf(aicc_row_sum(x, width, 0.0f, 2) / (float)width + epsilon);
    for (int32_t i = 0; i < width; i++) y[i] = weight ? x[i] * inverse * weight[i] : x[i] * inverse;
}

/* y = (x - mean) / sqrt(variance + epsilon) * weight + bias. `bias` may be null; y may be x. */
AICC_INLINE void aicc_layer_norm(float *y, const float *x, const float *weight, const float *bias, int32_t width,
                                 float epsilon) {
    float mean = aicc_row_sum(x, width, 0.0f, 1) / (float)width;
    float inverse = 1.0f / sqrtf(aicc_row_sum(x, width, mean, 2) / (float)width + epsilon);
    for (int32_t i = 0; i < width; i++) {
        float v = (x[i] - mean) * inverse * weight[i];
        y[i] = bias ? v + bias[i] : v;
    }
}

#endif
