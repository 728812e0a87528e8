// attention_int8 by vpdpbusd in 512 bits: a cell is four codes. Tiles of 8 keys x 2 vectors of 16 queries, and of 6
// queries x 2 vectors of head dimensions, whose sums in floats take as many registers as those in integers. Bound:
// compute. 16 scores at head size 32 are 16 vpdpbusd, of one (Zen 4) or two a cycle, and 12 operations more: 3 to a
// score, 8 to its weight in 16 bits, 1 to merge the blocks. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "attention/vectors_avx512.h"
#include "columns.h"
#include "vectors/bf16_avx512.h"

namespace {

struct Vnni : Vectors {
    using I = __m512i;
    static constexpr int kPerCell = 4, kScoreRows = 8, kRows = 6;
    static constexpr float kUnit = 2048.0f;

    static ALWAYS_INLINE V load(const float* at) { return _mm512_loadu_ps(at); }
    static ALWAYS_INLINE V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
    template <int N>
    static ALWAYS_INLINE bool all_below(const V (&x)[N], float end) {
        __mmask16 above = 0;
        unroll<N>([&](auto i)
                      INLINED { above |= _mm512_cmp_ps_mask(_mm512_abs_ps(x[i.value]), all(end), _CMP_GE_OQ); });
        return above == 0;
    }
    // a where all_below counts x as below, else b.
    static ALWAYS_INLINE V where_below(V x, float end, V a, V b) {
        return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(_mm512_abs_ps(x), all(end), _CMP_GE_OQ), b);
    }
    static ALWAYS_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
    static ALWAYS_INLINE V to_float(I x) { return _mm512_cvtepi32_ps(x); }
    static ALWAYS_INLINE I load_cells(const char* at) { return _mm512_load_si512(at); }
    static ALWAYS_INLINE void store_cells(char* at, I x) { _mm512_store_si512(at, x); }
    static ALWAYS_INLINE I no_cells() { return _mm512_setzero_si512(); }
    static ALWAYS_INLINE I broadcast(const void* at) {
        int32_t cell;
        __builtin_memcpy(&cell, at, 4);
        return _mm512_set1_epi32(cell);
    }
    // left is unsigned. In assembly, for GCC 12 copies every sum before and after the intrinsic.
    static ALWAYS_INLINE I multiply(I sum, I left, I right) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(left), "v"(right));
        return sum;
    }
    static ALWAYS_INLINE I add_cells(I sum, I cells) { return multiply(sum, cells, _mm512_set1_epi8(1)); }

    // Lane i: the lowest bytes of lane i of each, in order. The packs work within 128 bits, where they leave four lanes
    // of the first, four of the second, and so on.
    static ALWAYS_INLINE I by_lane(I packed) {
        const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        return _mm512_shuffle_epi8(packed, _mm512_broadcast_i32x4(order));
    }
    static ALWAYS_INLINE I cells(I a, I b, I c, I d) {
        return by_lane(_mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)));
    }

    // 255 * 2^-(u / 2048) of 32 words without a sign, rounded; 0 from 16 on. A polynomial of two terms, within 0.2 % of
    // a power: half a code at most.
    static ALWAYS_INLINE I powers(I u) {
        const I part = _mm512_slli_epi16(u, 5);  // of one, in 1 / 65536
        const auto k = [](int x) INLINED { return _mm512_set1_epi16((short)x); };
        I y = _mm512_sub_epi16(k(21738), _mm512_mulhi_epu16(part, k(5503)));
        y = _mm512_sub_epi16(k(32584), _mm512_mulhi_epu16(part, y));
        y = _mm512_srlv_epi16(y, _mm512_srli_epi16(u, 11));
        return _mm512_mulhrs_epi16(y, k(256));  // a rounded shift by 7
    }
    // Of four keys. What is too far from the largest, or NaN, converts to INT_MIN, and becomes 0.
    static ALWAYS_INLINE I weights(const V (&distance)[4]) {
        I u[4];
        unroll<4>([&](auto i) INLINED { u[i.value] = _mm512_cvtps_epi32(distance[i.value]); });
        const I low = powers(_mm512_packs_epi32(u[0], u[1])), high = powers(_mm512_packs_epi32(u[2], u[3]));
        return by_lane(_mm512_packus_epi16(low, high));
    }

    static ALWAYS_INLINE void store_bf16(uint16_t* out, V x, size_t left) {
        _mm256_mask_storeu_epi16(out, (__mmask16)lowest<__mmask32>(left), to_bf16(x));
    }

    static ALWAYS_INLINE V widened(__m256i words) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
    }
    static ALWAYS_INLINE V widened(const uint16_t* x, size_t left) {
        return widened(_mm256_maskz_loadu_epi16((__mmask16)lowest<__mmask32>(left), x));
    }

    // 127 / largest and largest / 127, both 0 below the normal numbers.
    static ALWAYS_INLINE __mmask16 scales_of(V largest, V& inverse, V& scale) {
        const __mmask16 some = _mm512_cmp_ps_mask(largest, all(FLT_MIN), _CMP_GE_OQ);
        inverse = _mm512_maskz_div_ps(some, all(127.0f), largest);
        scale = _mm512_maskz_mul_ps(some, largest, all(1.0f / 127.0f));
        return some;
    }

    // Up to 16 rows, less a mean if one is given, as [size / 4, 16] cells. Returns the bits of the largest magnitudes.
    template <bool centred>
    static ALWAYS_INLINE I pack(const uint16_t* x, size_t stride, size_t count, size_t size, const float* mean,
                                char* out, V& scale, I& sum) {
        alignas(64) float values[kMaxHeadSize * 16];
        I largest = no_cells();
        const I magnitude = _mm512_set1_epi32(0x7fffffff);
        for (size_t i = 0; i < size; i += 32) {
            I pairs[16];
            load_pairs(x + i, stride, count, size - i, pairs);
            unroll<16>([&](auto pair) INLINED {
                const size_t at = i + 2 * pair.value;
                V even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs[pair.value], 16));
                V odd = _mm512_castsi512_ps(_mm512_and_si512(pairs[pair.value], _mm512_set1_epi32((int)0xffff0000)));
                if constexpr (centred) {
                    even = sub(even, all(mean[at]));
                    odd = sub(odd, all(mean[at + 1]));
                }
                _mm512_store_ps(values + at * 16, even);
                _mm512_store_ps(values + at * 16 + 16, odd);
                const I a = _mm512_and_si512(_mm512_castps_si512(even), magnitude);
                const I b = _mm512_and_si512(_mm512_castps_si512(odd), magnitude);
                largest = _mm512_max_epi32(largest, _mm512_max_epi32(a, b));
            });
        }
        V inverse;
        scales_of(_mm512_castsi512_ps(largest), inverse, scale);
        sum = no_cells();
        for (size_t i = 0; i < size; i += 4, out += 64) {
            I w[4];
            unroll<4>([&](auto d) INLINED {
                w[d.value] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(values + (i + d.value) * 16), inverse));
            });
            I packed = cells(w[0], w[1], w[2], w[3]);
            if constexpr (centred) {
                sum = add_signed(sum, packed);
            } else {
                packed = _mm512_xor_si512(packed, _mm512_set1_epi8((char)0x80));  // unsigned, 128 more
            }
            store_cells(out, packed);
        }
        return largest;
    }
    static ALWAYS_INLINE I add_signed(I sum, I cells) { return multiply(sum, _mm512_set1_epi8(1), cells); }
    static ALWAYS_INLINE __mmask16 not_finite(I bits) {
        return _mm512_cmpge_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    }

    static void pack_queries(const uint16_t* q, size_t stride, size_t count, size_t size, char* out, float* scales) {
        V scale;
        I sum;
        const I largest = pack<false>(q, stride, count, size, nullptr, out, scale, sum);
        store(scales, _mm512_mask_mov_ps(scale, not_finite(largest), all(NAN)));
    }

    static bool pack_keys(const uint16_t* k, size_t stride, size_t count, size_t size, const float* mean, char* out,
                          float* scales, int32_t* start) {
        V scale;
        I sum;
        const I largest = pack<true>(k, stride, count, size, mean, out, scale, sum);
        store(scales, _mm512_maskz_mov_ps((__mmask16)lowest<__mmask32>(count), scale));
        _mm512_storeu_si512(start, _mm512_sub_epi32(no_cells(), _mm512_slli_epi32(sum, 7)));
        return not_finite(largest) == 0;
    }

    // Of each dimension; zero from the last to a multiple of 32. Four sums run side by side.
    static void means(const uint16_t* k, size_t stride, size_t tokens, size_t size, float* mean) {
        for (size_t i = 0; i < round_up(size, 32); i += kLanes) {
            V sum[4] = {zero(), zero(), zero(), zero()};
            const size_t left = size > i ? size - i : 0;
            size_t t = 0;
            for (; t + 4 <= tokens; t += 4) {
                unroll<4>([&](auto r) INLINED {
                    sum[r.value] = add(sum[r.value], widened(k + (t + r.value) * stride + i, left));
                });
            }
            for (; t < tokens; ++t) sum[0] = add(sum[0], widened(k + t * stride + i, left));
            store(mean + i, mul(add(add(sum[0], sum[1]), add(sum[2], sum[3])), all(1.0f / tokens)));
        }
    }

    // Of each dimension, to whole vectors. False if a value is not finite.
    static bool value_scales(const uint16_t* v, size_t stride, size_t tokens, size_t size, float* scales) {
        bool finite = true;
        for (size_t i = 0; i < size; i += 32) {
            I largest = no_cells();
            for (size_t t = 0; t < tokens; ++t) {
                const I bits = _mm512_and_si512(load_bf16(v + t * stride + i, size - i), _mm512_set1_epi16(0x7fff));
                largest = _mm512_max_epi16(largest, bits);
            }
            finite = finite && _mm512_cmpgt_epi16_mask(largest, _mm512_set1_epi16(0x7f7f)) == 0;
            V inverse, scale;
            scales_of(widened(_mm512_castsi512_si256(largest)), inverse, scale);
            store(scales + i, scale);
            if (size - i <= 16) break;
            scales_of(widened(_mm512_extracti64x4_epi64(largest, 1)), inverse, scale);
            store(scales + i + 16, scale);
        }
        return finite;
    }

    // Cells of four rows each, zero beyond the last.
    static void pack_values(const uint16_t* v, size_t stride, size_t rows, size_t size, const float* scales,
                            size_t columns, char* out) {
        for (size_t i = 0; i < columns; i += kLanes) {
            const V scale = load(scales + i);
            const __mmask16 some = _mm512_cmp_ps_mask(scale, zero(), _CMP_GT_OQ);
            const V inverse = _mm512_maskz_div_ps(some, all(1.0f), scale);
            char* to = out + i * kCell;
            for (size_t row = 0; row < rows; row += 4, to += columns * kCell) {
                I w[4];
                unroll<4>([&](auto r) INLINED {
                    const bool there = row + r.value < rows;
                    const V x = there ? widened(v + (row + r.value) * stride + i, size - i) : zero();
                    w[r.value] = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
                });
                store_cells(to, cells(w[0], w[1], w[2], w[3]));
            }
        }
    }
};

}  // namespace
