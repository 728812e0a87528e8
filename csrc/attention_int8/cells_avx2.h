// What the variants of attention_int8 in 256-bit vectors have in common. A cell is PerCell codes: four bytes, those of
// queries without a sign and 128 more, or two words. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "attention/vectors_avx2.h"
#include "columns.h"
#include "vectors/bf16.h"

namespace {

template <int PerCell>
struct Cells : Vectors {
    using I = __m256i;
    static constexpr int kPerCell = PerCell, kScoreRows = 4, kRows = 4;
    static constexpr float kUnit = 1.0f;
    using Code = std::conditional_t<PerCell == 4, int8_t, int16_t>;

    using Vectors::load;
    static ALWAYS_INLINE V load(const float* at) { return _mm256_loadu_ps(at); }
    static ALWAYS_INLINE V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
    template <int N>
    static ALWAYS_INLINE bool all_below(const V (&x)[N], float end) {
        V above = zero();
        unroll<N>([&](auto i) INLINED {
            above = _mm256_or_ps(above, _mm256_cmp_ps(magnitude(x[i.value]), all(end), _CMP_GE_OQ));
        });
        return _mm256_movemask_ps(above) == 0;
    }
    // a where all_below counts x as below, else b.
    static ALWAYS_INLINE V where_below(V x, float end, V a, V b) {
        return _mm256_blendv_ps(a, b, _mm256_cmp_ps(magnitude(x), all(end), _CMP_GE_OQ));
    }
    static ALWAYS_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
    static ALWAYS_INLINE V to_float(I x) { return _mm256_cvtepi32_ps(x); }
    static ALWAYS_INLINE I load_cells(const char* at) { return _mm256_load_si256((const I*)at); }
    static ALWAYS_INLINE void store_cells(char* at, I x) { _mm256_store_si256((I*)at, x); }
    static ALWAYS_INLINE I no_cells() { return _mm256_setzero_si256(); }
    static ALWAYS_INLINE I broadcast(const void* at) {
        int32_t cell;
        __builtin_memcpy(&cell, at, 4);
        return _mm256_set1_epi32(cell);
    }

