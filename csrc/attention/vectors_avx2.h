// Vectors of 8 f32 as columns.h wants them, without what depends on the cell. Everything is internal to the file that
// includes it.
#pragma once
#include <immintrin.h>

#include "common.h"
#include "vectors/bf16_avx2.h"
#include "vectors/unroll.h"

namespace {

struct Vectors {
    using V = __m256;
    static constexpr int kLanes = 8;

    static ALWAYS_INLINE V zero() { return _mm256_setzero_ps(); }
    static ALWAYS_INLINE V all(float x) { return _mm256_set1_ps(x); }
    static ALWAYS_INLINE V load(const char* at) { return _mm256_loadu_ps((const float*)at); }
    static ALWAYS_INLINE V broadcast(const char* at) { return _mm256_broadcast_ss((const float*)at); }
    static ALWAYS_INLINE void store(float* at, V x) { _mm256_storeu_ps(at, x); }
    static ALWAYS_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static ALWAYS_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
    static ALWAYS_INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
    static ALWAYS_INLINE V div(V a, V b) { return _mm256_div_ps(a, b); }
    static ALWAYS_INLINE V max(V a, V b) { return _mm256_max_ps(a, b); }  // b if either is NaN

    // Eight floats from `at` on, the last first.
    static ALWAYS_INLINE V reversed(const float* at) {
        return _mm256_permutevar8x32_ps(_mm256_loadu_ps(at), _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0));
    }

    // x in lanes [begin, end), else other.
    static ALWAYS_INLINE V between(V x, ptrdiff_t begin, ptrdiff_t end, V other) {
        const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256 from = _mm256_cmp_ps(lane, all((float)begin), _CMP_GE_OQ),
                     to = _mm256_cmp_ps(lane, all((float)end), _CMP_LT_OQ);
        return _mm256_blendv_ps(other, x, _mm256_and_ps(from, to));
    }

    // 2^x for x up to 127; 0 from -127.5 down; a NaN stays one.
    static ALWAYS_INLINE V power(V x) {
        const V magic = all(0x1.8p23f + 127.0f);  // its lowest bits take up the integer nearest to x, plus 127
        x = _mm256_max_ps(all(-127.0f), x);       // its second operand if either is NaN
        const V shifted = _mm256_add_ps(x, magic), part = _mm256_sub_ps(x, _mm256_sub_ps(shifted, magic));
        V y = all(kPower[3]);
        y = fma(y, part, all(kPower[2]));
        y = fma(y, part, all(kPower[1]));
        y = fma(y, part, all(kPower[0]));
        return mul(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
    }

    // To the nearest bf16, half to even; a NaN stays one.
    static ALWAYS_INLINE void store_bf16(uint16_t* out, V x, size_t) {
        const __m256i words = to_bf16(x);
        const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128((__m128i*)out, packed);
    }

    static ALWAYS_INLINE V widened(const uint16_t* x) {
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x));
        return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    }

    static bool finite(const uint16_t* x, size_t stride, size_t rows, size_t size) {
        __m128i largest = _mm_setzero_si128();
        for (size_t row = 0; row < rows; ++row, x += stride) {
            for (size_t i = 0; i < size; i += 8) {
                const __m128i bits = _mm_and_si128(_mm_loadu_si128((const __m128i*)(x + i)), _mm_set1_epi16(0x7fff));
                largest = _mm_max_epi16(largest, bits);
            }
        }
        return _mm_movemask_epi8(_mm_cmpgt_epi16(largest, _mm_set1_epi16(0x7f7f))) == 0;
    }
};

}  // namespace
