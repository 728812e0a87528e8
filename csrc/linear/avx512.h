// What the AVX-512 variants of the linears have in common: tiles of 6 rows x 64 columns in 24 registers. The layouts of
// the operands are the same in bytes, whatever their type: four bytes of K, a group, of sixteen columns are 64 bytes of
// weights. Everything is internal to the file that includes it.
//
// An operator is a type Op with
//   Problem            of its contract
//   Sum                int32_t or float
//   operands(p)        where x and weight begin
//   Values<C, output>  from (p, m, n, end): of(tile, r, c) are 16 outputs before the activation, from the sums of row
//                      m + r, column block c from n on
//   sums<R, C>         (a, a_stride, b, k, out), all in bytes: sums of R rows x C column blocks, [R, C, 16]; not in AMX
#pragma once
#include <type_traits>

#include "linear/output_avx512.h"
#include "sizes.h"

namespace {

constexpr size_t kLanes = 16;  // columns of a block

// In bytes. A block of the weight is k * 16 bytes.
struct Operands {
    const char* x;
    size_t x_stride;
    const char* weight;
    size_t k;
};

constexpr int kTileRows = 6, kTileBlocks = 4;
constexpr size_t kChunkBytes = 384 * 1024;  // of x, which stay in L2 while all the weights pass by

// One step of a group is C loads of weights, R broadcasts of x, R * C instructions Op::multiply_add(acc, x, w).
template <class Op, int R, int C>
void dot_sums(const char* a, size_t a_stride, const char* b, size_t k, typename Op::Sum* out) {
    decltype(Op::zero()) acc[R][C];
    unroll<R>([&](auto r) INLINED { unroll<C>([&](auto c) INLINED { acc[r.value][c.value] = Op::zero(); }); });
    for (size_t at = 0; at < k; at += 4) {
        __m512i w[C];
        unroll<C>([&](auto c) INLINED { w[c.value] = _mm512_load_si512(b + (c.value * k + at) * kLanes); });
        unroll<R>([&](auto r) INLINED {
            int32_t group;
            __builtin_memcpy(&group, a + r.value * a_stride + at, 4);
            const __m512i x = _mm512_set1_epi32(group);
            unroll<C>([&](auto c)
                          INLINED { acc[r.value][c.value] = Op::multiply_add(acc[r.value][c.value], x, w[c.value]); });
        });
    }
    unroll<R>([&](auto r) INLINED {
        unroll<C>([&](auto c)
                      INLINED { __builtin_memcpy(out + (r.value * C + c.value) * 16, &acc[r.value][c.value], 64); });
    });
}

template <class Op, int C, Epilogue epilogue>
void write_rows(const typename Op::Problem& p, const typename Op::Sum* sums, size_t rows, size_t m, size_t n) {
    const Writer<Op, C, epilogue> writer(p, m, n, p.n);
    for (size_t r = 0; r < rows; ++r) writer.write(r, sums + r * C * 16);
}

template <class Op, int R, int C>
void tile(const typename Op::Problem& p, const Operands& o, size_t m, size_t block) {
    alignas(64) typename Op::Sum sums[R * C * 16];
    const size_t n = block * kLanes, bytes = value_bytes(p.output);
    const char* y = (const char*)p.y + (m * p.out_stride + n) * bytes;
    for (int r = 0; r < R;
         ++r, y += p.out_stride * bytes) {  // fetched while the sums are made: a large output is not in L2
        for (int c = 0; c < C; ++c) __builtin_prefetch(y + c * 64, 1);
    }
    Op::template sums<R, C>(o.x + m * o.x_stride, o.x_stride, o.weight + n * o.k, o.k, sums);
    for_epilogue<typename Op::Sum>(p.activation, p.output,
                                   [&](auto known) { write_rows<Op, C, known.value>(p, sums, R, m, n); });
}

template <class Op>
void run_tiles(const typename Op::Problem& p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    using TileFn = void (*)(const typename Op::Problem&, const Operands&, size_t m, size_t block);
    static constexpr TileFn tiles[kTileRows][kTileBlocks] = {
        {tile<Op, 1, 1>, tile<Op, 1, 2>, tile<Op, 1, 3>, tile<Op, 1, 4>},
        {tile<Op, 2, 1>, tile<Op, 2, 2>, tile<Op, 2, 3>, tile<Op, 2, 4>},
        {tile<Op, 3, 1>, tile<Op, 3, 2>, tile<Op, 3, 3>, tile<Op, 3, 4>},
        {tile<Op, 4, 1>, tile<Op, 4, 2>, tile<Op, 4, 3>, tile<Op, 4, 4>},
        {tile<Op, 5, 1>, tile<Op, 5, 2>, tile<Op, 5, 3>, tile<Op, 5, 4>},
        {tile<Op, 6, 1>, tile<Op, 6, 2>, tile<Op, 6, 3>, tile<Op, 6, 4>},
    };
    const Operands o = Op::operands(p);
    const size_t chunk = (kChunkBytes / o.k / kTileRows + 1) * kTileRows;
    for (size_t first = row_begin; first < row_end; first += chunk) {
        const size_t last = least(first + chunk, row_end);
        for (size_t block = block_begin; block < block_end; block += kTileBlocks) {
            const size_t cols = least(kTileBlocks, block_end - block);
            for (size_t m = first; m < last; m += kTileRows) {
                tiles[least(kTileRows, last - m) - 1][cols - 1](p, o, m, block);
            }
        }
    }
}

}  // namespace
