/* Attention of a batch over paged keys and values, with online softmax.
 *
 * Keys are taken in splits of AICC_SPLIT positions, at multiples of it. For one query (already times `scale`):
 *
 *   s[j]  = Σ_d fma(q[d], k[j][d])         even d, odd d, added; then soft cap; -inf where the query may not look
 *   m     = max s,  p[j] = exp(s[j] - m),  l = Σ p (in 16 lanes),  a[d] = Σ_j fma(p[j], v[j][d])   j rising
 *
 * (int8: the sum over d is of the integers, times the key's scale; p[j] times the value's scale weighs v's integers)
 * and splits are merged in order: M' = max(M, m), A = A exp(M - M') + a exp(m - M'), L likewise. The result is A / L.
 * This order is the same whether a query stands alone or in a block, and whether one thread takes all splits
 * or several one each, so a query's result depends on its sequence alone. All query heads of a KV head, and the
 * queries of a block, share each load of a key or value. */
#ifndef AICC_ATTENTION_H
#define AICC_ATTENTION_H

#include "cache.h"
#include "maths.h"
#include "prompt.h"
#include "quantise.h"
#if defined(AICC_PROMPTS)
#include "attention_amx.h"
#else /* nothing is attended to by tiles */
#define aicc_has_tiles(h) false
#define aicc_attention_tiles_bytes(head_dim) 0
#define aicc_score_tiles(scores, q, rows, keys, ...) ((void)(keys))
#define aicc_weigh_tiles(...) ((void)0)
#endif

#define AICC_MINUS_INFINITY (-__builtin_inff())
#define AICC_SPLIT_PAGES (AICC_SPLIT / AICC_LANES)
#define AICC_SCORE_ROWS 8 /* rows whose scores fit the registers */
#define AICC_DECODE_ROWS 8 /* up to so many, reading keys and values takes longer than computing with them */
#define AICC_VALUE_ROWS 6 /* rows whose 64 output columns fit the registers */

/* What one thread works with: floats, each part aligned to 64 bytes. Rows are queries times heads. */
typedef struct aicc_attention_scratch {
    float scores[AICC_ATTENTION_ROWS][AICC_SPLIT];
    float max[AICC_ATTENTION_ROWS], sum[AICC_ATTENTION_ROWS];             /* of the split */
    float total_max[AICC_ATTENTION_ROWS], total_sum[AICC_ATTENTION_ROWS]; /* of the splits so far */
    float rows[]; /* three times [AICC_ATTENTION_ROWS][head_dim]: queries, the split's output, the output so far */
} aicc_attention_scratch;

/* Bytes of scratch that aicc_attention needs. */
AICC_INLINE size_t aicc_attention_scratch_bytes(int32_t head_dim) {
    return sizeof(aicc_attention_scratch) + 3 * sizeof(float) * AICC_ATTENTION_ROWS * (size_t)head_dim +
           aicc_attention_tiles_bytes(head_dim);
}

/* Where, behind all of that, bfloat16 of prompts go (attention_amx.h). */
AICC_INLINE uint16_t *aicc_tiles_scratch(aicc_attention_scratch *s, int32_t head_dim) {
    return (uint16_t *)(void *)(s->rows + 3 * AICC_ATTENTION_ROWS * head_dim);
}

/* A split of one row when splits are computed side by side: output [head_dim], then m and l. */
AICC_INLINE size_t aicc_partial_row(int32_t head_dim) {
    return (size_t)head_dim + AICC_LANES;
}

AICC_INLINE size_t aicc_partial_floats(int32_t query_heads, int32_t head_dim) {
    return (size_t)query_heads * aicc_partial_row(head_dim);
}

/* Scores of `count` rows (a constant) against the 16 keys of a page. Two sums each, as one would wait for itself. */
AICC_INLINE void aicc_score_page(float *scores, const float *q, const uint8_t *keys, int32_t count, aicc_heads h) {
    f32x16 s[2][AICC_SCORE_ROWS] = {0};
    for (int32_t d = 0; d < h.head_dim; d += 2)
        for (int32_t odd = 0; odd < 2; odd++) {
            f32x16 column = aicc_load_as(h.cache, keys, (size_t)(d + odd) * AICC_LANES);
            for (int32_t r = 0; r < count; r++)
                s[odd][r] = aicc_fma16(aicc_splat(q[r * h.head_dim + d + odd]), column, s[odd][r]);
        }
    for (int32_t r = 0; r < count; r++) {
        f32x16 sum = s[0][r] + s[1][r];
        aicc_store(scores + r * AICC_SPLIT, h.cache == AICC_I8 ? sum * aicc_page_scales(keys, h) : sum);
    }
}

