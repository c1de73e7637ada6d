/* What all products with AMX share: the shapes of tiles. */
#ifndef AICC_TILES_AMX_H
#define AICC_TILES_AMX_H

#include "linear_avx512vnni.h"

#define AICC_TILE 16 /* rows of a tile */

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

#endif
