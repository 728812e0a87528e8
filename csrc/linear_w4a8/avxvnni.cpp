// linear_w4a8, AVX-VNNI: vpdpbusd in 256 bits, for processors without AVX-512. Tiles of 4 rows x 16 columns.
// Layout: contract.h. A step of eight K values of 4 bits is 2 loads, 4 ANDs and 2 shifts, 8 broadcasts of codes, 16
// vpdpbusd. Bound: memory up to 4 rows, then compute. vpdpbusd is 64 operations; two a cycle are the roofline.
#include <immintrin.h>

#include "contract.h"
#include "words_avx2.h"

namespace {

// Levels are from 1 on, as vpdpbusd takes them: 128 above what they are.
constexpr int kLevelZero = 128;
ALWAYS_INLINE __m256i levels_of(__m256i levels) { return _mm256_xor_si256(levels, _mm256_set1_epi8(-128)); }

template <int bits, bool has_levels, int R>
ALWAYS_INLINE void add_words(const uint8_t* codes, size_t words, const int8_t* a, size_t stride, __m256i levels,
                             __m256i (&sums)[R][2]) {
    // Of a sum, that do not wait for one another: few would. More than 8 of all sums would leave no registers.
    constexpr int chains = R <= 2 ? 2 : 1;
    __m256i parts[chains][R][2];
    unroll<R * 2>([&](auto i) INLINED {
        constexpr int r = i.value / 2, c = i.value % 2;
        parts[chains - 1][r][c] = _mm256_setzero_si256();
        parts[0][r][c] = sums[r][c];
    });
    for (size_t i = 0; i < words; ++i, codes += Word<bits>::bytes, a += Word<bits>::values) {
        unroll<Word<bits>::runs>([&](auto run) INLINED {
            unroll<2>([&](auto c) INLINED {
                __m256i w = Word<bits>::template run_of<HalfBlock>(codes + c.value * 32, run);
                if constexpr (has_levels) w = _mm256_shuffle_epi8(levels, w);
                unroll<R>([&](auto r) INLINED {
                    int32_t x;
                    __builtin_memcpy(&x, a + r.value * stride + run.value * 4, 4);
                    __m256i& sum = parts[run.value % chains][r.value][c.value];
                    sum = _mm256_dpbusd_avx_epi32(sum, w, _mm256_set1_epi32(x));
                });
            });
        });
    }
    unroll<R * 2>([&](auto i) INLINED {
        constexpr int r = i.value / 2, c = i.value % 2;
        sums[r][c] = parts[0][r][c];
        if (chains == 2) sums[r][c] = _mm256_add_epi32(sums[r][c], parts[chains - 1][r][c]);
    });
}

}  // namespace

#include "tiles_avx2.h"

void linear_w4a8_avxvnni(const LinearW4A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_tiles(*p, row_begin, row_end, block_begin, block_end);
}
