// From int32 sums in a small tile (L1) to the output. Shared by the AVX-512 VNNI and the AMX variant; everything is internal
// to the file that includes it.
#pragma once
#include <immintrin.h>

#include "contract.h"

#define FLATTEN __attribute__((always_inline))  // after a lambda's parameters
#define ALWAYS_INLINE inline FLATTEN

namespace {

template <int I>
struct Index {
    static constexpr int value = I;
};

// f(Index<0>), ..., f(Index<N - 1>). GCC 12 keeps an array in registers only if every subscript is a constant before
// its loops are unrolled; in a plain loop it stores each element to the stack after each instruction.
template <int N, class F>
ALWAYS_INLINE void unroll(F f) {
    if constexpr (N > 1) unroll<N - 1>(f);
    f(Index<N - 1>{});
}

// GELU of N vectors, whose chains of fused multiply-adds run side by side.
template <int N>
ALWAYS_INLINE void gelu(__m512 (&x)[N]) {
    __m512 a[N], p[N], q[N];
    unroll<N>([&](auto i) FLATTEN { a[i.value] = _mm512_min_ps(_mm512_abs_ps(x[i.value]), _mm512_set1_ps(kGeluEnd)); });
    unroll<N>([&](auto i) FLATTEN { p[i.value] = _mm512_set1_ps(kGeluTail[8]); });
    unroll<8>([&](auto term) FLATTEN {
        const __m512 c = _mm512_set1_ps(kGeluTail[7 - term.value]);
        unroll<N>([&](auto i) FLATTEN { p[i.value] = _mm512_fmadd_ps(p[i.value], a[i.value], c); });
    });
    unroll<N>([&](auto i) FLATTEN { q[i.value] = _mm512_set1_ps(kExp2[5]); });
    __m512 whole[N];
    unroll<N>([&](auto i) FLATTEN {
        whole[i.value] = _mm512_roundscale_ps(p[i.value], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        p[i.value] = _mm512_sub_ps(p[i.value], whole[i.value]);
    });
    unroll<5>([&](auto term) FLATTEN {
        const __m512 c = _mm512_set1_ps(kExp2[4 - term.value]);
        unroll<N>([&](auto i) FLATTEN { q[i.value] = _mm512_fmadd_ps(q[i.value], p[i.value], c); });
    });
    unroll<N>([&](auto i) FLATTEN {
        const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x[i.value]);  // its second operand if either is NaN
        x[i.value] = _mm512_fnmadd_ps(a[i.value], _mm512_scalef_ps(q[i.value], whole[i.value]), positive);
    });
}

enum Output { kSums, kLinear, kGelu };

inline Output output_of(const LinearW8A8& p) { return p.sums ? kSums : p.gelu ? kGelu : kLinear; }

// Lanes of the column block at column n that come before column `end`.
inline __mmask16 column_mask(size_t n, size_t end) {
    return n + 16 <= end ? (__mmask16)0xffff : n >= end ? (__mmask16)0 : (__mmask16)((1u << (end - n)) - 1);
}

// Writes C column blocks from row m, column n of the output on, up to column `end`. A value of its own, not a set of loads from LinearW8A8 in each
// row: the stores of the output could alias those, as far as the compiler knows.
template <int C, Output kind>
struct Writer {
    int32_t* sums;
    float* y;
    size_t stride;
    const float* scale_m;
    const int32_t* zero_m;
    __m512i colsum[C];
    __m512 scale_n[C], bias[C];
    __mmask16 mask[C];

    ALWAYS_INLINE Writer(const LinearW8A8& p, size_t m, size_t n, size_t end)
        : sums(p.sums + m * p.out_stride + n),
          y(p.y + m * p.out_stride + n),
          stride(p.out_stride),
          scale_m(p.scale_m + m),
          zero_m(p.zero_m + m) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            mask[c] = column_mask(n + c * 16, end);
            if (kind == kSums) continue;
            const size_t at = mask[c] ? n + c * 16 : n;  // a block past the end is computed from the first, and dropped
            colsum[c] = _mm512_load_si512(p.colsum + at);
            scale_n[c] = _mm512_load_ps(p.scale_n + at);
            bias[c] = _mm512_load_ps(p.bias + at);
        }
    }

    // Row r, from C * 16 sums.
    ALWAYS_INLINE void write(size_t r, const int32_t* tile) const {
        const __m512i zero = _mm512_set1_epi32(kind == kSums ? 0 : zero_m[r] + 128);
        const __m512 scale = _mm512_set1_ps(kind == kSums ? 0.0f : scale_m[r]);
        __m512 v[C];
        unroll<C>([&](auto c) FLATTEN {
            const __m512i sum = _mm512_load_si512(tile + c.value * 16);
            if constexpr (kind == kSums) {
                _mm512_mask_storeu_epi32(sums + r * stride + c.value * 16, mask[c.value], sum);
            } else {
                const __m512 t = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, colsum[c.value])));
                v[c.value] = _mm512_fmadd_ps(t, _mm512_mul_ps(scale, scale_n[c.value]), bias[c.value]);
            }
        });
        if constexpr (kind == kGelu) gelu(v);
        if constexpr (kind != kSums) {
            unroll<C>([&](auto c) FLATTEN {
                _mm512_mask_storeu_ps(y + r * stride + c.value * 16, mask[c.value], v[c.value]);
            });
        }
    }
};

}  // namespace
