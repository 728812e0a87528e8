// peak_int8, AMX: tdpbusd, 16 x 16 x 64 multiply-adds, on four sums.
#include <immintrin.h>

#include "contract.h"

// Eight tiles of 16 rows x 64 bytes. A constant in memory: GCC's _tile_loadconfig tells the compiler of 8 of its 64
// bytes only, so that the stores that build a local one are dropped.
struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
alignas(64) const TileConfig kTileConfig = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

uint64_t peak_int8_amx(uint64_t repeats) {
    _tile_loadconfig(&kTileConfig);
    for (uint64_t i = 0; i < repeats; ++i) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
    return repeats * 4 * 2 * 16 * 16 * 64;
}
