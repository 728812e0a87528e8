// GELU, sixteen values at a time. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "vectors/gelu.h"
#include "vectors/unroll.h"

namespace {

// y[i] = y[i] * x[i] + c for each c from the last but one of `terms` to the first.
template <int Terms, int N>
ALWAYS_INLINE void polynomial(__m512 (&y)[N], const __m512 (&x)[N], const float (&terms)[Terms]) {
    unroll<N>([&](auto i) INLINED { y[i.value] = _mm512_set1_ps(terms[Terms - 1]); });
    unroll<Terms - 1>([&](auto term) INLINED {
        const __m512 c = _mm512_set1_ps(terms[Terms - 2 - term.value]);
        unroll<N>([&](auto i) INLINED { y[i.value] = _mm512_fmadd_ps(y[i.value], x[i.value], c); });
    });
}

// The lesser of |x| and end; end of a NaN.
ALWAYS_INLINE __m512 magnitude(__m512 x, float end) {
    constexpr int kLesserMagnitude = 0b1010;  // without a sign
    return _mm512_range_ps(x, _mm512_set1_ps(end), kLesserMagnitude);
}

// max(x, 0) - a * q * 2^floor(power). A NaN stays one: vmaxps gives its second operand if either is NaN.
ALWAYS_INLINE __m512 gelu_of_tail(__m512 x, __m512 a, __m512 q, __m512 power) {
    return _mm512_fnmadd_ps(a, _mm512_scalef_ps(q, power), _mm512_max_ps(_mm512_setzero_ps(), x));
}

// GELU of N vectors, whose chains of fused multiply-adds run side by side.
template <int N>
ALWAYS_INLINE void gelu(__m512 (&x)[N]) {
    __m512 a[N], p[N], q[N], whole[N];
    unroll<N>([&](auto i) INLINED { a[i.value] = magnitude(x[i.value], kGeluEnd); });
    polynomial(p, a, kGeluTail);
    unroll<N>([&](auto i) INLINED {
        whole[i.value] = _mm512_roundscale_ps(p[i.value], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        p[i.value] = _mm512_sub_ps(p[i.value], whole[i.value]);
    });
    polynomial(q, p, kExp2);
    unroll<N>([&](auto i) INLINED { x[i.value] = gelu_of_tail(x[i.value], a[i.value], q[i.value], whole[i.value]); });
}

// The same for values that will be bf16 or codes, with fewer terms: 2^P = 2^floor(P) * 2^(the rest in [0, 1)), and
// vscalefps takes the floor by itself.
template <int N>
ALWAYS_INLINE void short_gelu(__m512 (&x)[N]) {
    __m512 a[N], p[N], q[N], rest[N];
    unroll<N>([&](auto i) INLINED { a[i.value] = magnitude(x[i.value], kGeluBf16End); });
    polynomial(p, a, kGeluBf16Tail);
    unroll<N>([&](auto i)
                  INLINED { rest[i.value] = _mm512_reduce_ps(p[i.value], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); });
    polynomial(q, rest, kExp2Bf16);
    unroll<N>([&](auto i) INLINED { x[i.value] = gelu_of_tail(x[i.value], a[i.value], q[i.value], p[i.value]); });
}

}  // namespace
