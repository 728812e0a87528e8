// gram, AMX: 2 x 2 tiles of 16 x 16 sums, so that each tile of row and of column features is used twice.
// Layout: contract.h; a B tile is one column block and 32 rows of x, 1 KiB contiguous. The A tile of a block is its
// transpose in words: a panel of them is made once per row of squares and stays in L1 (32 KiB).
// Bound: L2. tdpbf16ps is 16384 operations in 16 cycles, and every fourth needs 2 KiB of column features from there;
// the matrix itself passes by once for every 512 rows of x.
#include <immintrin.h>

#include "contract.h"
#include "squares.h"
#include "vectors/tiles.h"

namespace {

constexpr size_t kTile = 256;  // words

// Tiles 0-3 sums, 4-5 row features, 6-7 column features.
struct Tiles {
    alignas(64) uint32_t rows[kRun / 2 * kSquare];

    ALWAYS_INLINE void take(const uint32_t* panel, size_t pairs) {
        for (size_t step = 0; step < pairs / 16; ++step) {
            transpose(panel + step * kTile, 16, rows + 2 * step * kTile, 16);
            transpose(panel + pairs * 16 + step * kTile, 16, rows + (2 * step + 1) * kTile, 16);
        }
    }

    ALWAYS_INLINE void sum(const uint32_t* panel, size_t pairs, float* sums) const {
        const uint32_t *a = rows, *b = panel, *b2 = panel + pairs * 16;
        finish_stores();
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (size_t step = 0; step < pairs / 16; ++step, a += 2 * kTile, b += kTile, b2 += kTile) {
            _tile_loadd(6, b, 64);
            _tile_loadd(4, a, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b2, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a + kTile, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums, 128);
        _tile_stored(1, sums + 16, 128);
        _tile_stored(2, sums + 16 * kSquare, 128);
        _tile_stored(3, sums + 16 * kSquare + 16, 128);
    }
};

}  // namespace

void gram_multiply_amx(const Gram* p, size_t begin, size_t end) {
    Tiles tiles;
    _tile_loadconfig(&kTileConfig);
    multiply(*p, begin, end, tiles);
    _tile_release();
}