    // Lane i: the lowest codes of lane i of each, in order; negative ones are 0. The packs work within 128 bits, where
    // they leave four lanes of the first, four of the second, and so on.
    static ALWAYS_INLINE I unsigned_cells(const I (&x)[PerCell]) {
        if constexpr (PerCell == 4) {
            return by_lane(_mm256_packus_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3])));
        } else {
            return by_lane(_mm256_max_epi16(_mm256_packs_epi32(x[0], x[1]), no_cells()));
        }
    }
    static ALWAYS_INLINE I signed_cells(const I (&x)[PerCell]) {
        if constexpr (PerCell == 4) {
            return by_lane(_mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3])));
        } else {
            return by_lane(_mm256_packs_epi32(x[0], x[1]));
        }
    }
    static ALWAYS_INLINE I by_lane(I packed) {
        const __m128i bytes = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                      words = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
        return _mm256_shuffle_epi8(packed, _mm256_broadcastsi128_si256(PerCell == 4 ? bytes : words));
    }

    // Of PerCell keys. A NaN converts to INT_MIN, and becomes 0.
    static ALWAYS_INLINE I weights(const V (&distance)[PerCell]) {
        I codes[PerCell];
        unroll<PerCell>([&](auto i) INLINED {
            codes[i.value] = _mm256_cvtps_epi32(mul(power(sub(zero(), distance[i.value])), all(255.0f)));
        });
        return unsigned_cells(codes);
    }

    // 127 / largest and largest / 127, both 0 below the normal numbers.
    static ALWAYS_INLINE void scales_of(V largest, V& inverse, V& scale) {
        const V some = _mm256_cmp_ps(largest, all(FLT_MIN), _CMP_GE_OQ);
        inverse = _mm256_and_ps(some, div(all(127.0f), largest));
        scale = _mm256_and_ps(some, mul(largest, all(1.0f / 127.0f)));
    }
    static ALWAYS_INLINE V magnitude(V x) { return _mm256_andnot_ps(all(-0.0f), x); }
    static ALWAYS_INLINE V larger_bits(V a, V b) {  // of magnitudes: a NaN is more than infinity
        return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
    }
    static ALWAYS_INLINE float largest_lane(V x) {
        alignas(32) float lanes[kLanes];
        _mm256_store_ps(lanes, x);
        for (int i = 1; i < kLanes; ++i) lanes[0] = bits_of(lanes[i]) > bits_of(lanes[0]) ? lanes[i] : lanes[0];
        return lanes[0];
    }

    // Codes of a row, less a mean if one is given, and their scale. The largest magnitude, which may be NaN.
    static float codes_of(const uint16_t* x, const float* mean, size_t size, Code* codes, float* scale) {
        alignas(32) float values[kMaxHeadSize];
        V largest = zero();
        for (size_t i = 0; i < size; i += kLanes) {
            V v = widened(x + i);
            if (mean) v = sub(v, load(mean + i));
            _mm256_store_ps(values + i, v);
            largest = larger_bits(largest, magnitude(v));
        }
        const float top = largest_lane(largest);
        V inverse, scales;
        scales_of(all(top), inverse, scales);
        *scale = _mm256_cvtss_f32(scales);
        for (size_t i = 0; i < size; i += kLanes) {
            const I whole = _mm256_cvtps_epi32(mul(_mm256_load_ps(values + i), inverse));
            const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
            if constexpr (PerCell == 4) {
                _mm_storel_epi64((__m128i*)(codes + i), _mm_packs_epi16(words, words));
            } else {
                _mm_storeu_si128((__m128i*)(codes + i), words);
            }
        }
        return top;
    }

    // Rows of codes as [size / PerCell, 8] cells.
    static void spread(const Code* codes, size_t size, uint32_t flip, size_t lane, char* out) {
        for (size_t i = 0; i < size; i += PerCell) {
            uint32_t cell;
            __builtin_memcpy(&cell, codes + i, kCell);
            cell ^= flip;
            __builtin_memcpy(out + (i / PerCell * kLanes + lane) * kCell, &cell, kCell);
        }
    }

    static void pack_queries(const uint16_t* q, size_t stride, size_t count, size_t size, char* out, float* scales) {
        alignas(32) Code codes[kMaxHeadSize] = {0};
        for (size_t lane = 0; lane < kLanes; ++lane) {
            scales[lane] = 0.0f;
            if (lane < count && !(codes_of(q + lane * stride, nullptr, size, codes, scales + lane) <= FLT_MAX)) {
                scales[lane] = NAN;
            }
            spread(codes, size, PerCell == 4 ? 0x80808080 : 0, lane, out);
        }
    }

    static bool pack_keys(const uint16_t* k, size_t stride, size_t count, size_t size, const float* mean, char* out,
                          float* scales, int32_t* start) {
        alignas(32) Code codes[kMaxHeadSize] = {0};
        for (size_t lane = 0; lane < kLanes; ++lane) {
            scales[lane] = 0.0f;
            start[lane] = 0;
            if (lane < count) {
                if (!(codes_of(k + lane * stride, mean, size, codes, scales + lane) <= FLT_MAX)) return false;
                int32_t sum = 0;
                for (size_t i = 0; i < size; ++i) sum += codes[i];
                if (PerCell == 4) start[lane] = -128 * sum;
            }
            spread(codes, size, 0, lane, out);
        }
        return true;
    }

    // Of each dimension. Four sums run side by side.
    static void means(const uint16_t* k, size_t stride, size_t tokens, size_t size, float* mean) {
        for (size_t i = 0; i < size; i += kLanes) {
            V sum[4] = {zero(), zero(), zero(), zero()};
            size_t t = 0;
            for (; t + 4 <= tokens; t += 4) {
                unroll<4>([&](auto r)
                              INLINED { sum[r.value] = add(sum[r.value], widened(k + (t + r.value) * stride + i)); });
            }
            for (; t < tokens; ++t) sum[0] = add(sum[0], widened(k + t * stride + i));
            store(mean + i, mul(add(add(sum[0], sum[1]), add(sum[2], sum[3])), all(1.0f / tokens)));
        }
    }

    // Of each dimension. False if a value is not finite.
    static bool value_scales(const uint16_t* v, size_t stride, size_t tokens, size_t size, float* scales) {
        bool finite = true;
        for (size_t i = 0; i < size; i += kLanes) {
            V largest = zero(), inverse, scale;
            for (size_t t = 0; t < tokens; ++t) largest = larger_bits(largest, magnitude(widened(v + t * stride + i)));
            finite = finite && largest_lane(largest) <= FLT_MAX;
            scales_of(largest, inverse, scale);
            store(scales + i, scale);
        }
        return finite;
    }

    // Cells of PerCell rows each, zero beyond the last.
    static void pack_values(const uint16_t* v, size_t stride, size_t rows, size_t size, const float* scales,
                            size_t columns, char* out) {
        for (size_t i = 0; i < size; i += kLanes) {
            const V scale = load(scales + i);
            const V inverse = _mm256_and_ps(_mm256_cmp_ps(scale, zero(), _CMP_GT_OQ), div(all(1.0f), scale));
            char* to = out + i * kCell;
            for (size_t row = 0; row < rows; row += PerCell, to += columns * kCell) {
                I codes[PerCell];
                unroll<PerCell>([&](auto r) INLINED {
                    const V x = row + r.value < rows ? widened(v + (row + r.value) * stride + i) : zero();
                    codes[r.value] = _mm256_cvtps_epi32(mul(x, inverse));
                });
                store_cells(to, signed_cells(codes));
            }
        }
    }
};

}  // namespace
