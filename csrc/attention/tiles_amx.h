// attention, AMX: what lies in scratch, and the packing of keys, values and queries into tiles. Everything is internal
// to the file that includes it.
//
// Keys of a head are B tiles of 16 keys x 32 head dimensions: a row is a pair of dimensions, a cell one key's. Values
// are two B tiles for 32 keys x 32 dimensions: a row is a pair of keys, a cell one dimension of both. vpunpck
// interleaves two rows of v within 128-bit lanes, so that the dimensions of the two tiles are, of each eight, the lower
// and the upper four:
//
//       cell            0       3   4       7   8      11  12     15
//       first tile    |  0 ..  3  |  8 .. 11  | 16 .. 19  | 24 .. 27  |    row r: keys 2 r and 2 r + 1
//       second tile   |  4 ..  7  | 12 .. 15  | 20 .. 23  | 28 .. 31  |
//
// The sums of weighted values have that order too; it is put right when the output is written.
#pragma once
#include <immintrin.h>

#include "common.h"
#include "vectors_avx512.h"

namespace {

constexpr size_t kRows = 16, kKeys = 32, kDims = 32;  // queries of a block, keys and head dimensions of a step
constexpr size_t kTile = 512;                         // bf16 of a tile

// A head's packed operands, and a block's results on the way, all in scratch.
struct Work {
    const Attention& p;
    size_t dim_steps, score_stride;
    Range keys;           // packed: from a multiple of kKeys on
    uint16_t* key_tiles;  // [key steps * 2, dim_steps] tiles
    uint16_t* values;     // [key steps, dim_steps * 2] tiles
    uint16_t* weights;    // [key steps] A tiles
    uint16_t* queries;    // [kRows, dim_steps * kDims], where rows or dimensions are missing in memory
    float* less;          // [kRows] minus the largest score, scaled
    float* sums;          // [kRows, 16] sums of weights by lane
    float* out;           // [kRows, dim_steps * kDims], dimensions in the order of the tiles
    float* scores;        // [kRows, score_stride], from the block's first key step on
};

// Queries of a head, and the key steps that one of them sees.
struct Block {
    size_t head, query, count;
    size_t first, steps;
    const uint16_t* rows;
    size_t row_stride;
};

// The larger of the magnitudes' bits, as integers: those of what is not finite are above all others.
ALWAYS_INLINE __m512i larger_bits(__m512i largest, __m512i x) {
    return _mm512_max_epi16(largest, _mm512_and_si512(x, _mm512_set1_epi16(0x7fff)));
}

// Returns the larger bits of what was packed, as does the next.
__m512i pack_keys(const Work& w, size_t head) {
    const Attention& p = w.p;
    const uint16_t* k = p.k + head * p.head_size;
    uint16_t* to = w.key_tiles;
    __m512i largest = _mm512_setzero_si512();
    for (size_t j = w.keys.begin; j < w.keys.end; j += kRows) {
        for (size_t i = 0; i < p.head_size; i += kDims, to += kTile) {
            __m512i pairs[16];
            load_pairs(k + j * p.stride + i, p.stride, w.keys.end - j, p.head_size - i, pairs);
            unroll<16>([&](auto pair) INLINED {
                _mm512_store_si512(to + pair.value * 32, pairs[pair.value]);
                largest = larger_bits(largest, pairs[pair.value]);
            });
        }
    }
    return largest;
}

__m512i pack_values(const Work& w, size_t head) {
    const Attention& p = w.p;
    __m512i largest = _mm512_setzero_si512();
    for (size_t step = w.keys.begin; step < w.keys.end; step += kKeys) {
        for (size_t i = 0; i < p.head_size; i += kDims) {
            const uint16_t* v = p.v + step * p.stride + head * p.head_size + i;
            uint16_t* to = w.values + ((step - w.keys.begin) / kKeys * w.dim_steps + i / kDims) * 2 * kTile;
            const bool whole = step + kKeys <= w.keys.end && i + kDims <= p.head_size;
            for (size_t j = 0; j < kKeys; j += 2, v += 2 * p.stride, to += 32) {
                __m512i even = _mm512_setzero_si512(), odd = even;
                if (whole) {
                    even = _mm512_loadu_si512(v);
                    odd = _mm512_loadu_si512(v + p.stride);
                } else {  // not by an empty mask: what it hides may be a page that is not there, which takes long to
                          // find out
                    const size_t row = step + j, left = p.head_size - i;
                    if (row < w.keys.end) even = load_bf16(v, left);
                    if (row + 1 < w.keys.end) odd = load_bf16(v + p.stride, left);
                }
                largest = larger_bits(larger_bits(largest, even), odd);
                _mm512_store_si512(to, _mm512_unpacklo_epi16(even, odd));
                _mm512_store_si512(to + kTile, _mm512_unpackhi_epi16(even, odd));
            }
        }
    }
    return largest;
}

// The block's queries as rows of an A tile: where they lie, or copied, so that no tile reads past them.
void find_rows(const Work& w, Block& block) {
    const Attention& p = w.p;
    const uint16_t* q = p.q + block.query * p.stride + block.head * p.head_size;
    block.rows = q;
    block.row_stride = p.stride;
    if (block.count == kRows && p.head_size % kDims == 0) return;
    block.rows = w.queries;
    block.row_stride = w.dim_steps * kDims;
    for (size_t row = 0; row < kRows; ++row) {
        for (size_t i = 0; i < block.row_stride; i += kDims) {
            const __m512i x =
                row < block.count ? load_bf16(q + row * p.stride + i, p.head_size - i) : _mm512_setzero_si512();
            _mm512_store_si512(w.queries + row * block.row_stride + i, x);
        }
    }
}

}  // namespace
