// linear_bf16 as the operator that linear/avx512.h describes: its operands, and from sums to floats. Shared by the
// AVX-512 and the AMX variants; everything is internal to the file that includes it.
#pragma once
#include "contract.h"
#include "linear/avx512.h"

namespace {

struct Bf16 {
    using Problem = LinearBf16;
    using Sum = float;

    static Operands operands(const LinearBf16& p) {
        return {(const char*)p.x, p.x_stride * 2, (const char*)p.weight, p.k_padded * 2};
    }

    template <int C, Output output>
    struct Values {
        __m512 bias[C];

        ALWAYS_INLINE Values(const LinearBf16& p, size_t, size_t n, size_t end) {
#pragma GCC unroll 4
            // a block past the end is computed from the first, and dropped
            for (int c = 0; c < C; ++c) bias[c] = _mm512_load_ps(p.bias + (n + c * 16 < end ? n + c * 16 : n));
        }

        template <int c>
        ALWAYS_INLINE __m512 of(const float* tile, size_t, Index<c>) const {
            return _mm512_add_ps(_mm512_load_ps(tile), bias[c]);
        }
    };
};

}  // namespace