AICC_INLINE void aicc_score_rows(float *scores, const float *q, const uint8_t *keys, int32_t rows, aicc_heads h) {
    for (; rows >= AICC_SCORE_ROWS; rows -= AICC_SCORE_ROWS) {
        aicc_score_page(scores, q, keys, AICC_SCORE_ROWS, h);
        scores += AICC_SCORE_ROWS * AICC_SPLIT;
        q += AICC_SCORE_ROWS * h.head_dim;
    }
    switch (rows) {
    case 1: aicc_score_page(scores, q, keys, 1, h); break;
    case 2: aicc_score_page(scores, q, keys, 2, h); break;
    case 3: aicc_score_page(scores, q, keys, 3, h); break;
    case 4: aicc_score_page(scores, q, keys, 4, h); break;
    case 5: aicc_score_page(scores, q, keys, 5, h); break;
    case 6: aicc_score_page(scores, q, keys, 6, h); break;
    case 7: aicc_score_page(scores, q, keys, 7, h); break;
    default: break;
    }
}

/* out[r][d .. d + 16 vectors) = Σ_j p[r][j] v[j][d ..] over the split's first `keys` keys, for `count` rows. */
AICC_INLINE void aicc_weigh_block(float *out, const float *p, const uint8_t *const *values, int32_t begin, int32_t end,
                                  int32_t d, int32_t vectors, int32_t count, aicc_heads h) {
    f32x16 sum[AICC_VALUE_ROWS][4] = {0};
    for (int32_t j = begin; j < end; j++) {
        const uint8_t *page = values[j / AICC_LANES];
        for (int32_t c = 0; c < vectors; c++) {
            size_t at = (size_t)(j % AICC_LANES) * (size_t)h.head_dim + (size_t)(d + c * AICC_LANES);
            f32x16 v = aicc_load_as(h.cache, page, at);
            for (int32_t r = 0; r < count; r++) sum[r][c] = aicc_fma16(aicc_splat(p[r * AICC_SPLIT + j]), v, sum[r][c]);
        }
    }
    for (int32_t r = 0; r < count; r++)
        for (int32_t c = 0; c < vectors; c++) aicc_store(out + r * h.head_dim + d + c * AICC_LANES, sum[r][c]);
}

AICC_INLINE void aicc_weigh_count(float *out, const float *p, const uint8_t *const *values, int32_t begin, int32_t end,
                                  int32_t count, aicc_heads h) {
    int32_t d = 0;
    for (; d + 64 <= h.head_dim; d += 64) aicc_weigh_block(out, p, values, begin, end, d, 4, count, h);
    for (; d < h.head_dim; d += AICC_LANES) aicc_weigh_block(out, p, values, begin, end, d, 1, count, h);
}

AICC_INLINE void aicc_weigh_rows(float *out, const float *p, const uint8_t *const *values, int32_t begin, int32_t end,
                                 int32_t rows, aicc_heads h) {
    for (; rows >= AICC_VALUE_ROWS; rows -= AICC_VALUE_ROWS) {
        aicc_weigh_count(out, p, values, begin, end, AICC_VALUE_ROWS, h);
        out += AICC_VALUE_ROWS * h.head_dim;
        p += AICC_VALUE_ROWS * AICC_SPLIT;
    }
    switch (rows) {
    case 1: aicc_weigh_count(out, p, values, begin, end, 1, h); break;
    case 2: aicc_weigh_count(out, p, values, begin, end, 2, h); break;
    case 3: aicc_weigh_count(out, p, values, begin, end, 3, h); break;
    case 4: aicc_weigh_count(out, p, values, begin, end, 4, h); break;
    case 5: aicc_weigh_count(out, p, values, begin, end, 5, h); break;
    default: break;
    }
}

