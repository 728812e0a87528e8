// Codes as pairs of bf16 levels. vpermw looks at the lowest five bits of each 16-bit lane only, and the table of levels
// is in it as often as it fits: a shifted vector of codes needs no mask. Everything is internal to the file that
// includes it.
#pragma once
#include <immintrin.h>

#include "index.h"
#include "levels.h"
#include "vectors_avx512.h"

namespace {

struct Pairs : Avx512 {
    static constexpr int kParts = 2;  // of a run: values 0 and 2, and 1 and 3
    __m512i levels;

    explicit Pairs(const Levels& of) : levels(_mm512_load_si512(of.bf16)) {}

    template <int by>
    ALWAYS_INLINE static __m512i shifted(__m512i v) {
        return by ? _mm512_srli_epi16(v, by) : v;
    }
    template <int bits>
    ALWAYS_INLINE __m512i weights(__m512i index) const {
        return _mm512_permutexvar_epi16(index, levels);
    }
};

}  // namespace
