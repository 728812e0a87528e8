// linear_w8a8, AVX-VNNI: vpdpbusd in 256 bits, for processors without AVX-512. Tiles of 6 rows x 16 columns in 12
// registers.
// Layout: contract.h. One step of four K values is 2 loads of weights, 6 broadcasts of codes, 12 vpdpbusd.
// Bound: compute. vpdpbusd is 64 operations; two a cycle are the roofline.
#include <immintrin.h>

#include "columns_avx2.h"

namespace {

template <int R>
void row_sums(const uint8_t* codes, size_t stride, const int8_t* weight, size_t k_padded, Sums* sums) {
    __m256i acc[R][2];
    unroll<R>([&](auto r)
                  INLINED { unroll<2>([&](auto c) INLINED { acc[r.value][c.value] = _mm256_setzero_si256(); }); });
    for (size_t k = 0; k < k_padded; k += kGroup, weight += kBlock * kGroup) {
        const __m256i w[2] = {_mm256_load_si256((const __m256i*)weight), _mm256_load_si256((const __m256i*)weight + 1)};
        unroll<R>([&](auto r) INLINED {
            int32_t group;
            __builtin_memcpy(&group, codes + r.value * stride + k, 4);
            const __m256i x = _mm256_set1_epi32(group);
            unroll<2>([&](auto c) INLINED {
                acc[r.value][c.value] = _mm256_dpbusd_avx_epi32(acc[r.value][c.value], x, w[c.value]);
            });
        });
    }
    unroll<R>([&](auto r) INLINED {
        unroll<2>([&](auto c) INLINED { ((__m256i*)sums[r.value])[c.value] = acc[r.value][c.value]; });
    });
}

constexpr decltype(&row_sums<1>) kRowSums[kTileRows] = {row_sums<1>, row_sums<2>, row_sums<3>,
                                                        row_sums<4>, row_sums<5>, row_sums<6>};

void block_sums(const LinearW8A8& p, size_t m, size_t rows, size_t block, Sums* sums) {
    for (size_t r = 0; r < rows; r += kTileRows) {
        kRowSums[least(kTileRows, rows - r) - 1](p.codes + (m + r) * p.code_stride, p.code_stride,
                                                 p.weight + block * kBlock * p.k_padded, p.k_padded, sums + r);
    }
}

}  // namespace

void linear_w8a8_avxvnni(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_columns(*p, row_begin, row_end, block_begin, block_end, block_sums);
}
