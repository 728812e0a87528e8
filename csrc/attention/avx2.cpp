// attention, AVX2: bf16 widened to f32, multiplied and added by vfmadd. Tiles of 6 rows x 2 vectors of 8: 12 of the 16
// registers are sums.
// Layout: columns.h, a cell is one f32; keys and values of a head are widened once per call.
// Bound: compute, two vfmadd of 16 operations a cycle; a weight costs 14 operations more, at head size 32 as much as 8
// of its 16 vfmadd.
#include <immintrin.h>

#include "columns.h"
#include "contract.h"
#include "vectors_avx2.h"

namespace {

struct Avx2 : Vectors {
    static constexpr int kPerCell = 1, kRows = 6, kCols = 2;

    static ALWAYS_INLINE V multiply(V sum, V a, V b) { return _mm256_fmadd_ps(a, b, sum); }

    // Rounded to bf16, held as f32: the sum of a large multiple and x keeps the upper 8 bits of x. A NaN stays one.
    static ALWAYS_INLINE V cells(const V (&weight)[1]) {
        const V large = mul(weight[0], all(0x1p16f + 1.0f));
        return sub(large, sub(large, weight[0]));
    }
    static ALWAYS_INLINE V add_cells(V sum, V weights) { return _mm256_add_ps(sum, weights); }

    static void pack_queries(const uint16_t* q, size_t stride, size_t count, size_t size, int vectors, char* out) {
        const size_t lanes = (size_t)vectors * kLanes;
        for (size_t lane = 0; lane < lanes; ++lane) {
            for (size_t i = 0; i < size; ++i) {
                ((uint32_t*)out)[i * lanes + lane] = lane < count ? (uint32_t)q[lane * stride + i] << 16 : 0;
            }
        }
    }

    static void pack_values(const uint16_t* v, size_t stride, size_t rows, size_t size, char* out) {
        float* to = (float*)out;
        for (size_t row = 0; row < rows; ++row, v += stride) {
            for (size_t i = 0; i < size; i += 8, to += 8) store(to, widened(v + i));
        }
    }

    static const char* rows_of(const uint16_t* k, size_t stride, size_t rows, size_t size, char* room,
                               size_t& row_bytes) {
        row_bytes = size * kCell;
        pack_values(k, stride, rows, size, room);
        return room;
    }
};

}  // namespace

void attention_avx2(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                    void* scratch) {
    run<Avx2>(*p, head_begin, head_end, query_begin, query_end, scratch);
}
