// What the variants in 256-bit vectors have in common: tiles of R rows x one column block of two halves. It comes after
// add_words<bits, has_levels, R>(codes, words, a, stride, levels, sums), which adds so many words to the sums of a
// group, and levels_of and kLevelZero, which say how it takes levels: with this as their zero. Everything is internal
// to the file that includes it.
#pragma once
#include "contract.h"
#include "linear/output_avx2.h"
#include "sizes.h"

namespace {

constexpr size_t kChunkBytes = 256 * 1024;  // of codes, which stay in L2 while all the weights pass by

// Scales, or minima.
ALWAYS_INLINE __m256 of_group(const Wna8& w, const void* values, size_t at) {
    if (!w.bf16_scale) return _mm256_load_ps((const float*)values + at);
    const __m128i words = _mm_load_si128((const __m128i*)((const uint16_t*)values + at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

// -zero in the lower half of each lane; a group's sum, which it is multiplied by, fits into 16 bits.
template <bool has_levels>
ALWAYS_INLINE __m256i minus_zero(const Wna8& w, size_t at) {
    if (has_levels) return _mm256_set1_epi32(0xffff & -kLevelZero);
    if (!w.zero) return _mm256_set1_epi32(w.minimum ? 0 : 0xffff & -(1 << (w.bits - 1)));
    const __m256i zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(w.zero + at)));
    return _mm256_and_si256(_mm256_sub_epi32(_mm256_setzero_si256(), zero), _mm256_set1_epi32(0xffff));
}

template <int bits, bool has_levels, int R>
void tile(const LinearW4A8& p, size_t m, size_t block) {
    const Wna8& w = p.weight;
    const size_t groups = w.k / w.group, words = w.group / Word<bits>::values, n = block * 16;
    const uint8_t* codes = w.codes + block * (w.k / Word<bits>::values * Word<bits>::bytes);
    const int8_t* a = p.codes + m * p.code_stride;
    const float* scale_m = p.scale_m + m * p.group_stride;
    const int32_t* sum_m = p.sum_m + m * p.group_stride;
    size_t at = block * (groups / w.per) * 16;  // of the group's scales
    __m256i levels{};
    if (has_levels) levels = levels_of(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)w.levels)));
    __m256 y[R][2];
    unroll<R>([&](auto r) INLINED { y[r.value][0] = y[r.value][1] = _mm256_setzero_ps(); });
    for (size_t g = 0, left = w.per; g < groups; ++g, a += w.group, codes += words * Word<bits>::bytes) {
        __m256i sums[R][2];
        unroll<2>([&](auto c) INLINED {
            const __m256i zero = minus_zero<has_levels>(w, at + c.value * 8);
            unroll<R>([&](auto r) INLINED {
                const __m256i sum = _mm256_set1_epi32(sum_m[r.value * p.group_stride + g]);
                sums[r.value][c.value] = _mm256_madd_epi16(zero, sum);
            });
        });
        add_words<bits, has_levels, R>(codes, words, a, p.code_stride, levels, sums);
        unroll<2>([&](auto c) INLINED {
            if constexpr (bits == 1) {  // twice the code less 1, from the code less 1
                unroll<R>([&](auto r) INLINED {
                    __m256i& sum = sums[r.value][c.value];
                    const __m256i ones = _mm256_set1_epi32(sum_m[r.value * p.group_stride + g]);
                    sum = _mm256_add_epi32(_mm256_add_epi32(sum, sum), ones);
                });
            }
            const __m256 scale_n = of_group(w, w.scale, at + c.value * 8);
            unroll<R>([&](auto r) INLINED {
                const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(scale_m[r.value * p.group_stride + g]), scale_n);
                const __m256 t = _mm256_cvtepi32_ps(sums[r.value][c.value]);
                y[r.value][c.value] = _mm256_fmadd_ps(t, scale, y[r.value][c.value]);
            });
            if (has_levels || !w.minimum) return;
            const __m256 minimum_n = of_group(w, w.minimum, at + c.value * 8);
            unroll<R>([&](auto r) INLINED {
                const size_t i = r.value * p.group_stride + g;
                const __m256 minimum = _mm256_mul_ps(_mm256_set1_ps(scale_m[i]), minimum_n);
                y[r.value][c.value] = _mm256_fmadd_ps(_mm256_set1_ps((float)sum_m[i]), minimum, y[r.value][c.value]);
            });
        });
        if (--left == 0) {
            at += 16;
            left = w.per;
        }
    }
    unroll<R>([&](auto r) INLINED {
        unroll<2>([&](auto c) INLINED {
            y[r.value][c.value] = _mm256_add_ps(y[r.value][c.value], _mm256_load_ps(p.bias + n + c.value * 8));
        });
        activate(p, y[r.value]);
        write_floats(p, y[r.value][0], y[r.value][1], p.n - n, (m + r.value) * p.out_stride + n);
    });
}

constexpr size_t kTileRows = 4;
template <int bits, bool has_levels>
constexpr decltype(&tile<4, true, 1>) kTiles[kTileRows] = {tile<bits, has_levels, 1>, tile<bits, has_levels, 2>,
                                                           tile<bits, has_levels, 3>, tile<bits, has_levels, 4>};

inline void run_tiles(const LinearW4A8& p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const size_t chunk = (kChunkBytes / p.weight.k / kTileRows + 1) * kTileRows;
    for_codes(p.weight, [&](auto bits, auto has_levels) {
        for (size_t first = row_begin; first < row_end; first += chunk) {
            const size_t last = least(first + chunk, row_end);
            for (size_t block = block_begin; block < block_end; ++block) {
                for (size_t m = first; m < last; m += kTileRows) {
                    kTiles<bits.value, has_levels.value>[least(kTileRows, last - m) - 1](p, m, block);
                }
            }
        }
    });
}

}  // namespace
