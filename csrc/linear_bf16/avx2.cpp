// linear_bf16, AVX2: x and weights are widened to f32. Tiles of 6 rows x 16 columns in 12 registers.
// Layout: contract.h. A pair of K values is the two halves of a 32-bit lane: one shift, one mask. x is widened
// beforehand, a stretch of K for four column blocks at a time, so that a value is a broadcast from L1. One step of two
// K values is 2 loads and 4 operations for the weights, 12 broadcasts of x, 24 vfmadd.
// Bound: compute. vfmadd is 16 operations, two a cycle.
#include <immintrin.h>

#include "contract.h"
#include "linear/output_avx2.h"
#include "sizes.h"

namespace {

constexpr size_t kBlock = 16, kRows = 6, kBlocks = 4;
constexpr size_t kStretch = 256;            // K values of x that are widened at a time
constexpr size_t kChunkBytes = 160 * 1024;  // of x, which stay in L2 while all the weights pass by

// acc += a * b. Not the intrinsic: with it GCC 12 lets the sum move into the register of a, and runs out of registers.
ALWAYS_INLINE void multiply_add(__m256& acc, __m256 a, __m256 b) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
}

// Adds `count` K values of R rows of x, and of one column block, to sums [R, 16].
template <int R>
void add_block(const float (*x)[kStretch], const uint16_t* weight, size_t count, float* sums) {
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
    __m256 acc[R][2];
    unroll<R>([&](auto r) INLINED {
        unroll<2>([&](auto c)
                      INLINED { acc[r.value][c.value] = _mm256_load_ps(sums + r.value * kBlock + c.value * 8); });
    });
    for (size_t k = 0; k < count; k += 2, weight += 2 * kBlock) {
        const __m256i pairs[2] = {_mm256_load_si256((const __m256i*)weight),
                                  _mm256_load_si256((const __m256i*)weight + 1)};
        unroll<2>([&](auto odd) INLINED {
            __m256 w[2];
            unroll<2>([&](auto c) INLINED {
                w[c.value] = _mm256_castsi256_ps(odd.value ? _mm256_and_si256(pairs[c.value], upper)
                                                           : _mm256_slli_epi32(pairs[c.value], 16));
            });
            unroll<R>([&](auto r) INLINED {
                const __m256 value = _mm256_broadcast_ss(x[r.value] + k + odd.value);
                unroll<2>([&](auto c) INLINED { multiply_add(acc[r.value][c.value], value, w[c.value]); });
            });
        });
    }
    unroll<R>([&](auto r) INLINED {
        unroll<2>([&](auto c)
                      INLINED { _mm256_store_ps(sums + r.value * kBlock + c.value * 8, acc[r.value][c.value]); });
    });
}

constexpr decltype(&add_block<1>) kAddBlock[kRows] = {add_block<1>, add_block<2>, add_block<3>,
                                                      add_block<4>, add_block<5>, add_block<6>};

void tile(const LinearBf16& p, size_t m, size_t rows, size_t block, size_t blocks) {
    alignas(32) float x[kRows][kStretch], sums[kBlocks][kRows][kBlock] = {};
    const uint16_t* from = p.x + m * p.x_stride;
    const uint16_t* weight = p.weight + block * kBlock * p.k_padded;
    for (size_t begin = 0; begin < p.k_padded; begin += kStretch) {
        const size_t count = least(kStretch, p.k_padded - begin);
        for (size_t r = 0; r < rows; ++r) {
            for (size_t k = 0; k < count; k += 8) {
                const __m128i half = _mm_loadu_si128((const __m128i*)(from + r * p.x_stride + begin + k));
                _mm256_store_si256((__m256i*)(x[r] + k), _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
            }
        }
        for (size_t b = 0; b < blocks; ++b) {
            kAddBlock[rows - 1](x, weight + (b * p.k_padded + begin) * kBlock, count, sums[b][0]);
        }
    }
    for (size_t b = 0; b < blocks; ++b) {
        for (size_t r = 0; r < rows; ++r) {
            const size_t n = (block + b) * kBlock;
            __m256 y[2];
            unroll<2>([&](auto half) INLINED {
                const size_t at = half.value * 8;
                y[half.value] = _mm256_add_ps(_mm256_load_ps(sums[b][r] + at), _mm256_load_ps(p.bias + n + at));
            });
            activate(p, y);
            write_floats(p, y[0], y[1], p.n - n, (m + r) * p.out_stride + n);
        }
    }
}

}  // namespace

void linear_bf16_avx2(const LinearBf16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const size_t chunk = (kChunkBytes / (2 * p->k_padded) / kRows + 1) * kRows;
    for (size_t first = row_begin; first < row_end; first += chunk) {
        const size_t last = least(first + chunk, row_end);
        for (size_t block = block_begin; block < block_end; block += kBlocks) {
            const size_t blocks = least(kBlocks, block_end - block);
            for (size_t m = first; m < last; m += kRows) tile(*p, m, least(kRows, last - m), block, blocks);
        }
    }
}
