// linear_w4a8, AVX-VNNI: vpdpbusd in 256 bits, for processors without AVX-512. Tiles of 4 rows x 16 columns.
// Layout: contract.h. A step of eight K values is 2 loads, 4 ANDs and 2 shifts, 8 broadcasts of codes, 16 vpdpbusd.
// Bound: memory up to 4 rows, then compute. vpdpbusd is 64 operations; two a cycle are the roofline.
#include <immintrin.h>

#include "contract.h"
#include "vectors/unroll.h"

namespace {

template <int R>
ALWAYS_INLINE void add_words(const uint8_t* codes, size_t words, const int8_t* a, size_t stride,
                             __m256i (&sums)[R][2]) {
    __m256i low[R][2], high[R][2];  // a chain each: few of them would wait for one another
    unroll<R * 2>([&](auto i) INLINED {
        low[i.value / 2][i.value % 2] = sums[i.value / 2][i.value % 2];
        high[i.value / 2][i.value % 2] = _mm256_setzero_si256();
    });
    const __m256i half = _mm256_set1_epi8(15);
    for (size_t i = 0; i < words; ++i, codes += 64, a += 8) {
        unroll<2>([&](auto c) INLINED {
            const __m256i word = _mm256_load_si256((const __m256i*)codes + c.value);
            const __m256i first = _mm256_and_si256(word, half);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(word, 4), half);
            unroll<R>([&](auto r) INLINED {
                int32_t x[2];
                __builtin_memcpy(x, a + r.value * stride, 8);
                low[r.value][c.value] = _mm256_dpbusd_avx_epi32(low[r.value][c.value], first, _mm256_set1_epi32(x[0]));
                high[r.value][c.value] =
                    _mm256_dpbusd_avx_epi32(high[r.value][c.value], second, _mm256_set1_epi32(x[1]));
            });
        });
    }
    unroll<R * 2>([&](auto i) INLINED {
        sums[i.value / 2][i.value % 2] =
            _mm256_add_epi32(low[i.value / 2][i.value % 2], high[i.value / 2][i.value % 2]);
    });
}

}  // namespace

#include "tiles_avx2.h"

void linear_w4a8_avxvnni(const LinearW4A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_tiles(*p, row_begin, row_end, block_begin, block_end);
}
