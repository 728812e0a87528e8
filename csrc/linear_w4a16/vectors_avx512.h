// What both variants of AVX-512 have in common, as tiles.h takes it. Everything is internal to the file that includes
// it.
#pragma once
#include <immintrin.h>

#include "contract.h"
#include "linear_w4a8/avx512.h"

namespace {

struct Avx512 {
    using F = __m512;
    using I = __m512i;
    static constexpr size_t kLanes = ::kLanes;
    static constexpr size_t kRows = 8;
    static constexpr int kSide[kRows] = {4, 4, 4, 2, 2, 1, 1, 1};

    // Once: GCC would load codes again for each shift, and loads are what few rows wait for.
    ALWAYS_INLINE static __m512i load(const uint8_t* at) {
        __m512i codes = _mm512_load_si512(at);
        __asm__("" : "+v"(codes));
        return codes;
    }
    ALWAYS_INLINE static __m512 load(const float* at) { return _mm512_load_ps(at); }
    ALWAYS_INLINE static void store(float* at, __m512 y) { _mm512_store_ps(at, y); }
    ALWAYS_INLINE static __m512 zero() { return _mm512_setzero_ps(); }
    ALWAYS_INLINE static __m512 set1(float x) { return _mm512_set1_ps(x); }
    ALWAYS_INLINE static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
    ALWAYS_INLINE static __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
    ALWAYS_INLINE static __m512i two_and_rest(__m512i two, __m512i rest) {
        return _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), two, rest, 0xca);  // the first says which
    }
    ALWAYS_INLINE static __m512 of_group(const Wna8& w, const void* values, size_t at) {
        return ::of_group(w, values, at);
    }
    ALWAYS_INLINE static __m512 minus_u8(const uint8_t* at) {
        const __m512i values = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)at));
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_setzero_si512(), values));
    }
    ALWAYS_INLINE static void write(const LinearW4A16& p, const float* y, size_t rows, size_t m, size_t block) {
        write_rows<1>(p, y, rows, m, block);
    }
};

}  // namespace
