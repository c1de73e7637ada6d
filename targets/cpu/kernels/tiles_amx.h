/* What all products with AMX share: the shapes of tiles, and quads of a panel as bytes. */
#ifndef AICC_TILES_AMX_H
#define AICC_TILES_AMX_H

#include "engine.h"
#include "linear_avx512vnni.h"

/* What ldtilecfg reads: the sizes of 8 tiles. */
typedef struct aicc_tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} aicc_tile_shapes;

AICC_INLINE void aicc_shape_tile(aicc_tile_shapes *shapes, int32_t tile, int32_t rows, int32_t row_bytes) {
    shapes->rows[tile] = (uint8_t)rows;
    shapes->row_bytes[tile] = (uint16_t)(rows ? row_bytes : 0);
}

/* Quad `i` of group `g`, [16][4] bytes: a vector of a panel of bytes, or one half of the nibbles of a vector. */
AICC_INLINE __m512i aicc_load_quad(const uint8_t *panel, int32_t g, int32_t i, aicc_weight w) {
    int32_t quads = w.group / 4, half = quads / 2;
    if (w.format == AICC_Q8) return _mm512_loadu_si512(panel + (size_t)(g * quads + i) * 64);
    __m512i packed = _mm512_loadu_si512(panel + (size_t)(g * half + i % half) * 64);
    return _mm512_and_si512(i < half ? packed : _mm512_srli_epi16(packed, 4), _mm512_set1_epi8(15));
}

#endif
