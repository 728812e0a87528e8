// linear_w8a8, AVX-512 VNNI: tiles of 6 rows x 64 columns in 24 registers.
// Layout: contract.h. One step of four K values is 4 loads of weights, 6 broadcasts of codes, 24 vpdpbusd.
// Bound: compute. vpdpbusd is 128 operations; one (Zen 4) or two (Sapphire Rapids) a cycle are the roofline.
#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

namespace {

constexpr int kRows = 6, kCols = 4;         // of a tile: rows, column blocks
constexpr size_t kChunkBytes = 384 * 1024;  // of codes, which stay in L2 while all the weights pass by

ALWAYS_INLINE int32_t four(const uint8_t* a) {
    int32_t v;
    __builtin_memcpy(&v, a, 4);
    return v;
}

template <int R, int C>
void tile_sums(const uint8_t* a, size_t a_stride, const int8_t* b, size_t k_padded, int32_t* out) {
    __m512i acc[R][C];
    unroll<R>([&](auto r)
                  INLINED { unroll<C>([&](auto c) INLINED { acc[r.value][c.value] = _mm512_setzero_si512(); }); });
    const size_t b_stride = k_padded * kBlock;
    for (size_t k = 0; k < k_padded; k += kGroup) {
        __m512i w[C];
        unroll<C>([&](auto c) INLINED { w[c.value] = _mm512_load_si512(b + c.value * b_stride + k * kBlock); });
        unroll<R>([&](auto r) INLINED {
            const __m512i x = _mm512_set1_epi32(four(a + r.value * a_stride + k));
            unroll<C>([&](auto c) INLINED {
                acc[r.value][c.value] = _mm512_dpbusd_epi32(acc[r.value][c.value], x, w[c.value]);
            });
        });
    }
    unroll<R>([&](auto r) INLINED {
        unroll<C>([&](auto c)
                      INLINED { _mm512_store_si512(out + (r.value * C + c.value) * 16, acc[r.value][c.value]); });
    });
}

template <int C, Output kind>
void write_rows(const LinearW8A8& p, const int32_t* sums, size_t rows, size_t m, size_t n) {
    const Writer<C, kind> writer(p, m, n, p.n);
    for (size_t r = 0; r < rows; ++r) writer.write(r, sums + r * C * 16);
}

template <int R, int C>
void tile(const LinearW8A8& p, size_t m, size_t block) {
    alignas(64) int32_t sums[R * C * 16];
    const char* y = output_at(p, m, block * kBlock);  // fetched while the sums are made: a large output is not in L2
    for (int r = 0; r < R; ++r, y += p.out_stride * (p.bf16 ? 2 : 4)) {
        for (int c = 0; c < C; ++c) __builtin_prefetch(y + c * 64, 1);
    }
    tile_sums<R, C>(p.codes + m * p.code_stride, p.code_stride, p.weight + block * kBlock * p.k_padded, p.k_padded,
                    sums);
    static constexpr decltype(&write_rows<C, kSums>) write[] = {write_rows<C, kSums>, write_rows<C, kLinear>,
                                                                write_rows<C, kGelu>, write_rows<C, kLinearBf16>,
                                                                write_rows<C, kGeluBf16>};
    write[output_of(p)](p, sums, R, m, block * kBlock);
}

using TileFn = void (*)(const LinearW8A8&, size_t m, size_t block);

const TileFn kTiles[kRows][kCols] = {
    {tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>}, {tile<2, 1>, tile<2, 2>, tile<2, 3>, tile<2, 4>},
    {tile<3, 1>, tile<3, 2>, tile<3, 3>, tile<3, 4>}, {tile<4, 1>, tile<4, 2>, tile<4, 3>, tile<4, 4>},
    {tile<5, 1>, tile<5, 2>, tile<5, 3>, tile<5, 4>}, {tile<6, 1>, tile<6, 2>, tile<6, 3>, tile<6, 4>},
};

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

}  // namespace

void linear_w8a8_avx512vnni(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin,
                            size_t block_end) {
    const size_t chunk = (kChunkBytes / p->k_padded / kRows + 1) * kRows;
    for (size_t first = row_begin; first < row_end; first += chunk) {
        const size_t last = least(first + chunk, row_end);
        for (size_t block = block_begin; block < block_end; block += kCols) {
            const size_t cols = least(kCols, block_end - block);
            for (size_t m = first; m < last; m += kRows) kTiles[least(kRows, last - m) - 1][cols - 1](*p, m, block);
        }
    }
}
