// linear_w8a8 by vpdpbusd in 512 bits: tiles of 6 rows x 64 columns in 24 registers. Shared by the variants that differ
// in how they round to bf16; everything is internal to the file that includes it.
// Layout: contract.h. One step of four K values is 4 loads of weights, 6 broadcasts of codes, 24 vpdpbusd.
// Bound: compute. vpdpbusd is 128 operations; one (Zen 4) or two (Zen 5, Sapphire Rapids) a cycle are the roofline. 16
// outputs at K = 384 are 96 of them, and some 8 instructions more, in bf16 with GELU 23.
#pragma once
#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

namespace {

struct Vnni : W8A8 {
    static ALWAYS_INLINE __m512i zero() { return _mm512_setzero_si512(); }
    static ALWAYS_INLINE __m512i multiply_add(__m512i acc, __m512i x, __m512i w) {
        return _mm512_dpbusd_epi32(acc, x, w);
    }
    template <int R, int C>
    static constexpr auto sums = dot_sums<Vnni, R, C>;
};

}  // namespace
