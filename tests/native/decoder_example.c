/* A Llama-like decoder as the compiler would emit it, its shapes given by -D: what tests run at tiny sizes and
 * benchmarks/native at the sizes of real models. Weights lie as `weights_of` says. */
#ifndef HIDDEN
#define HIDDEN 64
#define LAYERS 2
#define HEADS 4
#define KV_HEADS 2
#define HEAD 32
#define FFN 128
#define VOCAB 100
#define CONTEXT 1024
#define MAX_TOKENS 64
#endif
#ifndef GROUP
#define GROUP 32
#endif
#define EPSILON 1e-5f

#define AICC_NO_PROMPTS /* all rows are quantised alike */
#include "attention.h"
#include "linear.h"
#include "maths.h"
#include "norm.h"
#include "rope.h"

/* How the weights are stored. */
static const aicc_weight from_hidden = {AICC_Q4, HIDDEN, GROUP, 0, AICC_F16, AICC_F16};
static const aicc_weight from_heads = {AICC_Q4, HEADS * HEAD, GROUP, 0, AICC_F16, AICC_F16};
static const aicc_weight from_ffn = {AICC_Q4, FFN, GROUP, 0, AICC_F16, AICC_F16};
static const aicc_weight to_vocab = {AICC_Q8, HIDDEN, GROUP, 128, AICC_F16, AICC_NONE};
static const aicc_heads heads = {HEADS, KV_HEADS, HEAD, AICC_F16, 1, 0, 0.125f, 0.0f};

/* Offsets are constants the compiler has worked out; here the preprocessor does. */
#define PANEL4(k) ((k) * 8 + AICC_ROUND_UP((k) / GROUP * 32, 64) * 2)
#define PANEL8(k) ((k) * 16 + AICC_ROUND_UP((k) / GROUP * 32, 64))
#define PANELS(n) (((n) + 15) / 16)
#define ROW(k) AICC_ROUND_UP((k) + (k) / GROUP * 12, 64)
enum {
    /* Weights: header, cosines and sines [CONTEXT][HEAD / 2] each, the tied vocabulary, the final norm, layers. */
    ROPE_AT = 64,
    VOCAB_AT = ROPE_AT + CONTEXT * HEAD * 4,
    FINAL_AT = VOCAB_AT + PANELS(VOCAB) * PANEL8(HIDDEN),
    LAYERS_AT = FINAL_AT + HIDDEN * 4,
    /* Of a layer: two norms, then Q K V, O, gate, up, down. */
    NORM1 = 0,
    NORM2 = NORM1 + HIDDEN * 4,
    QKV = NORM2 + HIDDEN * 4,
    OUT = QKV + (HEADS + 2 * KV_HEADS) * HEAD / 16 * PANEL4(HIDDEN),
    GATE = OUT + HIDDEN / 16 * PANEL4(HEADS * HEAD),
    UP = GATE + FFN / 16 * PANEL4(HIDDEN),
    DOWN = UP + FFN / 16 * PANEL4(HIDDEN),
    LAYER_BYTES = DOWN + HIDDEN / 16 * PANEL4(FFN),
    WEIGHTS_BYTES = LAYERS_AT + LAYERS * LAYER_BYTES,
    /* Buffers, for MAX_TOKENS rows. */
    X = 0,                                          /* float, the residual stream */
    XQ = X + MAX_TOKENS * HIDDEN * 4,               /* quantised, after a norm */
    Q = XQ + MAX_TOKENS * ROW(HIDDEN),              /* float, queries */
    ATT = Q + MAX_TOKENS * HEADS * HEAD * 4,        /* float, output of attention */
    ATTQ = ATT + MAX_TOKENS * HEADS * HEAD * 4,     /* the same, quantised */
    FFNQ = ATTQ + MAX_TOKENS * ROW(HEADS * HEAD),   /* quantised */
    BUFFER_BYTES = FFNQ + MAX_TOKENS * ROW(FFN),
    LAYER_PAGE = KV_HEADS * HEAD * 16 * 4,
};

#define FLOATS(base, offset) ((float *)(void *)((base) + (offset)))
#define WEIGHT_FLOATS(f, offset) ((const float *)(const void *)((f)->weights + (offset)))

