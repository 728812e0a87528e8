// linear_w4a16, AVX2: half a block at a time. Layout: contract.h. vpermps looks at the lowest three bits of each lane:
// one lookup for 2 and 3 bits, two and a blend by the fourth bit for 4. Then a vfmadd for each row, which is widened to
// f32 before, a group at a time. Bound: compute.
#include "linear/output_avx2.h"
#include "prepare.h"
#include "tiles.h"

namespace {

struct Halves {
    using F = __m256;
    using I = __m256i;
    using X = float;
    static constexpr size_t kLanes = 8;
    static constexpr size_t kRows = 4;
    static constexpr int kSide[kRows] = {2, 1, 1, 1};
    static constexpr int kParts = 4;
    __m256 low, high;  // levels

    explicit Halves(const Levels& of) : low(wide(of.bf16)), high(wide(of.bf16 + 8)) {}

    ALWAYS_INLINE static __m256 wide(const uint16_t* x) {
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x));
        return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    }
    ALWAYS_INLINE static void widen(const uint16_t* x, size_t count, float* out) {
        for (size_t i = 0; i < count; i += 8) _mm256_store_ps(out + i, wide(x + i));
    }
    template <int by>
    ALWAYS_INLINE static __m256i shifted(__m256i v) {
        return by ? _mm256_srli_epi32(v, by) : v;
    }
    template <int bits>
    ALWAYS_INLINE __m256 weights(__m256i index) const {
        const __m256 below = _mm256_permutevar8x32_ps(low, index);
        if (bits < 4) return below;
        const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
        return _mm256_blendv_ps(below, _mm256_permutevar8x32_ps(high, index), fourth);
    }
    ALWAYS_INLINE static __m256 multiply_add(__m256 sum, __m256 weights, const float* x) {
        return _mm256_fmadd_ps(weights, _mm256_broadcast_ss(x), sum);
    }
    ALWAYS_INLINE static __m256i load(const uint8_t* at) { return _mm256_load_si256((const __m256i*)at); }
    ALWAYS_INLINE static __m256 load(const float* at) { return _mm256_load_ps(at); }
    ALWAYS_INLINE static void store(float* at, __m256 y) { _mm256_store_ps(at, y); }
    ALWAYS_INLINE static __m256 zero() { return _mm256_setzero_ps(); }
    ALWAYS_INLINE static __m256 set1(float x) { return _mm256_set1_ps(x); }
    ALWAYS_INLINE static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
    ALWAYS_INLINE static __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
    ALWAYS_INLINE static __m256i two_and_rest(__m256i two, __m256i rest) {
        const __m256i mask = _mm256_set1_epi8(3);
        return _mm256_or_si256(_mm256_and_si256(mask, two), _mm256_andnot_si256(mask, rest));
    }
    ALWAYS_INLINE static __m256 of_group(const Wna8& w, const void* values, size_t at) {
        return w.bf16_scale ? wide((const uint16_t*)values + at) : load((const float*)values + at);
    }
    ALWAYS_INLINE static __m256 minus_u8(const uint8_t* at) {
        const __m256i values = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_setzero_si256(), values));
    }
    ALWAYS_INLINE static void write(const LinearW4A16& p, const float* y, size_t rows, size_t m, size_t block) {
        for (size_t r = 0; r < rows; ++r, y += 16) {
            __m256 v[2] = {_mm256_add_ps(load(y), load(p.bias + block * 16)),
                           _mm256_add_ps(load(y + 8), load(p.bias + block * 16 + 8))};
            activate(p, v);
            write_floats(p, v[0], v[1], p.n - block * 16, (m + r) * p.out_stride + block * 16);
        }
    }
};

}  // namespace

void linear_w4a16_avx2(const LinearW4A16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_tiles<Halves>(*p, row_begin, row_end, block_begin, block_end);
}

void prepare_w4a16_avx2(const PrepareW4A16* p, size_t row_begin, size_t row_end) {
    prepare_any_rows(*p, row_begin, row_end);
}
