// bf16, sixteen values at a time. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "vectors/unroll.h"

namespace {

// 16 values, zero where masked.
ALWAYS_INLINE __m512 load16(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }

ALWAYS_INLINE __m512 load16(const uint16_t* x, __mmask16 mask) {  // bf16 is the upper half of f32
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

// To the nearest bf16, half to even; a NaN stays one. vcvtneps2bf16 makes 0 of subnormals; the first VNNI processors
// lack it.
ALWAYS_INLINE __m256i to_bf16(__m512 x) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
#endif
}

}  // namespace
