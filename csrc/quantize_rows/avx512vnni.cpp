// quantize_rows, AVX-512. One pass for the range, one for the codes; the row stays in L1 between them.
// Bound: memory. 16 values cost 1 load + 4 operations in the first pass, 1 load + 5 operations in the second.
#include <immintrin.h>

#include "contract.h"
#include "row.h"

namespace {

inline __mmask16 tail_mask(size_t left) { return left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1); }

inline void widen(__m512 v, __m512& lo, __m512& hi, __mmask16& nan) {
    lo = _mm512_min_ps(lo, v);
    hi = _mm512_max_ps(hi, v);
    nan = _kor_mask16(nan, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q));
}

inline Range range_of(const float* x, size_t k) {
    __m512 lo0 = _mm512_setzero_ps(), hi0 = lo0, lo1 = lo0, hi1 = lo0;  // two chains hide the latency of min and max
    __mmask16 nan0 = 0, nan1 = 0;
    size_t i = 0;
    for (; i + 32 <= k; i += 32) {
        widen(_mm512_loadu_ps(x + i), lo0, hi0, nan0);
        widen(_mm512_loadu_ps(x + i + 16), lo1, hi1, nan1);
    }
    for (; i < k; i += 16) widen(_mm512_maskz_loadu_ps(tail_mask(k - i), x + i), lo0, hi0, nan0);
    const float lo = _mm512_reduce_min_ps(_mm512_min_ps(lo0, lo1));
    const float hi = _mm512_reduce_max_ps(_mm512_max_ps(hi0, hi1));
    const bool finite = !(nan0 | nan1) && lo >= -__FLT_MAX__ && hi <= __FLT_MAX__;
    return {lo, hi, finite};
}

inline void quantize_row(const QuantizeRows& p, const float* x, uint8_t* codes, float* scale, int32_t* zero) {
    const size_t padded = (p.k + 63) / 64 * 64;
    Range r = range_of(x, p.k);
    const Grid g = grid_of(p, r);
    if (!r.finite) {
        fill(codes, 0, padded);
        *scale = __builtin_nanf("");
        *zero = 0;
        return;
    }
    *scale = g.scale;
    *zero = g.zero;
    const __m512 inv = _mm512_set1_ps(g.inv);
    const __m512 bound = _mm512_set1_ps(512.0f);  // of a static grid's x * inv, so that the integer sum cannot overflow
    const __m512i shift = _mm512_set1_epi32(g.zero + 128);
    const __m128i lowest = _mm_set1_epi8((char)(p.code_min + 128));
    for (size_t i = 0; i < p.k; i += 16) {
        const __mmask16 mask = tail_mask(p.k - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), inv);
        v = _mm512_max_ps(_mm512_min_ps(v, bound), _mm512_sub_ps(_mm512_setzero_ps(), bound));
        __m512i c = _mm512_add_epi32(_mm512_cvtps_epi32(v), shift);
        c = _mm512_max_epi32(c, _mm512_setzero_si512());
        _mm_mask_storeu_epi8(codes + i, mask, _mm_max_epu8(_mm512_cvtusepi32_epi8(c), lowest));
    }
    fill(codes, p.k, padded);
}

}  // namespace

void quantize_rows_avx512vnni(const QuantizeRows* p, size_t row_begin, size_t row_end) {
    for (size_t m = row_begin; m < row_end; ++m) {
        quantize_row(*p, p->x + m * p->x_stride, p->codes + m * p->code_stride, p->scale + m, p->zero_point + m);
    }
}
