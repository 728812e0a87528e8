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

// vcvtneps2bf16 makes 0 of subnormals, and the first VNNI processors lack it. A file that leaves some rows to a variant
// without it defines ROUND_SUBNORMALS, to have the same bits.
#if defined(__AVX512BF16__) && !defined(ROUND_SUBNORMALS)
#define CONVERT_BF16
#endif

// To the nearest bf16, half to even; a NaN stays one.
ALWAYS_INLINE __m256i to_bf16(__m512 x) {
#ifdef CONVERT_BF16
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
#endif
}

// The same of two vectors, one after the other.
ALWAYS_INLINE __m512i to_bf16(__m512 a, __m512 b) {
#ifdef CONVERT_BF16
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
#else
    const auto rounded = [](__m512 x) INLINED {  // in the upper halves; a quiet NaN is one without its lower half
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
        return _mm512_mask_add_epi32(bits, number, bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    };
    const __m512i upper = _mm512_setr_epi32(0x00030001, 0x00070005, 0x000b0009, 0x000f000d, 0x00130011, 0x00170015,
                                            0x001b0019, 0x001f001d, 0x00230021, 0x00270025, 0x002b0029, 0x002f002d,
                                            0x00330031, 0x00370035, 0x003b0039, 0x003f003d);
    return _mm512_permutex2var_epi16(rounded(a), upper, rounded(b));
#endif
}

}  // namespace
