// linear_w8a8, AMX: 2 x 2 tiles of 16 x 16 int32 sums, so that each tile of codes and of weights is used twice.
// While one 32 x 32 square is multiplied, the one before is written: tile and vector units work at the same time.
// Layout: contract.h; a B tile is one column block and 64 K values, 1 KiB contiguous.
// Bound: compute, tdpbusd is 32768 operations in 16 cycles. Squares with a short K are bound by L2: 128 lines of codes
// and weights for every 64 values of K, and 64 of output.
#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

namespace {

constexpr size_t kRows = 32, kCols = 2;      // of a square: rows, column blocks
constexpr size_t kWeightBytes = 768 * 1024;  // of weights, which stay in L2 while all the rows pass by

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

// Eight tiles of 16 rows x 64 bytes. A constant in memory: GCC's _tile_loadconfig tells the compiler of 8 of its 64
// bytes only, so that the stores that build a local one are dropped.
struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
alignas(64) const TileConfig kTileConfig = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Sums [32, 32] of which `rows` rows wait to be written from row m, column n of the output on, up to column `end`.
struct Square {
    const int32_t* sums;
    size_t rows, m, n, end;
};

// Sums of R row tiles x C column blocks into out [32, 32]; meanwhile `before` is written, some of its rows in each
// step. Tiles 0-3 sums, 4-5 codes, 6-7 weights.
template <int R, int C, Output kind>
void multiply(const LinearW8A8& p, size_t m, size_t block, int32_t* out, const Square& before) {
    const size_t stride = p.code_stride, steps = p.k_padded / kPadK, next_block = kBlock * p.k_padded;
    const uint8_t* a = p.codes + m * stride;
    const int8_t* b = p.weight + block * next_block;
    const Writer<kCols, kind> writer(p, before.m, before.n, before.end);
    const int32_t* waiting = before.sums;
    const char* soon = output_at(p, m, block * kBlock);
    const size_t soon_stride = p.out_stride * (is_bf16(kind) ? 2 : 4), fetches_a_step = (kRows + steps - 1) / steps;
    const size_t rows = before.rows, rows_a_step = (rows + steps - 1) / steps;
    size_t row = 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t step = 0; step < steps; ++step) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, stride);
        _tile_dpbusd(0, 4, 6);
        if (C == 2) {
            _tile_loadd(7, b + next_block, 64);
            _tile_dpbusd(1, 4, 7);
        }
        if (R == 2) {
            _tile_loadd(5, a + 16 * stride, stride);
            _tile_dpbusd(2, 5, 6);
            if (C == 2) _tile_dpbusd(3, 5, 7);
        }
        a += kPadK;
        b += kPadK * kBlock;
        for (size_t i = 0; i < fetches_a_step; ++i, soon += soon_stride) {  // what the next call will write
            __builtin_prefetch(soon, 1);
            __builtin_prefetch(soon + 64, 1);
        }
        const size_t end = least(row + rows_a_step, rows);
        for (; row + 2 <= end; row += 2) writer.template write<2>(row, waiting + row * 32);
        for (; row < end; ++row) writer.write(row, waiting + row * 32);
    }
    _tile_stored(0, out, 128);
    if (C == 2) _tile_stored(1, out + 16, 128);
    if (R == 2) _tile_stored(2, out + 512, 128);
    if (R == 2 && C == 2) _tile_stored(3, out + 512 + 16, 128);
}

template <Output kind>
void run(const LinearW8A8& p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    alignas(64) int32_t sums[2][kRows * kCols * kBlock];
    static constexpr decltype(&multiply<1, 1, kind>) table[2][2] = {{multiply<1, 1, kind>, multiply<1, 2, kind>},
                                                                    {multiply<2, 1, kind>, multiply<2, 2, kind>}};
    const size_t end = least(block_end * kBlock, p.n);
    Square before = {sums[1], 0, row_begin, block_begin * kBlock, end};
    const size_t chunk = (kWeightBytes / (p.k_padded * kBlock) / kCols + 1) * kCols;
    for (size_t first = block_begin; first < block_end; first += chunk) {
        const size_t last = least(first + chunk, block_end);
        for (size_t m = row_begin; m < row_end; m += kRows) {
            const size_t rows = least(kRows, row_end - m);
            for (size_t block = first; block < last; block += kCols) {
                int32_t* out = before.sums == sums[0] ? sums[1] : sums[0];
                table[rows > 16][last - block > 1](p, m, block, out, before);
                before = {out, rows, m, block * kBlock, end};
            }
        }
    }
    const Writer<kCols, kind> writer(p, before.m, before.n, before.end);
    for (size_t r = 0; r < before.rows; ++r) writer.write(r, before.sums + r * 32);
}

}  // namespace

void linear_w8a8_amx(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    static constexpr decltype(&run<kSums>) table[] = {run<kSums>, run<kLinear>, run<kGelu>, run<kLinearBf16>,
                                                      run<kGeluBf16>};
    _tile_loadconfig(&kTileConfig);
    table[output_of(*p)](*p, row_begin, row_end, block_begin, block_end);
    _tile_release();
}
