// bf16, eight values at a time. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "vectors/unroll.h"

namespace {

// To the nearest bf16, half to even, in the lower words of 32-bit lanes; a NaN stays one.
ALWAYS_INLINE __m256i to_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
}

}  // namespace
