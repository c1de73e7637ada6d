/* The functions of aicc_model.h for the one program of this library.
 *
 * model.c includes this last, after defining `static const aicc_program aicc_this_program`. */
#ifndef AICC_THIS_MODEL_H
#define AICC_THIS_MODEL_H

#include "batch.h"
#include "machine.h"

#if !defined(AICC_NO_FILES)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

/* The first 64 bytes of a weights file; offsets of weights count from its beginning. */
typedef struct aicc_weights_header {
    char magic[8]; /* "AICCWTS1" */
    uint64_t zero; /* the header is written first, when the size of the file is not known yet */
    uint64_t id;
    uint8_t zeros[40];
} aicc_weights_header;

struct aicc_model {
    aicc_engine engine;
    int32_t pages;
    int32_t *sequence_of, *position_of, *all_pages;
    aicc_batch batch; /* of a tensor model; the arrays below are its own */
    int32_t *slot_of, *starts, *shortened, *page_starts; /* shortened: minus how many tokens are hidden */
    aicc_attention_item *items;
    int32_t past; /* of aicc_prefill's own sequence */
    void *mapped;
    size_t mapped_bytes;
};

const aicc_description *aicc_describe(void) {
    return &aicc_this_program.about;
}

static int32_t aicc_thread_count(const aicc_options *o) {
    return AICC_MIN(o->threads ? o->threads : aicc_usable_cores(), AICC_MAX_THREADS);
}

/* A tensor model keeps the keys and values of one layer, of as many tokens as it computes at once. */
static int32_t aicc_page_count(const aicc_options *o) {
    const aicc_description *about = &aicc_this_program.about;
    return about->kind == AICC_DECODER ? o->pages : about->max_batch_tokens / AICC_LANES;
}

static uint8_t *aicc_carve(uint8_t *memory, size_t *used, size_t bytes) {
    uint8_t *part = memory ? memory + *used : NULL;
    *used += AICC_ROUND_UP(bytes, AICC_ALIGN);
    return part;
}

/* Lay the model out in `memory`, or only count, if it is null. Returns the bytes used. */
static size_t aicc_place(uint8_t *memory, const aicc_options *o, aicc_model *m) {
    const aicc_program *p = &aicc_this_program;
    size_t tokens = (size_t)p->about.max_batch_tokens, pages = (size_t)aicc_page_count(o), used = 0;
    aicc_carve(memory, &used, sizeof(aicc_model));
    m->engine.cuts = (void *)aicc_carve(memory, &used, sizeof(aicc_cut) * 2 * (size_t)p->step_count);
    m->engine.tasks = (void *)aicc_carve(memory, &used, sizeof(uint32_t) * (size_t)p->step_count);
    m->sequence_of = (void *)aicc_carve(memory, &used, sizeof(int32_t) * tokens);
    m->position_of = (void *)aicc_carve(memory, &used, sizeof(int32_t) * tokens);
    m->all_pages = (void *)aicc_carve(memory, &used, sizeof(int32_t) * pages);
    m->slot_of = m->position_of;
    if (p->about.kind == AICC_TENSORS) {
        m->slot_of = (void *)aicc_carve(memory, &used, sizeof(int32_t) * tokens);
        m->starts = (void *)aicc_carve(memory, &used, sizeof(int32_t) * (tokens + 1));
        m->shortened = (void *)aicc_carve(memory, &used, sizeof(int32_t) * tokens);
        m->page_starts = (void *)aicc_carve(memory, &used, sizeof(int32_t) * (tokens + 1));
    }
    m->items = (void *)aicc_carve(memory, &used, sizeof(aicc_attention_item) * aicc_most_items(p));
    m->engine.frame.arrivals =
        (void *)aicc_carve(memory, &used, sizeof(uint32_t) * AICC_SPLIT_SLOTS * (size_t)p->kv_heads);
    m->engine.scratch = aicc_carve(memory, &used, p->scratch_bytes * (size_t)aicc_thread_count(o));
    m->engine.frame.partials = (void *)aicc_carve(memory, &used, sizeof(float) * AICC_SPLIT_SLOTS * p->partial_floats);
    m->engine.frame.buffers = aicc_carve(memory, &used, p->buffer_bytes);
    m->engine.frame.cache = aicc_carve(memory, &used, (size_t)p->about.page_bytes * pages);
    return used;
}

