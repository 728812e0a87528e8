// What the AMX variants of the linears have in common: 2 x 2 tiles of 16 x 16 sums, so that each tile of x and of
// weights is used twice. While one 32 x 32 square is multiplied, the one before is written: tile and vector units work
// at the same time. Op and Operands as in linear/avx512.h; a B tile is one column block and 64 bytes of K, 1 KiB
// contiguous. Everything is internal to the file that includes it.
//
//                                      weights, 64 bytes of K x 16 columns
//                                          6              7
//      x, 16 rows        4             0 += 4 x 6     1 += 4 x 7
//      x 64 bytes of K   5             2 += 5 x 6     3 += 5 x 7
//
// A B tile as the instructions want it is a tile of the packed weight as it lies (kernels/layouts.py), four bytes of K
// to a column:
//
//      64 bytes    |k 0 .. 3|k 0 .. 3|  ...  |k 0 .. 3|      columns 0 to 15; of bf16 two values of K in place of four
//      64 bytes    |k 4 .. 7|k 4 .. 7|  ...  |k 4 .. 7|
//        ...
#pragma once
#include "linear/avx512.h"
#include "vectors/tiles.h"

namespace {

constexpr size_t kRows = 32, kCols = 2;      // of a square: rows, column blocks
constexpr size_t kStep = 64;                 // bytes of K
constexpr size_t kWeightBytes = 768 * 1024;  // of weights, which stay in L2 while all the rows pass by

// Tiles are named in the instructions, not passed: a macro.
#define MULTIPLY_ADD(sums, a, b)                  \
    do {                                          \
        if constexpr (std::is_same_v<Sum, float>) \
            _tile_dpbf16ps(sums, a, b);           \
        else                                      \
            _tile_dpbusd(sums, a, b);             \
    } while (0)

// Sums [32, 32] of which `rows` rows wait to be written from row m, column n of the output on, up to column `end`.
template <class Sum>
struct Square {
    const Sum* sums;
    size_t rows, m, n, end;
};

// Sums of R row tiles x C column blocks into out [32, 32]; meanwhile `before` is written, some of its rows in each
// step. Tiles 0-3 sums, 4-5 x, 6-7 weights.
template <class Op, int R, int C, Epilogue epilogue>
void multiply(const typename Op::Problem& p, const Operands& o, size_t m, size_t block, typename Op::Sum* out,
              const Square<typename Op::Sum>& before) {
    using Sum = typename Op::Sum;
    const size_t stride = o.x_stride, steps = o.k / kStep, next_block = kLanes * o.k;
    const char* a = o.x + m * stride;
    const char* b = o.weight + block * next_block;
    const Writer<Op, kCols, epilogue> writer(p, before.m, before.n, before.end);
    const Sum* waiting = before.sums;
    const size_t soon_stride = p.out_stride * value_bytes(epilogue.output),
                 fetches_a_step = (kRows + steps - 1) / steps;
    const char* soon = (const char*)p.y + m * soon_stride + block * kLanes * value_bytes(epilogue.output);
    const size_t rows = before.rows, rows_a_step = (rows + steps - 1) / steps;
    size_t row = 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t step = 0; step < steps; ++step) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, stride);
        MULTIPLY_ADD(0, 4, 6);
        if (C == 2) {
            _tile_loadd(7, b + next_block, 64);
            MULTIPLY_ADD(1, 4, 7);
        }
        if (R == 2) {
            _tile_loadd(5, a + 16 * stride, stride);
            MULTIPLY_ADD(2, 5, 6);
            if (C == 2) MULTIPLY_ADD(3, 5, 7);
        }
        a += kStep;
        b += kStep * kLanes;
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

template <class Op, Epilogue epilogue>
void run_known(const typename Op::Problem& p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    alignas(64) typename Op::Sum sums[2][kRows * kCols * kLanes];
    static constexpr decltype(&multiply<Op, 1, 1, epilogue>) table[2][2] = {
        {multiply<Op, 1, 1, epilogue>, multiply<Op, 1, 2, epilogue>},
        {multiply<Op, 2, 1, epilogue>, multiply<Op, 2, 2, epilogue>}};
    const Operands o = Op::operands(p);
    const size_t end = least(block_end * kLanes, p.n);
    Square<typename Op::Sum> before = {sums[1], 0, row_begin, block_begin * kLanes, end};
    const size_t chunk = (kWeightBytes / (o.k * kLanes) / kCols + 1) * kCols;
    for (size_t first = block_begin; first < block_end; first += chunk) {
        const size_t last = least(first + chunk, block_end);
        for (size_t m = row_begin; m < row_end; m += kRows) {
            const size_t rows = least(kRows, row_end - m);
            for (size_t block = first; block < last; block += kCols) {
                typename Op::Sum* out = before.sums == sums[0] ? sums[1] : sums[0];
                table[rows > 16][last - block > 1](p, o, m, block, out, before);
                before = {out, rows, m, block * kLanes, end};
            }
        }
    }
    const Writer<Op, kCols, epilogue> writer(p, before.m, before.n, before.end);
    for (size_t r = 0; r < before.rows; ++r) writer.write(r, before.sums + r * 32);
}

template <class Op>
void run_squares(const typename Op::Problem& p, size_t row_begin, size_t row_end, size_t block_begin,
                 size_t block_end) {
    if (row_begin >= row_end || block_begin >= block_end) return;
    _tile_loadconfig(&kTileConfig);
    for_epilogue<typename Op::Sum>(p.activation, p.output, [&](auto known) {
        run_known<Op, known.value>(p, row_begin, row_end, block_begin, block_end);
    });
    _tile_release();
}

}  // namespace