/* Scores of one row to probabilities, in place, over the split's whole pages [begin, end): keys in [from, to) are
 * visible. Returns their sum in *sum and the largest score in *max (-inf if the row sees none of them). */
AICC_INLINE void aicc_soften_row(float *scores, int32_t begin, int32_t end, int32_t from, int32_t to, float *max,
                                 float *sum, aicc_heads h) {
    float largest[AICC_LANES], total[AICC_LANES];
    for (int32_t n = 0; n < AICC_LANES; n++) largest[n] = AICC_MINUS_INFINITY, total[n] = 0.0f;
    for (int32_t j = begin; j < end; j += AICC_LANES)
        for (int32_t n = 0; n < AICC_LANES; n++) {
            float s = scores[j + n];
            if (h.soft_cap > 0.0f) s = h.soft_cap * aicc_tanh(s / h.soft_cap);
            s = n >= from - j && n < to - j ? s : AICC_MINUS_INFINITY;
            scores[j + n] = s;
            largest[n] = s > largest[n] ? s : largest[n];
        }
    float top = aicc_max_lanes(aicc_load(largest));
    for (int32_t j = begin; j < end; j += AICC_LANES)
        for (int32_t n = 0; n < AICC_LANES; n++) {
            float p = aicc_exp(scores[j + n] - top);
            scores[j + n] = p;
            total[n] += p;
        }
    *max = top;
    *sum = aicc_sum_lanes(aicc_load(total));
}

/* Add a split (m, l, a) to the splits before it (M, L, A). */
AICC_INLINE void aicc_merge(float *M, float *L, float *A, float m, float l, const float *a, int32_t head_dim) {
    if (m == AICC_MINUS_INFINITY) return;
    if (*M == AICC_MINUS_INFINITY) { /* the first: what follows would multiply by 0 and by 1 */
        memcpy(A, a, sizeof *A * (size_t)head_dim);
        *L = l;
        *M = m;
        return;
    }
    float top = m > *M ? m : *M;
    float before = aicc_exp(*M - top), now = aicc_exp(m - top);
    for (int32_t d = 0; d < head_dim; d++) A[d] = A[d] * before + a[d] * now;
    *L = *L * before + l * now;
    *M = top;
}

/* What the rows of a task are: `rows` of them, the first being head `first % heads` of query `first / heads`. */
typedef struct aicc_rows {
    int32_t first, count, heads, kv_head;
    uint64_t layer;
} aicc_rows;

/* The last key (exclusive) and the first that the query at `position` may look at. */
AICC_INLINE int32_t aicc_last_key(int32_t position, int32_t length, aicc_heads h) {
    return h.causal ? position + 1 : length;
}

AICC_INLINE int32_t aicc_first_key(int32_t position, aicc_heads h) {
    return h.window && position + 1 > h.window ? position + 1 - h.window : 0;
}

