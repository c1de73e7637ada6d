/* A model as a table of steps, and one run through it.
 *
 * model.c holds the table: each step is a function with constant shapes, and the offsets of its weights and buffers,
 * so that layers of one shape share one function. A step is cut into tasks, which threads take one after another; a
 * step starts when the one before is finished. */
#ifndef AICC_ENGINE_H
#define AICC_ENGINE_H

#include "base.h"
#include "pool.h"

#define AICC_SPLIT 128            /* keys that are attended to in one piece: fixed, so that sums never depend on the batch */
#define AICC_SPLIT_SLOTS 256      /* splits of single queries that may be computed side by side */
#define AICC_ATTENTION_ROWS 32    /* queries times heads that share their loads of keys and values */
#define AICC_TILE_ROWS 32         /* rows a linear step computes at once; row ranges start at its multiples */
#define AICC_MOST_PANELS 8        /* of a weight, and at once */
#define AICC_MAX_PORTS 8          /* inputs, and outputs, of a tensor model */

/* Queries of one sequence and the splits of keys they look at. Order of items and who computes them changes nothing. */
typedef struct aicc_attention_item {
    int32_t row, count;               /* rows of the batch */
    int32_t first_split, split_count; /* of the keys */
    int32_t slot;                     /* of the query's split 0 if its splits are separate items, else -1 */
    int32_t slot_count;               /* how many those are */
} aicc_attention_item;

/* What a step may see. Constant while the steps run, except for what the pointers point to. */
typedef struct aicc_frame {
    const uint8_t *weights;
    uint8_t *buffers;
    uint8_t *cache;
    size_t page_bytes;
    float *logits; /* [logit_count][vocab_size] */
    const aicc_batch *batch;
    int32_t rows;                /* T */
    const int32_t *sequence_of;  /* [T] index of a row's sequence in the batch */
    const int32_t *position_of;  /* [T] its position in the sequence */
    const int32_t *slot_of;      /* [T] where in the sequence's pages its key and value go; -1: nowhere, it is hidden */
    const int64_t *inputs[AICC_MAX_PORTS]; /* [T] each: numbers of rows to look up; a decoder's tokens are the first */
    float *outputs[AICC_MAX_PORTS];        /* tensor models: [T][width] each */
    int32_t item_count;
    const aicc_attention_item *items;
    float *partials;             /* [AICC_SPLIT_SLOTS] of aicc_program.partial_floats */
    _Atomic uint32_t *arrivals;  /* [AICC_SPLIT_SLOTS][kv_heads], all 0 between steps */
} aicc_frame;

/* A part of a step: units [begin, end) for rows [row_begin, row_end). For AICC_ATTENTION, a unit is
 * item * kv_heads + kv_head, and the rows mean nothing. */
typedef struct aicc_task {
    int32_t begin, end;
    int32_t row_begin, row_end;
    uint8_t *scratch; /* aicc_program.scratch_bytes of this thread's own, aligned to 64 */
} aicc_task;

typedef struct aicc_step aicc_step;
typedef void aicc_step_function(const aicc_frame *frame, const aicc_step *step, const aicc_task *task);

typedef enum aicc_step_kind {
    AICC_MATRIX = 1,    /* units: outputs that share an epilogue (a head, some panels), for all rows */
    AICC_ROWS = 2,      /* units is 1; rows are independent */
    AICC_ATTENTION = 3, /* units: KV heads */
} aicc_step_kind;

#define AICC_OFFSETS 16
struct aicc_step {
    aicc_step_function *run;
    int32_t kind;        /* aicc_step_kind */
    int32_t logit_rows;  /* 1: rows are those whose logits are wanted; 0: all rows of the batch */
    int32_t units;
    int32_t unit_bytes;  /* weights a unit reads (AICC_MATRIX) or bytes a row reads and writes (AICC_ROWS): sizes the tasks */
    uint64_t at[AICC_OFFSETS]; /* offsets the function knows the meaning of */
};

/* All of a model but its weights; model.c defines one. */
typedef struct aicc_program {
    aicc_description about;
    const aicc_step *steps;
    int32_t step_count;
    size_t buffer_bytes;      /* of the step's buffers, planned for max_batch_tokens rows */
    size_t scratch_bytes;     /* of one thread, a multiple of 64 */
    size_t partial_floats;    /* aicc_partial_floats(), the largest of any layer; 0 without attention */
    int32_t kv_heads;         /* the most of any layer */
    int32_t queries_per_item; /* max(1, AICC_ATTENTION_ROWS / query heads per KV head) */
    int32_t mask_input;       /* tensor models: the input that is 0 where a token is hidden from the others; -1: none */
    int64_t input_limits[AICC_MAX_PORTS]; /* what an input's numbers must be below; 0: they may be any */
} aicc_program;

