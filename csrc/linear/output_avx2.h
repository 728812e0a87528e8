// From f32 to a linear's output, sixteen columns at a time. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "linear/output.h"
#include "vectors/bf16_avx2.h"
#include "vectors/gelu_avx2.h"
#include "vectors/unroll.h"

namespace {

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

// The activation of what will be the output.
template <int N, class Linear>
ALWAYS_INLINE void activate(const Linear& p, __m256 (&y)[N]) {
    if (p.activation == Activation::kNone) return;
    if (p.output != Output::kF32) return short_gelu(y);
    gelu(y);
}

// The first `count` of sixteen columns, from element `at` of y on.
template <class Linear>
ALWAYS_INLINE void write_floats(const Linear& p, __m256 low, __m256 high, size_t count, size_t at) {
    if (p.output == Output::kBf16) {
        const __m256i words = _mm256_packus_epi32(to_bf16(low), to_bf16(high));  // within 128-bit lanes
        store(_mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0)), count, (uint16_t*)p.y + at);
    } else {
        store(_mm256_castps_si256(low), _mm256_castps_si256(high), count, (float*)p.y + at);
    }
}

}  // namespace
