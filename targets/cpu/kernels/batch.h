/* Checking a batch and laying it out for the steps: positions of rows, items of attention. */
#ifndef AICC_BATCH_H
#define AICC_BATCH_H

#include "engine.h"

static inline int aicc_check_sequence(const aicc_description *about, const aicc_batch *b, int32_t i, int32_t pool_pages) {
    if (b->starts[i + 1] > b->token_count || b->starts[i + 1] <= b->starts[i] || b->past[i] < 0) return AICC_ERROR_BATCH;
    int32_t added = b->starts[i + 1] - b->starts[i]; /* starts rise from 0 */
    if (added > about->context_length - b->past[i]) return AICC_ERROR_CONTEXT;
    int32_t first = b->page_starts[i], end = b->page_starts[i + 1];
    if (first < 0 || end > b->page_count || end < first) return AICC_ERROR_BATCH;
    if ((int64_t)(end - first) * AICC_LANES < (int64_t)b->past[i] + added) return AICC_ERROR_PAGES;
    for (int32_t p = first; p < end; p++)
        if (b->pages[p] < 0 || b->pages[p] >= pool_pages) return AICC_ERROR_PAGES;
    return AICC_OK;
}

/* AICC_OK, or what is wrong with a batch. */
static inline int aicc_check_batch(const aicc_description *about, const aicc_batch *b, int32_t pool_pages) {
    if (!b || !b->tokens || !b->starts || !b->past || !b->pages || !b->page_starts) return AICC_ERROR_ARGUMENT;
    if (b->sequences < 1 || b->sequences > about->max_batch_sequences) return AICC_ERROR_BATCH;
    if (b->token_count < 1 || b->token_count > about->max_batch_tokens) return AICC_ERROR_BATCH;
    if (b->logit_count < 0 || b->logit_count > b->token_count || b->page_count < 0) return AICC_ERROR_BATCH;
    if (b->logit_count > 0 && !b->logit_rows) return AICC_ERROR_ARGUMENT;
    if (b->first_prompt < 0 || b->first_prompt > b->sequences) return AICC_ERROR_BATCH;
    if (b->starts[0] != 0 || b->starts[b->sequences] != b->token_count) return AICC_ERROR_BATCH;
    if (b->page_starts[0] != 0 || b->page_starts[b->sequences] != b->page_count) return AICC_ERROR_BATCH;
    for (int32_t i = 0; i < b->sequences; i++) {
        int status = aicc_check_sequence(about, b, i, pool_pages);
        if (status != AICC_OK) return status;
    }
    for (int32_t t = 0; t < b->token_count; t++)
        if (b->tokens[t] < 0 || b->tokens[t] >= about->vocab_size) return AICC_ERROR_TOKEN;
    for (int32_t l = 0; l < b->logit_count; l++)
        if (b->logit_rows[l] < 0 || b->logit_rows[l] >= b->token_count) return AICC_ERROR_BATCH;
    return AICC_OK;
}

/* The most items a batch can have: blocks of queries, and slots. */
AICC_INLINE size_t aicc_most_items(const aicc_program *p) {
    return (size_t)(p->about.max_batch_tokens + p->about.max_batch_sequences + AICC_SPLIT_SLOTS);
}

/* Fill the rows' places and the items of attention. `wide`: there are too few sequences to occupy all threads. */
static inline void aicc_lay_out(const aicc_program *p, const aicc_batch *b, int32_t threads, int32_t *sequence_of,
                         int32_t *position_of, aicc_attention_item *items, int32_t *item_count) {
    int32_t count = 0, slots = 0;
    bool wide = b->sequences * p->kv_heads < 8 * threads && threads > 1;
    for (int32_t i = 0; i < b->sequences; i++) {
        int32_t start = b->starts[i], end = b->starts[i + 1];
        for (int32_t row = start; row < end; row++) {
            sequence_of[row] = i;
            position_of[row] = b->past[i] + row - start;
        }
        int32_t splits = (b->past[i] + end - start + AICC_SPLIT - 1) / AICC_SPLIT;
        if (wide && end - start == 1 && splits > 1 && slots + splits <= AICC_SPLIT_SLOTS) {
            for (int32_t split = 0; split < splits; split++)
                items[count++] = (aicc_attention_item){start, 1, split, 1, slots, splits};
            slots += splits;
            continue;
        }
        /* Last queries first: they look at the most keys, and what is long should not start late. */
        for (int32_t row = end; row > start;) {
            int32_t first = start + (row - start - 1) / p->queries_per_item * p->queries_per_item;
            items[count++] = (aicc_attention_item){first, row - first, 0, splits, -1, 0};
            row = first;
        }
    }
    *item_count = count;
}

#endif
