// From sums in a small tile (L1) to a linear's output. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "linear/output.h"
#include "vectors/bf16_avx512.h"
#include "vectors/gelu_avx512.h"
#include "vectors/masks_avx512.h"
#include "vectors/unroll.h"

namespace {

// What a linear's sums become, as a type of its own for each combination: code is made for one of them.
struct Epilogue {
    Activation activation;
    Output output;
};

template <Epilogue epilogue>
using Known = std::integral_constant<Epilogue, epilogue>;

template <Output output, class F>
ALWAYS_INLINE void for_activation(Activation activation, F f) {
    if (activation == Activation::kGelu) return f(Known<Epilogue{Activation::kGelu, output}>{});
    f(Known<Epilogue{Activation::kNone, output}>{});
}

// f of the epilogue as a type.
template <class Sum, class F>
ALWAYS_INLINE void for_epilogue(Activation activation, Output output, F f) {
    if constexpr (std::is_same_v<Sum, int32_t>) {
        if (output == Output::kCodes) return for_activation<Output::kCodes>(activation, f);
        if (output == Output::kSums) return f(Known<Epilogue{Activation::kNone, Output::kSums}>{});
    }
    if (output == Output::kBf16) return for_activation<Output::kBf16>(activation, f);
    for_activation<Output::kF32>(activation, f);
}

constexpr size_t value_bytes(Output output) { return output == Output::kCodes ? 1 : output == Output::kBf16 ? 2 : 4; }

template <Epilogue epilogue, int N>
ALWAYS_INLINE void activate(__m512 (&v)[N]) {
    if constexpr (epilogue.activation == Activation::kGelu) {
        if constexpr (epilogue.output == Output::kF32) {
            gelu(v);
        } else {
            short_gelu(v);
        }
    }
}

// Codes on a static grid, of C column blocks from column n on.
template <int C>
struct Coder {
    const float *shift[C], *multiplier[C];  // not their values: registers are short
    __m512 inv;
    __m512i zero, lowest;  // in 16 and in 8 bits

    template <class Problem>
    ALWAYS_INLINE Coder(const Problem& p, size_t n, size_t end)
        : inv(_mm512_set1_ps(1.0f / p.grid.scale)),
          zero(_mm512_set1_epi16((short)(p.grid.zero_point + 128))),
          lowest(_mm512_set1_epi8((char)(p.grid.code_min + 128))) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            const size_t at = n + c * 16 < end ? n + c * 16 : n;
            shift[c] = p.grid.shift ? p.grid.shift + at : nullptr;
            multiplier[c] = p.grid.multiplier ? p.grid.multiplier + at : nullptr;
        }
    }

    // Codes of up to four vectors, of rows of C, in order.
    template <int N>
    ALWAYS_INLINE __m512i of(__m512 (&y)[N]) const {
        if (multiplier[0]) {
            unroll<N>([&](auto i) INLINED {
                constexpr int c = i.value % C;
                y[i.value] = _mm512_sub_ps(y[i.value], _mm512_loadu_ps(shift[c]));
                y[i.value] = _mm512_mul_ps(y[i.value], _mm512_loadu_ps(multiplier[c]));
            });
        }
        __m512i whole[4];
        unroll<4>([&](auto i) INLINED {
            // Conversion makes INT_MIN of what is too large: right below, so only the top is clipped
            const __m512 v = _mm512_min_ps(_mm512_mul_ps(y[i.value % N], inv), _mm512_set1_ps(32767.0f));
            whole[i.value] = i.value < N ? _mm512_cvtps_epi32(v) : _mm512_undefined_epi32();
        });
        // Every step saturates, which is the clip to [-128, 127]
        const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(whole[0], whole[1]), zero);
        const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(whole[2], whole[3]), zero);
        const __m512i bytes = _mm512_max_epu8(_mm512_packus_epi16(low, high), lowest);
        // The packs work within 128-bit lanes; this undoes their shuffle of four-byte groups.
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        return _mm512_permutexvar_epi32(order, bytes);
    }
};

struct NoCoder {
    template <class Problem>
    ALWAYS_INLINE NoCoder(const Problem&, size_t, size_t) {}
};

// Writes C column blocks from row m, column n of the output on, up to column `end`. Op::Values<C, output>
// (linear/avx512.h) says what a sum is worth. A value of its own, not a set of loads from the problem in each row: the
// stores of the output could alias those, as far as the compiler knows.
template <class Op, int C, Epilogue epilogue>
struct Writer {
    static constexpr Output output = epilogue.output;
    static constexpr size_t bytes = value_bytes(output);

    char* out;
    size_t row_bytes;
    typename Op::template Values<C, output> values;
    std::conditional_t<output == Output::kCodes, Coder<C>, NoCoder> coder;
    __mmask16 mask[C];

    ALWAYS_INLINE Writer(const typename Op::Problem& p, size_t m, size_t n, size_t end)
        : out((char*)p.y + (m * p.out_stride + n) * bytes),
          row_bytes(p.out_stride * bytes),
          values(p, m, n, end),
          coder(p, n, end) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) mask[c] = lanes_before<__mmask16>(n + c * 16, end);
    }

    // Rows r to r + R - 1, from R * C * 16 sums. A GELU is one long chain of dependent operations: R * C of them side
    // by side hide its latency.
    template <int R = 1>
    ALWAYS_INLINE void write(size_t r, const typename Op::Sum* tile) const {
        __m512 v[R * C];
        unroll<R>([&](auto i) INLINED {
            unroll<C>([&](auto c) INLINED {
                constexpr int at = i.value * C + c.value;
                v[at] = values.of(tile + at * 16, r + i.value, c);
            });
        });
        activate<epilogue>(v);
        if constexpr (output == Output::kCodes) {
            const __m512i codes = coder.of(v);
            uint64_t columns = 0;
            unroll<C>([&](auto c) INLINED { columns |= (uint64_t)mask[c.value] << 16 * c.value; });
            unroll<R>([&](auto i) INLINED {
                const __m512i row = _mm512_alignr_epi64(codes, codes, 2 * C * i.value);
                char* at = out + (r + i.value) * row_bytes;
                if constexpr (C <= 2) {
                    _mm256_mask_storeu_epi8(at, (__mmask32)columns, _mm512_castsi512_si256(row));
                } else {
                    _mm512_mask_storeu_epi8(at, columns, row);
                }
            });
            return;
        }
        unroll<R>([&](auto i) INLINED {
            unroll<C>([&](auto c) INLINED {
                const __m512 y = v[i.value * C + c.value];
                char* at = out + (r + i.value) * row_bytes + c.value * 16 * bytes;
                if constexpr (output != Output::kBf16) {
                    _mm512_mask_storeu_ps(at, mask[c.value], y);
                } else if constexpr (c.value % 2) {
                    const __mmask32 both = (__mmask32)mask[c.value] << 16 | mask[c.value - 1];
                    _mm512_mask_storeu_epi16(at - 32, both, to_bf16(v[i.value * C + c.value - 1], y));
                } else if constexpr (c.value + 1 == C) {
                    _mm256_mask_storeu_epi16(at, mask[c.value], to_bf16(y));
                }
            });
        });
    }
};

}  // namespace
