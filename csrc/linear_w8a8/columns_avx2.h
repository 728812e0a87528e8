// What the variants in 256-bit vectors have in common: a block of 16 columns passes a chunk of rows, then its sums
// become outputs. Everything is internal to the file that includes it.
#pragma once
#include "contract.h"
#include "linear/output_avx2.h"
#include "sizes.h"

namespace {

constexpr size_t kTileRows = 6;  // with 16 columns 12 of 16 registers
constexpr size_t kChunkRows = 32 * kTileRows;
constexpr size_t kChunkBytes = 256 * 1024;  // of codes, which stay in L2 while all the weights pass by

using Sums = int32_t[kBlock];  // of a row

// One block of columns from n on: from int32 sums to floats.
struct Columns {
    __m256i colsum[2];
    __m256 scale[2], bias[2];

    Columns(const LinearW8A8& p, size_t n) {
        unroll<2>([&](auto half) INLINED {
            colsum[half.value] = _mm256_load_si256((const __m256i*)(p.colsum + n + half.value * 8));
            scale[half.value] = _mm256_load_ps(p.scale_n + n + half.value * 8);
            bias[half.value] = _mm256_load_ps(p.bias + n + half.value * 8);
        });
    }

    template <int half>
    ALWAYS_INLINE __m256 of(const Sums& sums, float scale_m, int32_t zero_m, Index<half>) const {
        const __m256i sum = _mm256_load_si256((const __m256i*)(sums + half * 8));
        const __m256i offset = _mm256_mullo_epi32(_mm256_set1_epi32(zero_m + 128), colsum[half]);
        const __m256 t = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
        return _mm256_fmadd_ps(t, _mm256_mul_ps(_mm256_set1_ps(scale_m), scale[half]), bias[half]);
    }
};

// Codes of two rows of the block from column n on, one after the other.
ALWAYS_INLINE __m256i to_codes(const OutputGrid& g, __m256 (&y)[4], size_t n) {
    __m256i whole[4];
    const __m256 inv = _mm256_set1_ps(1.0f / g.scale);
    unroll<4>([&](auto i) INLINED {
        const size_t at = n + i.value % 2 * 8;
        __m256 v = y[i.value];
        if (g.multiplier) {
            v = _mm256_mul_ps(_mm256_sub_ps(v, _mm256_loadu_ps(g.shift + at)), _mm256_loadu_ps(g.multiplier + at));
        }
        // Conversion makes INT_MIN of what is too large: right below, so only the top is clipped
        whole[i.value] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(v, inv), _mm256_set1_ps(32767.0f)));
    });
    // Every step saturates, which is the clip to [-128, 127]
    const __m256i zero = _mm256_set1_epi16((short)(g.zero_point + 128));
    const __m256i first = _mm256_adds_epi16(_mm256_packs_epi32(whole[0], whole[1]), zero);
    const __m256i second = _mm256_adds_epi16(_mm256_packs_epi32(whole[2], whole[3]), zero);
    const __m256i lowest = _mm256_set1_epi8((char)(g.code_min + 128));
    // The packs work within 128-bit lanes; this undoes their shuffle of four-byte groups.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_max_epu8(_mm256_packus_epi16(first, second), lowest), order);
}

ALWAYS_INLINE void store_codes(__m128i codes, size_t count, uint8_t* out) {
    if (count >= kBlock) return _mm_storeu_si128((__m128i*)out, codes);
    alignas(16) uint8_t all[kBlock];
    _mm_store_si128((__m128i*)all, codes);
    for (size_t i = 0; i < count; ++i) out[i] = all[i];
}

inline void write_sums(const LinearW8A8& p, const Sums* sums, size_t m, size_t rows, size_t n) {
    for (size_t r = 0; r < rows; ++r) {
        const __m256i* from = (const __m256i*)sums[r];
        store(from[0], from[1], p.n - n, (int32_t*)p.y + (m + r) * p.out_stride + n);
    }
}

// Two rows at a time, so that their GELUs run side by side. The last of an odd number is its own second.
inline void write_rows(const LinearW8A8& p, const Sums* sums, size_t m, size_t rows, size_t n) {
    const Columns columns(p, n);
    const size_t count = p.n - n;
    for (size_t r = 0; r < rows; r += 2) {
        const size_t row[2] = {r, least(r + 1, rows - 1)};
        const size_t at[2] = {(m + row[0]) * p.out_stride + n, (m + row[1]) * p.out_stride + n};
        __m256 y[4];
        unroll<4>([&](auto i) INLINED {
            const size_t from = row[i.value / 2];
            y[i.value] = columns.of(sums[from], p.scale_m[m + from], p.zero_m[m + from], Index<i.value % 2>{});
        });
        activate(p, y);
        if (p.output == Output::kCodes) {
            const __m256i codes = to_codes(p.grid, y, n);
            store_codes(_mm256_castsi256_si128(codes), count, (uint8_t*)p.y + at[0]);
            store_codes(_mm256_extracti128_si256(codes, 1), count, (uint8_t*)p.y + at[1]);
        } else {
            write_floats(p, y[0], y[1], count, at[0]);
            write_floats(p, y[2], y[3], count, at[1]);
        }
    }
}

// block_sums(p, m, rows, block, sums): sums of `rows` rows from m on and one block, [rows, 16].
template <class BlockSums>
void run_columns(const LinearW8A8& p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end,
                 BlockSums block_sums) {
    alignas(32) Sums sums[kChunkRows];
    const size_t chunk = least(kChunkRows, round_up(kChunkBytes / p.k_padded + 1, kTileRows));
    for (size_t m = row_begin; m < row_end; m += chunk) {
        const size_t rows = least(chunk, row_end - m);
        for (size_t block = block_begin; block < block_end; ++block) {
            block_sums(p, m, rows, block, sums);
            (p.output == Output::kSums ? write_sums : write_rows)(p, sums, m, rows, block * kBlock);
        }
    }
}

}  // namespace
