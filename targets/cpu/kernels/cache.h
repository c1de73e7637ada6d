/* Keys and values in pages of 16 tokens, and how attention is cut into heads and splits.
 *
 * A page holds all layers; a layer's part starts at a constant offset (a multiple of 64) and is, for each KV head,
 *
 *   K [head_dim][16 tokens]    V [16 tokens][head_dim]     of type `cache`
 *
 * K lies with its tokens side by side, so that a query times 16 keys needs no sum across a vector. AICC_I8: after K and
 * after V stand float [16 tokens], what each token's integers are to be multiplied by: max |x| / 127 of the head. */
#ifndef AICC_CACHE_H
#define AICC_CACHE_H

#include "engine.h"

typedef struct aicc_heads {
    int32_t query_heads, kv_heads, head_dim; /* head_dim a multiple of 16; kv_heads divides query_heads */
    int32_t cache;                           /* AICC_F32, AICC_F16 or AICC_I8 */
    int32_t causal;                          /* 0: every token sees its whole sequence (encoders) */
    int32_t window;                          /* tokens a query sees, itself included; 0: all */
    float scale;                             /* multiplies the scores */
    float soft_cap;                          /* scores become cap * tanh(score / cap); 0: none */
} aicc_heads;

AICC_INLINE size_t aicc_head_values_bytes(aicc_heads h) {
    return (size_t)h.head_dim * AICC_LANES * (size_t)aicc_type_bytes(h.cache);
}

AICC_INLINE size_t aicc_head_page_bytes(aicc_heads h) {
    return 2 * (aicc_head_values_bytes(h) + (h.cache == AICC_I8 ? sizeof(f32x16) : 0));
}

/* The scales of the 16 tokens whose keys or values are at `part`, AICC_I8. */
AICC_INLINE f32x16 aicc_page_scales(const uint8_t *part, aicc_heads h) {
    return aicc_load((const float *)(const void *)(part + aicc_head_values_bytes(h)));
}

/* What a layer takes of a page. */
AICC_INLINE size_t aicc_layer_page_bytes(aicc_heads h) {
    return (size_t)h.kv_heads * aicc_head_page_bytes(h);
}

/* Where keys of one head and page are; its values follow at aicc_head_page_bytes / 2. */
AICC_INLINE uint8_t *aicc_head_page(const aicc_frame *f, uint64_t layer_offset, int32_t page, int32_t kv_head,
                                    aicc_heads h) {
    return f->cache + (size_t)page * f->page_bytes + layer_offset + (size_t)kv_head * aicc_head_page_bytes(h);
}

AICC_INLINE void aicc_cache_put(uint8_t *to, size_t index, float x, int32_t type) {
    if (type == AICC_F32) {
        ((float *)(void *)to)[index] = x;
        return;
    }
    /* A value beyond half precision is held at its largest, not made infinite. */
    _Float16 half = (_Float16)(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
    memcpy(to + 2 * index, &half, sizeof half);
}

/* The key (`along` 16, `across` 1) or value (1, head_dim) of token `token`, its integers and their scale. What is not
 * finite becomes a scale of NaN, so that the error shows. */
AICC_INLINE void aicc_cache_put_bytes(uint8_t *part, const float *x, size_t token, size_t along, size_t across,
                                      aicc_heads h) {
    uint32_t largest = 0; /* bits of |x| compare as integers do, NaN above all */
    for (int32_t d = 0; d < h.head_dim; d++) largest = AICC_MAX(largest, aicc_to_bits(x[d]) & 0x7fffffffu);
    bool finite = largest < 0x7f800000u, zero = largest < 0x0d800000u; /* 2^-100 */
    float inverse = finite && !zero ? 127.0f / aicc_from_bits(largest) : 0.0f;
    for (int32_t d = 0; d < h.head_dim; d++) {
        float product = finite ? x[d] * inverse : 0.0f;
        part[(size_t)d * along + token * across] = (uint8_t)(aicc_to_bits(product + 12582912.0f) - 0x4b400000u);
    }
    float scale = !finite ? aicc_from_bits(0x7fc00000u) : zero ? 0.0f : aicc_from_bits(largest) * (1.0f / 127.0f);
    memcpy(part + aicc_head_values_bytes(h) + token * sizeof scale, &scale, sizeof scale);
}

/* Row `row` of the batch: put key [head_dim] and value [head_dim] of one KV head into the page of its token. Either may be null. */
AICC_INLINE void aicc_cache_write(const aicc_frame *f, uint64_t layer_offset, int32_t row, int32_t kv_head,
                                  const float *key, const float *value, aicc_heads h) {
    int32_t position = f->slot_of[row];
    if (position < 0) return;
    int32_t page = f->batch->pages[f->batch->page_starts[f->sequence_of[row]] + position / AICC_LANES];
    size_t token = (size_t)(position % AICC_LANES);
    uint8_t *keys = aicc_head_page(f, layer_offset, page, kv_head, h), *values = keys + aicc_head_page_bytes(h) / 2;
    if (h.cache == AICC_I8) {
        if (key) aicc_cache_put_bytes(keys, key, token, AICC_LANES, 1, h);
        if (value) aicc_cache_put_bytes(values, value, token, 1, (size_t)h.head_dim, h);
        return;
    }
    for (int32_t d = 0; key && d < h.head_dim; d++) aicc_cache_put(keys, (size_t)d * AICC_LANES + token, key[d], h.cache);
    for (int32_t d = 0; value && d < h.head_dim; d++)
        aicc_cache_put(values, token * (size_t)h.head_dim + (size_t)d, value[d], h.cache);
}

#endif
