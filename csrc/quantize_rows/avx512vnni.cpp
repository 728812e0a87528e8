// quantize_rows, AVX-512. One pass for the range, one for the codes; the row stays in L1 between them.
// Bound: memory. 64 values cost 4 loads + 12 operations in the first pass, 4 loads + 18 operations + 1 store in the
// second; a shift and a multiplier per feature add 8 loads (from L1) and 8 operations to each.
#include <immintrin.h>

#include "contract.h"
#include "row.h"

namespace {

// Lowest `left` of 64 bits, all from 64 on.
inline uint64_t tail_mask(size_t left) { return left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1; }

// 16 values, zero where masked.
inline __m512 load16(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }

inline __m512 load16(const uint16_t* x, __mmask16 mask) {  // bf16 is the upper half of f32
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

// The values of one row as they are quantized, 16 at a time, zero beyond its end, which zero does not disturb: ranges
// include it.
template <class T, bool transformed>
struct Row {
    const T* x;
    const float *shift, *multiplier;

    inline __m512 load(size_t i, uint64_t mask, int part) const {
        const size_t at = i + 16 * part;
        const __m512 v = load16(x + at, (__mmask16)(mask >> (16 * part)));
        if constexpr (!transformed) return v;
        return _mm512_mul_ps(_mm512_sub_ps(v, _mm512_loadu_ps(shift + at)), _mm512_loadu_ps(multiplier + at));
    }
};

struct Running {
    __m512 lo, hi, poison;  // poison becomes NaN with the first value that is not finite: 0 * value is not 0 then

    inline void take(__m512 v) {
        lo = _mm512_min_ps(lo, v);
        hi = _mm512_max_ps(hi, v);
        poison = _mm512_fmadd_ps(v, _mm512_setzero_ps(), poison);
    }
};

template <class Row>
inline Range range_of(const Row& row, size_t k) {
    const __m512 zero = _mm512_setzero_ps();
    Running a = {zero, zero, zero}, b = a;  // two chains hide the latency
    for (size_t i = 0; i < k; i += 64) {
        const uint64_t mask = tail_mask(k - i);
        a.take(row.load(i, mask, 0));
        b.take(row.load(i, mask, 1));
        a.take(row.load(i, mask, 2));
        b.take(row.load(i, mask, 3));
    }
    const __m512 poison = _mm512_add_ps(a.poison, b.poison);
    const bool finite = _mm512_cmp_ps_mask(poison, poison, _CMP_UNORD_Q) == 0;
    return {_mm512_reduce_min_ps(_mm512_min_ps(a.lo, b.lo)), _mm512_reduce_max_ps(_mm512_max_ps(a.hi, b.hi)), finite};
}

// rint(x * inv) as 16-bit pairs of vectors. Conversion makes INT_MIN of what is too large: right below, so only the top
// is clipped.
inline __m512i round32(__m512 a, __m512 b, __m512 inv) {
    const __m512 top = _mm512_set1_ps(32767.0f);
    const __m512i low = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(a, inv), top));
    const __m512i high = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(b, inv), top));
    return _mm512_packs_epi32(low, high);
}

template <class Row>
inline void write_codes(const Row& row, size_t k, const Grid& g, int32_t code_min, uint8_t* codes) {
    const __m512 inv = _mm512_set1_ps(g.inv);
    const __m512i shift = _mm512_set1_epi16((short)(g.zero + 128));
    const __m512i lowest = _mm512_set1_epi8((char)(code_min + 128));
    // The packs work within 128-bit lanes; this undoes their shuffle of four-byte groups.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (size_t i = 0; i < k; i += 64) {
        const uint64_t mask = tail_mask(k - i);
        const __m512i low = round32(row.load(i, mask, 0), row.load(i, mask, 1), inv);
        const __m512i high = round32(row.load(i, mask, 2), row.load(i, mask, 3), inv);
        // Every step saturates, which is the clip to [-128, 127]
        const __m512i bytes = _mm512_packus_epi16(_mm512_adds_epi16(low, shift), _mm512_adds_epi16(high, shift));
        _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi32(order, _mm512_max_epu8(bytes, lowest)));
    }
}

template <class T, bool transformed>
void quantize_rows(const QuantizeRows& p, size_t row_begin, size_t row_end) {
    for (size_t m = row_begin; m < row_end; ++m) {
        const Row<T, transformed> row = {(const T*)p.x + m * p.x_stride, p.shift, p.multiplier};
        const Grid g = grid_of(p, range_of(row, p.k));
        if (!g.finite) {
            poison_row(p, m);
            continue;
        }
        p.scale[m] = g.scale;
        p.zero_point[m] = g.zero;
        write_codes(row, p.k, g, p.code_min, p.codes + m * p.code_stride);
    }
}

}  // namespace

void quantize_rows_avx512vnni(const QuantizeRows* p, size_t row_begin, size_t row_end) {
    static constexpr decltype(&quantize_rows<float, false>) table[2][2] = {
        {quantize_rows<float, false>, quantize_rows<float, true>},
        {quantize_rows<uint16_t, false>, quantize_rows<uint16_t, true>}};
    table[p->bf16][p->multiplier != nullptr](*p, row_begin, row_end);
}
