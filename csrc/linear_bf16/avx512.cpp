// linear_bf16, AVX-512 without vdpbf16ps: x and weights are widened to f32. Tiles of 6 rows x 64 columns in 24
// registers; linear/avx512.h.
// Layout: contract.h. A pair of K values is the two halves of a 32-bit lane: one shift, one mask. x is widened
// beforehand, a stretch of K at a time, so that a value is a broadcast from L1. One step of two K values is 8 loads and
// 8 operations for the weights, 12 broadcasts of x, 48 vfmadd.
// Bound: compute. vfmadd is 32 operations; one or two a cycle.
#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

namespace {

constexpr size_t kStretch = 256;  // K values of x that are widened at a time

template <int R, int C>
void widened_sums(const char* a, size_t a_stride, const char* b, size_t k, float* out) {
    alignas(64) float x[R][kStretch];
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    __m512 acc[R][C];
    unroll<R>([&](auto r) INLINED { unroll<C>([&](auto c) INLINED { acc[r.value][c.value] = _mm512_setzero_ps(); }); });
    for (size_t begin = 0; begin < k; begin += 2 * kStretch) {
        const size_t bytes = least(2 * kStretch, k - begin);
        for (int r = 0; r < R; ++r) {
            for (size_t at = 0; at < bytes; at += 32) {
                const __m256i half = _mm256_loadu_si256((const __m256i*)(a + r * a_stride + begin + at));
                _mm512_store_si512(x[r] + at / 2, _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
            }
        }
        for (size_t at = 0; at < bytes; at += 4) {
            const char* pairs = b + (begin + at) * kLanes;
            unroll<2>([&](auto odd) INLINED {
                __m512 w[C];
                unroll<C>([&](auto c) INLINED {
                    const __m512i pair = _mm512_load_si512(pairs + c.value * k * kLanes);
                    w[c.value] =
                        _mm512_castsi512_ps(odd.value ? _mm512_and_si512(pair, upper) : _mm512_slli_epi32(pair, 16));
                });
                unroll<R>([&](auto r) INLINED {
                    const __m512 value = _mm512_set1_ps(x[r.value][at / 2 + odd.value]);
                    unroll<C>([&](auto c) INLINED {
                        acc[r.value][c.value] = _mm512_fmadd_ps(value, w[c.value], acc[r.value][c.value]);
                    });
                });
            });
        }
    }
    unroll<R>([&](auto r) INLINED {
        unroll<C>([&](auto c) INLINED { _mm512_store_ps(out + (r.value * C + c.value) * 16, acc[r.value][c.value]); });
    });
}

struct Widened : Bf16 {
    template <int R, int C>
    static constexpr auto sums = widened_sums<R, C>;
};

}  // namespace

void linear_bf16_avx512(const LinearBf16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_tiles<Widened>(*p, row_begin, row_end, block_begin, block_end);
}
