// quantize_groups, AVX-512: one pass over a group for its range, one for its codes; it stays in L1 between them.
// Bound: memory and the reductions, some 20 operations for a group. 16 values cost a load and 2 operations in the first
// pass, a load, 4 operations and a store in the second.
#include <immintrin.h>

#include "contract.h"
#include "vectors/bf16_avx512.h"
#include "vectors/masks_avx512.h"

namespace {

// A row, 16 values at a time, zero where masked.
template <class T, bool transformed>
struct Values {
    const T* x;
    const float *shift, *multiplier;

    ALWAYS_INLINE __m512 load(size_t k, __mmask16 mask) const {
        const __m512 v = load16(x + k, mask);
        if constexpr (!transformed) return v;
        return _mm512_mul_ps(_mm512_sub_ps(v, load16(shift + k, mask)), load16(multiplier + k, mask));
    }
};

template <class Values>
inline uint32_t largest_bits(const Values& values, size_t begin, size_t end) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t k = begin; k < end; k += 16) {
        const __m512i bits = _mm512_castps_si512(values.load(k, lanes_before<__mmask16>(k, end)));
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    return (uint32_t)_mm512_reduce_max_epi32(largest);
}

template <class Values>
inline int32_t write_codes(const Values& values, size_t begin, size_t end, float inv, int8_t* codes) {
    __m512i sum = _mm512_setzero_si512();
    for (size_t k = begin; k < end; k += 16) {
        const __mmask16 mask = lanes_before<__mmask16>(k, end);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(values.load(k, mask), _mm512_set1_ps(inv)));
        sum = _mm512_add_epi32(sum, whole);
        _mm_mask_storeu_epi8(codes + k, mask, _mm512_cvtepi32_epi8(whole));
    }
    return _mm512_reduce_add_epi32(sum);
}

}  // namespace

#include "loop.h"

void quantize_groups_avx512(const QuantizeGroups* p, size_t row_begin, size_t row_end) {
    quantize_any_groups(*p, row_begin, row_end);
}
