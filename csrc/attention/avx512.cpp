// attention, AVX-512 without bf16 products: bf16 widened to f32, multiplied and added by vfmadd. Tiles of 8 rows x 2 or
// 3 vectors of 16. Layout: columns.h, a cell is one f32; keys and values of a head are widened once per call. Bound:
// compute, one (two 256-bit units) or two vfmadd of 32 operations a cycle; a weight costs 13 operations more.
#include <immintrin.h>

#include "columns.h"
#include "contract.h"
#include "vectors/bf16_avx512.h"
#include "vectors_avx512.h"

namespace {

struct Avx512 : Vectors {
    static constexpr int kPerCell = 1, kRows = 8, kCols = 3;

    static ALWAYS_INLINE V multiply(V sum, V a, V b) { return _mm512_fmadd_ps(a, b, sum); }

    // Rounded to bf16, held as f32: the sum of a large multiple and x keeps the upper 8 bits of x. A NaN stays one.
    static ALWAYS_INLINE V cells(const V (&weight)[1]) {
        const V large = mul(weight[0], all(0x1p16f + 1.0f));
        return sub(large, sub(large, weight[0]));
    }
    static ALWAYS_INLINE V add_cells(V sum, V weights) { return _mm512_add_ps(sum, weights); }

    // To the nearest bf16, half to even; a NaN stays one. The first `left` of 16.
    static ALWAYS_INLINE void store_bf16(uint16_t* out, V x, size_t left) {
        _mm256_mask_storeu_epi16(out, (__mmask16)lowest<__mmask32>(left), to_bf16(x));
    }

    static void pack_queries(const uint16_t* q, size_t stride, size_t count, size_t size, int vectors, char* out) {
        const size_t lanes = (size_t)vectors * kLanes;
        for (size_t lane = 0; lane < lanes; lane += kLanes) {
            for (size_t i = 0; i < size; i += 32) {
                __m512i pairs[16];
                load_pairs(q + lane * stride + i, stride, count - lane, size - i, pairs);
                float* to = (float*)out + i * lanes + lane;
                unroll<16>([&](auto pair) INLINED {
                    if (i + 2 * pair.value < size) {
                        const __m512i odd = _mm512_and_si512(pairs[pair.value], _mm512_set1_epi32((int)0xffff0000));
                        store(to + 2 * pair.value * lanes,
                              _mm512_castsi512_ps(_mm512_slli_epi32(pairs[pair.value], 16)));
                        store(to + (2 * pair.value + 1) * lanes, _mm512_castsi512_ps(odd));
                    }
                });
            }
        }
    }

    // Rows of `size` bf16 as f32, `row_size` apart, zero beyond.
    static void widen(const uint16_t* x, size_t stride, size_t rows, size_t size, size_t row_size, float* out) {
        for (size_t row = 0; row < rows; ++row, x += stride, out += row_size) {
            for (size_t i = 0; i < size; i += kLanes) {
                const __mmask16 mask = (__mmask16)lowest<__mmask32>(size - i);
                const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + i));
                const V wide = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
                _mm512_mask_storeu_ps(out + i, row_size - i < 16 ? mask : (__mmask16)0xffff, wide);
            }
        }
    }

    static void pack_values(const uint16_t* v, size_t stride, size_t rows, size_t size, char* out) {
        widen(v, stride, rows, size, round_up(size, kLanes), (float*)out);
    }

    static const char* rows_of(const uint16_t* k, size_t stride, size_t rows, size_t size, char* room,
                               size_t& row_bytes) {
        row_bytes = size * kCell;
        widen(k, stride, rows, size, size, (float*)room);
        return room;
    }
};

}  // namespace

void attention_avx512(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                      void* scratch) {
    run<Avx512>(*p, head_begin, head_end, query_begin, query_end, scratch);
}
