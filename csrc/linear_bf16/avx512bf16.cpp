// linear_bf16, AVX-512 with vdpbf16ps: tiles of 6 rows x 64 columns in 24 registers; linear/avx512.h.
// Layout: contract.h. One step of two K values is 4 loads of weights, 6 broadcasts of x, 24 vdpbf16ps.
// Bound: compute. vdpbf16ps is 64 operations; one a cycle (Zen 4), half of that on Sapphire Rapids, which has tiles.
#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

namespace {

struct Dot : Bf16 {
    static ALWAYS_INLINE __m512 zero() { return _mm512_setzero_ps(); }
    static ALWAYS_INLINE __m512 multiply_add(__m512 acc, __m512i x, __m512i w) {
        return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w);
    }
    template <int R, int C>
    static constexpr auto sums = dot_sums<Dot, R, C>;
};

}  // namespace

void linear_bf16_avx512bf16(const LinearBf16* p, size_t row_begin, size_t row_end, size_t block_begin,
                            size_t block_end) {
    run_tiles<Dot>(*p, row_begin, row_end, block_begin, block_end);
}
