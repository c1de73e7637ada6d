/* What every kernel stands on: the vector of 16 floats, half precision, and the names of instruction sets.
 *
 * Vectors are the compilers' own (GCC >= 12, clang >= 15): one source for every instruction set. Only integer dot
 * products need a file for each. Compile with -ffp-contract=off: a multiplication and an addition are fused where
 * aicc_fma says so and nowhere else, so that a row's result does not depend on how a loop around it was unrolled. */
#ifndef AICC_BASE_H
#define AICC_BASE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "aicc_model.h"

#define AICC_INLINE static inline __attribute__((always_inline, unused))
#define AICC_LANES 16 /* columns of a weight panel, tokens of a page, floats of a vector */
#define AICC_ALIGN 64
#define AICC_ROUND_UP(n, multiple) (((n) + (multiple)-1) / (multiple) * (multiple))
#define AICC_MIN(a, b) ((a) < (b) ? (a) : (b))
#define AICC_MAX(a, b) ((a) > (b) ? (a) : (b))

#if defined(AICC_PORTABLE)
#define AICC_ISA "portable"
#elif defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define AICC_AVX512VNNI 1
#if defined(__AMX_INT8__) || defined(AICC_EMULATED_TILES) /* the latter in tests */
#define AICC_ISA "amx"
#define AICC_AMX 1
#if !defined(AICC_NO_PROMPTS)
#define AICC_PROMPTS 1 /* rows of prompts have products of their own (prompt.h) */
#endif
#else
#define AICC_ISA "avx512-vnni"
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define AICC_ISA "avx2"
#define AICC_AVX2 1
#elif defined(__ARM_FEATURE_DOTPROD)
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define AICC_ISA "neon-i8mm"
#else
#define AICC_ISA "neon-dotprod"
#endif
#define AICC_NEON 1
#elif defined(__riscv_vector)
#define AICC_ISA "rvv"
#define AICC_RVV 1
#else
#define AICC_ISA "portable"
#define AICC_PORTABLE 1
#endif

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef _Float16 f16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

/* Ask for `bytes` from `p` on into the second-level cache, to be used soon. Any address will do. */
AICC_INLINE void aicc_prefetch(const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += AICC_ALIGN) __builtin_prefetch(p + i, 0, 2);
}

/* a*b + c, rounded once where the machine has a fused multiply-add. */
AICC_INLINE float aicc_fma(float a, float b, float c) {
#ifdef __clang__
#pragma clang fp contract(on)
#endif
    return a * b + c;
}

AICC_INLINE f32x16 aicc_fma16(f32x16 a, f32x16 b, f32x16 c) {
#ifdef __clang__
#pragma clang fp contract(on)
#endif
    return a * b + c;
}

AICC_INLINE f32x16 aicc_splat(float x) {
    return (f32x16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

AICC_INLINE f32x16 aicc_load(const float *p) {
    f32x16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

AICC_INLINE void aicc_store(float *p, f32x16 v) {
    memcpy(p, &v, sizeof v);
}

AICC_INLINE float aicc_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

AICC_INLINE uint32_t aicc_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* 16 values of `type` (AICC_F32, AICC_F16, AICC_BF16, AICC_I8; a constant) starting at element `index` of `p`. */
AICC_INLINE f32x16 aicc_load_as(int32_t type, const void *p, size_t index) {
    if (type == AICC_I8) {
        i8x16 bytes;
        memcpy(&bytes, (const uint8_t *)p + index, sizeof bytes);
        return __builtin_convertvector(bytes, f32x16);
    }
    if (type == AICC_F16) {
        f16x16 half;
        memcpy(&half, (const uint8_t *)p + 2 * index, sizeof half);
        return __builtin_convertvector(half, f32x16);
    }
    if (type == AICC_BF16) {
        u16x16 top;
        memcpy(&top, (const uint8_t *)p + 2 * index, sizeof top);
        u32x16 bits = __builtin_convertvector(top, u32x16) << 16;
        f32x16 v;
        memcpy(&v, &bits, sizeof v);
        return v;
    }
    return aicc_load((const float *)p + index);
}

/* One value of `type`. */
AICC_INLINE float aicc_load_one(int32_t type, const void *p, size_t index) {
    if (type == AICC_F32) return ((const float *)p)[index];
    uint16_t bits;
    memcpy(&bits, (const uint8_t *)p + 2 * index, sizeof bits);
    if (type == AICC_BF16) return aicc_from_bits((uint32_t)bits << 16);
    _Float16 half;
    memcpy(&half, &bits, sizeof half);
    return (float)half;
}

AICC_INLINE int32_t aicc_type_bytes(int32_t type) {
    if (type == AICC_I8) return 1;
    return type == AICC_F32 || type == AICC_I32 ? 4 : type == AICC_I64 ? 8 : type == AICC_NONE ? 0 : 2;
}

/* The sum of 16 lanes, always in the same order: halves are added, four times. */
AICC_INLINE float aicc_sum_lanes(f32x16 v) {
    float lane[AICC_LANES];
    aicc_store(lane, v);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] = lane[i] + lane[i + width];
    return lane[0];
}

AICC_INLINE float aicc_max_lanes(f32x16 v) {
    float lane[AICC_LANES];
    aicc_store(lane, v);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

#endif