/* One split for some rows of an item: fills max, sum and the split's output. False if none of the rows looks there. */
AICC_INLINE bool aicc_attend_split(const aicc_frame *f, const aicc_attention_item *item, aicc_rows rows, int32_t split,
                                   aicc_attention_scratch *s, aicc_heads h) {
    const aicc_batch *b = f->batch;
    int32_t sequence = f->sequence_of[item->row], base = split * AICC_SPLIT;
    int32_t length = b->past[sequence] + b->starts[sequence + 1] - b->starts[sequence];
    int32_t low = f->position_of[item->row + rows.first / rows.heads];
    int32_t high = f->position_of[item->row + (rows.first + rows.count - 1) / rows.heads];
    int32_t from = AICC_MAX(aicc_first_key(low, h) - base, 0);
    int32_t to = AICC_MIN(aicc_last_key(high, length, h) - base, AICC_SPLIT);
    if (from >= to) return false;
    bool tiles = item->row >= f->first_prompt_row && aicc_has_tiles(h);
    int32_t begin = from / AICC_LANES * AICC_LANES, end = AICC_ROUND_UP(to, AICC_LANES);
    const int32_t *pages = b->pages + b->page_starts[sequence] + base / AICC_LANES;
    const uint8_t *all_keys[AICC_SPLIT_PAGES] = {0}, *values[AICC_SPLIT_PAGES] = {0};
    for (int32_t page = begin / AICC_LANES; page < end / AICC_LANES; page++) {
        const uint8_t *keys = aicc_head_page(f, rows.layer, pages[page], rows.kv_head, h);
        all_keys[page] = keys;
        values[page] = keys + aicc_head_page_bytes(h) / 2;
        if (rows.count <= AICC_DECODE_ROWS) { /* decoding: fetch what the next unit reads, which no hardware can guess */
            bool another = rows.kv_head + 1 < h.kv_heads;
            int32_t ahead = another ? page : page + AICC_SPLIT_PAGES;
            if (another || base / AICC_LANES + ahead < b->page_starts[sequence + 1] - b->page_starts[sequence])
                aicc_prefetch(aicc_head_page(f, rows.layer, pages[ahead], another ? rows.kv_head + 1 : 0, h),
                              aicc_head_page_bytes(h));
        }
        if (!tiles) aicc_score_rows(&s->scores[0][page * AICC_LANES], s->rows, keys, rows.count, h);
    }
    if (tiles)
        aicc_score_tiles(&s->scores[0][0], s->rows, rows.count, all_keys, begin / AICC_LANES, end / AICC_LANES,
                         aicc_tiles_scratch(s, h.head_dim), h);
    for (int32_t r = 0; r < rows.count; r++) {
        int32_t position = f->position_of[item->row + (rows.first + r) / rows.heads];
        aicc_soften_row(s->scores[r], begin, end, aicc_first_key(position, h) - base,
                        aicc_last_key(position, length, h) - base, &s->max[r], &s->sum[r], h);
        for (int32_t page = begin / AICC_LANES; h.cache == AICC_I8 && page < end / AICC_LANES; page++) {
            float *p = s->scores[r] + page * AICC_LANES;
            aicc_store(p, aicc_load(p) * aicc_page_scales(values[page], h));
        }
    }
    float *out = s->rows + AICC_ATTENTION_ROWS * h.head_dim;
    if (tiles)
        aicc_weigh_tiles(out, &s->scores[0][0], rows.count, values, from, to, aicc_tiles_scratch(s, h.head_dim), h);
    else
        aicc_weigh_rows(out, &s->scores[0][0], values, from, to, rows.count, h);
    return true;
}

/* Where attention reads and writes: float rows of query_heads * head_dim, strides in floats. */
typedef struct aicc_attention_place {
    const float *q;
    float *out;
    ptrdiff_t q_stride, out_stride;
    uint8_t *quantised; /* null, or rows of `row_bytes` for the next product, in groups of `group` that divide a KV head's columns */
    int32_t row_bytes, group, parts;
} aicc_attention_place;

/* The rows of an item that fit the scratch: queries in, splits one after another, result out or, for an item that is
 * one split of many, into its slot. */
AICC_INLINE void aicc_attend_rows(const aicc_frame *f, const aicc_attention_item *item, aicc_rows rows,
                                  aicc_attention_place at, uint8_t *scratch, aicc_heads h) {
    aicc_attention_scratch *s = (aicc_attention_scratch *)(void *)scratch;
    float *part = s->rows + AICC_ATTENTION_ROWS * h.head_dim, *total = part + AICC_ATTENTION_ROWS * h.head_dim;
    size_t bytes = sizeof(float) * (size_t)h.head_dim;
    for (int32_t r = 0; r < rows.count; r++) {
        int32_t head = rows.kv_head * rows.heads + (rows.first + r) % rows.heads;
        const float *q = at.q + (item->row + (rows.first + r) / rows.heads) * at.q_stride + head * h.head_dim;
        for (int32_t d = 0; d < h.head_dim; d++) s->rows[r * h.head_dim + d] = q[d] * h.scale;
        s->total_max[r] = AICC_MINUS_INFINITY;
        s->total_sum[r] = 0.0f;
        memset(total + r * h.head_dim, 0, bytes);
    }
    for (int32_t split = item->first_split; split < item->first_split + item->split_count; split++) {
        bool seen = aicc_attend_split(f, item, rows, split, s, h);
        for (int32_t r = 0; r < rows.count; r++) {
            if (item->slot >= 0) {
                size_t row = (size_t)(rows.kv_head * rows.heads + rows.first + r) * aicc_partial_row(h.head_dim);
                float *to = f->partials + (size_t)(item->slot + split) * aicc_partial_floats(h.query_heads, h.head_dim) + row;
                memcpy(to, part + r * h.head_dim, bytes);
                to[h.head_dim] = seen ? s->max[r] : AICC_MINUS_INFINITY;
                to[h.head_dim + 1] = s->sum[r];
            } else if (seen) {
                aicc_merge(&s->total_max[r], &s->total_sum[r], total + r * h.head_dim, s->max[r], s->sum[r],
                           part + r * h.head_dim, h.head_dim);
            }
        }
    }
    for (int32_t r = 0; item->slot < 0 && r < rows.count; r++) {
        int32_t head = rows.kv_head * rows.heads + (rows.first + r) % rows.heads;
        float *out = at.out + (item->row + (rows.first + r) / rows.heads) * at.out_stride + head * h.head_dim;
        float inverse = 1.0f / s->total_sum[r];
        for (int32_t d = 0; d < h.head_dim; d++) out[d] = total[r * h.head_dim + d] * inverse;
    }
}

