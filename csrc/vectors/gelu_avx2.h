// GELU, eight values at a time. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "vectors/gelu.h"
#include "vectors/unroll.h"

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

}  // namespace
