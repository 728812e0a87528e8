// From int32 sums in a small tile (L1) to the output. Shared by the AVX-512 VNNI and the AMX variant; everything is internal
// to the file that includes it.
#pragma once
#include <immintrin.h>

#include "contract.h"

namespace {

inline __m512 gelu(__m512 x) {
    const __m512 a = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(kGeluEnd));
    __m512 log2_q = _mm512_set1_ps(kGeluTail[8]);
#pragma GCC unroll 8
    for (int i = 7; i >= 0; --i) log2_q = _mm512_fmadd_ps(log2_q, a, _mm512_set1_ps(kGeluTail[i]));
    const __m512 whole = _mm512_roundscale_ps(log2_q, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(log2_q, whole);
    __m512 q = _mm512_set1_ps(kExp2[5]);
#pragma GCC unroll 5
    for (int i = 4; i >= 0; --i) q = _mm512_fmadd_ps(q, part, _mm512_set1_ps(kExp2[i]));
    q = _mm512_scalef_ps(q, whole);
    return _mm512_fnmadd_ps(a, q, _mm512_max_ps(_mm512_setzero_ps(), x));  // max returns its second operand if either is NaN
}

enum Output { kSums, kLinear, kGelu };

inline Output output_of(const LinearW8A8& p) { return p.sums ? kSums : p.gelu ? kGelu : kLinear; }

// Lanes of the column block at column n that exist.
inline __mmask16 column_mask(const LinearW8A8& p, size_t n) {
    return n + 16 <= p.n ? (__mmask16)0xffff : n >= p.n ? (__mmask16)0 : (__mmask16)((1u << (p.n - n)) - 1);
}

// Write row m of C column blocks from column n on; masks: `column_mask` of each.
template <int C, Output kind>
inline __attribute__((always_inline)) void write_row(const LinearW8A8& p, const int32_t* sums, size_t m, size_t n, const __mmask16* masks) {
    const size_t at = m * p.out_stride + n;
    if constexpr (kind == kSums) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) _mm512_mask_storeu_epi32(p.sums + at + c * 16, masks[c], _mm512_load_si512(sums + c * 16));
        return;
    }
    const __m512i zero = _mm512_set1_epi32(p.zero_m[m] + 128);
    const __m512 scale = _mm512_set1_ps(p.scale_m[m]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
        const __m512i offset = _mm512_mullo_epi32(zero, _mm512_load_si512(p.colsum + n + c * 16));
        const __m512 t = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums + c * 16), offset));
        const __m512 scales = _mm512_mul_ps(scale, _mm512_load_ps(p.scale_n + n + c * 16));
        const __m512 y = _mm512_fmadd_ps(t, scales, _mm512_load_ps(p.bias + n + c * 16));
        _mm512_mask_storeu_ps(p.y + at + c * 16, masks[c], kind == kGelu ? gelu(y) : y);
    }
}

}  // namespace
