/* Keys and values in pages of 16 tokens, and how attention is cut into heads and splits.
 *
 * A page holds all layers; a layer's part starts at a constant offset (a multiple of 64) and is, for each KV head,
 *
 *   K [head_dim][16 tokens]    V [16 tokens][head_dim]     of type `cache`
 *
 * K lies with its tokens side by side, so that a query times 16 keys needs no sum across a vector. */
#ifndef AICC_CACHE_H
#define AICC_CACHE_H

#include "engine.h"

typedef struct aicc_heads {
    int32_t query_heads, kv_heads, head_dim; /* head_dim a multiple of 16; kv_heads divides query_heads */
    int32_t cache;                           /* AICC_F16 or AICC_F32 */
    int32_t causal;                          /* 0: every token sees its whole sequence (encoders) */
    int32_t window;                          /* tokens a query sees, itself included; 0: all */
    float scale;                             /* multiplies the scores */
    float soft_cap;                          /* scores become cap * tanh(score / cap); 0: none */
} aicc_heads;

AICC_INLINE size_t aicc_head_page_bytes(aicc_heads h) {
    return (size_t)h.head_dim * AICC_LANES * 2 * (size_t)aicc_type_bytes(h.cache);
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

/* Row `row` of the batch: put key [head_dim] and value [head_dim] of one KV head into the page of its token. Either may be null. */
AICC_INLINE void aicc_cache_write(const aicc_frame *f, uint64_t layer_offset, int32_t row, int32_t kv_head,
                                  const float *key, const float *value, aicc_heads h) {
    int32_t position = f->slot_of[row];
    if (position < 0) return;
    int32_t page = f->batch->pages[f->batch->page_starts[f->sequence_of[row]] + position / AICC_LANES];
    size_t token = (size_t)(position % AICC_LANES);
    uint8_t *keys = aicc_head_page(f, layer_offset, page, kv_head, h), *values = keys + aicc_head_page_bytes(h) / 2;
    for (int32_t d = 0; key && d < h.head_dim; d++) aicc_cache_put(keys, (size_t)d * AICC_LANES + token, key[d], h.cache);
    for (int32_t d = 0; value && d < h.head_dim; d++)
        aicc_cache_put(values, token * (size_t)h.head_dim + (size_t)d, value[d], h.cache);
}

#endif
