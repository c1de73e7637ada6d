/* Persistent threads that run a list of steps, each a number of tasks, together with the caller.
 *
 * A step is over when all its tasks are done, not when all threads have arrived: a thread that the system has put aside
 * holds up nothing as long as it holds no task. Threads take tasks by counting down one 64-bit word:
 *
 *     ticket = step number (32 bits) | tasks left + AICC_SLACK (32 bits)
 *
 * A thread may count it down once too often, when it looked just before the last task went; the slack keeps that from
 * reaching the step number. A step cannot end while one of its tasks is held, so the holder may read what belongs to it. Who
 * finishes the last task of a step opens the next, and runs it at once if it has a single task. */
#ifndef AICC_POOL_H
#define AICC_POOL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base.h"
#include "wait.h"

#ifndef AICC_SINGLE_THREAD
#include <pthread.h>
#endif

#define AICC_MAX_THREADS 256
#define AICC_SLACK 65536u
#ifndef AICC_SPINS
#define AICC_SPINS 2000 /* looks at the ticket before sleeping: some 30 microseconds, the length of a few steps */
#endif

typedef void aicc_task_function(void *owner, uint32_t step, uint32_t task, uint32_t worker);

typedef struct aicc_pool aicc_pool;
typedef struct aicc_worker {
    aicc_pool *pool;
    uint32_t number;
#ifndef AICC_SINGLE_THREAD
    pthread_t thread;
#endif
} aicc_worker;

struct aicc_pool {
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic uint32_t pending; /* tasks of the open step that are not done */
    _Alignas(64) _Atomic uint32_t sleepers;
    _Atomic uint32_t closing;
    _Atomic uint32_t running; /* 1 while steps are left */
    aicc_bell bell;
    /* Written between runs, read by holders of tasks. */
    _Alignas(64) const uint32_t *tasks;
    uint32_t step_count;
    uint32_t first; /* number of step 0 of this run; numbers go on from run to run */
    uint32_t threads;
    aicc_task_function *run;
    void *owner;
    aicc_worker workers[AICC_MAX_THREADS];
};

AICC_INLINE void aicc_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static inline bool aicc_pool_has_task(aicc_pool *p) {
    return (uint32_t)atomic_load(&p->ticket) > AICC_SLACK;
}

static inline bool aicc_pool_take(aicc_pool *p, uint32_t *step, uint32_t *task) {
    if ((uint32_t)atomic_load_explicit(&p->ticket, memory_order_relaxed) <= AICC_SLACK) return false;
    uint64_t ticket = atomic_fetch_sub_explicit(&p->ticket, 1, memory_order_acquire);
    if ((uint32_t)ticket <= AICC_SLACK) return false;
    *step = (uint32_t)(ticket >> 32) - p->first;
    *task = p->tasks[*step] - ((uint32_t)ticket - AICC_SLACK);
    return true;
}

/* Open step `step` or the first after it that has several tasks, running smaller ones here. */
static inline void aicc_pool_advance(aicc_pool *p, uint32_t step, uint32_t worker) {
    while (step < p->step_count && (p->tasks[step] <= 1 || p->threads == 1)) {
        for (uint32_t task = 0; task < p->tasks[step]; task++) p->run(p->owner, step, task, worker);
        step++;
    }
    uint32_t left = step < p->step_count ? p->tasks[step] : 0;
    atomic_store_explicit(&p->pending, left, memory_order_relaxed);
    uint32_t number = p->first + step;
    atomic_store(&p->ticket, (uint64_t)number << 32 | (left + AICC_SLACK));
    if (!left) atomic_store(&p->running, 0); /* last of all: the caller may start the next run now */
    if (atomic_load(&p->sleepers)) aicc_bell_ring(&p->bell);
}

/* Run tasks until none can be taken. */
static inline void aicc_pool_work(aicc_pool *p, uint32_t worker) {
    uint32_t step, task;
    while (aicc_pool_take(p, &step, &task)) {
        p->run(p->owner, step, task, worker);
        if (atomic_fetch_sub_explicit(&p->pending, 1, memory_order_acq_rel) == 1) aicc_pool_advance(p, step + 1, worker);
    }
}

/* Return when there may be a task, or `flag` is not `value` any more: spin, then sleep. */
static inline void aicc_pool_wait(aicc_pool *p, _Atomic uint32_t *flag, uint32_t value) {
    for (int i = 0; i < AICC_SPINS; i++) {
        if (aicc_pool_has_task(p) || atomic_load(flag) != value) return;
        aicc_pause();
    }
    /* Counted as a sleeper before looking for the last time, so whoever opens a step after that look rings. */
    atomic_fetch_add(&p->sleepers, 1);
    uint32_t rung = atomic_load(&p->bell.rung);
    if (!aicc_pool_has_task(p) && atomic_load(flag) == value) aicc_bell_wait(&p->bell, rung);
    atomic_fetch_sub(&p->sleepers, 1);
}

/* Run the steps; step s has tasks[s] tasks, which may be 0. Returns when all are done. */
static inline void aicc_pool_execute(aicc_pool *p, const uint32_t *tasks, uint32_t step_count) {
    p->tasks = tasks;
    p->first += p->step_count + 1; /* no number is used twice, so nobody takes an old step for a new one */
    p->step_count = step_count;
    atomic_store(&p->running, 1);
    aicc_pool_advance(p, 0, 0);
    while (atomic_load(&p->running)) {
        aicc_pool_work(p, 0);
        if (atomic_load(&p->running)) aicc_pool_wait(p, &p->running, 1);
    }
}

#ifndef AICC_SINGLE_THREAD
static void *aicc_pool_thread(void *argument) {
    aicc_worker *w = argument;
    while (!atomic_load(&w->pool->closing)) {
        aicc_pool_work(w->pool, w->number);
        aicc_pool_wait(w->pool, &w->pool->closing, 0);
    }
    return (void *)0;
}
#endif

static inline void aicc_pool_close(aicc_pool *p) {
#ifndef AICC_SINGLE_THREAD
    atomic_store(&p->closing, 1);
    aicc_bell_ring(&p->bell);
    for (uint32_t i = 1; i < p->threads; i++) pthread_join(p->workers[i].thread, (void *)0);
#endif
    aicc_bell_close(&p->bell);
}

/* Start `threads` - 1 threads. False, with none left running, if the system refuses one. */
static inline bool aicc_pool_open(aicc_pool *p, uint32_t threads, aicc_task_function *run, void *owner) {
    memset(p, 0, sizeof *p);
    aicc_bell_open(&p->bell);
    atomic_store(&p->ticket, AICC_SLACK);
    p->run = run;
    p->owner = owner;
    p->threads = 1;
#ifdef AICC_SINGLE_THREAD
    (void)threads;
#else
    for (; p->threads < threads; p->threads++) {
        aicc_worker *w = &p->workers[p->threads];
        *w = (aicc_worker){.pool = p, .number = p->threads};
        if (pthread_create(&w->thread, (void *)0, aicc_pool_thread, w) != 0) {
            aicc_pool_close(p);
            return false;
        }
    }
#endif
    return true;
}

#endif
