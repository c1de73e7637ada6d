/* aicc_run: numbers of rows to look up [batch, length] in, rows of activations [batch, length, width] out.
 *
 * As many sequences are computed at a time as fit max_batch_tokens; none is cut, as each token may look at all others.
 * A hidden token has a query and no key: the keys of the others close up in the pages, so that attention, for which
 * their order means nothing, needs no mask. */
#ifndef AICC_TENSORS_H
#define AICC_TENSORS_H

#define AICC_HAS_RUN 1
#include "model.h"

static bool aicc_fits_port(const aicc_port *port, const aicc_tensor *t) {
    if (t->type != port->type || t->rank != port->rank) return false;
    for (int32_t d = 0; d < port->rank; d++)
        if (t->shape[d] < 0 || (port->shape[d] >= 0 && t->shape[d] != port->shape[d])) return false;
    return true;
}

static int aicc_check_inputs(const aicc_program *p, const aicc_signature *s, const aicc_tensor *inputs) {
    for (int32_t i = 0; i < s->input_count; i++) {
        if (!aicc_fits_port(&s->inputs[i], &inputs[i])) return AICC_ERROR_TENSOR;
        if (inputs[i].shape[0] != inputs[0].shape[0] || inputs[i].shape[1] != inputs[0].shape[1]) return AICC_ERROR_TENSOR;
    }
    if (inputs[0].shape[1] > p->about.context_length) return AICC_ERROR_CONTEXT;
    if (inputs[0].shape[0] > INT32_MAX) return AICC_ERROR_TENSOR;
    int64_t count = inputs[0].shape[0] * inputs[0].shape[1];
    for (int32_t i = 0; i < s->input_count; i++) {
        const int64_t *numbers = inputs[i].data;
        if (!numbers && count) return AICC_ERROR_ARGUMENT;
        for (int64_t n = 0; p->input_limits[i] && n < count; n++)
            if (numbers[n] < 0 || numbers[n] >= p->input_limits[i]) return AICC_ERROR_TOKEN;
    }
    return AICC_OK;
}

/* `sequences` of `length` tokens each as a batch; pages are taken in order. */
static void aicc_lay_out_tensors(aicc_model *m, int32_t sequences, int32_t length, const int64_t *mask) {
    const aicc_program *p = &aicc_this_program;
    int32_t pages = (length + AICC_LANES - 1) / AICC_LANES, count = 0;
    for (int32_t i = 0; i < sequences; i++) {
        int32_t visible = 0;
        for (int32_t t = 0; t < length; t++) {
            int32_t row = i * length + t;
            m->sequence_of[row] = i;
            m->position_of[row] = t;
            m->slot_of[row] = !mask || mask[row] ? visible++ : -1;
        }
        m->starts[i] = i * length;
        m->page_starts[i] = i * pages;
        m->shortened[i] = visible - length; /* attention looks at past and new tokens: only the visible ones */
        int32_t splits = (visible + AICC_SPLIT - 1) / AICC_SPLIT;
        for (int32_t t = 0; t < length; t += p->queries_per_item)
            m->items[count++] =
                (aicc_attention_item){i * length + t, AICC_MIN(p->queries_per_item, length - t), 0, splits, -1, 0};
    }
    m->starts[sequences] = sequences * length;
    m->page_starts[sequences] = sequences * pages;
    m->batch = (aicc_batch){
        .sequences = sequences, .token_count = sequences * length, .page_count = sequences * pages,
        .starts = m->starts, .past = m->shortened, .pages = m->all_pages, .page_starts = m->page_starts,
    };
    m->engine.frame.item_count = count;
}

int aicc_run(aicc_model *m, int32_t signature, const aicc_tensor *inputs, aicc_tensor *outputs) {
    const aicc_program *p = &aicc_this_program;
    if (!m || !inputs || !outputs || signature < 0 || signature >= p->about.signature_count) return AICC_ERROR_ARGUMENT;
    const aicc_signature *s = &p->about.signatures[signature];
    int status = aicc_check_inputs(p, s, inputs);
    if (status != AICC_OK) return status;
    int64_t batch = inputs[0].shape[0];
    int32_t length = (int32_t)inputs[0].shape[1];
    for (int32_t o = 0; o < s->output_count; o++) {
        if (!outputs[o].data && batch > 0 && length > 0) return AICC_ERROR_ARGUMENT;
        outputs[o].type = s->outputs[o].type;
        outputs[o].rank = s->outputs[o].rank;
        memcpy(outputs[o].shape, s->outputs[o].shape, sizeof outputs[o].shape);
        outputs[o].shape[0] = batch;
        outputs[o].shape[1] = length;
    }
    if (length == 0) return AICC_OK; /* no rows */
    aicc_frame *f = &m->engine.frame;
    int32_t together = p->about.max_batch_tokens / AICC_ROUND_UP(length, AICC_LANES);
    for (int64_t first = 0; first < batch; first += together) {
        int32_t sequences = (int32_t)AICC_MIN((int64_t)together, batch - first);
        for (int32_t i = 0; i < s->input_count; i++) f->inputs[i] = (const int64_t *)inputs[i].data + first * length;
        for (int32_t o = 0; o < s->output_count; o++)
            f->outputs[o] = (float *)outputs[o].data + first * length * s->outputs[o].shape[2];
        aicc_lay_out_tensors(m, sequences, length, p->mask_input < 0 ? NULL : f->inputs[p->mask_input]);
        f->batch = &m->batch;
        f->rows = sequences * length;
        f->first_prompt_row = AICC_FIRST_PROMPT_ROW(0, f->rows);
        aicc_engine_execute(&m->engine);
    }
    return AICC_OK;
}

#endif
