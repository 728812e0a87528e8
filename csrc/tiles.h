// How AMX's tiles are configured by everything here. Internal to the file that includes it.
#pragma once
#include <stdint.h>

namespace {

// Eight tiles of 16 rows x 64 bytes. A constant in memory: GCC's _tile_loadconfig tells the compiler of 8 of its 64
// bytes only, so that the stores that build a local one are dropped.
struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
alignas(64) const TileConfig kTileConfig = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

}  // namespace
