// attention_cached, AVX2: codes are widened to words as they are loaded, the even ones and the odd ones of a cell,
// since vpmaddubsw would saturate. See cells_avx2.h.
#include "cells_avx2.h"

namespace {

struct Words : Integers {
    struct Right {
        __m256i even, odd;
    };
    static constexpr size_t kLeft = 8;

    static ALWAYS_INLINE Right load_key(const char* at, Index<0>) {
        const __m256i cells = _mm256_load_si256((const __m256i*)at);
        return {_mm256_and_si256(cells, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(cells, 8)};
    }
    static ALWAYS_INLINE Right load_value(const char* at, Index<0>, const char*) {
        const __m256i cells = _mm256_load_si256((const __m256i*)at);
        return {_mm256_srai_epi16(_mm256_slli_epi16(cells, 8), 8), _mm256_srai_epi16(cells, 8)};
    }
    static ALWAYS_INLINE Right broadcast(const char* at) { return {broadcast_cell(at), broadcast_cell(at + 4)}; }
    static ALWAYS_INLINE Sum add_key(Sum sum, Right key, Right query) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(key.even, query.even));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(key.odd, query.odd));
    }
    static ALWAYS_INLINE Sum add_value(Sum sum, Right weights, Right value) { return add_key(sum, value, weights); }
    // Each cell as the words 0, 2, 1, 3.
    static ALWAYS_INLINE void store_weights(char* out, const __m256 (&x)[8]) {
        const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
        unroll<8>([&](auto n) INLINED {
            _mm_store_si128((__m128i*)out + n.value, _mm_shuffle_epi8(words(x[n.value]), order));
        });
    }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        float wide[kMaxHeadSize];
        rotated_query(q, size, wide);
        int8_t codes[kMaxHeadSize];
        const float scale = row_codes(wide, size, codes);
        int16_t* to = (int16_t*)out;
        for (size_t i = 0; i < size; i += 4, to += 4) {
            to[0] = codes[i], to[1] = codes[i + 2], to[2] = codes[i + 1], to[3] = codes[i + 3];
        }
        *start = start_of(codes, size);
        return scale;
    }
};

// Products of codes of 4 bits fit into words, unlike those of 8: sums of two are at most 2 * 255 * 15.
ALWAYS_INLINE __m256i multiply(__m256i sum, __m256i without_sign, __m256i with_sign) {
    const __m256i twos = _mm256_maddubs_epi16(without_sign, with_sign);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
}

}  // namespace

const CachedKernels kCachedAvx2 = {append, attend<Narrow, Words, Nibbles<multiply>, Halves>, merge};
