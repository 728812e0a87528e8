// linear_w8a8, AMX: 2 x 2 tiles of 16 x 16 int32 sums, so that each tile of codes and of weights that is loaded is used twice.
// While one 32 x 32 square is multiplied, the one before is written: the tile unit and the vector units work at the same time.
// Layout: contract.h; a B tile is one column block and 64 K values, 1 KiB contiguous.
// Bound: compute. tdpbusd is 32768 operations in 16 cycles.
#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

namespace {

constexpr size_t kRows = 32, kCols = 2;       // of a square: rows, column blocks
constexpr size_t kWeightBytes = 768 * 1024;  // of weights, which stay in L2 while all the rows pass by

// Eight tiles of 16 rows x 64 bytes. A constant in memory: GCC's _tile_loadconfig tells the compiler of 8 of its 64 bytes
// only, so that the stores that build a local one are dropped.
struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
alignas(64) const TileConfig kTileConfig = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Sums waiting to be written: `rows` rows of `cols` column blocks at row m, column n of the output; none if rows is 0.
struct Square {
    const int32_t* sums;
    size_t rows, cols, m, n;
    __mmask16 masks[kCols];
};

template <Output kind>
inline void write(const LinearW8A8& p, const Square& s, size_t begin, size_t end) {
    end = end < s.rows ? end : s.rows;
    if (s.cols == 2) {
        for (size_t r = begin; r < end; ++r) write_row<2, kind>(p, s.sums + r * 32, s.m + r, s.n, s.masks);
    } else {
        for (size_t r = begin; r < end; ++r) write_row<1, kind>(p, s.sums + r * 16, s.m + r, s.n, s.masks);
    }
}

// Sums of R row tiles x C column blocks into out [R * 16, C * 16]; meanwhile `before` is written, some rows in each step.
// Tiles 0-3 sums, 4-5 codes, 6-7 weights.
template <int R, int C, Output kind>
void multiply(const LinearW8A8& p, size_t m, size_t block, int32_t* out, const Square& before) {
    const size_t stride = p.code_stride;
    const uint8_t* a = p.codes + m * stride;
    const int8_t* b = p.weight + block * kBlock * p.k_padded;
    const size_t steps = p.k_padded / kPadK, rows_a_step = (before.rows + steps - 1) / steps;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t step = 0; step < steps; ++step) {
        const uint8_t* a0 = a + step * kPadK;
        const int8_t* b0 = b + step * kPadK * kBlock;
        _tile_loadd(6, b0, 64);
        _tile_loadd(4, a0, stride);
        _tile_dpbusd(0, 4, 6);
        if (C == 2) {
            _tile_loadd(7, b0 + kBlock * p.k_padded, 64);
            _tile_dpbusd(1, 4, 7);
        }
        if (R == 2) {
            _tile_loadd(5, a0 + 16 * stride, stride);
            _tile_dpbusd(2, 5, 6);
            if (C == 2) _tile_dpbusd(3, 5, 7);
        }
        write<kind>(p, before, step * rows_a_step, (step + 1) * rows_a_step);
    }
    constexpr size_t row = C * 16, row_bytes = row * sizeof(int32_t);
    _tile_stored(0, out, row_bytes);
    if (C == 2) _tile_stored(1, out + 16, row_bytes);
    if (R == 2) _tile_stored(2, out + 16 * row, row_bytes);
    if (R == 2 && C == 2) _tile_stored(3, out + 16 * row + 16, row_bytes);
}

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

template <Output kind>
void run(const LinearW8A8& p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    alignas(64) int32_t sums[2][kRows * kCols * kBlock];
    Square before = {sums[1], 0, 0, 0, 0, {0, 0}};
    static constexpr decltype(&multiply<1, 1, kind>) table[2][2] = {{multiply<1, 1, kind>, multiply<1, 2, kind>},
                                                                     {multiply<2, 1, kind>, multiply<2, 2, kind>}};
    const size_t chunk = (kWeightBytes / (p.k_padded * kBlock) / kCols + 1) * kCols;
    for (size_t first = block_begin; first < block_end; first += chunk) {
        const size_t last = least(first + chunk, block_end);
        for (size_t m = row_begin; m < row_end; m += kRows) {
            const size_t rows = least(kRows, row_end - m);
            for (size_t block = first; block < last; block += kCols) {
                const size_t cols = least(kCols, last - block), n = block * kBlock;
                int32_t* out = before.sums == sums[0] ? sums[1] : sums[0];
                table[rows > 16][cols == 2](p, m, block, out, before);
                before = {out, rows, cols, m, n, {column_mask(p, n), column_mask(p, n + kBlock)}};
            }
        }
    }
    write<kind>(p, before, 0, before.rows);
}

}  // namespace

void linear_w8a8_amx(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    static constexpr decltype(&run<kSums>) table[] = {run<kSums>, run<kLinear>, run<kGelu>};
    _tile_loadconfig(&kTileConfig);
    table[output_of(*p)](*p, row_begin, row_end, block_begin, block_end);
    _tile_release();
}