/* Merge the slots of a single query, in order. */
AICC_INLINE void aicc_merge_slots(const aicc_frame *f, const aicc_attention_item *item, int32_t kv_head,
                                  aicc_attention_place at, aicc_heads h) {
    int32_t heads = h.query_heads / h.kv_heads;
    for (int32_t head = kv_head * heads; head < (kv_head + 1) * heads; head++) {
        float *out = at.out + item->row * at.out_stride + head * h.head_dim;
        float max = AICC_MINUS_INFINITY, sum = 0.0f;
        memset(out, 0, sizeof(float) * (size_t)h.head_dim);
        for (int32_t split = 0; split < item->slot_count; split++) {
            const float *part = f->partials + (size_t)(item->slot + split) * aicc_partial_floats(h.query_heads, h.head_dim) +
                                (size_t)head * aicc_partial_row(h.head_dim);
            aicc_merge(&max, &sum, out, part[h.head_dim], part[h.head_dim + 1], part, h.head_dim);
        }
        float inverse = 1.0f / sum;
        for (int32_t d = 0; d < h.head_dim; d++) out[d] = out[d] * inverse;
    }
}

/* The task of an AICC_ATTENTION step. `layer` is the layer's offset in a page; `h` is constant. */
AICC_INLINE void aicc_attention(const aicc_frame *f, const aicc_task *task, uint64_t layer, aicc_attention_place at,
                                aicc_heads h) {
    int32_t heads = h.query_heads / h.kv_heads, columns = heads * h.head_dim;
    for (int32_t unit = task->begin; unit < task->end; unit++) {
        const aicc_attention_item *item = &f->items[unit / h.kv_heads];
        aicc_rows rows = {.heads = heads, .kv_head = unit % h.kv_heads, .layer = layer};
        for (; rows.first < item->count * heads; rows.first += AICC_ATTENTION_ROWS) {
            rows.count = AICC_MIN(item->count * heads - rows.first, AICC_ATTENTION_ROWS);
            aicc_attend_rows(f, item, rows, at, task->scratch, h);
        }
        if (item->slot >= 0) {
            _Atomic uint32_t *arrivals = &f->arrivals[item->slot * h.kv_heads + rows.kv_head];
            if (atomic_fetch_add_explicit(arrivals, 1, memory_order_acq_rel) + 1 < (uint32_t)item->slot_count) continue;
            atomic_store_explicit(arrivals, 0, memory_order_relaxed);
            aicc_merge_slots(f, item, rows.kv_head, at, h);
        }
        for (int32_t row = item->row; at.quantised && row < item->row + item->count; row++) {
            const float *from = at.out + row * at.out_stride + rows.kv_head * columns;
            if (row >= f->first_prompt_row)
                aicc_round_columns(aicc_row_of_prompt(f, at.quantised, at.row_bytes, row), rows.kv_head * columns, columns, from);
            else
                aicc_quantise_groups(at.quantised + row * (ptrdiff_t)at.row_bytes, h.query_heads * h.head_dim, at.group, at.parts,
                                     rows.kv_head * columns / at.group, columns / at.group, from);
        }
    }
}

#endif
