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

inline __mmask16 column_mask(size_t n, size_t end) {
    return n + 16 <= end ? (__mmask16)0xffff : n >= end ? (__mmask16)0 : (__mmask16)((1u << (end - n)) - 1);
}

// Write row r of C column blocks whose sums lie at tile + r * C * 16; m, n: the row and column of the output where the tile begins.
template <int C, bool Gelu>
inline void write_row(const LinearW8A8& p, const int32_t* tile, size_t r, size_t m, size_t n) {
    const __m512i zero = _mm512_set1_epi32(p.zero_m[m + r] + 128);
    const __m512 scale = _mm512_set1_ps(p.scale_m[m + r]);
    float* y = p.y + (m + r) * p.out_stride + n;
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
        const __m512i colsum = _mm512_load_si512(p.colsum + n + c * 16);
        const __m512 scale_n = _mm512_load_ps(p.scale_n + n + c * 16), bias = _mm512_load_ps(p.bias + n + c * 16);
        const __m512i sum = _mm512_load_si512(tile + (r * C + c) * 16);
        const __m512 t = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, colsum)));
        const __m512 v = _mm512_fmadd_ps(t, _mm512_mul_ps(scale, scale_n), bias);
        _mm512_mask_storeu_ps(y + c * 16, column_mask(n + c * 16, p.n), Gelu ? gelu(v) : v);
    }
}

template <int C>
inline void write_row_of_sums(const LinearW8A8& p, const int32_t* tile, size_t r, size_t m, size_t n) {
    int32_t* out = p.sums + (m + r) * p.out_stride + n;
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
        const __m512i sum = _mm512_load_si512(tile + (r * C + c) * 16);
        _mm512_mask_storeu_epi32(out + c * 16, column_mask(n + c * 16, p.n), sum);
    }
}

// Write rows [begin, end) of a tile.
template <int C>
__attribute__((noinline)) void write_rows(const LinearW8A8& p, const int32_t* tile, size_t begin, size_t end, size_t m, size_t n) {
    if (p.sums) {
        for (size_t r = begin; r < end; ++r) write_row_of_sums<C>(p, tile, r, m, n);
    } else if (p.gelu) {
        for (size_t r = begin; r < end; ++r) write_row<C, true>(p, tile, r, m, n);
    } else {
        for (size_t r = begin; r < end; ++r) write_row<C, false>(p, tile, r, m, n);
    }
}

}  // namespace
