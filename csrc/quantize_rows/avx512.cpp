// quantize_rows, AVX-512. One pass for the range unless the grid is static, one for the codes; the row stays in L1
// between them.
// Bound: memory. 64 values cost 4 loads + 12 operations in the first pass (bf16: 2 + 8), 4 loads + 18 operations + 1
// store in the second (bf16: 2 + 21, which include widening); a shift and a multiplier per feature add 8 loads (from
// L1) and 8 operations to each.
#include <immintrin.h>

#include "contract.h"
#include "row.h"
#include "vectors/bf16_avx512.h"
#include "vectors/masks_avx512.h"

namespace {

// The values of one row as they are quantized, 16 at a time, zero beyond its end, which zero does not disturb: ranges
// include it.
template <class T, bool transformed>
struct Row {
    const T* x;
    const float *shift, *multiplier;

    inline __m512 load(size_t i, __mmask64 mask, int part) const {
        const size_t at = i + 16 * part;
        const __m512 v = load16(x + at, (__mmask16)(mask >> (16 * part)));
        if constexpr (!transformed) return v;
        return _mm512_mul_ps(_mm512_sub_ps(v, _mm512_loadu_ps(shift + at)), _mm512_loadu_ps(multiplier + at));
    }
};

// NaN once it has taken a value that is not finite: 0 * value is not 0 then.
struct Poison {
    __m512 sum;

    inline void take(__m512 v) { sum = _mm512_fmadd_ps(v, _mm512_setzero_ps(), sum); }
    inline bool none() const { return _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q) == 0; }
};

struct Running {
    __m512 lo, hi;
    Poison poison;

    inline void take(__m512 v) {
        lo = _mm512_min_ps(lo, v);
        hi = _mm512_max_ps(hi, v);
        poison.take(v);
    }
};

template <class Row>
inline Range range_of(const Row& row, size_t k) {
    const __m512 zero = _mm512_setzero_ps();
    Running a = {zero, zero, {zero}}, b = a;  // two chains hide the latency
    for (size_t i = 0; i < k; i += 64) {
        const __mmask64 mask = lowest<__mmask64>(k - i);
        a.take(row.load(i, mask, 0));
        b.take(row.load(i, mask, 1));
        a.take(row.load(i, mask, 2));
        b.take(row.load(i, mask, 3));
    }
    return {_mm512_reduce_min_ps(_mm512_min_ps(a.lo, b.lo)), _mm512_reduce_max_ps(_mm512_max_ps(a.hi, b.hi)),
            a.poison.none() && b.poison.none()};
}

// The least of 32 signed words.
inline int16_t least_word(__m512i words) {
    const __m256i half = _mm256_min_epi16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1));
    return least_word(_mm_min_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

// Of bf16 without a transform, 32 at a time, as integers (row.h).
inline Range range_of(const Row<uint16_t, false>& row, size_t k) {
    __m512i lo = _mm512_setzero_si512(), hi = lo;
    for (size_t i = 0; i < k; i += 32) {
        const __m512i bits = _mm512_maskz_loadu_epi16(lowest<__mmask32>(k - i), row.x + i);
        const __m512i sign = _mm512_srai_epi16(bits, 15);
        const __m512i word = _mm512_ternarylogic_epi32(bits, sign, _mm512_set1_epi16(0x7fff), 0x78);  // a ^ (b & c)
        lo = _mm512_min_epi16(lo, word);
        hi = _mm512_max_epi16(hi, word);
    }
    return bf16_range(least_word(lo), (int16_t)~least_word(_mm512_xor_si512(hi, _mm512_set1_epi16(-1))));
}

// rint(x * inv) as 16-bit pairs of vectors. Conversion makes INT_MIN of what is too large: right below, so only the top
// is clipped, and only on a grid that was not made for the row.
template <bool clips>
inline __m512i round32(__m512 a, __m512 b, __m512 inv) {
    const auto clipped = [](__m512 x) { return clips ? _mm512_min_ps(x, _mm512_set1_ps(32767.0f)) : x; };
    const __m512i low = _mm512_cvtps_epi32(clipped(_mm512_mul_ps(a, inv)));
    return _mm512_packs_epi32(low, _mm512_cvtps_epi32(clipped(_mm512_mul_ps(b, inv))));
}

// The same of 32 bf16 on their own grid, in order.
inline __m512i round32(__m512i bits, __m512 inv) {
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)),
                 odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000)));
    const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(even, inv)),
                  high = _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(odd, inv)), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
}

// Whether all values are finite, if that is to be looked at.
template <bool looks, class Row>
inline bool write_codes(const Row& row, size_t k, const Grid& g, int32_t code_min, uint8_t* codes) {
    Poison poison = {_mm512_setzero_ps()};
    const __m512 inv = _mm512_set1_ps(g.inv);
    const __m512i shift = _mm512_set1_epi16((short)(g.zero + 128));
    const __m512i bottom = _mm512_set1_epi8((char)(code_min + 128));
    // The packs work within 128-bit lanes; this undoes their shuffle of four-byte groups.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (size_t i = 0; i < k; i += 64) {
        const __mmask64 mask = lowest<__mmask64>(k - i);
        const __m512 v0 = row.load(i, mask, 0), v1 = row.load(i, mask, 1);
        const __m512 v2 = row.load(i, mask, 2), v3 = row.load(i, mask, 3);
        if constexpr (looks) {
            poison.take(v0);
            poison.take(v1);
            poison.take(v2);
            poison.take(v3);
        }
        const __m512i low = round32<looks>(v0, v1, inv), high = round32<looks>(v2, v3, inv);
        // Every step saturates, which is the clip to [-128, 127]
        const __m512i bytes = _mm512_packus_epi16(_mm512_adds_epi16(low, shift), _mm512_adds_epi16(high, shift));
        _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi32(order, _mm512_max_epu8(bytes, bottom)));
    }
    return poison.none();
}

template <>
inline bool write_codes<false>(const Row<uint16_t, false>& row, size_t k, const Grid& g, int32_t code_min,
                               uint8_t* codes) {
    const __m512 inv = _mm512_set1_ps(g.inv);
    const __m512i shift = _mm512_set1_epi16((short)(g.zero + 128)), bottom = _mm512_set1_epi8((char)(code_min + 128));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);  // the pack works within 128-bit lanes
    for (size_t i = 0; i < k; i += 64) {
        const __mmask64 mask = lowest<__mmask64>(k - i);
        const __m512i low = round32(_mm512_maskz_loadu_epi16((__mmask32)mask, row.x + i), inv);
        const __m512i high = round32(_mm512_maskz_loadu_epi16((__mmask32)(mask >> 32), row.x + i + 32), inv);
        const __m512i bytes = _mm512_packus_epi16(_mm512_add_epi16(low, shift), _mm512_add_epi16(high, shift));
        _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi64(order, _mm512_max_epu8(bytes, bottom)));
    }
    return true;
}

}  // namespace

#include "loop.h"

void quantize_rows_avx512(const QuantizeRows* p, size_t row_begin, size_t row_end) {
    quantize_any_rows(*p, row_begin, row_end);
}
