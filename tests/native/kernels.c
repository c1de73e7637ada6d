/* Doors to the kernels: arguments are integers and buffers, as remote.c can pass them on. Forms of weights and heads are constants here as they are in a compiled model, so
 * that tests run the code that models run; only k varies. */
#include "attention.h"
#include "batch.h"
#include "linear.h"
#include "maths.h"
#include "norm.h"
#include "rope.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT void isa(char *name) {
    memcpy(name, AICC_ISA, sizeof AICC_ISA);
}

/* FORM(format, group, zero, scales, minima) */
#define FORMS_OF(FORM, group) \
    FORM(AICC_Q4, group, 0, AICC_F16, AICC_F16) FORM(AICC_Q4, group, 8, AICC_F16, AICC_NONE) \
    FORM(AICC_Q8, group, 128, AICC_F16, AICC_NONE)
#define FORMS(FORM) \
    FORMS_OF(FORM, 32) FORMS_OF(FORM, 64) FORMS_OF(FORM, 128) FORM(AICC_Q4, 32, 8, AICC_F32, AICC_F32) \
    FORM(AICC_Q8, 32, 0, AICC_F32, AICC_F32) FORM(AICC_Q8, 256, 0, AICC_F32, AICC_F16) \
    FORM(AICC_F32, 0, 0, AICC_NONE, AICC_NONE) FORM(AICC_F16, 0, 0, AICC_NONE, AICC_NONE) \
    FORM(AICC_BF16, 0, 0, AICC_NONE, AICC_NONE)

#define AS_WEIGHT(format, group, zero, scales, minima) {format, 0, group, zero, scales, minima},
static const aicc_weight forms[] = {FORMS(AS_WEIGHT)};

EXPORT int32_t form_count(void) {
    return sizeof forms / sizeof forms[0];
}

EXPORT void form_at(int32_t index, aicc_weight *form) {
    *form = forms[index];
}

EXPORT size_t panel_bytes(const aicc_weight *w) {
    return aicc_panel_bytes(*w);
}

EXPORT size_t row_bytes(int32_t k, int32_t group) {
    return aicc_row_bytes(k, group);
}

#if !defined(WITH_ATTENTION) /* most of the time it takes to compile this, as attention is */
static int same(aicc_weight a, aicc_weight b) {
    return a.format == b.format && a.group == b.group && a.zero == b.zero && a.scales == b.scales && a.minima == b.minima;
}

EXPORT int linear(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows, int32_t parts,
                  const uint8_t *weights, int32_t panels, const aicc_weight *w) {
#define TRY(format, group, zero, scales, minima) \
    { \
        aicc_weight form = {format, w->k, group, zero, scales, minima}; \
        if (same(*w, form)) { \
            aicc_linear(y, y_stride, x, x_stride, rows, parts, weights, 1, panels, form, NULL); \
            return 0; \
        } \
    }
    FORMS(TRY)
    return 1;
}

/* The same of a prompt's rows, in units of panels, with memory for `spread`. Not for float forms. */
EXPORT int linear_prompt(float *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, int32_t rows,
                         const uint8_t *weights, int32_t units, int32_t panels, const aicc_weight *w, uint16_t *spread) {
#define TRY_PROMPT(format, group, zero, scales, minima) \
    { \
        aicc_weight form = {format, w->k, group, zero, scales, minima}; \
        if (group && same(*w, form)) { \
            aicc_linear_prompt(y, y_stride, x, x_stride, rows, weights, units, panels, form, spread); \
            return 0; \
        } \
    }
    FORMS(TRY_PROMPT)
    return 1;
}
#endif

/* `count` rows of a prompt, in memory of `row_bytes` each. */
EXPORT void round_rows(uint8_t *rows, ptrdiff_t row_bytes, int32_t count, int32_t k, const float *x, int32_t width) {
    const aicc_frame f = {.rows = count};
    for (int32_t r = 0; r < count; r++) aicc_round_row(aicc_row_of_prompt(&f, rows, row_bytes, r), k, x + r * width, width);
}

EXPORT void gather_row(float *y, const uint8_t *panels, int32_t row, const aicc_weight *w) {
    aicc_gather_row(y, panels, row, *w);
}

EXPORT void quantise_row(uint8_t *row, int32_t k, int32_t group, int32_t parts, const float *x, int32_t width) {
    switch (group) {
    case 32: aicc_quantise_row(row, k, 32, parts, x, width); break;
    case 64: aicc_quantise_row(row, k, 64, parts, x, width); break;
    case 128: aicc_quantise_row(row, k, 128, parts, x, width); break;
    default: aicc_quantise_row(row, k, group, parts, x, width); break;
    }
}

EXPORT void rms_norm(float *y, const float *x, const float *weight, int32_t width) {
    aicc_rms_norm(y, x, weight, width, 1e-5f);
}

