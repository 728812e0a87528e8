// From sums in a small tile (L1) to a linear's output. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "bf16_avx512.h"
#include "gelu.h"
#include "masks_avx512.h"
#include "unroll.h"

namespace {

// GELU of N vectors, whose chains of fused multiply-adds run side by side.
template <int N>
ALWAYS_INLINE void gelu(__m512 (&x)[N]) {
    __m512 a[N], p[N], q[N];
    unroll<N>([&](auto i) INLINED { a[i.value] = _mm512_min_ps(_mm512_abs_ps(x[i.value]), _mm512_set1_ps(kGeluEnd)); });
    unroll<N>([&](auto i) INLINED { p[i.value] = _mm512_set1_ps(kGeluTail[8]); });
    unroll<8>([&](auto term) INLINED {
        const __m512 c = _mm512_set1_ps(kGeluTail[7 - term.value]);
        unroll<N>([&](auto i) INLINED { p[i.value] = _mm512_fmadd_ps(p[i.value], a[i.value], c); });
    });
    unroll<N>([&](auto i) INLINED { q[i.value] = _mm512_set1_ps(kExp2[5]); });
    __m512 whole[N];
    unroll<N>([&](auto i) INLINED {
        whole[i.value] = _mm512_roundscale_ps(p[i.value], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        p[i.value] = _mm512_sub_ps(p[i.value], whole[i.value]);
    });
    unroll<5>([&](auto term) INLINED {
        const __m512 c = _mm512_set1_ps(kExp2[4 - term.value]);
        unroll<N>([&](auto i) INLINED { q[i.value] = _mm512_fmadd_ps(q[i.value], p[i.value], c); });
    });
    unroll<N>([&](auto i) INLINED {
        const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x[i.value]);  // its second operand if either is NaN
        x[i.value] = _mm512_fnmadd_ps(a[i.value], _mm512_scalef_ps(q[i.value], whole[i.value]), positive);
    });
}

// The same for values that will be bf16 or codes, with fewer terms: 2^P = 2^floor(P) * 2^(the rest in [0, 1)), and
// vscalefps takes the floor by itself.
template <int N>
ALWAYS_INLINE void short_gelu(__m512 (&x)[N]) {
    __m512 a[N], p[N], q[N], rest[N];
    unroll<N>([&](auto i) INLINED {
        a[i.value] = _mm512_min_ps(_mm512_abs_ps(x[i.value]), _mm512_set1_ps(kGeluBf16End));
        p[i.value] = _mm512_set1_ps(kGeluBf16Tail[4]);
    });
    unroll<4>([&](auto term) INLINED {
        const __m512 c = _mm512_set1_ps(kGeluBf16Tail[3 - term.value]);
        unroll<N>([&](auto i) INLINED { p[i.value] = _mm512_fmadd_ps(p[i.value], a[i.value], c); });
    });
    unroll<N>([&](auto i) INLINED {
        rest[i.value] = _mm512_reduce_ps(p[i.value], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        q[i.value] = _mm512_set1_ps(kExp2Bf16[3]);
    });
    unroll<3>([&](auto term) INLINED {
        const __m512 c = _mm512_set1_ps(kExp2Bf16[2 - term.value]);
        unroll<N>([&](auto i) INLINED { q[i.value] = _mm512_fmadd_ps(q[i.value], rest[i.value], c); });
    });
    unroll<N>([&](auto i) INLINED {
        const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x[i.value]);  // its second operand if either is NaN
        x[i.value] = _mm512_fnmadd_ps(a[i.value], _mm512_scalef_ps(q[i.value], p[i.value]), positive);
    });
}

// kSums: the sums as they are. Those from kCodes on are for operators with integer sums.
enum Output { kLinear, kGelu, kLinearBf16, kGeluBf16, kCodes, kGeluCodes, kSums };

constexpr bool is_bf16(Output kind) { return kind == kLinearBf16 || kind == kGeluBf16; }
constexpr bool is_codes(Output kind) { return kind == kCodes || kind == kGeluCodes; }
constexpr size_t value_bytes(Output kind) { return is_codes(kind) ? 1 : is_bf16(kind) ? 2 : 4; }

inline Output output_of(bool gelu, bool bf16) {
    return bf16 ? (gelu ? kGeluBf16 : kLinearBf16) : (gelu ? kGelu : kLinear);
}

// Codes on a static grid, of C column blocks from column n on.
template <int C>
struct Coder {
    const float *shift[C], *multiplier[C];  // not their values: registers are short
    __m512 inv;
    __m512i zero, lowest;  // in 16 and in 8 bits

    template <class Problem>
    ALWAYS_INLINE Coder(const Problem& p, size_t n, size_t end)
        : inv(_mm512_set1_ps(1.0f / p.grid->scale)),
          zero(_mm512_set1_epi16((short)(p.grid->zero_point + 128))),
          lowest(_mm512_set1_epi8((char)(p.grid->code_min + 128))) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            const size_t at = n + c * 16 < end ? n + c * 16 : n;
            shift[c] = p.grid->shift ? p.grid->shift + at : nullptr;
            multiplier[c] = p.grid->multiplier ? p.grid->multiplier + at : nullptr;
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

// Writes C column blocks from row m, column n of the output on, up to column `end`. Op::Values<C, kind>
// (linear_avx512.h) says what a sum is worth. A value of its own, not a set of loads from the problem in each row: the
// stores of the output could alias those, as far as the compiler knows.
template <class Op, int C, Output kind>
struct Writer {
    char* out;
    size_t row_bytes;
    typename Op::template Values<C, kind> values;
    std::conditional_t<is_codes(kind), Coder<C>, NoCoder> coder;
    __mmask16 mask[C];

    ALWAYS_INLINE Writer(const typename Op::Problem& p, size_t m, size_t n, size_t end)
        : out(Op::output(p) + (m * p.out_stride + n) * value_bytes(kind)),
          row_bytes(p.out_stride * value_bytes(kind)),
          values(p, m, n, end),
          coder(p, n, end) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) mask[c] = column_mask(n + c * 16, end);
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
        if constexpr (kind == kGelu) gelu(v);
        if constexpr (kind == kGeluBf16 || kind == kGeluCodes) short_gelu(v);
        if constexpr (is_codes(kind)) {
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
                char* at = out + (r + i.value) * row_bytes + c.value * 16 * value_bytes(kind);
                if constexpr (is_bf16(kind)) {
                    _mm256_mask_storeu_epi16(at, mask[c.value], to_bf16(y));
                } else {
                    _mm512_mask_storeu_ps(at, mask[c.value], y);
                }
            });
        });
    }
};

}  // namespace
