// attention_cached, AVX-VNNI: a cell is four codes. See cells_avx2.h.
#include "cells_avx2.h"

namespace {

struct Bytes : Integers {
    using Right = __m256i;
    static constexpr size_t kLeft = 4;

    static ALWAYS_INLINE Right load_key(const char* at) { return _mm256_load_si256((const __m256i*)at); }
    static ALWAYS_INLINE Right load_value(const char* at) { return load_key(at); }
    static ALWAYS_INLINE __m256i broadcast(const char* at) { return broadcast_cell(at); }
    // In assembly, for GCC 12 copies every sum before and after the intrinsic.
    static ALWAYS_INLINE Sum multiply(Sum sum, __m256i without_sign, __m256i with_sign) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(without_sign), "x"(with_sign));
        return sum;
    }
    static ALWAYS_INLINE Sum add_key(Sum sum, Right key, __m256i query) { return multiply(sum, key, query); }
    static ALWAYS_INLINE Sum add_value(Sum sum, __m256i weights, Right value) { return multiply(sum, weights, value); }
    static ALWAYS_INLINE void store_weights(char* out, const __m256 (&x)[8]) {
        unroll<4>([&](auto n) INLINED {
            const __m128i low = words(x[2 * n.value]), high = words(x[2 * n.value + 1]);
            _mm_store_si128((__m128i*)out + n.value, _mm_packus_epi16(low, high));
        });
    }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        const float scale = row_codes(q, size, (int8_t*)out);
        *start = start_of((const int8_t*)out, size);
        return scale;
    }
};

}  // namespace

const CachedKernels kCachedAvxVnni = {append, attend<Narrow, Bytes, Halves>, merge};
