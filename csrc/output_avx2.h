// From f32 to a linear's output, eight columns at a time. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "gelu.h"

#define INLINE inline __attribute__((always_inline))

namespace {

inline __m256 gelu(__m256 x) {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    const __m256 a = _mm256_min_ps(magnitude, _mm256_set1_ps(kGeluEnd));
    __m256 log2_q = _mm256_set1_ps(kGeluTail[8]);
    for (int i = 7; i >= 0; --i) log2_q = _mm256_fmadd_ps(log2_q, a, _mm256_set1_ps(kGeluTail[i]));
    const __m256 whole = _mm256_round_ps(log2_q, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 part = _mm256_sub_ps(log2_q, whole);
    __m256 q = _mm256_set1_ps(kExp2[5]);
    for (int i = 4; i >= 0; --i) q = _mm256_fmadd_ps(q, part, _mm256_set1_ps(kExp2[i]));
    // P(a) >= -41, so 2^whole is normal and its exponent can be added as an integer
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    q = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(q), exponent));
    return _mm256_fnmadd_ps(a, q,
                            _mm256_max_ps(_mm256_setzero_ps(), x));  // max returns its second operand if either is NaN
}

inline __m256i lane_mask(size_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(count < 8 ? count : 8)), lane);
}

// To the nearest bf16, half to even; a NaN stays one. The first `count` of eight.
inline void write_bf16(__m256 x, size_t count, uint16_t* out) {
    const __m256i bits = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    if (count >= 8) return _mm_storeu_si128((__m128i*)out, packed);
    alignas(16) uint16_t all[8];
    _mm_store_si128((__m128i*)all, packed);
    for (size_t i = 0; i < count; ++i) out[i] = all[i];
}

// The first `count` of eight columns, from element `at` of y on.
template <class Linear>
INLINE void write_output(const Linear& p, __m256 linear, size_t count, size_t at) {
    const __m256 y = p.gelu ? gelu(linear) : linear;
    if (p.bf16) {
        write_bf16(y, count, (uint16_t*)p.y + at);
    } else {
        _mm256_maskstore_ps((float*)p.y + at, lane_mask(count), y);
    }
}

}  // namespace
