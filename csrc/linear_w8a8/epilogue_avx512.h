// linear_w8a8 as the operator that linear/avx512.h describes: its operands, and from int32 sums to floats. Shared by
// the AVX-512 VNNI and the AMX variant; everything is internal to the file that includes it.
#pragma once
#include "contract.h"
#include "linear/avx512.h"

namespace {

struct W8A8 {
    using Problem = LinearW8A8;
    using Sum = int32_t;

    static Operands operands(const LinearW8A8& p) {
        return {(const char*)p.codes, p.code_stride, (const char*)p.weight, p.k_padded};
    }
    template <int C, Output output>
    struct Values {
        const float* scale_m;
        const int32_t* zero_m;
        __m512i colsum[C];
        __m512 scale_n[C], bias[C];

        ALWAYS_INLINE Values(const LinearW8A8& p, size_t m, size_t n, size_t end)
            : scale_m(p.scale_m + m), zero_m(p.zero_m + m) {
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                if (output == Output::kSums) continue;
                // a block past the end is computed from the first, and dropped
                const size_t at = n + c * 16 < end ? n + c * 16 : n;
                colsum[c] = _mm512_load_si512(p.colsum + at);
                scale_n[c] = _mm512_load_ps(p.scale_n + at);
                bias[c] = _mm512_load_ps(p.bias + at);
            }
        }

        template <int c>
        ALWAYS_INLINE __m512 of(const int32_t* tile, size_t r, Index<c>) const {
            const __m512i sum = _mm512_load_si512(tile);
            if constexpr (output == Output::kSums) return _mm512_castsi512_ps(sum);
            const __m512i zero = _mm512_set1_epi32(zero_m[r] + 128);
            const __m512i exact = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, colsum[c]));
            const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(scale_m[r]), scale_n[c]);
            return _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, bias[c]);
        }
    };
};

}  // namespace
