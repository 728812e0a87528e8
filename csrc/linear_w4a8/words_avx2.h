// Runs of a word in 256-bit vectors: half of its columns. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "words.h"

namespace {

struct HalfBlock {
    template <int shift, int width>
    ALWAYS_INLINE static __m256i field(const uint8_t* at) {
        __m256i bytes = _mm256_load_si256((const __m256i*)at);
        if constexpr (shift) bytes = _mm256_srli_epi16(bytes, shift);
        return _mm256_and_si256(bytes, _mm256_set1_epi8((1 << width) - 1));
    }
    template <int from, int to>
    ALWAYS_INLINE static __m256i with_bit(__m256i field, const uint8_t* at) {
        const __m256i bytes = _mm256_srli_epi16(_mm256_load_si256((const __m256i*)at), from - to);
        return _mm256_or_si256(field, _mm256_and_si256(bytes, _mm256_set1_epi8(1 << to)));
    }
};

}  // namespace
