// linear_w4a8, AVX2: vpmaddubsw of four bits and codes, whose pair sums are exact: 2 * 15 * 127 = 3810. Eight of them,
// 32 values of K, still fit into 16 bits, so that only then a vpmaddwd widens their sum. Tiles of 4 rows x 16 columns.
// Layout: contract.h. A step of eight K values is 2 loads, 4 ANDs and 2 shifts, 8 broadcasts of codes, 16 vpmaddubsw
// and as many vpaddw. Bound: memory up to 2 rows, then compute. vpmaddubsw + vpaddw are 64 operations in two
// instructions.
#include <immintrin.h>

#include "contract.h"
#include "vectors/unroll.h"

namespace {

constexpr size_t kStretch = 4;  // words whose pair sums fit

// sums + codes * a of up to kStretch words, for half a block.
template <int R>
ALWAYS_INLINE void add_stretch(const uint8_t* codes, size_t words, const int8_t* a, size_t stride,
                               __m256i (&sums)[R][2], int c) {
    __m256i pairs[R];
    unroll<R>([&](auto r) INLINED { pairs[r.value] = _mm256_setzero_si256(); });
    const __m256i half = _mm256_set1_epi8(15);
    for (size_t i = 0; i < words; ++i) {
        const __m256i word = _mm256_load_si256((const __m256i*)(codes + i * 64) + c);
        const __m256i first = _mm256_and_si256(word, half);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(word, 4), half);
        unroll<R>([&](auto r) INLINED {
            int32_t x[2];
            __builtin_memcpy(x, a + r.value * stride + i * 8, 8);
            const __m256i low = _mm256_maddubs_epi16(first, _mm256_set1_epi32(x[0]));
            const __m256i high = _mm256_maddubs_epi16(second, _mm256_set1_epi32(x[1]));
            pairs[r.value] = _mm256_add_epi16(pairs[r.value], _mm256_add_epi16(low, high));
        });
    }
    unroll<R>([&](auto r) INLINED {
        sums[r.value][c] = _mm256_add_epi32(sums[r.value][c], _mm256_madd_epi16(pairs[r.value], _mm256_set1_epi16(1)));
    });
}

template <int R>
ALWAYS_INLINE void add_words(const uint8_t* codes, size_t words, const int8_t* a, size_t stride,
                             __m256i (&sums)[R][2]) {
    for (size_t i = 0; i < words; i += kStretch) {
        const size_t count = words - i < kStretch ? words - i : kStretch;
        add_stretch<R>(codes + i * 64, count, a + i * 8, stride, sums, 0);
        add_stretch<R>(codes + i * 64, count, a + i * 8, stride, sums, 1);
    }
}

}  // namespace

#include "tiles_avx2.h"

void linear_w4a8_avx2(const LinearW4A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_tiles(*p, row_begin, row_end, block_begin, block_end);
}
