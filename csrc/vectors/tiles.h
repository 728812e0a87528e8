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

// Before tiles are loaded from what was stored just now: GCC 12's _tile_loadd does not say that it reads memory, so
// that stores which are overwritten later could be dropped.
inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

}  // namespace