static bool aicc_options_fit(const aicc_options *o) {
    const aicc_description *about = &aicc_this_program.about;
    if (!o || o->threads < 0 || o->threads > AICC_MAX_THREADS || o->pages < 0) return false;
    if (about->kind == AICC_DECODER && o->pages < 1) return false;
    return about->page_bytes == 0 || (uint64_t)o->pages <= (SIZE_MAX / 2) / about->page_bytes;
}

size_t aicc_memory_size(const aicc_options *options) {
    aicc_model nowhere;
    return aicc_options_fit(options) ? aicc_place(NULL, options, &nowhere) : 0;
}

static int aicc_check_weights(const void *weights, size_t bytes) {
    const aicc_description *about = &aicc_this_program.about;
    aicc_weights_header header;
    if (bytes < sizeof header || bytes < about->weights_bytes) return AICC_ERROR_WEIGHTS;
    memcpy(&header, weights, sizeof header);
    if (memcmp(header.magic, "AICCWTS1", 8) != 0) return AICC_ERROR_WEIGHTS;
    if (header.zero || header.id != about->weights_id) return AICC_ERROR_WEIGHTS;
    return AICC_OK;
}

int aicc_open(aicc_model **model, const aicc_options *options, void *memory, size_t memory_bytes, const void *weights,
              size_t weights_bytes) {
    if (!model || !memory || !weights || !aicc_options_fit(options)) return AICC_ERROR_ARGUMENT;
    *model = NULL;
    if ((uintptr_t)memory % AICC_ALIGN || memory_bytes < aicc_memory_size(options)) return AICC_ERROR_MEMORY;
    if ((uintptr_t)weights % AICC_ALIGN) return AICC_ERROR_MEMORY;
    int status = aicc_check_weights(weights, weights_bytes);
    if (status != AICC_OK) return status;
    if (!aicc_may_use_tiles()) return AICC_ERROR_MACHINE;
    aicc_model *m = memory;
    memset(m, 0, sizeof *m);
    aicc_place(memory, options, m);
    m->pages = aicc_page_count(options);
    for (int32_t page = 0; page < m->pages; page++) m->all_pages[page] = page;
    m->engine.program = &aicc_this_program;
    aicc_frame *f = &m->engine.frame;
    f->weights = weights;
    f->page_bytes = (size_t)aicc_this_program.about.page_bytes;
    f->sequence_of = m->sequence_of;
    f->position_of = m->position_of;
    f->slot_of = m->slot_of;
    f->items = m->items;
    for (int32_t i = 0; i < AICC_SPLIT_SLOTS * aicc_this_program.kv_heads; i++) atomic_init(&f->arrivals[i], 0);
    if (!aicc_pool_open(&m->engine.pool, (uint32_t)aicc_thread_count(options), aicc_engine_run, &m->engine))
        return AICC_ERROR_THREADS;
    *model = m;
    return AICC_OK;
}

int aicc_open_file(aicc_model **model, const aicc_options *options, void *memory, size_t memory_bytes, const char *path) {
    if (!path || !model) return AICC_ERROR_ARGUMENT;
    *model = NULL;
#if defined(AICC_NO_FILES)
    return AICC_ERROR_FILE;
#else
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return AICC_ERROR_FILE;
    off_t bytes = lseek(file, 0, SEEK_END); /* not fstat(), which is another function in every C library */
    void *mapped = bytes > 0 ? mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
    close(file);
    if (mapped == MAP_FAILED) return AICC_ERROR_FILE;
#if defined(MADV_HUGEPAGE)
    madvise(mapped, (size_t)bytes, MADV_HUGEPAGE); /* what is read from disk now on comes in large pages, if it can */
#endif
    int status = aicc_open(model, options, memory, memory_bytes, mapped, (size_t)bytes);
    if (status != AICC_OK) {
        munmap(mapped, (size_t)bytes);
        return status;
    }
    (*model)->mapped = mapped;
    (*model)->mapped_bytes = (size_t)bytes;
    return AICC_OK;
#endif
}

