// linear_w8a8, AVX-512 VNNI: tiles of 6 rows x 64 columns in 24 registers.
// Layout: contract.h. One step of four K values is 4 loads of weights, 6 broadcasts of codes, 24 vpdpbusd.
// Bound: compute. vpdpbusd is 128 operations; one (Zen 4) or two (Sapphire Rapids) a cycle are the roofline.
#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

namespace {

struct Vnni : W8A8 {
    static ALWAYS_INLINE __m512i zero() { return _mm512_setzero_si512(); }
    static ALWAYS_INLINE __m512i multiply_add(__m512i acc, __m512i x, __m512i w) {
        return _mm512_dpbusd_epi32(acc, x, w);
    }
    template <int R, int C>
    static constexpr auto sums = dot_sums<Vnni, R, C>;
};

}  // namespace

void linear_w8a8_avx512vnni(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin,
                            size_t block_end) {
    run_tiles<Vnni>(*p, row_begin, row_end, block_begin, block_end);
}
