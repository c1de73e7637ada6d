/* What this machine can do at most, measured beside the kernels: bytes read, and int8 and, with AMX, bfloat16
 * multiplications a second. */
#include <time.h>

#include "machine.h"
#include "panel.h"
#include "pool.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef struct work {
    const uint8_t *data;
    size_t bytes;
    int64_t sink;
} work;

#define PIECE 262144

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void read_piece(void *owner, uint32_t step, uint32_t task, uint32_t worker) {
    work *w = owner;
    typedef int64_t i64x8 __attribute__((vector_size(64)));
    i64x8 sum[4] = {0};
    const uint8_t *from = w->data + (size_t)task * PIECE;
    for (size_t i = 0; i + 256 <= AICC_MIN(PIECE, w->bytes - (size_t)task * PIECE); i += 256)
        for (int j = 0; j < 4; j++) {
            i64x8 v;
            memcpy(&v, from + i + (size_t)j * 64, 64);
            sum[j] += v;
        }
    i64x8 all = sum[0] + sum[1] + sum[2] + sum[3];
    __asm__ volatile("" : : "r"(all[0] + all[1] + all[2] + all[3] + all[4] + all[5] + all[6] + all[7]));
    (void)step, (void)worker;
}

#define CHAINS 12
#define ROUNDS 20000

static void multiply(void *owner, uint32_t step, uint32_t task, uint32_t worker) {
    (void)owner, (void)step, (void)task, (void)worker;
#if defined(AICC_AVX512VNNI)
    __m512i x = _mm512_set1_epi8(3), sum[CHAINS];
    for (int c = 0; c < CHAINS; c++) sum[c] = x;
    for (int i = 0; i < ROUNDS; i++)
        for (int c = 0; c < CHAINS; c++) {
            sum[c] = _mm512_dpbusd_epi32(sum[c], x, x);
            __asm__ volatile("" : "+v"(sum[c]));
        }
#elif defined(AICC_AVX2)
    __m256i x = _mm256_set1_epi8(3), one = _mm256_set1_epi16(1), sum[CHAINS];
    for (int c = 0; c < CHAINS; c++) sum[c] = x;
    for (int i = 0; i < ROUNDS; i++)
        for (int c = 0; c < CHAINS; c++) {
            __m256i product = _mm256_maddubs_epi16(x, sum[c]);
            __asm__ volatile("" : "+x"(product));
            sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(product, one));
        }
#endif
}

#if defined(AICC_AVX512VNNI)
#define OPERATIONS (2.0 * 64 * CHAINS * ROUNDS)
#elif defined(AICC_AVX2)
#define OPERATIONS (2.0 * 32 * CHAINS * ROUNDS)
#else
#define OPERATIONS 0.0
#endif

static double timed(work *w, int32_t threads, aicc_task_function *run, uint32_t tasks) {
    static aicc_pool pool; /* a measuring tool may have a global */
    if (!aicc_pool_open(&pool, (uint32_t)threads, run, w)) return 0.0;
    double start = seconds();
    aicc_pool_execute(&pool, &tasks, 1);
    double time = seconds() - start;
    aicc_pool_close(&pool);
    return time;
}

/* Bytes a second of one pass over `data`. */
double read_rate(const uint8_t *data, size_t bytes, int32_t threads) {
    work w = {.data = data, .bytes = bytes};
    return (double)bytes / timed(&w, threads, read_piece, (uint32_t)((bytes + PIECE - 1) / PIECE));
}

/* int8 operations a second (a multiplication and an addition are two) with this library's instruction set. */
double int8_rate(int32_t threads) {
    work w = {0};
    return OPERATIONS * 64 / timed(&w, threads, multiply, 64);
}

#if defined(AICC_AMX)
#define TILE_ROUNDS 2000
#define TILE_TASKS 512

/* Four sums that wait for nothing but their own turn; nothing is loaded. */
static void multiply_tiles(void *owner, uint32_t step, uint32_t task, uint32_t worker) {
    (void)owner, (void)step, (void)task, (void)worker;
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
    _tile_loadconfig(&shapes); /* all tiles are zeros */
    for (int i = 0; i < TILE_ROUNDS; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}

/* bfloat16 operations a second of AMX's tiles, over some 50 ms; 0 if this process may not use them. */
double bfloat16_tile_rate(int32_t threads) {
    work w = {0};
    if (!aicc_may_use_tiles()) return 0.0;
    return 2.0 * 16 * 16 * 32 * 4 * TILE_ROUNDS * TILE_TASKS / timed(&w, threads, multiply_tiles, TILE_TASKS);
}
#endif
