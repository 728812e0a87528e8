// What the AVX-512 VNNI and the AMX variant have in common. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "contract.h"
#include "linear/output_avx512.h"
#include "words.h"

namespace {

constexpr size_t kLanes = 16;  // columns of a block

// Sums that lack a bias only, of linear_w4a8 and linear_w4a16, as linear/output_avx512.h takes them.
template <class P>
struct Biased {
    using Problem = P;
    using Sum = float;

    template <int C, Output output>
    struct Values {
        __m512 bias[C];

        ALWAYS_INLINE Values(const P& p, size_t, size_t n, size_t) {
            unroll<C>([&](auto c) INLINED { bias[c.value] = _mm512_load_ps(p.bias + n + c.value * kLanes); });
        }

        template <int c>
        ALWAYS_INLINE __m512 of(const float* tile, size_t, Index<c>) const {
            return _mm512_add_ps(_mm512_load_ps(tile), bias[c]);
        }
    };
};

// y: [rows, C, 16].
template <int C, class P>
void write_rows(const P& p, const float* y, size_t rows, size_t m, size_t block) {
    for_epilogue<float>(p.activation, p.output, [&](auto known) {
        const Writer<Biased<P>, C, known.value> writer(p, m, block * kLanes, p.n);
        for (size_t r = 0; r < rows; ++r) writer.write(r, y + r * C * kLanes);
    });
}

// Runs of a word. Not intrinsics: GCC 12 would keep what it loaded for one field of a vector in registers until the
// next.
struct Block {
    template <int by>
    ALWAYS_INLINE static __m512i shifted(const uint8_t* at) {
        __m512i bytes;
        __asm__("vpsrlw %2, %1, %0" : "=v"(bytes) : "m"(*(const __m512i*)at), "i"(by));
        return bytes;
    }
    template <int shift, int width>
    ALWAYS_INLINE static __m512i field(const uint8_t* at) {
        const __m512i mask = _mm512_set1_epi8((1 << width) - 1);
        if constexpr (shift) return _mm512_and_si512(shifted<shift>(at), mask);
        __m512i bytes;
        __asm__("vpandd %2, %1, %0" : "=v"(bytes) : "v"(mask), "m"(*(const __m512i*)at));
        return bytes;
    }
    template <int from, int to>
    ALWAYS_INLINE static __m512i with_bit(__m512i field, const uint8_t* at) {
        const __m512i bit = _mm512_set1_epi8(1 << to);
        return _mm512_ternarylogic_epi32(field, shifted<from - to>(at), bit, 0xf8);  // the first, or both others
    }
};

// Of a block's scales, or of its minima.
ALWAYS_INLINE __m512 of_group(const Wna8& w, const void* values, size_t at) {
    if (!w.bf16_scale) return _mm512_load_ps((const float*)values + at);
    const __m256i words = _mm256_load_si256((const __m256i*)((const uint16_t*)values + at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

}  // namespace