/* Embedding rows. */
static void step_embed(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {
    for (int32_t row = t->row_begin; row < t->row_end; row++)
        aicc_gather_row(FLOATS(f->buffers, s->at[1]) + row * HIDDEN, f->weights + s->at[0], (int32_t)f->batch->tokens[row],
                        to_vocab);
}

/* Norm, quantised. at: norm weight, from, to. */
static void step_norm(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {
    float *y = FLOATS(t->scratch, 0);
    for (int32_t row = t->row_begin; row < t->row_end; row++) {
        int32_t from = s->logit_rows ? f->batch->logit_rows[row] : row;
        aicc_rms_norm(y, FLOATS(f->buffers, s->at[1]) + from * HIDDEN, WEIGHT_FLOATS(f, s->at[0]), HIDDEN, EPSILON);
        aicc_quantise_row(f->buffers + s->at[2] + (size_t)row * ROW(HIDDEN), HIDDEN, GROUP, 1, y, HIDDEN);
    }
}

/* One head of Q, K or V: RoPE, then to its buffer or the cache. at: weights, x, q, the layer's place in a page. */
static void step_qkv(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {
    float *tile = FLOATS(t->scratch, 0);
    for (int32_t unit = t->begin; unit < t->end; unit++)
        for (int32_t row = t->row_begin; row < t->row_end; row += AICC_TILE_ROWS) {
            int32_t rows = AICC_MIN(t->row_end - row, AICC_TILE_ROWS);
            aicc_linear(tile, HEAD, f->buffers + s->at[1] + (size_t)row * ROW(HIDDEN), ROW(HIDDEN), rows, 1,
                        f->weights + s->at[0] + (size_t)unit * (HEAD / 16) * PANEL4(HIDDEN), 1, HEAD / 16, from_hidden, NULL);
            for (int32_t r = 0; r < rows; r++) {
                float *head = tile + r * HEAD;
                const float *angles = WEIGHT_FLOATS(f, ROPE_AT) + f->position_of[row + r] * (HEAD / 2);
                if (unit < HEADS + KV_HEADS) aicc_rope(head, angles, angles + CONTEXT * (HEAD / 2), HEAD, 0);
                if (unit < HEADS) memcpy(FLOATS(f->buffers, s->at[2]) + (row + r) * HEADS * HEAD + unit * HEAD, head, HEAD * 4);
                else if (unit < HEADS + KV_HEADS) aicc_cache_write(f, s->at[3], row + r, unit - HEADS, head, NULL, heads);
                else aicc_cache_write(f, s->at[3], row + r, unit - HEADS - KV_HEADS, NULL, head, heads);
            }
        }
}

/* at: q, out, quantised out, the layer's place in a page. */
static void step_attention(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {
    aicc_attention_place at = {FLOATS(f->buffers, s->at[0]), FLOATS(f->buffers, s->at[1]), HEADS * HEAD, HEADS * HEAD,
                               f->buffers + s->at[2], ROW(HEADS * HEAD), GROUP, 1};
    aicc_attention(f, t, s->at[3], at, heads);
}

/* x += linear, by panels. at: weights, input, x. One function for each input width. */
AICC_INLINE void add_linear(const aicc_frame *f, const aicc_step *s, const aicc_task *t, aicc_weight form) {
    float *tile = FLOATS(t->scratch, 0);
    for (int32_t unit = t->begin; unit < t->end; unit++)
        for (int32_t row = t->row_begin; row < t->row_end; row += AICC_TILE_ROWS) {
            int32_t rows = AICC_MIN(t->row_end - row, AICC_TILE_ROWS);
            ptrdiff_t stride = (ptrdiff_t)aicc_row_bytes(form.k, GROUP);
            aicc_linear(tile, 16, f->buffers + s->at[1] + row * stride, stride, rows, 1,
                        f->weights + s->at[0] + (size_t)unit * aicc_panel_bytes(form), 1, 1, form, NULL);
            for (int32_t r = 0; r < rows; r++) {
                float *x = FLOATS(f->buffers, s->at[2]) + (row + r) * HIDDEN + unit * 16;
                for (int32_t n = 0; n < 16; n++) x[n] += tile[r * 16 + n];
            }
        }
}

static void step_out(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {
    add_linear(f, s, t, from_heads);
}

static void step_down(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {
    add_linear(f, s, t, from_ffn);
}

/* silu(gate) * up, quantised a group at a time. at: gate, up, x, to. */
static void step_gate_up(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {
    float *gate = FLOATS(t->scratch, 0), *up = gate + AICC_TILE_ROWS * GROUP;
    for (int32_t unit = t->begin; unit < t->end; unit++)
        for (int32_t row = t->row_begin; row < t->row_end; row += AICC_TILE_ROWS) {
            int32_t rows = AICC_MIN(t->row_end - row, AICC_TILE_ROWS);
            const uint8_t *x = f->buffers + s->at[2] + (size_t)row * ROW(HIDDEN);
            size_t panels = (size_t)unit * (GROUP / 16) * PANEL4(HIDDEN);
            aicc_linear(gate, GROUP, x, ROW(HIDDEN), rows, 1, f->weights + s->at[0] + panels, 1, GROUP / 16, from_hidden, NULL);
            aicc_linear(up, GROUP, x, ROW(HIDDEN), rows, 1, f->weights + s->at[1] + panels, 1, GROUP / 16, from_hidden, NULL);
            for (int32_t i = 0; i < rows * GROUP; i++) gate[i] = aicc_silu(gate[i]) * up[i];
            for (int32_t r = 0; r < rows; r++)
                aicc_quantise_groups(f->buffers + s->at[3] + (size_t)(row + r) * ROW(FFN), FFN, GROUP, 1, unit, 1, gate + r * GROUP);
        }
}

/* Logits. at: weights, input. */
static void step_logits(const aicc_frame *f, const aicc_step *s, const aicc_task *t) {
    float *tile = FLOATS(t->scratch, 0);
    for (int32_t unit = t->begin; unit < t->end; unit++)
        for (int32_t row = t->row_begin; row < t->row_end; row += AICC_TILE_ROWS) {
            int32_t rows = AICC_MIN(t->row_end - row, AICC_TILE_ROWS), width = AICC_MIN(VOCAB - unit * 16, 16);
            aicc_linear(tile, 16, f->buffers + s->at[1] + (size_t)row * ROW(HIDDEN), ROW(HIDDEN), rows, 1,
                        f->weights + s->at[0] + (size_t)unit * PANEL8(HIDDEN), 1, 1, to_vocab, NULL);
            for (int32_t r = 0; r < rows; r++)
                memcpy(f->logits + (size_t)(row + r) * VOCAB + unit * 16, tile + r * 16, (size_t)width * 4);
        }
}

#define W(i) ((uint64_t)LAYERS_AT + (uint64_t)(i) * LAYER_BYTES)
#define KV(i) ((uint64_t)(i) * LAYER_PAGE)
#define LAYER(i) \
    {step_norm, AICC_ROWS, 0, 1, HIDDEN * 16, {W(i) + NORM1, X, XQ}, 0}, \
    {step_qkv, AICC_MATRIX, 0, HEADS + 2 * KV_HEADS, HEAD / 16 * PANEL4(HIDDEN), {W(i) + QKV, XQ, Q, KV(i)}, 0}, \
    {step_attention, AICC_ATTENTION, 0, KV_HEADS, 0, {Q, ATT, ATTQ, KV(i)}, 0}, \
    {step_out, AICC_MATRIX, 0, HIDDEN / 16, PANEL4(HEADS * HEAD), {W(i) + OUT, ATTQ, X}, 0}, \
    {step_norm, AICC_ROWS, 0, 1, HIDDEN * 16, {W(i) + NORM2, X, XQ}, 0}, \
    {step_gate_up, AICC_MATRIX, 0, FFN / GROUP, 4 * PANEL4(HIDDEN), {W(i) + GATE, W(i) + UP, XQ, FFNQ}, 0}, \
    {step_down, AICC_MATRIX, 0, HIDDEN / 16, PANEL4(FFN), {W(i) + DOWN, FFNQ, X}, 0}
#define LAYER2(i) LAYER(i), LAYER(i + 1)
#define LAYER6(i) LAYER2(i), LAYER2(i + 2), LAYER2(i + 4)

static const aicc_step steps[] = {
    {step_embed, AICC_ROWS, 0, 1, HIDDEN * 4, {VOCAB_AT, X}, 0},
#if LAYERS == 2
    LAYER2(0),
#elif LAYERS == 30
    LAYER6(0), LAYER6(6), LAYER6(12), LAYER6(18), LAYER6(24),
#endif
    {step_norm, AICC_ROWS, 1, 1, HIDDEN * 16, {FINAL_AT, X, XQ}, 0},
    {step_logits, AICC_MATRIX, 1, PANELS(VOCAB), PANEL8(HIDDEN), {VOCAB_AT, XQ}, 0},
};

static const aicc_program aicc_this_program = {
    .about = {
        .abi_version = AICC_ABI_VERSION, .kind = AICC_DECODER, .name = "example", .isa = AICC_ISA,
        .weights_bytes = WEIGHTS_BYTES, .weights_id = 0x45584d50, .vocab_size = VOCAB, .context_length = CONTEXT,
        .layer_count = LAYERS, .page_tokens = 16, .page_bytes = (uint64_t)LAYERS * LAYER_PAGE, .max_batch_tokens = MAX_TOKENS,
        .max_batch_sequences = 16,
    },
    .steps = steps,
    .step_count = sizeof steps / sizeof steps[0],
    .buffer_bytes = BUFFER_BYTES,
    .scratch_bytes = 131072, /* the largest of all steps: attention's, or tiles and rows of floats */
    .partial_floats = HEADS * (HEAD + 16),
    .kv_heads = KV_HEADS,
    .queries_per_item = AICC_ATTENTION_ROWS / (HEADS / KV_HEADS),
};

#include "model.h"
