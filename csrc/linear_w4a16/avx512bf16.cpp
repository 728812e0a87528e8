// linear_w4a16, AVX-512 with vdpbf16ps. Layout: contract.h. A vector of 4-bit codes is loaded, shifted three times and
// looked up four times (pairs_avx512.h): four operands for 8 values of K and 16 columns. Then a vdpbf16ps for each of
// them and each row.
//
//   1-3 rows  Bound: memory from some 60 GB/s a core down (Zen 5); above that the ports of lookups and products.
//   4-8 rows  Bound: compute. vdpbf16ps is 64 operations; with 8 rows it is 32 of the 39 instructions on its ports.
//
// A vdpbf16ps waits six cycles for the one before it: 12 sums side by side are what two a cycle need.
#include "pairs_avx512.h"
#include "tiles.h"

namespace {

struct Products : Pairs {
    using X = uint16_t;

    using Pairs::Pairs;

    ALWAYS_INLINE static __m512 multiply_add(__m512 sum, __m512i weights, const uint16_t* x) {
        int32_t pair;
        __builtin_memcpy(&pair, x, 4);
        return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(pair));
    }
};

}  // namespace

void linear_w4a16_avx512bf16(const LinearW4A16* p, size_t row_begin, size_t row_end, size_t block_begin,
                             size_t block_end) {
    run_tiles<Products>(*p, row_begin, row_end, block_begin, block_end);
}
