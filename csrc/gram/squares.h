// The walk over the squares of the Gram matrix, and what is done with the sums of one. Shared by the AVX512-BF16 and
// the AMX variant; everything is internal to the file that includes it.
//
// A panel is 32 features, a square (i, j) the 32 x 32 products of two panels. The walk over six panels, were a group
// three of them; squares below the diagonal are mirrors of those above:
//
//           j  0   1   2     3   4   5
//       i
//       0      0   1   2  |  6   7   8       the columns of a group, then the next: within it the rows of a group, run
//       1      .   3   4  |  9  10  11       by run of x, so that a part of the matrix and of the packed x stay in L2
//       2      .   .   5  | 12  13  14
//              ----------- -----------
//       3      .   .   .  | 15  16  17
//       4      .   .   .  |  .  18  19
//       5      .   .   .  |  .   .  20
//
// A square in AMX is four tiles of sums; every tile of features is loaded once a step, and used twice:
//
//                                              column features, B tiles of 32 rows of x
//                                                 6: 0 - 15         7: 16 - 31
//       row features, A tiles    4:  0 - 15    0 += 4 x 6        1 += 4 x 7
//       (B tiles transposed)     5: 16 - 31    2 += 5 x 6        3 += 5 x 7
#pragma once
#include <immintrin.h>

#include "contract.h"
#include "sizes.h"
#include "vectors/masks_avx512.h"
#include "vectors/unroll.h"

namespace {

// Panels, of kSquare features, whose squares with as many others are a group, at most. While run after run is
// multiplied, its part of the Gram matrix (576 KiB) and a run of its columns' features (384 KiB) stay in L2.
constexpr size_t kGroup = 12;

// Pairs of rows of the run that begins at row m, and where it is packed.
inline size_t pairs_of_run(const Gram& p, size_t m) {
    return (least(kRun, p.m - m) + kSquare - 1) / kSquare * (kSquare / 2);
}

inline uint32_t* packed_run(const Gram& p, size_t m) {
    return (uint32_t*)p.packed + m / 2 * gram_panels(p.k) * kSquare;
}

// out[c * out_stride + r] = in[r * in_stride + c], 16 x 16 words; only `rows` rows of out are written.
ALWAYS_INLINE void transpose(const void* in, size_t in_stride, void* out, size_t out_stride, size_t rows = 16) {
    const int32_t* from = (const int32_t*)in;
    int32_t* to = (int32_t*)out;
    __m512i a[16], b[16];
    unroll<16>([&](auto r) INLINED { a[r.value] = _mm512_loadu_si512(from + r.value * in_stride); });
    unroll<8>([&](auto r) INLINED {  // pairs of rows: 2 x 2 words
        b[2 * r.value] = _mm512_unpacklo_epi32(a[2 * r.value], a[2 * r.value + 1]);
        b[2 * r.value + 1] = _mm512_unpackhi_epi32(a[2 * r.value], a[2 * r.value + 1]);
    });
    unroll<4>([&](auto r) INLINED {  // fours: 4 x 4 words, column c of lane l in a[4 r + c]
        constexpr int at = 4 * r.value;
        a[at] = _mm512_unpacklo_epi64(b[at], b[at + 2]);
        a[at + 1] = _mm512_unpackhi_epi64(b[at], b[at + 2]);
        a[at + 2] = _mm512_unpacklo_epi64(b[at + 1], b[at + 3]);
        a[at + 3] = _mm512_unpackhi_epi64(b[at + 1], b[at + 3]);
    });
    unroll<4>([&](auto c) INLINED {  // a 4 x 4 transpose of lanes
        constexpr int at = c.value;
        const __m512i low = _mm512_shuffle_i32x4(a[at], a[at + 4], 0x88),
                      high = _mm512_shuffle_i32x4(a[at], a[at + 4], 0xdd);
        const __m512i low2 = _mm512_shuffle_i32x4(a[at + 8], a[at + 12], 0x88),
                      high2 = _mm512_shuffle_i32x4(a[at + 8], a[at + 12], 0xdd);
        b[at] = _mm512_shuffle_i32x4(low, low2, 0x88);
        b[at + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
        b[at + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        b[at + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    });
    unroll<16>([&](auto c) INLINED {
        if (size_t(c.value) < rows) _mm512_storeu_si512(to + c.value * out_stride, b[c.value]);
    });
}

// Adds sums [32, 32] to square (i, j), i <= j, and writes its mirror too if asked.
inline void add(const Gram& p, size_t i, size_t j, float* sums, bool mirrored) {
    const size_t rows = least(kSquare, p.k - i * kSquare), columns = least(kSquare, p.k - j * kSquare);
    const __mmask16 left = lanes_before<__mmask16>(0, columns), right = lanes_before<__mmask16>(16, columns);
    float *s = sums, *c = p.gram + i * kSquare * p.k + j * kSquare;
    for (size_t r = 0; r < rows; ++r, c += p.k, s += kSquare) {
        const __m512 a = _mm512_add_ps(_mm512_maskz_loadu_ps(left, c), _mm512_load_ps(s));
        const __m512 b = _mm512_add_ps(_mm512_maskz_loadu_ps(right, c + 16), _mm512_load_ps(s + 16));
        _mm512_mask_storeu_ps(c, left, a);
        _mm512_mask_storeu_ps(c + 16, right, b);
        _mm512_store_ps(s, a);
        _mm512_store_ps(s + 16, b);
    }
    if (!mirrored) return;  // of one above the diagonal, which has all its rows
    for (size_t n = 0; n < columns; n += 16) {
        float* lower = p.gram + (j * kSquare + n) * p.k + i * kSquare;
        transpose(sums + n, kSquare, lower, p.k, columns - n);
        transpose(sums + 16 * kSquare + n, kSquare, lower + 16, p.k, columns - n);
    }
}

// Squares [begin, end), group by group of columns, in each by groups of rows, in each run by run, in each row by row.
// Kernel: take(panel, pairs) gets the two blocks of a row's features, 2 * pairs vectors; sum(panel, pairs, sums) makes
// the [32, 32] sums of their products with those of a column. pairs is a multiple of 16.
template <class Kernel>
ALWAYS_INLINE void multiply(const Gram& p, size_t begin, size_t end, Kernel& kernel) {
    alignas(64) float sums[kSquare * kSquare];
    const size_t panels = gram_panels(p.k), groups = (panels + kGroup - 1) / kGroup;
    const size_t group = (panels + groups - 1) / groups;  // all but the last as large
    size_t base = 0;                                      // squares of groups that are done
    for (size_t j_begin = 0; j_begin < panels; j_begin += group) {
        const size_t j_end = least(j_begin + group, panels);
        for (size_t i_begin = 0; i_begin <= j_begin; i_begin += group) {
            const size_t i_end = least(i_begin + group, panels);
            size_t at = base;
            for (size_t m = 0; m < p.m; m += kRun) {
                const size_t pairs = pairs_of_run(p, m);
                const uint32_t* run = packed_run(p, m);
                const bool last = m + kRun >= p.m;
                at = base;
                for (size_t i = i_begin; i < i_end; ++i) {
                    const size_t first = i < j_begin ? j_begin : i, after = at + (j_end - first);
                    const size_t from = at < begin ? begin : at, to = least(after, end);
                    if (from < to) kernel.take(run + i * pairs * kSquare, pairs);
                    for (size_t square = from; square < to; ++square) {
                        const size_t j = first + (square - at);
                        kernel.sum(run + j * pairs * kSquare, pairs, sums);
                        add(p, i, j, sums, last && i < j);
                    }
                    at = after;
                }
            }
            base = at;
        }
    }
}

}  // namespace
