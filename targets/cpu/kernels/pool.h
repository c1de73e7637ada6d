/* Persistent threads that run a list of steps, each a number of tasks, together with the caller.
 *
 * Each thread has a range of a step's tasks for itself, which it takes from the front, so that it reads its weights in
 * the order of memory; a thread that has none left takes the last of another's. A step is over when all its tasks are
 * done, not when all threads have arrived: a thread that the system has put aside holds up nothing as long as it holds
 * no task. Two kinds of 64-bit words say what there is to do:
 *
 *     ticket  number of the open step (32 bits) | its tasks (32 bits)
 *     range   number of a step (32 bits) | first task left (16 bits) | end (16 bits)        one for each thread
 *
 * A range of an earlier step stands for this step's whole range: opening a step is writing one word. Who looks at a
 * step that is over takes nothing by it, since its last task cannot have been taken without leaving the step's number
 * in every range that had tasks. A step cannot end while one of its tasks is held, so the holder may read what belongs
 * to it. Who finishes the last task of a step opens the next, and runs it at once if it has a single task. */
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
#define AICC_MAX_TASKS 65535 /* of a step */
#ifndef AICC_SPINS
#define AICC_SPINS 2000 /* looks at the ticket before sleeping: some 30 microseconds, the length of a few steps */
#endif

typedef void aicc_task_function(void *owner, uint32_t step, uint32_t task, uint32_t worker);

typedef struct aicc_pool aicc_pool;
typedef struct aicc_worker {
    aicc_pool *pool;
    uint32_t number;
    _Alignas(64) _Atomic uint64_t range;
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

/* Take a task of the step that `ticket` is for out of a thread's range: the first of one's own, the last of another's. */
static inline bool aicc_pool_take_from(aicc_pool *p, uint64_t ticket, uint32_t owner, bool own, uint32_t *task) {
    uint32_t number = (uint32_t)(ticket >> 32), count = (uint32_t)ticket;
    _Atomic uint64_t *range = &p->workers[owner].range;
    uint64_t seen = atomic_load_explicit(range, memory_order_relaxed), left;
    do {
        uint32_t begin = (uint32_t)seen >> 16, end = (uint32_t)seen & 0xffffu;
        if ((uint32_t)(seen >> 32) != number) {
            if ((int32_t)((uint32_t)(seen >> 32) - number) > 0) return false;
            begin = count * owner / p->threads;
            end = count * (owner + 1) / p->threads;
        }
        if (begin == end) return false;
        *task = own ? begin++ : --end;
        left = (uint64_t)number << 32 | begin << 16 | end;
    } while (!atomic_compare_exchange_weak_explicit(range, &seen, left, memory_order_acquire, memory_order_relaxed));
    return true;
}

static inline bool aicc_pool_take(aicc_pool *p, uint64_t ticket, uint32_t worker, uint32_t *task) {
    if ((uint32_t)ticket == 0) return false;
    if (aicc_pool_take_from(p, ticket, worker, true, task)) return true;
    for (uint32_t i = 1; i < p->threads; i++)
        if (aicc_pool_take_from(p, ticket, (worker + i) % p->threads, false, task)) return true;
    return false;
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
    atomic_store(&p->ticket, (uint64_t)number << 32 | left);
    if (!left) atomic_store(&p->running, 0); /* last of all: the caller may start the next run now */
    if (atomic_load(&p->sleepers)) aicc_bell_ring(&p->bell);
}

/* Run tasks until none can be taken; returns the ticket of the step that has none left. */
static inline uint64_t aicc_pool_work(aicc_pool *p, uint32_t worker) {
    for (;;) {
        uint64_t ticket = atomic_load_explicit(&p->ticket, memory_order_acquire);
        uint32_t task;
        if (!aicc_pool_take(p, ticket, worker, &task)) return ticket;
        uint32_t step = (uint32_t)(ticket >> 32) - p->first;
        p->run(p->owner, step, task, worker);
        if (atomic_fetch_sub_explicit(&p->pending, 1, memory_order_acq_rel) == 1) aicc_pool_advance(p, step + 1, worker);
    }
}

/* Return when another step than `ticket`'s is open, or `flag` is not `value` any more: spin, then sleep. */
static inline void aicc_pool_wait(aicc_pool *p, uint64_t ticket, _Atomic uint32_t *flag, uint32_t value) {
    for (int i = 0; i < AICC_SPINS; i++) {
        if (atomic_load(&p->ticket) != ticket || atomic_load(flag) != value) return;
        aicc_pause();
    }
    /* Counted as a sleeper before looking for the last time, so whoever opens a step after that look rings. */
    atomic_fetch_add(&p->sleepers, 1);
    uint32_t rung = atomic_load(&p->bell.rung);
    if (atomic_load(&p->ticket) == ticket && atomic_load(flag) == value) aicc_bell_wait(&p->bell, rung);
    atomic_fetch_sub(&p->sleepers, 1);
}

/* Run the steps; step s has tasks[s] tasks, which may be 0. Returns when all are done. */
static inline void aicc_pool_execute(aicc_pool *p, const uint32_t *tasks, uint32_t step_count) {
    uint32_t first = p->first + p->step_count + 1; /* no number is used twice, so nobody takes an old step for a new one */
    if ((first ^ p->first) >> 30) /* now and then, as a range that never had a task would be ahead when numbers wrap around */
        for (uint32_t i = 0; i < p->threads; i++) atomic_store(&p->workers[i].range, (uint64_t)(first - 1) << 32);
    p->tasks = tasks;
    p->first = first;
    p->step_count = step_count;
    atomic_store(&p->running, 1);
    aicc_pool_advance(p, 0, 0);
    while (atomic_load(&p->running)) {
        uint64_t ticket = aicc_pool_work(p, 0);
        if (atomic_load(&p->running)) aicc_pool_wait(p, ticket, &p->running, 1);
    }
}

#ifndef AICC_SINGLE_THREAD
static void *aicc_pool_thread(void *argument) {
    aicc_worker *w = argument;
    while (!atomic_load(&w->pool->closing)) {
        uint64_t ticket = aicc_pool_work(w->pool, w->number);
        aicc_pool_wait(w->pool, ticket, &w->pool->closing, 0);
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
