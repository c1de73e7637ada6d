/* AMX's tiles in C, for processors without them: what tests compile linear_amx.h with. It ends the program where a
 * processor would fault: a shape out of range, a tile without one, shapes that do not fit each other. */
#ifndef AICC_EMULATED_TILES
#define AICC_EMULATED_TILES 1

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct emulated_tile {
    int rows, row_bytes;
    uint8_t data[16][64];
} emulated_tile;

static _Thread_local emulated_tile emulated_tiles[8];

static inline void emulated_require(int holds) {
    if (!holds) abort();
}

static inline void emulated_release(void) {
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}

static inline void emulated_loadconfig(const void *config) {
    const uint8_t *bytes = config;
    emulated_release();
    emulated_require(bytes[0] == 1 && bytes[1] == 0);
    for (int i = 2; i < 16; i++) emulated_require(bytes[i] == 0);
    for (int i = 0; i < 16; i++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
        int rows = bytes[48 + i];
        emulated_require(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0));
        emulated_require(i < 8 || rows == 0);
        if (i < 8) emulated_tiles[i].rows = rows, emulated_tiles[i].row_bytes = row_bytes;
    }
}

static inline emulated_tile *emulated_at(int number) {
    emulated_require(emulated_tiles[number].rows > 0);
    return &emulated_tiles[number];
}

static inline void emulated_zero(int number) {
    memset(emulated_at(number)->data, 0, sizeof emulated_tiles[number].data);
}

static inline void emulated_loadd(int number, const void *from, ptrdiff_t stride) {
    emulated_tile *t = emulated_at(number);
    emulated_zero(number);
    for (int r = 0; r < t->rows; r++) memcpy(t->data[r], (const uint8_t *)from + r * stride, (size_t)t->row_bytes);
}

static inline void emulated_stored(int number, void *to, ptrdiff_t stride) {
    emulated_tile *t = emulated_at(number);
    for (int r = 0; r < t->rows; r++) memcpy((uint8_t *)to + r * stride, t->data[r], (size_t)t->row_bytes);
}

/* Signed bytes of `left` by unsigned bytes of `right`. */
static inline void emulated_dpbsud(int sum, int left, int right) {
    emulated_tile *c = emulated_at(sum), *a = emulated_at(left), *b = emulated_at(right);
    emulated_require(c->rows == a->rows && c->row_bytes == b->row_bytes && a->row_bytes == 4 * b->rows);
    for (int r = 0; r < c->rows; r++)
        for (int n = 0; n < c->row_bytes / 4; n++) {
            int32_t total;
            memcpy(&total, &c->data[r][4 * n], sizeof total);
            for (int k = 0; k < a->row_bytes; k++) total += (int8_t)a->data[r][k] * b->data[k / 4][4 * n + k % 4];
            memcpy(&c->data[r][4 * n], &total, sizeof total);
        }
}

static inline float emulated_bf16(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u; /* denormals are zeros */
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* bfloat16 pairs of `left` by those of `right`. */
static inline void emulated_dpbf16ps(int sum, int left, int right) {
    emulated_tile *c = emulated_at(sum), *a = emulated_at(left), *b = emulated_at(right);
    emulated_require(c->rows == a->rows && c->row_bytes == b->row_bytes && a->row_bytes == 4 * b->rows);
    for (int r = 0; r < c->rows; r++)
        for (int n = 0; n < c->row_bytes / 4; n++) {
            float total, part[2] = {0.0f, 0.0f};
            memcpy(&total, &c->data[r][4 * n], sizeof total);
            for (int k = 0; k < a->row_bytes / 2; k++)
                part[k % 2] = __builtin_fmaf(emulated_bf16(&a->data[r][2 * k]), emulated_bf16(&b->data[k / 2][4 * n + 2 * (k % 2)]),
                                             part[k % 2]);
            total += part[0] + part[1];
            memcpy(&c->data[r][4 * n], &total, sizeof total);
        }
}

/* For processors that have no bfloat16 either. */
static inline __m512i emulated_cvtne2ps_pbh(__m512 high, __m512 low) {
    uint32_t from[32];
    uint16_t to[32];
    memcpy(from, &low, sizeof low);
    memcpy(from + 16, &high, sizeof high);
    for (int i = 0; i < 32; i++) {
        uint32_t bits = (from[i] & 0x7f800000u) ? from[i] : from[i] & 0x80000000u;
        int nan = (bits & 0x7fffffffu) > 0x7f800000u;
        to[i] = (uint16_t)(nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    __m512i all;
    memcpy(&all, to, sizeof all);
    return all;
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#undef _mm512_cvtne2ps_pbh
#undef _mm512_cvtneps_pbh
#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define _tile_zero emulated_zero
#define _tile_loadd emulated_loadd
#undef _tile_stream_loadd
#define _tile_stream_loadd emulated_loadd
#define _tile_stored emulated_stored
#define _tile_dpbsud emulated_dpbsud
#define _tile_dpbf16ps emulated_dpbf16ps
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
#define _mm512_cvtneps_pbh(v) _mm512_castsi512_si256(emulated_cvtne2ps_pbh(v, v))

#endif