int aicc_forward(aicc_model *m, const aicc_batch *batch, float *logits) {
    if (!m) return AICC_ERROR_ARGUMENT;
    const aicc_program *p = &aicc_this_program;
    if (p->about.kind != AICC_DECODER) return AICC_ERROR_KIND;
    int status = aicc_check_batch(&p->about, batch, m->pages);
    if (status != AICC_OK) return status;
    if (batch->logit_count > 0 && !logits) return AICC_ERROR_ARGUMENT;
    aicc_frame *f = &m->engine.frame;
    f->batch = batch;
    f->logits = logits;
    f->inputs[0] = batch->tokens;
    f->rows = batch->token_count;
    f->first_prompt_row = AICC_FIRST_PROMPT_ROW(batch->starts[batch->first_prompt], f->rows);
    aicc_lay_out(p, batch, (int32_t)m->engine.pool.threads, m->sequence_of, m->position_of, m->items, &f->item_count);
    aicc_engine_execute(&m->engine);
    return AICC_OK;
}

static int aicc_add(aicc_model *m, const int64_t *tokens, int32_t count, bool prompt, float *logits) {
    if (!m || !tokens || count < 1) return AICC_ERROR_ARGUMENT;
    const aicc_description *about = &aicc_this_program.about;
    if (about->kind != AICC_DECODER) return AICC_ERROR_KIND;
    if (count > about->context_length - m->past) return AICC_ERROR_CONTEXT;
    if ((int64_t)m->past + count > (int64_t)m->pages * AICC_LANES) return AICC_ERROR_PAGES;
    for (int32_t done = 0; done < count;) {
        int32_t step = AICC_MIN(count - done, about->max_batch_tokens), used = (m->past + step + AICC_LANES - 1) / AICC_LANES;
        int32_t starts[2] = {0, step}, page_starts[2] = {0, used}, last = step - 1;
        aicc_batch batch = {
            .sequences = 1, .token_count = step, .page_count = used,
            .logit_count = logits && done + step == count,
            .tokens = tokens + done, .starts = starts, .past = &m->past,
            .pages = m->all_pages, .page_starts = page_starts, .logit_rows = &last, .first_prompt = !prompt,
        };
        int status = aicc_forward(m, &batch, logits);
        if (status != AICC_OK) return status;
        m->past += step;
        done += step;
    }
    return AICC_OK;
}

int aicc_prefill(aicc_model *m, const int64_t *tokens, int32_t count, float *logits) {
    return aicc_add(m, tokens, count, true, logits);
}

int aicc_decode(aicc_model *m, int64_t token, float *logits) {
    return aicc_add(m, &token, 1, false, logits);
}

void aicc_reset(aicc_model *m) {
    if (m) m->past = 0;
}

int32_t aicc_threads(const aicc_model *m) {
    return m ? (int32_t)m->engine.pool.threads : 0;
}

void aicc_close(aicc_model *m) {
    if (!m) return;
    aicc_pool_close(&m->engine.pool);
#if !defined(AICC_NO_FILES)
    if (m->mapped) munmap(m->mapped, m->mapped_bytes);
#endif
}

#if !defined(AICC_HAS_RUN) /* tensors.h has it for a tensor model */
int aicc_run(aicc_model *m, int32_t signature, const aicc_tensor *inputs, aicc_tensor *outputs) {
    (void)m, (void)signature, (void)inputs, (void)outputs;
    return AICC_ERROR_KIND;
}
#endif

const char *aicc_error_text(int status) {
    switch (status) {
    case AICC_OK: return "no error";
    case AICC_ERROR_ARGUMENT: return "a null pointer, or a number outside its range";
    case AICC_ERROR_MEMORY: return "the memory is smaller than aicc_memory_size() says, or not aligned to 64 bytes";
    case AICC_ERROR_WEIGHTS: return "these are not the weights this model was compiled with";
    case AICC_ERROR_FILE: return "the weights file cannot be opened or mapped";
    case AICC_ERROR_THREADS: return "the system refused to start a thread";
    case AICC_ERROR_TOKEN: return "a token is outside the vocabulary";
    case AICC_ERROR_BATCH: return "the batch contradicts itself, or is larger than this model takes";
    case AICC_ERROR_PAGES: return "a page is outside the pool, or a sequence has too few pages";
    case AICC_ERROR_CONTEXT: return "a sequence would be longer than the model's context";
    case AICC_ERROR_KIND: return "this model is not of the kind that this call is for";
    case AICC_ERROR_TENSOR: return "a tensor has a type or shape that the signature does not allow";
    case AICC_ERROR_MACHINE: return "the system does not let this process use the processor's tiles (AMX)";
    default: return "not an error code of this interface";
    }
}

#endif
