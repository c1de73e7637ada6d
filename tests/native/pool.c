/* A door to the pool for ctypes: runs steps that check each other. */
#include "pool.h"

#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct counts {
    const uint32_t *tasks;
    const uint32_t *first;  /* [steps] where a step's counters begin */
    uint32_t *done;         /* one for each task of each step: how often it ran in this round */
    _Atomic uint32_t wrong; /* tasks that began before all of the step before was done */
    uint32_t round;
} counts;

static void run(void *owner, uint32_t step, uint32_t task, uint32_t worker) {
    counts *c = owner;
    (void)worker;
    if (step > 0)
        for (uint32_t i = 0; i < c->tasks[step - 1]; i++)
            if (c->done[c->first[step - 1] + i] != c->round) atomic_fetch_add(&c->wrong, 1);
    c->done[c->first[step] + task]++;
}

/* Steps of two tasks, most of whose threads have none, until numbers have wrapped around; then one with a task for each.
 * Returns how many tasks ran, or UINT32_MAX if a thread could not be started. */
EXPORT uint32_t pool_wrap(uint32_t threads) {
    static aicc_pool pool;
    const uint32_t two = 2;
    uint32_t first = 0, done[AICC_MAX_THREADS] = {0}, ran = 0;
    counts c = {.tasks = &threads, .first = &first, .done = done};
    if (!aicc_pool_open(&pool, threads, run, &c)) return UINT32_MAX;
    for (uint32_t start = 0x7ffffff0u; start; start = start == 0x7ffffff0u ? 0xfffffff0u : 0) {
        pool.first = start;
        for (uint32_t round = 0; round < 32; round++) aicc_pool_execute(&pool, &two, 1);
        aicc_pool_execute(&pool, &threads, 1);
    }
    aicc_pool_close(&pool);
    for (uint32_t i = 0; i < threads; i++) ran += done[i];
    return ran;
}

/* Runs the steps `rounds` times; `first` and `done` are as above, `done` all 0. Returns the tasks that came too early, or
 * UINT32_MAX if a thread could not be started. In `done` every task must then have run `rounds` times. */
EXPORT uint32_t pool_run(uint32_t threads, const uint32_t *tasks, const uint32_t *first, uint32_t steps, uint32_t rounds,
                         uint32_t *done) {
    static aicc_pool pool; /* too large for a stack */
    counts c = {.tasks = tasks, .first = first, .done = done};
    if (!aicc_pool_open(&pool, threads, run, &c)) return UINT32_MAX;
    while (c.round < rounds) {
        c.round++;
        aicc_pool_execute(&pool, tasks, steps);
    }
    aicc_pool_close(&pool);
    return c.wrong;
}
