// attention_cached, AVX-VNNI: a cell is four codes. See cells_avx2.h.
#include "cells_avx2.h"

namespace {

// In assembly, for GCC 12 copies every sum before and after the intrinsic.
ALWAYS_INLINE __m256i multiply(__m256i sum, __m256i without_sign, __m256i with_sign) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(without_sign), "x"(with_sign));
    return sum;
}

struct Bytes : Packed {
    using Right = __m256i;

    static ALWAYS_INLINE Right load_key(const char* at, Index<0>) { return _mm256_load_si256((const __m256i*)at); }
    static ALWAYS_INLINE Right load_value(const char* at, Index<0> whole, const char*) { return load_key(at, whole); }
    static ALWAYS_INLINE Sum add_key(Sum sum, Right key, __m256i query) { return multiply(sum, key, query); }
    static ALWAYS_INLINE Sum add_value(Sum sum, __m256i weights, Right value) { return multiply(sum, weights, value); }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        float wide[kMaxHeadSize];
        rotated_query(q, size, wide);
        const float scale = row_codes(wide, size, (int8_t*)out);
        *start = start_of((const int8_t*)out, size);
        return scale;
    }
};

}  // namespace

const CachedKernels kCachedAvxVnni = {append, attend<Narrow, Bytes, Nibbles<multiply>, Halves>, merge};
