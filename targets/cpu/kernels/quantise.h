/* Rows of activations as int8, a scale for each group.
 *
 * A quantised row of k inputs in groups of `group` is one record of aicc_row_bytes(k, group) bytes, aligned to 64:
 *
 *   int8_t  q[k]      round(x / scale), to nearest, ties to even; -127 .. 127
 *   float   scale[G]  max |x| / 127 of the group; 0 for a group of zeros
 *   float   total[G]  scale * sum: what a weight's minimum is multiplied by
 *   int32_t sum[G]    sum of the group's q
 *
 * with G = k / group. Where 8 bits are too coarse, a row is two such records after each other (`parts` is 2), the second of
 * what the first leaves over, which makes 15 bits in all. Groups whose largest value is not finite get scale NaN, so that
 * the error shows in the output instead of vanishing; groups below 2^-100 count as zeros. */
#ifndef AICC_QUANTISE_H
#define AICC_QUANTISE_H

#include "base.h"

#define AICC_LARGEST_GROUP 256

/* Of one record. */
AICC_INLINE size_t aicc_row_bytes(int32_t k, int32_t group) {
    return AICC_ROUND_UP((size_t)k + 12 * (size_t)(k / group), AICC_ALIGN);
}

AICC_INLINE const float *aicc_row_scales(const void *row, int32_t k) {
    return (const float *)((const uint8_t *)row + k);
}

AICC_INLINE const float *aicc_row_totals(const void *row, int32_t k, int32_t group) {
    return aicc_row_scales(row, k) + k / group;
}

AICC_INLINE const int32_t *aicc_row_sums(const void *row, int32_t k, int32_t group) {
    return (const int32_t *)(const void *)(aicc_row_totals(row, k, group) + k / group);
}

/* Quantise `count` groups, from x[0], into groups first .. first + count of the record at `row`. */
AICC_INLINE void aicc_quantise_record(uint8_t *row, int32_t k, int32_t group, int32_t first, int32_t count,
                                      const float *x) {
    float *scales = (float *)(void *)(row + k), *totals = scales + k / group;
    int32_t *sums = (int32_t *)(void *)(totals + k / group);
    for (int32_t g = 0; g < count; g++) {
        const float *from = x + (size_t)g * (size_t)group;
        int8_t *to = (int8_t *)row + (size_t)(first + g) * (size_t)group;
        /* Bits of |x| compare as integers do, NaN above all. */
        uint32_t largest = 0;
        for (int32_t i = 0; i < group; i++) {
            uint32_t magnitude = aicc_to_bits(from[i]) & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        float scale = aicc_from_bits(largest) * (1.0f / 127.0f), inverse;
        if (largest < 0x0d800000u) scale = inverse = 0.0f; /* 2^-100 */
        else if (largest >= 0x7f800000u) scale = aicc_from_bits(0x7fc00000u), inverse = 0.0f;
        else inverse = 127.0f / aicc_from_bits(largest);
        int32_t sum = 0;
        for (int32_t i = 0; i < group; i++) {
            float product = largest >= 0x7f800000u ? 0.0f : from[i] * inverse;
            /* 1.5 * 2^23 + x has round(x) in its low bits. */
            int32_t value = (int32_t)aicc_to_bits(product + 12582912.0f) - 0x4b400000;
            to[i] = (int8_t)value;
            sum += value;
        }
        scales[first + g] = scale;
        totals[first + g] = scale * (float)sum;
        sums[first + g] = sum;
    }
}

/* The same into a row of `parts` records. Tasks that own different groups of one row may run at the same time. `k`,
 * `group` and `parts` are constants. */
AICC_INLINE void aicc_quantise_groups(uint8_t *row, int32_t k, int32_t group, int32_t parts, int32_t first, int32_t count,
                                      const float *x) {
    aicc_quantise_record(row, k, group, first, count, x);
    for (int32_t g = first; parts == 2 && g < first + count; g++) {
        const float *from = x + (size_t)(g - first) * (size_t)group;
        const int8_t *q = (const int8_t *)row + (size_t)g * (size_t)group;
        float scale = aicc_row_scales(row, k)[g], rest[AICC_LARGEST_GROUP];
        for (int32_t i = 0; i < group; i++) rest[i] = aicc_fma(-scale, (float)q[i], from[i]);
        aicc_quantise_record(row + aicc_row_bytes(k, group), k, group, g, 1, rest);
    }
}

/* Quantise x[0 .. width) into a whole row; inputs width .. k are zeros. */
AICC_INLINE void aicc_quantise_row(uint8_t *row, int32_t k, int32_t group, int32_t parts, const float *x, int32_t width) {
    int32_t whole = width / group;
    aicc_quantise_groups(row, k, group, parts, 0, whole, x);
    if (whole * group == k) return;
    float padded[AICC_LARGEST_GROUP];
    for (int32_t g = whole; g < k / group; g++) {
        for (int32_t i = 0; i < group; i++) padded[i] = g * group + i < width ? x[g * group + i] : 0.0f;
        aicc_quantise_groups(row, k, group, parts, g, 1, padded);
    }
}

#endif
