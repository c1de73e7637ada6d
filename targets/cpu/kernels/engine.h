/* A model as a table of steps, and one run through it.
 *
 * model.c holds the table: each step is a function with constant shapes, and the offsets of its weights and buffers,
 * so that layers of one shape share one function. A step is cut into tasks, which threads take one after another; a
 * step starts when the one before is finished. */
#ifndef AICC_ENGINE_H
#define AICC_ENGINE_H

#include <stdbool.h>

#include "base.h"
#include "pool.h"

#define AICC_SPLIT 128            /* keys that are attended to in one piece: fixed, so that sums never depend on the batch */
#define AICC_SPLIT_SLOTS 256      /* splits of single queries that may be computed side by side */
#if defined(AICC_PROMPTS)
#define AICC_ATTENTION_ROWS 64    /* queries times heads that share their loads of keys and values */
#else
#define AICC_ATTENTION_ROWS 32
#endif
#define AICC_TILE 16              /* rows of a tile of AMX */
#define AICC_TILE_ROWS 32         /* rows a linear step computes at once; row ranges start at its multiples */
#define AICC_PROMPT_ROWS 256      /* the same of prompts, where they have products of their own */
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
    int32_t first_prompt_row;    /* rows from this one on are read as prompts (prompt.h); T if none is */
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
    bool prompt; /* its rows are read as prompts */
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
    int32_t at_once;     /* AICC_MATRIX: units that rows of prompts are computed for together; 0 as 1 */
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

/* How one step, or its rows of prompts, is cut for the batch at hand. */
typedef struct aicc_cut {
    int32_t first_row, rows, row_block, row_tasks;
    int32_t unit_block, unit_tasks;
} aicc_cut;

typedef struct aicc_engine {
    const aicc_program *program;
    aicc_frame frame;
    aicc_pool pool;
    aicc_cut *cuts;    /* [step_count][2], the second for rows of prompts */
    uint32_t *tasks;   /* [step_count] */
    uint8_t *scratch;  /* [threads][scratch_bytes] */
} aicc_engine;

/* A task should cost about as much as reading this many bytes, a microsecond: long against taking it, short against a
 * step. A row more costs a quarter of reading the weights. */
#define AICC_TASK_BYTES 24576
#define AICC_TASKS_PER_THREAD 8 /* of a big step, so that threads finish together */
#define AICC_PROMPT_TASKS 4     /* of prompts' rows, where fewer rows make weights be turned into bfloat16 once more */

/* Rows [first, first + rows) of a step, of prompts or not; `rows` is 0 for AICC_ATTENTION without items. */
AICC_INLINE aicc_cut aicc_cut_rows(const aicc_step *s, int32_t units, int32_t first, int32_t rows, int32_t threads, bool prompt) {
    aicc_cut cut = {.first_row = first, .rows = rows, .row_block = rows, .unit_block = 1};
    if (rows == 0 || units == 0) return (aicc_cut){0};
    if (s->kind == AICC_ROWS) {
        cut.row_block = AICC_MAX(1, AICC_MIN(AICC_TASK_BYTES / AICC_MAX(1, s->unit_bytes), (rows + threads - 1) / threads));
    } else if (s->kind == AICC_MATRIX) {
        int64_t unit_cost = (int64_t)s->unit_bytes * (4 + rows) / 4 + 1;
        int32_t tasks = threads * (prompt ? AICC_PROMPT_TASKS : AICC_TASKS_PER_THREAD);
        cut.unit_block = (int32_t)AICC_MAX(1, AICC_MIN(AICC_TASK_BYTES / unit_cost, (units + threads - 1) / threads));
        if (prompt) cut.unit_block = AICC_MAX(cut.unit_block, AICC_MIN(s->at_once, units / tasks));
        while (cut.row_block > AICC_TILE_ROWS && threads > 1 &&
               ((units + cut.unit_block - 1) / cut.unit_block) * ((rows + cut.row_block - 1) / cut.row_block) < tasks)
            cut.row_block = AICC_ROUND_UP(cut.row_block / 2, AICC_TILE_ROWS);
    }
    cut.row_tasks = (rows + cut.row_block - 1) / cut.row_block;
    int32_t most = AICC_MAX_TASKS / 2 / cut.row_tasks;
    cut.unit_block = AICC_MAX(cut.unit_block, (units + most - 1) / most);
    cut.unit_tasks = (units + cut.unit_block - 1) / cut.unit_block;
    return cut;
}

