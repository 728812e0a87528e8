// linear_w8a8, AVX2. Codes and weights are widened to 16 bit and multiplied by vpmaddwd, whose pair sums are exact;
// vpmaddubsw, which would take them as bytes, saturates at 255 * 127 * 2.
// Layout: contract.h. Tiles of 2 rows x 16 columns: 8 accumulators, each column's sum in two halves.
// Bound: compute. vpmaddwd + vpaddd are 32 operations in two instructions.
#include <immintrin.h>

#include "contract.h"
#include "output_avx2.h"

namespace {

INLINE __m256i widen_weights(const int8_t* w) { return _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)w)); }

INLINE __m256i widen_codes(const uint8_t* a) {
    int32_t four;
    __builtin_memcpy(&four, a, 4);
    return _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
}

INLINE __m256i multiply_add(__m256i acc, __m256i a, __m256i w) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, w));
}

// Columns 0-3 and 4-7 in pairs of half sums -> eight column sums in order.
INLINE __m256i join(__m256i low, __m256i high) {
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), _MM_SHUFFLE(3, 1, 2, 0));
}

// Sums of two rows of one column block: out [2, 16]. The second row may be the first again.
INLINE void block_sums(const uint8_t* a0, const uint8_t* a1, const int8_t* w, size_t k_padded, int32_t* out) {
    __m256i s00, s01, s02, s03, s10, s11, s12, s13;
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = _mm256_setzero_si256();
    for (size_t k = 0; k < k_padded; k += kGroup, w += kBlock * kGroup) {
        const __m256i w0 = widen_weights(w), w1 = widen_weights(w + 16);
        const __m256i w2 = widen_weights(w + 32), w3 = widen_weights(w + 48);
        const __m256i x0 = widen_codes(a0 + k), x1 = widen_codes(a1 + k);
        s00 = multiply_add(s00, x0, w0);
        s01 = multiply_add(s01, x0, w1);
        s02 = multiply_add(s02, x0, w2);
        s03 = multiply_add(s03, x0, w3);
        s10 = multiply_add(s10, x1, w0);
        s11 = multiply_add(s11, x1, w1);
        s12 = multiply_add(s12, x1, w2);
        s13 = multiply_add(s13, x1, w3);
    }
    _mm256_store_si256((__m256i*)out, join(s00, s01));
    _mm256_store_si256((__m256i*)(out + 8), join(s02, s03));
    _mm256_store_si256((__m256i*)(out + 16), join(s10, s11));
    _mm256_store_si256((__m256i*)(out + 24), join(s12, s13));
}

// Codes of the columns from n on, the first `count` of eight.
inline void write_codes(const OutputGrid& g, __m256 y, size_t n, size_t count, uint8_t* out) {
    if (g.multiplier) {
        y = _mm256_mul_ps(_mm256_sub_ps(y, _mm256_loadu_ps(g.shift + n)), _mm256_loadu_ps(g.multiplier + n));
    }
    const __m256 bound = _mm256_set1_ps(512.0f);  // so that the integer sum cannot overflow
    y = _mm256_mul_ps(y, _mm256_set1_ps(1.0f / g.scale));
    y = _mm256_max_ps(_mm256_min_ps(y, bound), _mm256_sub_ps(_mm256_setzero_ps(), bound));
    const __m256i c = _mm256_add_epi32(_mm256_cvtps_epi32(y), _mm256_set1_epi32(g.zero_point + 128));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    const __m128i bytes = _mm_max_epu8(_mm_packus_epi16(words, words), _mm_set1_epi8((char)(g.code_min + 128)));
    if (count >= 8) return _mm_storel_epi64((__m128i*)out, bytes);
    uint8_t all[16];
    _mm_storeu_si128((__m128i*)all, bytes);
    for (size_t i = 0; i < count; ++i) out[i] = all[i];
}

inline void write_row(const LinearW8A8& p, const int32_t* sums, size_t m, size_t n) {
    for (size_t half = 0; half < kBlock && n + half < p.n; half += 8) {
        const __m256i sum = _mm256_load_si256((const __m256i*)(sums + half));
        if (p.sums) {
            _mm256_maskstore_epi32(p.sums + m * p.out_stride + n + half, lane_mask(p.n - n - half), sum);
            continue;
        }
        const __m256i colsum = _mm256_load_si256((const __m256i*)(p.colsum + n + half));
        const __m256i offset = _mm256_mullo_epi32(_mm256_set1_epi32(p.zero_m[m] + 128), colsum);
        const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(p.scale_m[m]), _mm256_load_ps(p.scale_n + n + half));
        const __m256 t = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
        const __m256 linear = _mm256_fmadd_ps(t, scale, _mm256_load_ps(p.bias + n + half));
        const size_t count = p.n - n - half, at = m * p.out_stride + n + half;
        if (p.grid) {
            write_codes(*p.grid, p.gelu ? gelu(linear) : linear, n + half, count, (uint8_t*)p.y + at);
        } else {
            write_output(p, linear, count, at);
        }
    }
}

}  // namespace

void linear_w8a8_avx2(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    alignas(32) int32_t sums[2 * kBlock];
    for (size_t block = block_begin; block < block_end; ++block) {
        const int8_t* weight = p->weight + block * kBlock * p->k_padded;
        for (size_t m = row_begin; m < row_end; m += 2) {
            const uint8_t* codes = p->codes + m * p->code_stride;
            const bool pair = m + 1 < row_end;
            block_sums(codes, pair ? codes + p->code_stride : codes, weight, p->k_padded, sums);
            write_row(*p, sums, m, block * kBlock);
            if (pair) write_row(*p, sums + kBlock, m + 1, block * kBlock);
        }
    }
}
