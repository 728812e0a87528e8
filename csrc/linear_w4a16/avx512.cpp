// linear_w4a16, AVX-512 without vdpbf16ps. Layout: contract.h. vpermps looks at the lowest four bits of each lane only,
// so that a value of K of 16 columns is a shift, a lookup, and a vfmadd for each row, which is widened to f32 before, a
// group at a time. Bound: memory up to 2 rows, then compute. vfmadd is 32 operations.
#include "prepare.h"
#include "tiles.h"
#include "vectors_avx512.h"

namespace {

struct Widened : Avx512 {
    using X = float;
    static constexpr int kParts = 4;
    __m512 levels;

    explicit Widened(const Levels& of) : levels(wide(of.bf16)) {}

    ALWAYS_INLINE static __m512 wide(const uint16_t* x) { return load16(x, 0xffff); }
    ALWAYS_INLINE static void widen(const uint16_t* x, size_t count, float* out) {
        for (size_t i = 0; i < count; i += 16) {
            _mm512_store_ps(out + i, load16(x + i, lanes_before<__mmask16>(i, count)));
        }
    }
    template <int by>
    ALWAYS_INLINE static __m512i shifted(__m512i v) {
        return by ? _mm512_srli_epi32(v, by) : v;
    }
    template <int bits>
    ALWAYS_INLINE __m512 weights(__m512i index) const {
        return _mm512_permutexvar_ps(index, levels);
    }
    ALWAYS_INLINE static __m512 multiply_add(__m512 sum, __m512 weights, const float* x) {
        return _mm512_fmadd_ps(weights, _mm512_set1_ps(*x), sum);
    }
};

}  // namespace

void linear_w4a16_avx512(const LinearW4A16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_tiles<Widened>(*p, row_begin, row_end, block_begin, block_end);
}

void prepare_w4a16_avx512(const PrepareW4A16* p, size_t row_begin, size_t row_end) {
    prepare_any_rows(*p, row_begin, row_end);
}
