// From f32 to a linear's output, sixteen columns at a time. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "bf16_avx2.h"
#include "gelu.h"
#include "unroll.h"

namespace {

// q * 2^whole; the result must be normal, so that whole can be added to the exponent as an integer.
ALWAYS_INLINE __m256 scale_by_power(__m256 q, __m256 whole) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(q), exponent));
}

// max(x, 0) - a * q. A NaN stays one: vmaxps gives its second operand if either is NaN.
ALWAYS_INLINE __m256 gelu_of_tail(__m256 x, __m256 a, __m256 q) {
    return _mm256_fnmadd_ps(a, q, _mm256_max_ps(_mm256_setzero_ps(), x));
}

ALWAYS_INLINE __m256 magnitude(__m256 x, float end) {
    return _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x), _mm256_set1_ps(end));
}

// y[i] = y[i] * x[i] + c for each c from the last but one of `terms` to the first.
template <int Terms, int N>
ALWAYS_INLINE void polynomial(__m256 (&y)[N], const __m256 (&x)[N], const float (&terms)[Terms]) {
    unroll<N>([&](auto i) INLINED { y[i.value] = _mm256_set1_ps(terms[Terms - 1]); });
    unroll<Terms - 1>([&](auto term) INLINED {
        const __m256 c = _mm256_set1_ps(terms[Terms - 2 - term.value]);
        unroll<N>([&](auto i) INLINED { y[i.value] = _mm256_fmadd_ps(y[i.value], x[i.value], c); });
    });
}

// GELU of N vectors, whose chains of fused multiply-adds run side by side.
template <int N>
ALWAYS_INLINE void gelu(__m256 (&x)[N]) {
    __m256 a[N], p[N], q[N], whole[N];
    unroll<N>([&](auto i) INLINED { a[i.value] = magnitude(x[i.value], kGeluEnd); });
    polynomial(p, a, kGeluTail);
    unroll<N>([&](auto i) INLINED {
        whole[i.value] = _mm256_round_ps(p[i.value], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        p[i.value] = _mm256_sub_ps(p[i.value], whole[i.value]);
    });
    polynomial(q, p, kExp2);
    unroll<N>([&](auto i) INLINED {  // P(a) >= -41
        x[i.value] = gelu_of_tail(x[i.value], a[i.value], scale_by_power(q[i.value], whole[i.value]));
    });
}

// The same for values that will be bf16 or codes, with fewer terms.
template <int N>
ALWAYS_INLINE void short_gelu(__m256 (&x)[N]) {
    __m256 a[N], p[N], q[N], whole[N];
    unroll<N>([&](auto i) INLINED { a[i.value] = magnitude(x[i.value], kGeluBf16End); });
    polynomial(p, a, kGeluBf16Tail);
    unroll<N>([&](auto i) INLINED {
        whole[i.value] = _mm256_floor_ps(p[i.value]);
        p[i.value] = _mm256_sub_ps(p[i.value], whole[i.value]);
    });
    polynomial(q, p, kExp2Bf16);
    unroll<N>([&](auto i) INLINED {  // P(a) >= -26
        x[i.value] = gelu_of_tail(x[i.value], a[i.value], scale_by_power(q[i.value], whole[i.value]));
    });
}

// The first `count` elements of a vector. Not a masked store: on AMD that takes as long as ten others.
template <class T>
ALWAYS_INLINE void store(__m256i x, size_t count, T* out) {
    constexpr size_t lanes = sizeof x / sizeof(T);
    if (count >= lanes) return _mm256_storeu_si256((__m256i*)out, x);
    alignas(32) T all[lanes];
    _mm256_store_si256((__m256i*)all, x);
    for (size_t i = 0; i < count; ++i) out[i] = all[i];
}

// The first `count` of sixteen 32-bit values.
template <class T>
ALWAYS_INLINE void store(__m256i low, __m256i high, size_t count, T* out) {
    store(low, count, out);
    if (count > 8) store(high, count - 8, out + 8);
}

// GELU, if the linear has one, of what will be f32 or bf16.
template <int N, class Linear>
ALWAYS_INLINE void activate(const Linear& p, __m256 (&y)[N]) {
    if (!p.gelu) return;
    if (p.bf16) return short_gelu(y);
    gelu(y);
}

// The first `count` of sixteen columns, from element `at` of y on.
template <class Linear>
ALWAYS_INLINE void write_floats(const Linear& p, __m256 low, __m256 high, size_t count, size_t at) {
    if (p.bf16) {
        const __m256i words = _mm256_packus_epi32(to_bf16(low), to_bf16(high));  // within 128-bit lanes
        store(_mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0)), count, (uint16_t*)p.y + at);
    } else {
        store(_mm256_castps_si256(low), _mm256_castps_si256(high), count, (float*)p.y + at);
    }
}

}  // namespace