EXPORT void layer_norm(float *y, const float *x, const float *weight, const float *bias, int32_t width) {
    aicc_layer_norm(y, x, weight, bias, width, 1e-5f);
}

EXPORT void rope(float *head, const float *cosine, const float *sine, int32_t rotary, int32_t interleaved) {
    aicc_rope(head, cosine, sine, rotary, interleaved);
}

#define FUNCTION(name) \
    EXPORT void name##_of(float *y, const float *x, size_t count) { \
        for (size_t i = 0; i < count; i++) y[i] = aicc_##name(x[i]); \
    }
FUNCTION(exp)
FUNCTION(sigmoid)
FUNCTION(silu)
FUNCTION(tanh)
FUNCTION(erf)
FUNCTION(gelu)
FUNCTION(gelu_tanh)

#if defined(WITH_ATTENTION)
/* query heads, KV heads, head size, cache, causal, window, scale, soft cap */
#define HEADS(CASE) \
    CASE(0, 9, 3, 64, AICC_F16, 1, 0, 0.125f, 0.0f) CASE(1, 4, 4, 32, AICC_F32, 1, 0, 0.2f, 0.0f) \
    CASE(2, 8, 1, 80, AICC_F16, 1, 200, 0.1f, 0.0f) CASE(3, 4, 2, 128, AICC_F32, 1, 70, 0.1f, 5.0f) \
    CASE(4, 6, 2, 48, AICC_F32, 0, 0, 0.15f, 0.0f) CASE(5, 40, 1, 16, AICC_F32, 1, 0, 0.25f, 30.0f) \
    CASE(6, 9, 3, 64, AICC_I8, 1, 0, 0.125f, 0.0f) CASE(7, 4, 2, 80, AICC_I8, 1, 70, 0.1f, 5.0f)

/* Write keys and values [T][kv_heads][head_dim] of a batch into the cache, then attend. Float rows in and out; the
 * cache has one layer. `threads` only decides how the work is cut. Returns the number of items, or -1. */
EXPORT int32_t attention(int32_t number, int32_t sequences, int32_t tokens, const int32_t *starts, const int32_t *past,
                         const int32_t *pages, const int32_t *page_starts, int32_t threads, const float *q, const float *k,
                         const float *v, uint8_t *cache, float *out, uint8_t *quantised, int32_t *positions, int32_t prompt) {
    static _Atomic uint32_t arrivals[AICC_SPLIT_SLOTS * 4];
    static _Alignas(64) uint8_t scratch[(AICC_ATTENTION_ROWS * (AICC_SPLIT + 4 + 3 * 128)) * 4 +
                                        (AICC_ATTENTION_ROWS * (AICC_SPLIT + 128) + AICC_SPLIT * 128) * 2];
    static float partials[AICC_SPLIT_SLOTS * 40 * (16 + AICC_LANES) * 4];
    static aicc_attention_item items[2048];
    const aicc_batch given = {.sequences = sequences, .token_count = tokens, .page_count = page_starts[sequences],
                              .starts = starts, .past = past, .pages = pages, .page_starts = page_starts};
    const aicc_batch *batch = &given;
#define TRY_HEADS(index, QH, KH, HD, type, causal, window, scale, cap) \
    if (number == index) { \
        const aicc_heads h = {QH, KH, HD, type, causal, window, scale, cap}; \
        int32_t wide = QH * HD, count = 0, narrow = KH * HD; \
        aicc_program p = {.about.max_batch_tokens = batch->token_count, .kv_heads = KH, \
                          .queries_per_item = AICC_MAX(1, AICC_ATTENTION_ROWS * KH / QH)}; \
        aicc_lay_out(&p, batch, threads, positions, positions + batch->token_count, items, &count); \
        aicc_frame f = {.cache = cache, .page_bytes = aicc_layer_page_bytes(h), .batch = batch, .rows = batch->token_count, \
                        .sequence_of = positions, .position_of = positions + batch->token_count, \
                        .slot_of = positions + batch->token_count, .item_count = count, .items = items, \
                        .partials = partials, .arrivals = arrivals, \
                        .first_prompt_row = prompt ? 0 : batch->token_count}; \
        for (int32_t row = 0; row < batch->token_count; row++) \
            for (int32_t head = 0; head < KH; head++) \
                aicc_cache_write(&f, 0, row, head, k + row * narrow + head * HD, v + row * narrow + head * HD, h); \
        aicc_attention_place at = {q, out, wide, wide, quantised, (int32_t)aicc_row_bytes(wide, 32), 32, 1}; \
        for (int32_t unit = count * KH; unit-- > 0;) /* in the wrong order, which must not matter */ \
            aicc_attention(&f, &(aicc_task){.begin = unit, .end = unit + 1, .scratch = scratch}, 0, at, h); \
        return count; \
    }
    HEADS(TRY_HEADS)
    return -1;
}
#endif
