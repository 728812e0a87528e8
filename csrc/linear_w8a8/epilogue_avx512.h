// From int32 sums in a small tile (L1) to the output. Shared by the AVX-512 VNNI and the AMX variant; everything is
// internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "contract.h"

#define INLINED __attribute__((always_inline))  // after a lambda's parameters
#define ALWAYS_INLINE inline INLINED

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
    unroll<N>([&](auto i) INLINED { a[i.value] = _mm512_min_ps(_mm512_abs_ps(x[i.value]), _mm512_set1_ps(kGeluEnd)); });
    unroll<N>([&](auto i) INLINED { p[i.value] = _mm512_set1_ps(kGeluTail[8]); });
    unroll<8>([&](auto term) INLINED {
        const __m512 c = _mm512_set1_ps(kGeluTail[7 - term.value]);
        unroll<N>([&](auto i) INLINED { p[i.value] = _mm512_fmadd_ps(p[i.value], a[i.value], c); });
    });
    unroll<N>([&](auto i) INLINED { q[i.value] = _mm512_set1_ps(kExp2[5]); });
    __m512 whole[N];
    unroll<N>([&](auto i) INLINED {
        whole[i.value] = _mm512_roundscale_ps(p[i.value], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        p[i.value] = _mm512_sub_ps(p[i.value], whole[i.value]);
    });
    unroll<5>([&](auto term) INLINED {
        const __m512 c = _mm512_set1_ps(kExp2[4 - term.value]);
        unroll<N>([&](auto i) INLINED { q[i.value] = _mm512_fmadd_ps(q[i.value], p[i.value], c); });
    });
    unroll<N>([&](auto i) INLINED {
        const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x[i.value]);  // its second operand if either is NaN
        x[i.value] = _mm512_fnmadd_ps(a[i.value], _mm512_scalef_ps(q[i.value], whole[i.value]), positive);
    });
}

enum Output { kSums, kLinear, kGelu, kLinearBf16, kGeluBf16 };

constexpr bool is_gelu(Output kind) { return kind == kGelu || kind == kGeluBf16; }
constexpr bool is_bf16(Output kind) { return kind == kLinearBf16 || kind == kGeluBf16; }

inline Output output_of(const LinearW8A8& p) {
    if (p.sums) return kSums;
    return p.bf16 ? (p.gelu ? kGeluBf16 : kLinearBf16) : (p.gelu ? kGelu : kLinear);
}

// Where row m, column n of the output lies.
inline char* output_at(const LinearW8A8& p, size_t m, size_t n) {
    return (p.sums ? (char*)p.sums : (char*)p.y) + (m * p.out_stride + n) * (!p.sums && p.bf16 ? 2 : 4);
}

// To the nearest bf16, half to even; a NaN stays one. In integers, because vcvtneps2bf16 is missing on the first VNNI
// processors and flushes subnormals on the others.
ALWAYS_INLINE __m256i to_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
}

// Lanes of the column block at column n that come before column `end`.
inline __mmask16 column_mask(size_t n, size_t end) {
    return n + 16 <= end ? (__mmask16)0xffff : n >= end ? (__mmask16)0 : (__mmask16)((1u << (end - n)) - 1);
}

// Writes C column blocks from row m, column n of the output on, up to column `end`. A value of its own, not a set of
// loads from LinearW8A8 in each row: the stores of the output could alias those, as far as the compiler knows.
template <int C, Output kind>
struct Writer {
    char* out;
    size_t row_bytes;
    const float* scale_m;
    const int32_t* zero_m;
    __m512i colsum[C];
    __m512 scale_n[C], bias[C];
    __mmask16 mask[C];

    ALWAYS_INLINE Writer(const LinearW8A8& p, size_t m, size_t n, size_t end)
        : out(output_at(p, m, n)),
          row_bytes(p.out_stride * (is_bf16(kind) ? 2 : 4)),
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

    // Rows r to r + R - 1, from R * C * 16 sums. A GELU is one long chain of dependent operations: R * C of them side by
    // side hide its latency.
    template <int R = 1>
    ALWAYS_INLINE void write(size_t r, const int32_t* tile) const {
        __m512 v[R * C];
        unroll<R>([&](auto i) INLINED {
            const __m512i zero = _mm512_set1_epi32(kind == kSums ? 0 : zero_m[r + i.value] + 128);
            const __m512 scale = _mm512_set1_ps(kind == kSums ? 0.0f : scale_m[r + i.value]);
            unroll<C>([&](auto c) INLINED {
                const __m512i sum = _mm512_load_si512(tile + (i.value * C + c.value) * 16);
                if constexpr (kind == kSums) {
                    _mm512_mask_storeu_epi32(at(r + i.value, c.value), mask[c.value], sum);
                } else {
                    const __m512i exact = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, colsum[c.value]));
                    v[i.value * C + c.value] = _mm512_fmadd_ps(
                        _mm512_cvtepi32_ps(exact), _mm512_mul_ps(scale, scale_n[c.value]), bias[c.value]);
                }
            });
        });
        if constexpr (kind == kSums) return;
        if constexpr (is_gelu(kind)) gelu(v);
        unroll<R>([&](auto i) INLINED {
            unroll<C>([&](auto c) INLINED {
                const __m512 y = v[i.value * C + c.value];
                if constexpr (is_bf16(kind)) {
                    _mm256_mask_storeu_epi16(at(r + i.value, c.value), mask[c.value], to_bf16(y));
                } else {
                    _mm512_mask_storeu_ps(at(r + i.value, c.value), mask[c.value], y);
                }
            });
        });
    }

    ALWAYS_INLINE char* at(size_t r, int c) const { return out + r * row_bytes + c * (is_bf16(kind) ? 32 : 64); }
};

}  // namespace
