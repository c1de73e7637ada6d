/* Sleeping until a word changes: a futex on Linux, a condition variable elsewhere. */
#ifndef AICC_WAIT_H
#define AICC_WAIT_H

#include <stdatomic.h>
#include <stdint.h>

#if defined(AICC_SINGLE_THREAD)
typedef struct aicc_bell { _Atomic uint32_t rung; } aicc_bell;
static inline void aicc_bell_open(aicc_bell *b) { atomic_store(&b->rung, 0); }
static inline void aicc_bell_close(aicc_bell *b) { (void)b; }
static inline void aicc_bell_wait(aicc_bell *b, uint32_t seen) { (void)b, (void)seen; }
static inline void aicc_bell_ring(aicc_bell *b) { (void)b; }

#elif defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct aicc_bell { _Atomic uint32_t rung; } aicc_bell;

static inline void aicc_bell_open(aicc_bell *b) { atomic_store(&b->rung, 0); }
static inline void aicc_bell_close(aicc_bell *b) { (void)b; }

/* Sleep while the bell has rung `seen` times; may return early. */
static inline void aicc_bell_wait(aicc_bell *b, uint32_t seen) {
    syscall(SYS_futex, &b->rung, FUTEX_WAIT_PRIVATE, seen, (void *)0, (void *)0, 0);
}

static inline void aicc_bell_ring(aicc_bell *b) {
    atomic_fetch_add(&b->rung, 1);
    syscall(SYS_futex, &b->rung, FUTEX_WAKE_PRIVATE, INT32_MAX, (void *)0, (void *)0, 0);
}

#else
#include <pthread.h>

typedef struct aicc_bell {
    _Atomic uint32_t rung;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} aicc_bell;

static inline void aicc_bell_open(aicc_bell *b) {
    atomic_store(&b->rung, 0);
    pthread_mutex_init(&b->mutex, (void *)0);
    pthread_cond_init(&b->changed, (void *)0);
}

static inline void aicc_bell_close(aicc_bell *b) {
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->mutex);
}

static inline void aicc_bell_wait(aicc_bell *b, uint32_t seen) {
    pthread_mutex_lock(&b->mutex);
    while (atomic_load(&b->rung) == seen) pthread_cond_wait(&b->changed, &b->mutex);
    pthread_mutex_unlock(&b->mutex);
}

static inline void aicc_bell_ring(aicc_bell *b) {
    pthread_mutex_lock(&b->mutex);
    atomic_fetch_add(&b->rung, 1);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->mutex);
}
#endif

#endif
