// quantize_groups, AVX2: one pass over a group for its range, one for its codes; it stays in L1 between them.
// Bound: memory and the reductions, some 20 operations for a group. 8 values cost a load and 2 operations in the first
// pass, a load, 6 operations and a store in the second.
#include <immintrin.h>

#include "contract.h"
#include "vectors/unroll.h"

namespace {

ALWAYS_INLINE __m256 load8(const float* x) { return _mm256_loadu_ps(x); }

ALWAYS_INLINE __m256 load8(const uint16_t* x) {  // bf16 is the upper half of f32
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16));
}

// A row, 8 values at a time: groups are whole multiples of that.
template <class T, bool transformed>
struct Values {
    const T* x;
    const float *shift, *multiplier;

    ALWAYS_INLINE __m256 load(size_t k) const {
        const __m256 v = load8(x + k);
        if constexpr (!transformed) return v;
        return _mm256_mul_ps(_mm256_sub_ps(v, load8(shift + k)), load8(multiplier + k));
    }
};

// Of eight lanes, what `op` makes of them.
template <class Op>
ALWAYS_INLINE int32_t reduce(__m256i lanes, Op op) {
    __m128i half = op(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    half = op(half, _mm_shuffle_epi32(half, _MM_SHUFFLE(1, 0, 3, 2)));
    return _mm_cvtsi128_si32(op(half, _mm_shuffle_epi32(half, _MM_SHUFFLE(2, 3, 0, 1))));
}

template <class Values>
inline uint32_t largest_bits(const Values& values, size_t begin, size_t end) {
    __m256i largest = _mm256_setzero_si256();
    for (size_t k = begin; k < end; k += 8) {
        const __m256i bits = _mm256_castps_si256(values.load(k));
        largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    return (uint32_t)reduce(largest, [](__m128i a, __m128i b) INLINED { return _mm_max_epi32(a, b); });
}

template <class Values>
inline int32_t write_codes(const Values& values, size_t begin, size_t end, float inv, int8_t* codes) {
    __m256i sum = _mm256_setzero_si256();
    for (size_t k = begin; k < end; k += 8) {
        const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(values.load(k), _mm256_set1_ps(inv)));
        sum = _mm256_add_epi32(sum, whole);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64((__m128i*)(codes + k), _mm_packs_epi16(words, words));
    }
    return reduce(sum, [](__m128i a, __m128i b) INLINED { return _mm_add_epi32(a, b); });
}

}  // namespace

#include "loop.h"

void quantize_groups_avx2(const QuantizeGroups* p, size_t row_begin, size_t row_end) {
    quantize_any_groups(*p, row_begin, row_end);
}