/* How one step is cut for the batch at hand. */
typedef struct aicc_cut {
    int32_t rows, row_block, row_tasks;
    int32_t unit_block, unit_tasks;
} aicc_cut;

typedef struct aicc_engine {
    const aicc_program *program;
    aicc_frame frame;
    aicc_pool pool;
    aicc_cut *cuts;    /* [step_count] */
    uint32_t *tasks;   /* [step_count] */
    uint8_t *scratch;  /* [threads][scratch_bytes] */
} aicc_engine;

/* A task should cost about as much as reading this many bytes, a microsecond: long against taking it, short against a
 * step. A row more costs a quarter of reading the weights. */
#define AICC_TASK_BYTES 24576
#define AICC_TASKS_PER_THREAD 8 /* of a big step, so that threads finish together */

AICC_INLINE aicc_cut aicc_cut_step(const aicc_step *s, const aicc_frame *f, int32_t threads) {
    aicc_cut cut = {.rows = s->logit_rows ? f->batch->logit_count : f->rows, .unit_block = 1};
    int32_t rows = cut.rows, units = s->kind == AICC_ATTENTION ? f->item_count * s->units : s->units;
    if (rows == 0 || units == 0) return (aicc_cut){0};
    cut.row_block = rows;
    if (s->kind == AICC_ROWS) {
        cut.row_block = AICC_MAX(1, AICC_MIN(AICC_TASK_BYTES / AICC_MAX(1, s->unit_bytes), (rows + threads - 1) / threads));
    } else if (s->kind == AICC_MATRIX) {
        int64_t unit_cost = (int64_t)s->unit_bytes * (4 + rows) / 4 + 1;
        cut.unit_block = (int32_t)AICC_MAX(1, AICC_MIN(AICC_TASK_BYTES / unit_cost, (units + threads - 1) / threads));
        while (cut.row_block > AICC_TILE_ROWS && threads > 1 &&
               ((units + cut.unit_block - 1) / cut.unit_block) * ((rows + cut.row_block - 1) / cut.row_block) <
                   AICC_TASKS_PER_THREAD * threads)
            cut.row_block = AICC_ROUND_UP(cut.row_block / 2, AICC_TILE_ROWS);
    }
    cut.row_tasks = (rows + cut.row_block - 1) / cut.row_block;
    int32_t most = AICC_MAX_TASKS / cut.row_tasks;
    cut.unit_block = AICC_MAX(cut.unit_block, (units + most - 1) / most);
    cut.unit_tasks = (units + cut.unit_block - 1) / cut.unit_block;
    return cut;
}

/* Called by the pool: task `index` of step `number`. */
static inline void aicc_engine_run(void *owner, uint32_t number, uint32_t index, uint32_t worker) {
    aicc_engine *e = owner;
    const aicc_step *step = &e->program->steps[number];
    const aicc_cut *cut = &e->cuts[number];
    int32_t units = step->kind == AICC_ATTENTION ? e->frame.item_count * step->units : step->units;
    int32_t row = (int32_t)index % cut->row_tasks, unit = (int32_t)index / cut->row_tasks;
    aicc_task task = {
        .begin = unit * cut->unit_block,
        .end = AICC_MIN((unit + 1) * cut->unit_block, units),
        .row_begin = row * cut->row_block,
        .row_end = AICC_MIN((row + 1) * cut->row_block, cut->rows),
        .scratch = e->scratch + worker * e->program->scratch_bytes,
    };
    step->run(&e->frame, step, &task);
}

/* Run all steps over the frame. */
static inline void aicc_engine_execute(aicc_engine *e) {
    for (int32_t s = 0; s < e->program->step_count; s++) {
        e->cuts[s] = aicc_cut_step(&e->program->steps[s], &e->frame, (int32_t)e->pool.threads);
        e->tasks[s] = (uint32_t)(e->cuts[s].row_tasks * e->cuts[s].unit_tasks);
    }
    aicc_pool_execute(&e->pool, e->tasks, (uint32_t)e->program->step_count);
}

#endif
