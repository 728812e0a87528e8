// gram, AVX512-BF16, and the packing for AMX too.
// Layout: contract.h. Packing takes 8 rows of x at a time, so that extremes and sums, which lie in L1, are loaded once
// for 8 values. Multiplying: tiles of 8 x 32 sums in 16 registers; two rows of x are 2 loads, 8 broadcasts and 16
// vdpbf16ps.
// Bound: packing by memory. Multiplying by compute: vdpbf16ps is 64 operations, one a cycle (Zen 4) or less.
#include <immintrin.h>

#include "contract.h"
#include "squares.h"
#include "vectors/bf16_avx512.h"

namespace {

constexpr size_t kBlocks = 16;  // that are packed together: 1 KiB of a row of x
constexpr size_t kChain = 64;   // pairs of rows added one after the other: vdpbf16ps rounds twice for each

// f(f(f(v0, v1), f(v2, v3)), ...) of N values, a power of two.
template <int N, class F>
ALWAYS_INLINE __m512 folded(const __m512* v, F f) {
    if constexpr (N == 1) {
        return v[0];
    } else {
        return f(folded<N / 2>(v, f), folded<N / 2>(v + N / 2, f));
    }
}

// Of sixteen features, over the rows of a run. poison becomes NaN with the first value that is not finite: 0 * value is
// not 0 then.
struct Seen {
    __m512 low, high, sum, sum_abs, poison;
};

// A vector of one row, then of the next, becomes pairs.
alignas(64) constexpr uint16_t kAlternate[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

// R rows of x, `blocks` blocks from column k on: their pairs into `out`, where blocks are `pairs` vectors apart.
template <int R, class T>
ALWAYS_INLINE void pack_rows(const Gram& p, size_t m, size_t k, size_t blocks, uint32_t* out, size_t pairs,
                             Seen* seen) {
    const __m512i alternate = _mm512_load_si512(kAlternate);
    const T* x = (const T*)p.x + m * p.x_stride + k;
    for (size_t block = 0; block < blocks; ++block, x += kColumns, k += kColumns, out += pairs * kColumns, ++seen) {
        const __mmask16 mask = lanes_before<__mmask16>(k, p.k);
        __m512 v[R], magnitude[R];
        unroll<R>([&](auto r) INLINED {
            v[r.value] = load16(x + r.value * p.x_stride, mask);
            magnitude[r.value] = _mm512_abs_ps(v[r.value]);
        });
        unroll<(R + 1) / 2>([&](auto pair) INLINED {
            constexpr int r = 2 * pair.value;
            const __m512 second = R == 1 ? _mm512_setzero_ps() : v[r + (R > 1)];
            const __m512i words = (__m512i)_mm512_cvtne2ps_pbh(second, v[r]);
            _mm512_store_si512(out + pair.value * kColumns, _mm512_permutexvar_epi16(alternate, words));
        });
        const auto lower = [](__m512 a, __m512 b) INLINED { return _mm512_min_ps(a, b); };
        const auto higher = [](__m512 a, __m512 b) INLINED { return _mm512_max_ps(a, b); };
        const auto plus = [](__m512 a, __m512 b) INLINED { return _mm512_add_ps(a, b); };
        seen->low = _mm512_min_ps(seen->low, folded<R>(v, lower));
        seen->high = _mm512_max_ps(seen->high, folded<R>(v, higher));
        seen->sum = _mm512_add_ps(seen->sum, folded<R>(v, plus));
        seen->sum_abs = _mm512_add_ps(seen->sum_abs, folded<R>(magnitude, plus));
        unroll<R>([&](auto r) INLINED { v[r.value] = _mm512_mul_ps(v[r.value], _mm512_setzero_ps()); });
        seen->poison = _mm512_add_ps(seen->poison, folded<R>(v, plus));
    }
}

ALWAYS_INLINE void add_doubles(double* at, __m256 values, __mmask8 mask) {
    const __m512d sum = _mm512_add_pd(_mm512_maskz_loadu_pd(mask, at), _mm512_cvtps_pd(values));
    _mm512_mask_storeu_pd(at, mask, sum);
}

ALWAYS_INLINE void add_doubles(double* at, __m512 values, __mmask16 mask) {
    add_doubles(at, _mm512_castps512_ps256(values), (__mmask8)mask);
    add_doubles(at + 8, _mm512_extractf32x8_ps(values, 1), (__mmask8)(mask >> 8));
}

// What a run showed of sixteen features, into the results. A NaN that is there already stays: it is the second operand.
inline void keep(const Gram& p, size_t k, const Seen& seen) {
    const __mmask16 mask = lanes_before<__mmask16>(k, p.k),
                    bad = _mm512_cmp_ps_mask(seen.poison, seen.poison, _CMP_UNORD_Q);
    const __m512 low = _mm512_min_ps(seen.low, _mm512_maskz_loadu_ps(mask, p.low + k));
    const __m512 high = _mm512_max_ps(seen.high, _mm512_maskz_loadu_ps(mask, p.high + k));
    _mm512_mask_storeu_ps(p.low + k, mask, _mm512_mask_mov_ps(low, bad, seen.poison));
    _mm512_mask_storeu_ps(p.high + k, mask, _mm512_mask_mov_ps(high, bad, seen.poison));
    add_doubles(p.sum + k, seen.sum, mask);
    add_doubles(p.sum_abs + k, seen.sum_abs, mask);
}

template <class T>
void pack(const Gram& p, size_t block_begin, size_t block_end) {
    const __m512 zero = _mm512_setzero_ps(), most = _mm512_set1_ps(__builtin_inff());
    const Seen nothing = {most, _mm512_sub_ps(zero, most), zero, zero, zero};
    for (size_t begin = 0; begin < p.m; begin += kRun) {
        const size_t end = least(begin + kRun, p.m);
        const size_t pairs = pairs_of_run(p, begin);
        for (size_t first = block_begin; first < block_end; first += kBlocks) {
            const size_t blocks = least(kBlocks, block_end - first), k = first * kColumns;
            uint32_t* out = packed_run(p, begin) + first * pairs * kColumns;
            Seen seen[kBlocks];
            for (size_t block = 0; block < blocks; ++block) seen[block] = nothing;
            size_t m = begin;
            for (; m + 8 <= end; m += 8) pack_rows<8, T>(p, m, k, blocks, out + (m - begin) * 8, pairs, seen);
            for (; m + 2 <= end; m += 2) pack_rows<2, T>(p, m, k, blocks, out + (m - begin) * 8, pairs, seen);
            for (; m < end; m += 2) pack_rows<1, T>(p, m, k, blocks, out + (m - begin) * 8, pairs, seen);
            for (size_t block = 0; block < blocks; ++block) {
                for (size_t pair = (m - begin) / 2; pair < pairs; ++pair) {
                    _mm512_store_si512(out + (block * pairs + pair) * kColumns, _mm512_setzero_si512());
                }
                keep(p, k + block * kColumns, seen[block]);
            }
        }
    }
}

// Row features as they lie; a word of them is broadcast to the column features of sixteen lanes.
struct Vectors {
    const uint32_t* rows;

    ALWAYS_INLINE void take(const uint32_t* panel, size_t) { rows = panel; }

    ALWAYS_INLINE void sum(const uint32_t* panel, size_t pairs, float* sums) const {
        const uint32_t *a = rows, *b = panel;
        for (size_t r = 0; r < kSquare * kSquare; r += 16) _mm512_store_ps(sums + r, _mm512_setzero_ps());
        for (size_t pair = 0; pair < pairs; pair += kChain, a += kChain * 16, b += kChain * 16) {
            const size_t chain = least(kChain, pairs - pair);
            for (size_t r = 0; r < kSquare; r += 8) {
                add_rows(a + r / 16 * pairs * 16 + r % 16, b, b + pairs * 16, chain, sums + r * kSquare);
            }
        }
    }

    static void add_rows(const uint32_t* a, const uint32_t* b, const uint32_t* b2, size_t chain, float* sums) {
        __m512 left[8], right[8];
        unroll<8>([&](auto r) INLINED { left[r.value] = right[r.value] = _mm512_setzero_ps(); });
        for (size_t pair = 0; pair < chain; ++pair, a += 16, b += 16, b2 += 16) {
            const __m512bh x = (__m512bh)_mm512_load_si512(b), x2 = (__m512bh)_mm512_load_si512(b2);
            unroll<8>([&](auto r) INLINED {
                const __m512bh y = (__m512bh)_mm512_set1_epi32((int32_t)a[r.value]);
                left[r.value] = _mm512_dpbf16_ps(left[r.value], y, x);
                right[r.value] = _mm512_dpbf16_ps(right[r.value], y, x2);
            });
        }
        unroll<8>([&](auto r) INLINED {
            float* s = sums + r.value * kSquare;
            _mm512_store_ps(s, _mm512_add_ps(_mm512_load_ps(s), left[r.value]));
            _mm512_store_ps(s + 16, _mm512_add_ps(_mm512_load_ps(s + 16), right[r.value]));
        });
    }
};

}  // namespace

void gram_pack_avx512bf16(const Gram* p, size_t block_begin, size_t block_end) {
    (p->bf16 ? pack<uint16_t> : pack<float>)(*p, block_begin, block_end);
}

void gram_multiply_avx512bf16(const Gram* p, size_t begin, size_t end) {
    Vectors vectors{};
    multiply(*p, begin, end, vectors);
}
