// linear_w8a8, AVX2: codes and weights are widened to 16 bit and multiplied by vpmaddwd, whose pair sums are exact;
// vpmaddubsw, which would take them as bytes, saturates at 255 * 127 * 2. Tiles of 6 rows x 16 columns in 12 registers.
// Layout: contract.h. Of a group of four K values the even and the odd ones are words of their own, so that a vpmaddwd
// gives one sum a column. Both operands are widened beforehand, a stretch of K at a time: the weights once for a chunk
// of rows, the codes once for a tile. One step of two K values is 2 loads of weights, 6 broadcasts of codes, 12
// vpmaddwd and as many vpaddd. Bound: compute. vpmaddwd + vpaddd are 32 operations in two instructions.
#include <immintrin.h>

#include "columns_avx2.h"

namespace {

constexpr size_t kStretch = 128;  // K values that are widened at a time

// The even and the odd bytes of a stretch, as words.
struct Codes {
    alignas(32) uint8_t parts[2][kTileRows][kStretch];
};
struct Weights {
    alignas(32) __m256i parts[kStretch / kGroup][2][2];  // [group, part, half of the columns]
};

void widen(const uint8_t* codes, size_t stride, size_t rows, size_t count, Codes& to) {
    for (size_t r = 0; r < rows; ++r) {
        for (size_t k = 0; k < count; k += 32) {
            const __m256i bytes = _mm256_loadu_si256((const __m256i*)(codes + r * stride + k));
            const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(255));
            _mm256_store_si256((__m256i*)(to.parts[0][r] + k), even);
            _mm256_store_si256((__m256i*)(to.parts[1][r] + k), _mm256_srli_epi16(bytes, 8));
        }
    }
}

void widen(const int8_t* weight, size_t count, Weights& to) {
    for (size_t group = 0; group < count / kGroup; ++group) {
        for (size_t half = 0; half < 2; ++half) {
            const __m256i bytes = _mm256_load_si256((const __m256i*)weight + 2 * group + half);
            to.parts[group][0][half] = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
            to.parts[group][1][half] = _mm256_srai_epi16(bytes, 8);
        }
    }
}

// acc += the pair sums of a * b. Not the intrinsics: with them GCC 12 forms all products before it adds one, and runs
// out of registers.
ALWAYS_INLINE void multiply_add(__m256i& acc, __m256i a, __m256i b) {
    __m256i product;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(a), "x"(b));
}

// Adds `count` K values of R rows to sums [R, 16].
template <int R>
void add_rows(const Codes& codes, const Weights& weights, size_t count, Sums* sums) {
    __m256i acc[R][2];
    unroll<R>([&](auto r) INLINED {
        unroll<2>([&](auto c) INLINED { acc[r.value][c.value] = ((const __m256i*)sums[r.value])[c.value]; });
    });
    for (size_t k = 0; k < count; k += kGroup) {
        unroll<2>([&](auto part) INLINED {
            const __m256i* w = weights.parts[k / kGroup][part.value];
            unroll<R>([&](auto r) INLINED {
                int32_t words;
                __builtin_memcpy(&words, codes.parts[part.value][r.value] + k, 4);
                const __m256i x = _mm256_set1_epi32(words);
                unroll<2>([&](auto c) INLINED { multiply_add(acc[r.value][c.value], x, w[c.value]); });
            });
        });
    }
    unroll<R>([&](auto r) INLINED {
        unroll<2>([&](auto c) INLINED { ((__m256i*)sums[r.value])[c.value] = acc[r.value][c.value]; });
    });
}

constexpr decltype(&add_rows<1>) kAddRows[kTileRows] = {add_rows<1>, add_rows<2>, add_rows<3>,
                                                        add_rows<4>, add_rows<5>, add_rows<6>};

void block_sums(const LinearW8A8& p, size_t m, size_t rows, size_t block, Sums* sums) {
    Codes codes;
    Weights weights;
    __builtin_memset(sums, 0, rows * sizeof(Sums));
    for (size_t k = 0; k < p.k_padded; k += kStretch) {
        const size_t count = least(kStretch, p.k_padded - k);
        widen(p.weight + (block * p.k_padded + k) * kBlock, count, weights);
        for (size_t r = 0; r < rows; r += kTileRows) {
            const size_t tile = least(kTileRows, rows - r);
            widen(p.codes + (m + r) * p.code_stride + k, p.code_stride, tile, count, codes);
            kAddRows[tile - 1](codes, weights, count, sums + r);
        }
    }
}

}  // namespace

void linear_w8a8_avx2(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_columns(*p, row_begin, row_end, block_begin, block_end, block_sums);
}
