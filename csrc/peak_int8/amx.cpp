// peak_int8, AMX: tdpbusd, 16 x 16 x 64 multiply-adds, on four sums.
#include <immintrin.h>

#include "contract.h"
#include "vectors/tiles.h"

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
