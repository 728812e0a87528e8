// linear_w4a8, AVX2: vpmaddubsw of four bits and codes, whose pair sums are exact: 2 * 15 * 127 = 3810. Eight of them,
// 32 values of K, still fit into 16 bits (of 3 and 2 bits more), so that only then a vpmaddwd widens their sum. Tiles
// of 4 rows x 16 columns. Layout: contract.h. A step of eight K values of 4 bits is 2 loads, 4 ANDs and 2 shifts, 8
// broadcasts of codes, 16 vpmaddubsw and as many vpaddw. Bound: memory up to 2 rows, then compute. vpmaddubsw + vpaddw
// are 64 operations in two instructions. Levels are as wide as codes of rows: their magnitudes times codes that have
// their signs, 2 * 128 * 127 = 32512 for a pair, are widened at once.
#include <immintrin.h>

#include "contract.h"
#include "words_avx2.h"

namespace {

template <int bits>
constexpr size_t kStretch = INT16_MAX / (2 * 127 * ((1 << bits) - 1)) / Word<bits>::runs;  // words whose pair sums fit

// sums + codes * a of up to kStretch words, for half a block.
template <int bits, int R>
ALWAYS_INLINE void add_stretch(const uint8_t* codes, size_t words, const int8_t* a, size_t stride,
                               __m256i (&sums)[R][2], int c) {
    __m256i pairs[R];
    unroll<R>([&](auto r) INLINED { pairs[r.value] = _mm256_setzero_si256(); });
    for (size_t i = 0; i < words; ++i, codes += Word<bits>::bytes, a += Word<bits>::values) {
        unroll<Word<bits>::runs>([&](auto run) INLINED {
            const __m256i w = Word<bits>::template run_of<HalfBlock>(codes + c * 32, run);
            unroll<R>([&](auto r) INLINED {
                int32_t x;
                __builtin_memcpy(&x, a + r.value * stride + run.value * 4, 4);
                pairs[r.value] = _mm256_add_epi16(pairs[r.value], _mm256_maddubs_epi16(w, _mm256_set1_epi32(x)));
                __asm__("" : "+x"(pairs[r.value]));  // else GCC 12 adds in a tree, and keeps all products on the stack
            });
        });
    }
    unroll<R>([&](auto r) INLINED {
        sums[r.value][c] = _mm256_add_epi32(sums[r.value][c], _mm256_madd_epi16(pairs[r.value], _mm256_set1_epi16(1)));
    });
}

// The same of levels.
template <int bits, int R>
ALWAYS_INLINE void add_levels(const uint8_t* codes, size_t words, const int8_t* a, size_t stride, __m256i levels,
                              __m256i (&sums)[R][2]) {
    for (size_t i = 0; i < words; ++i, codes += Word<bits>::bytes, a += Word<bits>::values) {
        unroll<2 * Word<bits>::runs>([&](auto i) INLINED {
            constexpr int c = i.value % 2, run = i.value / 2;
            const __m256i code = Word<bits>::template run_of<HalfBlock>(codes + c * 32, Index<run>{});
            const __m256i w = _mm256_shuffle_epi8(levels, code), magnitude = _mm256_abs_epi8(w);
            unroll<R>([&](auto r) INLINED {
                int32_t x;
                __builtin_memcpy(&x, a + r.value * stride + run * 4, 4);
                const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(_mm256_set1_epi32(x), w));
                __m256i& sum = sums[r.value][c];
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                __asm__("" : "+x"(sum));
            });
        });
    }
}

constexpr int kLevelZero = 0;
ALWAYS_INLINE __m256i levels_of(__m256i levels) { return levels; }

template <int bits, bool has_levels, int R>
ALWAYS_INLINE void add_words(const uint8_t* codes, size_t words, const int8_t* a, size_t stride, __m256i levels,
                             __m256i (&sums)[R][2]) {
    if constexpr (has_levels) return add_levels<bits, R>(codes, words, a, stride, levels, sums);
    for (size_t i = 0; i < words; i += kStretch<bits>) {
        const size_t count = words - i < kStretch<bits> ? words - i : kStretch<bits>;
        const uint8_t* from = codes + i * Word<bits>::bytes;
        add_stretch<bits, R>(from, count, a + i * Word<bits>::values, stride, sums, 0);
        add_stretch<bits, R>(from, count, a + i * Word<bits>::values, stride, sums, 1);
    }
}

}  // namespace

#include "tiles_avx2.h"

void linear_w4a8_avx2(const LinearW4A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_tiles(*p, row_begin, row_end, block_begin, block_end);
}