AICC_INLINE int32_t aicc_units(const aicc_step *s, const aicc_frame *f) {
    return s->kind == AICC_ATTENTION ? f->item_count * s->units : s->units;
}

/* Both cuts of a step; how many tasks they are. */
AICC_INLINE uint32_t aicc_cut_step(aicc_cut cuts[2], const aicc_step *s, const aicc_frame *f, int32_t threads) {
    int32_t rows = s->logit_rows ? f->batch->logit_count : f->rows, units = aicc_units(s, f), apart = rows;
    if (s->kind == AICC_MATRIX && !s->logit_rows) apart = f->first_prompt_row;
    cuts[0] = aicc_cut_rows(s, units, 0, apart, threads, false);
    cuts[1] = aicc_cut_rows(s, units, apart, rows - apart, threads, true);
    return (uint32_t)(cuts[0].row_tasks * cuts[0].unit_tasks + cuts[1].row_tasks * cuts[1].unit_tasks);
}

/* Whether rows of prompts are told from others; where they begin, if `row` is the first of them and there are `rows`; how
 * many rows and, of `most`, units of a task are computed at once; and memory at `offset` of its scratch for panels of
 * bfloat16. */
#if defined(AICC_PROMPTS)
#define AICC_PROMPTS_APART 1
#define AICC_FIRST_PROMPT_ROW(row, rows) (row)
#define AICC_ROWS_AT_A_TIME(t) ((t)->prompt ? AICC_PROMPT_ROWS : AICC_TILE_ROWS)
#define AICC_UNITS_AT_A_TIME(t, most) ((t)->prompt ? (most) : 1)
#define AICC_SPREAD(t, offset) ((t)->prompt ? (uint16_t *)(void *)((t)->scratch + (offset)) : NULL)
#else
#define AICC_PROMPTS_APART 0
#define AICC_FIRST_PROMPT_ROW(row, rows) (rows)
#define AICC_ROWS_AT_A_TIME(t) AICC_TILE_ROWS
#define AICC_UNITS_AT_A_TIME(t, most) 1
#define AICC_SPREAD(t, offset) NULL
#endif

/* Called by the pool: task `index` of step `number`. */
static inline void aicc_engine_run(void *owner, uint32_t number, uint32_t index, uint32_t worker) {
    aicc_engine *e = owner;
    const aicc_step *step = &e->program->steps[number];
    const aicc_cut *cut = &e->cuts[2 * number];
    int32_t place = (int32_t)index, others = cut->row_tasks * cut->unit_tasks;
    bool prompt = place >= others;
    if (prompt) cut++, place -= others;
    int32_t row = place % cut->row_tasks, unit = place / cut->row_tasks;
    aicc_task task = {
        .begin = unit * cut->unit_block,
        .end = AICC_MIN((unit + 1) * cut->unit_block, aicc_units(step, &e->frame)),
        .row_begin = cut->first_row + row * cut->row_block,
        .row_end = cut->first_row + AICC_MIN((row + 1) * cut->row_block, cut->rows),
        .prompt = prompt,
        .scratch = e->scratch + worker * e->program->scratch_bytes,
    };
    step->run(&e->frame, step, &task);
}

/* Run all steps over the frame. */
static inline void aicc_engine_execute(aicc_engine *e) {
    for (int32_t s = 0; s < e->program->step_count; s++)
        e->tasks[s] = aicc_cut_step(&e->cuts[2 * s], &e->program->steps[s], &e->frame, (int32_t)e->pool.threads);
    aicc_pool_execute(&e->pool, e->tasks, (uint32_t)e->program->step_count);
}

#endif
