// quantize_rows, AVX2. One pass for the range unless the grid is static, one for the codes; the row stays in L1 between
// them.
// Bound: memory. 8 values cost 1 load + 4 operations in the first pass (16 bf16: 1 + 5), 1 load + 7 operations in the
// second; a shift and a multiplier per feature add 2 loads (from L1) and 2 operations to each.
#include <immintrin.h>

#include "contract.h"
#include "row.h"

namespace {

inline __m256 load8(const float* x) { return _mm256_loadu_ps(x); }

inline __m256 load8(const uint16_t* x) {  // bf16 is the upper half of f32
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16));
}

// The values of one row as they are quantized, 8 at a time, zero beyond its end, which zero does not disturb: ranges
// include it.
template <class T, bool transformed>
struct Row {
    const T* x;
    const float *shift, *multiplier;

    inline __m256 load(size_t i, size_t k) const {
        const __m256 v = i + 8 <= k ? load8(x + i) : load_tail(i, k);
        if constexpr (!transformed) return v;
        return _mm256_mul_ps(_mm256_sub_ps(v, _mm256_loadu_ps(shift + i)), _mm256_loadu_ps(multiplier + i));
    }

    inline __m256 load_tail(size_t i, size_t k) const {
        T rest[8] = {0};
        for (size_t j = 0; i + j < k; ++j) rest[j] = x[i + j];
        return load8(rest);
    }
};

template <class Row>
inline Range range_of(const Row& row, size_t k) {
    __m256 lo8 = _mm256_setzero_ps(), hi8 = lo8, nan8 = lo8;
    for (size_t i = 0; i < k; i += 8) {
        const __m256 v = row.load(i, k);
        lo8 = _mm256_min_ps(lo8, v);
        hi8 = _mm256_max_ps(hi8, v);
        nan8 = _mm256_or_ps(nan8, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    const bool finite = !_mm256_movemask_ps(nan8);
    alignas(32) float lows[8], highs[8];
    _mm256_store_ps(lows, lo8);
    _mm256_store_ps(highs, hi8);
    float lo = 0.0f, hi = 0.0f;
    for (int i = 0; i < 8; ++i) {
        lo = lows[i] < lo ? lows[i] : lo;
        hi = highs[i] > hi ? highs[i] : hi;
    }
    return {lo, hi, finite && lo >= -__FLT_MAX__ && hi <= __FLT_MAX__};
}

// The least of 16 signed words.
inline int16_t least_word(__m256i words) {
    return least_word(_mm_min_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

// Of bf16 without a transform, 16 at a time, as integers (row.h).
inline Range range_of(const Row<uint16_t, false>& row, size_t k) {
    __m256i lo = _mm256_setzero_si256(), hi = lo;
    for (size_t i = 0; i < k; i += 16) {
        alignas(32) uint16_t rest[16] = {0};
        const uint16_t* x = row.x + i;
        if (i + 16 > k) x = (const uint16_t*)__builtin_memcpy(rest, x, (k - i) * sizeof(uint16_t));
        const __m256i bits = _mm256_loadu_si256((const __m256i*)x);
        const __m256i flipped = _mm256_and_si256(_mm256_srai_epi16(bits, 15), _mm256_set1_epi16(0x7fff));
        const __m256i word = _mm256_xor_si256(bits, flipped);
        lo = _mm256_min_epi16(lo, word);
        hi = _mm256_max_epi16(hi, word);
    }
    return bf16_range(least_word(lo), (int16_t)~least_word(_mm256_xor_si256(hi, _mm256_set1_epi16(-1))));
}

// 8 codes in the low half. packs and packus saturate to [-32768, 32767] and [0, 255], which is the upper clip.
inline __m128i codes_of(__m256 x, __m256 inv, __m256i shift, __m128i lowest) {
    const __m256 bound = _mm256_set1_ps(512.0f);  // of a static grid's x * inv, so that the integer sum cannot overflow
    const __m256 v =
        _mm256_max_ps(_mm256_min_ps(_mm256_mul_ps(x, inv), bound), _mm256_sub_ps(_mm256_setzero_ps(), bound));
    const __m256i c = _mm256_add_epi32(_mm256_cvtps_epi32(v), shift);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    return _mm_max_epu8(_mm_packus_epi16(words, words), lowest);
}

// Whether all values are finite, if that is to be looked at.
template <bool looks, class Row>
inline bool write_codes(const Row& row, size_t k, const Grid& g, int32_t code_min, uint8_t* codes) {
    __m256 poison = _mm256_setzero_ps();  // NaN once 0 * value is not 0
    const __m256 inv = _mm256_set1_ps(g.inv);
    const __m256i shift = _mm256_set1_epi32(g.zero + 128);
    const __m128i lowest = _mm_set1_epi8((char)(code_min + 128));
    for (size_t i = 0; i < (k + 63) / 64 * 64; i += 8) {  // the padding too
        const __m256 v = row.load(i, k);
        if constexpr (looks) poison = _mm256_fmadd_ps(v, _mm256_setzero_ps(), poison);
        _mm_storel_epi64((__m128i*)(codes + i), codes_of(v, inv, shift, lowest));
    }
    return !_mm256_movemask_ps(_mm256_cmp_ps(poison, poison, _CMP_UNORD_Q));
}

}  // namespace

#include "loop.h"

void quantize_rows_avx2(const QuantizeRows* p, size_t row_begin, size_t row_end) {
    quantize_any_rows(*p, row_begin, row_end);
}
