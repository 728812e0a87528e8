// linear_w8a8, AMX: 2 x 2 tiles of 16 x 16 int32 sums, so that each tile of codes and of weights that is loaded is used twice.
// Layout: contract.h; a B tile is one column block and 64 K values, 1 KiB contiguous.
// Bound: compute. tdpbusd is 32768 operations in 16 cycles.
#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

namespace {

constexpr int kRows = 32, kCols = 2;        // of a 2 x 2 tile: rows, column blocks
constexpr size_t kChunkBytes = 512 * 1024;  // of codes, which stay in L2 while all the weights pass by

// Eight tiles of 16 rows x 64 bytes. A constant in memory: GCC's _tile_loadconfig tells the compiler of 8 of its 64 bytes
// only, so that the stores that build a local one are dropped.
struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
alignas(64) const TileConfig kTileConfig = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Sums of R row tiles x C column blocks into out [R * 16, C * 16]. Tiles 0-3 sums, 4-5 codes, 6-7 weights.
template <int R, int C>
void tile_sums(const uint8_t* a, size_t a_stride, const int8_t* b, size_t k_padded, int32_t* out) {
    const uint8_t* a1 = a + 16 * a_stride;
    const int8_t* b1 = b + kBlock * k_padded;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t k = 0; k < k_padded; k += kPadK) {
        _tile_loadd(6, b + k * kBlock, 64);
        _tile_loadd(4, a + k, a_stride);
        _tile_dpbusd(0, 4, 6);
        if (C == 2) {
            _tile_loadd(7, b1 + k * kBlock, 64);
            _tile_dpbusd(1, 4, 7);
        }
        if (R == 2) {
            _tile_loadd(5, a1 + k, a_stride);
            _tile_dpbusd(2, 5, 6);
            if (C == 2) _tile_dpbusd(3, 5, 7);
        }
    }
    constexpr size_t stride = C * 16 * sizeof(int32_t);
    _tile_stored(0, out, stride);
    if (C == 2) _tile_stored(1, out + 16, stride);
    if (R == 2) _tile_stored(2, out + 16 * C * 16, stride);
    if (R == 2 && C == 2) _tile_stored(3, out + 16 * C * 16 + 16, stride);
}

template <int R, int C>
void tile(const LinearW8A8& p, size_t rows, size_t m, size_t block) {
    alignas(64) int32_t sums[R * C * 256];
    tile_sums<R, C>(p.codes + m * p.code_stride, p.code_stride, p.weight + block * kBlock * p.k_padded, p.k_padded, sums);
    write_tile<C>(p, sums, rows, m, block * kBlock);
}

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

}  // namespace

void linear_w8a8_amx(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    _tile_loadconfig(&kTileConfig);
    const size_t chunk = (kChunkBytes / p->k_padded / kRows + 1) * kRows;
    for (size_t first = row_begin; first < row_end; first += chunk) {
        const size_t last = least(first + chunk, row_end);
        for (size_t block = block_begin; block < block_end; block += kCols) {
            const bool pair = block + 1 < block_end;
            for (size_t m = first; m < last; m += kRows) {
                const size_t rows = least(kRows, last - m);
                if (rows > 16) {
                    pair ? tile<2, 2>(*p, rows, m, block) : tile<2, 1>(*p, rows, m, block);
                } else {
                    pair ? tile<1, 2>(*p, rows, m, block) : tile<1, 1>(*p, rows, m, block);
                }
            }
        }
    }
    _tile_release();
}
