// attention, AVX-512 with bf16 products (Zen 4, Cooper Lake, Sapphire Rapids): vdpbf16ps. Tiles of 8 rows x 2 or 3
// vectors of 16.
// Layout: columns.h, a cell is two bf16: keys are read where they are, queries are transposed by pairs of head
// dimensions, values and weights interleave two keys.
// Bound: compute, one vdpbf16ps of 64 operations a cycle (Zen 4; in two cycles on Sapphire Rapids). At head size 32 a
// vector of 16 weights is 32 of them, and 13 operations more.
#include <immintrin.h>

#include "columns.h"
#include "contract.h"
#include "vectors_avx512.h"

namespace {

struct Avx512Bf16 : Vectors {
    static constexpr int kPerCell = 2, kRows = 8, kCols = 3;

    static ALWAYS_INLINE V multiply(V sum, V a, V b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
    }

    // Two keys of each query interleaved.
    static ALWAYS_INLINE __m512i interleave_index() {
        return _mm512_setr_epi32(0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005, 0x00160006,
                                 0x00170007, 0x00180008, 0x00190009, 0x001a000a, 0x001b000b, 0x001c000c, 0x001d000d,
                                 0x001e000e, 0x001f000f);
    }
    static ALWAYS_INLINE V cells(const V (&weight)[2]) {
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]);
        return _mm512_castsi512_ps(_mm512_permutexvar_epi16(interleave_index(), both));
    }
    static ALWAYS_INLINE V add_cells(V sum, V weights) {
        return multiply(sum, weights, _mm512_castsi512_ps(_mm512_set1_epi16(0x3f80)));
    }

    static ALWAYS_INLINE void store_bf16(uint16_t* out, V x, size_t left) {
        const __m256i words = (__m256i)_mm512_cvtneps_pbh(x);
        if (left >= 16) return _mm256_storeu_si256((__m256i*)out, words);
        _mm_storeu_si128((__m128i*)out, _mm256_castsi256_si128(words));
    }

    static void pack_queries(const uint16_t* q, size_t stride, size_t count, size_t size, int vectors, char* out) {
        const size_t lanes = (size_t)vectors * kLanes;
        for (size_t lane = 0; lane < lanes; lane += kLanes) {
            for (size_t i = 0; i < size; i += 32) {
                __m512i pairs[16];
                load_pairs(q + lane * stride + i, stride, count - lane, size - i, pairs);
                char* to = out + (i / 2 * lanes + lane) * kCell;
                if (size - i >= 32) {
                    unroll<16>([&](auto pair) INLINED {
                        _mm512_storeu_si512(to + pair.value * lanes * kCell, pairs[pair.value]);
                    });
                } else {
                    unroll<12>([&](auto pair) INLINED {
                        if (i + 2 * pair.value < size)
                            _mm512_storeu_si512(to + pair.value * lanes * kCell, pairs[pair.value]);
                    });
                }
            }
        }
    }

    // Two rows interleaved, zero beyond the last.
    static void pack_values(const uint16_t* v, size_t stride, size_t rows, size_t size, char* out) {
        const size_t cells = round_up(size, kLanes);
        for (size_t row = 0; row < rows; row += 2, v += 2 * stride, out += cells * kCell) {
            for (size_t i = 0; i < size; i += kLanes) {
                const __mmask16 mask = (__mmask16)lowest<__mmask32>(size - i);
                const __m256i even = _mm256_maskz_loadu_epi16(mask, v + i);
                const __m256i odd =
                    row + 1 < rows ? _mm256_maskz_loadu_epi16(mask, v + stride + i) : _mm256_setzero_si256();
                const __m512i both = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
                _mm512_storeu_si512(out + i * kCell, _mm512_or_si512(_mm512_cvtepu16_epi32(even), both));
            }
        }
    }

    static const char* rows_of(const uint16_t* k, size_t stride, size_t, size_t, char*, size_t& row_bytes) {
        row_bytes = stride * sizeof(uint16_t);
        return (const char*)k;
    }
};

}  // namespace

void attention_avx512bf16(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                          void* scratch) {
    run<Avx512Bf16>(*p, head_begin, head_end, query_begin, query_end, scratch);
}
