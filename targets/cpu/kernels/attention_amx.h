/* One split of attention.h for queries of prompts, with the tiles of prompt_amx.h.
 *
 * Queries times `scale`, keys, probabilities and values are rounded to bfloat16 and multiplied as prompt.h says; scores,
 * softmax and sums stay in float32. Keys and values are turned into bfloat16 once for all rows of an item.
 * `scratch` is aicc_attention_tiles_bytes of memory: queries, probabilities, and keys or values. */
#ifndef AICC_ATTENTION_AMX_H
#define AICC_ATTENTION_AMX_H

#include "cache.h"
#include "prompt.h"

AICC_INLINE bool aicc_has_tiles(aicc_heads h) {
    return h.head_dim % AICC_STRETCH == 0;
}

AICC_INLINE size_t aicc_attention_tiles_bytes(int32_t head_dim) {
    return 2 * ((size_t)AICC_ATTENTION_ROWS * (size_t)(head_dim + AICC_SPLIT) + (size_t)AICC_SPLIT * (size_t)head_dim);
}

/* Some rows, 32 at a time, by panels of bfloat16 that lie one after another: y[r][16 p ..]. */
AICC_INLINE void aicc_multiply_panels(float *y, int32_t y_stride, const uint16_t *x, int32_t x_stride, int32_t rows,
                                      const uint16_t *panels, int32_t count, int32_t k) {
    for (int32_t r = 0; r < rows; r += 2 * AICC_TILE)
        for (int32_t p = 0; p < count; p += 2) {
            float *to = y + r * y_stride + p * AICC_LANES;
            const uint16_t *panel = panels + (size_t)(p * k) * AICC_LANES;
            aicc_row_tiles pair[2] = {{(const uint8_t *)(x + r * x_stride), 2 * x_stride, 2 * AICC_STRETCH}};
            if (rows - r > AICC_TILE) pair[1] = pair[0], pair[1].at += AICC_TILE * 2 * x_stride;
            if (p + 1 < count) aicc_prompt_block(to, y_stride, pair, panel, 2, k, false);
            else aicc_prompt_block(to, y_stride, pair, panel, 1, k, false);
        }
}

/* Scores of `rows` rows of floats against the keys of pages [begin, end) of a split. */
AICC_INLINE void aicc_score_tiles(float *scores, const float *q, int32_t rows, const uint8_t *const *keys, int32_t begin,
                                  int32_t end, uint16_t *scratch, aicc_heads h) {
    uint16_t *spread = scratch + AICC_ATTENTION_ROWS * (h.head_dim + AICC_SPLIT);
    aicc_shape_prompt(AICC_TILE, AICC_TILE);
    aicc_round_columns((aicc_prompt_row){(uint8_t *)scratch, 2 * AICC_STRETCH}, 0, rows * h.head_dim, q);
    for (int32_t page = begin; page < end; page++)
        for (int32_t d = 0; d < h.head_dim; d += 2)
            aicc_store_pairs(spread + (size_t)((page - begin) * h.head_dim + d) * AICC_LANES,
                             aicc_load_as(h.cache, keys[page], (size_t)d * AICC_LANES),
                             aicc_load_as(h.cache, keys[page], (size_t)(d + 1) * AICC_LANES));
    aicc_multiply_panels(scores + begin * AICC_LANES, AICC_SPLIT, scratch, h.head_dim, rows, spread, end - begin, h.head_dim);
    for (int32_t page = begin; h.cache == AICC_I8 && page < end; page++)
        for (int32_t r = 0; r < rows; r++) {
            float *s = scores + r * AICC_SPLIT + page * AICC_LANES;
            aicc_store(s, aicc_load(s) * aicc_page_scales(keys[page], h));
        }
}

/* out[r][d] = Σ_j p[r][j] v[j][d] over keys [begin, end) of a split; all that begins with aicc_score_tiles ends here. */
AICC_INLINE void aicc_weigh_tiles(float *out, const float *p, int32_t rows, const uint8_t *const *values, int32_t begin,
                                  int32_t end, uint16_t *scratch, aicc_heads h) {
    uint16_t *rounded = scratch + AICC_ATTENTION_ROWS * h.head_dim, *spread = rounded + AICC_ATTENTION_ROWS * AICC_SPLIT;
    int32_t first = begin / AICC_LANES * AICC_LANES, last = AICC_ROUND_UP(end, AICC_LANES); /* whole vectors are rounded */
    int32_t from = begin / AICC_STRETCH * AICC_STRETCH, to = AICC_ROUND_UP(end, AICC_STRETCH);
    for (int32_t r = 0; r < rows; r++) {
        uint16_t *row = rounded + r * AICC_SPLIT;
        aicc_round_columns((aicc_prompt_row){(uint8_t *)row, 2 * AICC_STRETCH}, first, last - first, p + r * AICC_SPLIT + first);
        memset(row + from, 0, 2 * (size_t)(begin - from)); /* whole stretches are multiplied */
        memset(row + end, 0, 2 * (size_t)(to - end));
    }
    for (int32_t d = 0; d < h.head_dim; d += AICC_LANES)
        for (int32_t j = from; j < to; j += 2) {
            f32x16 pair[2] = {0}; /* memory of keys that are not there may hold anything */
            for (int32_t i = 0; i < 2; i++)
                if (j + i >= begin && j + i < end)
                    pair[i] = aicc_load_as(h.cache, values[(j + i) / AICC_LANES],
                                           (size_t)((j + i) % AICC_LANES) * (size_t)h.head_dim + (size_t)d);
            aicc_store_pairs(spread + (size_t)(d / AICC_LANES * (to - from) + j - from) * AICC_LANES, pair[0], pair[1]);
        }
    aicc_multiply_panels(out, h.head_dim, rounded + from, AICC_SPLIT, rows, spread, h.head_dim / AICC_LANES, to - from);
    _tile_release();
}

#endif
