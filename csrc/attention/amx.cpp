// attention, AMX: tdpbf16ps for both products, blocks of 16 queries.
// Layout: keys of a head as B tiles of 16 keys x 32 head dimensions, pairs of dimensions interleaved; values as B tiles
// of 32 keys x 16 dimensions, pairs of keys interleaved. Both are packed once per head and call. The two tiles of 32
// dimensions hold, of each eight, the lower and the upper four: what vpunpck makes, put right when the output is
// written. Bound: the softmax. 16 x 16 weights at head size 32 are 32 cycles of tiles and 256 / 16 vectors of 11
// operations.
#include <immintrin.h>
#include <math.h>

#include "common.h"
#include "contract.h"
#include "vectors_avx512.h"

namespace {

constexpr size_t kRows = 16, kKeys = 32, kDims = 32;  // queries of a block, keys and head dimensions of a step
constexpr size_t kTile = 512, kTileBytes = 1024;      // bf16 of a tile

// 2^x for x in [0, 1]: minimax, relative error 7.5e-5. Lowest power first.
constexpr float kPowerOfFraction[4] = {0.9999252f, 0.6958335f, 0.22606717f, 0.07802452f};

// Eight tiles of 16 rows x 64 bytes. In memory: see linear_w8a8/amx.cpp.
struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
alignas(64) const TileConfig kTileConfig = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Pairs of ones: the B tile that sums the weights.
struct Ones {
    uint32_t pair[256];
    constexpr Ones() : pair() {
        for (uint32_t& p : pair) p = 0x3f803f80;
    }
};
alignas(64) constexpr Ones kOnes;

// One head's operands and a block's results on the way, all in scratch.
struct Work {
    const Attention& p;
    size_t head, steps, dim_steps;  // of keys, of head dimensions
    Range keys;                     // packed: begins at a multiple of kKeys, ends with the last key
    uint16_t* key_tiles;            // [key steps * 2, dim_steps] tiles
    uint16_t* value_tiles;          // [key steps, dim_steps * 2] tiles
    float* scores;                  // [kRows, score_stride]
    size_t score_stride;
    uint16_t* weights;  // [key steps] A tiles
    uint16_t* queries;  // [kRows, dim_steps * kDims], where rows or dimensions are missing in memory
    float* sums;        // [kRows, 16]
    float* out;         // [kRows, dim_steps * kDims], dimensions in the order of the tiles
};

void pack_keys(const Work& w) {
    const Attention& p = w.p;
    const uint16_t* k = p.k + w.head * p.head_size;
    uint16_t* to = w.key_tiles;
    for (size_t j = w.keys.begin; j < w.keys.begin + w.steps * kKeys; j += kRows) {
        const size_t rows = j < w.keys.end ? w.keys.end - j : 0;
        for (size_t i = 0; i < p.head_size; i += kDims, to += kTile) {
            __m512i pairs[16];
            load_pairs(k + j * p.stride + i, p.stride, rows, p.head_size - i, pairs);
            unroll<16>([&](auto pair) INLINED { _mm512_store_si512(to + pair.value * 32, pairs[pair.value]); });
        }
    }
}

void pack_values(const Work& w) {
    const Attention& p = w.p;
    const uint16_t* v = p.v + w.keys.begin * p.stride + w.head * p.head_size;
    const size_t rows = w.keys.end - w.keys.begin;
    for (size_t j = 0; j < w.steps * kKeys; j += 2, v += 2 * p.stride) {
        uint16_t* to = w.value_tiles + j / kKeys * w.dim_steps * 2 * kTile + j % kKeys * 16;
        for (size_t i = 0; i < p.head_size; i += kDims, to += 2 * kTile) {
            const __m512i zero = _mm512_setzero_si512();
            const __m512i even = j < rows ? load_bf16(v + i, p.head_size - i) : zero;
            const __m512i odd = j + 1 < rows ? load_bf16(v + p.stride + i, p.head_size - i) : zero;
            _mm512_store_si512(to, _mm512_unpacklo_epi16(even, odd));
            _mm512_store_si512(to + kTile, _mm512_unpackhi_epi16(even, odd));
        }
    }
}

// The block's queries as rows of an A tile: where they lie, or copied, so that no tile reads past them.
const uint16_t* rows_of_queries(const Work& w, size_t query, size_t count, size_t& stride) {
    const Attention& p = w.p;
    const uint16_t* q = p.q + query * p.stride + w.head * p.head_size;
    stride = p.stride;
    if (count == kRows && p.head_size % kDims == 0) return q;
    stride = w.dim_steps * kDims;
    for (size_t row = 0; row < kRows; ++row) {
        for (size_t i = 0; i < stride; i += kDims) {
            const __m512i x = row < count ? load_bf16(q + row * p.stride + i, p.head_size - i) : _mm512_setzero_si512();
            _mm512_store_si512(w.queries + row * stride + i, x);
        }
    }
    return w.queries;
}

// Scores of 32 keys into their columns.
void score(const Work& w, const uint16_t* q, size_t stride, size_t step) {
    const uint16_t* tile = w.key_tiles + step * 2 * w.dim_steps * kTile;
    _tile_zero(0);
    _tile_zero(1);
    for (size_t i = 0; i < w.dim_steps; ++i, tile += kTile) {
        _tile_loadd(4, q + i * kDims, stride * 2);
        _tile_loadd(5, tile, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, tile + w.dim_steps * kTile, 64);
        _tile_dpbf16ps(1, 4, 6);
    }
    float* to = w.scores + step * kKeys;
    _tile_stored(0, to, w.score_stride * 4);
    _tile_stored(1, to + 16, w.score_stride * 4);
}

// Minus infinity where a key of a step is missing or not seen.
void leave_out(const Work& w, size_t query, size_t count, size_t step) {
    const size_t j = w.keys.begin + step * kKeys;
    if (j + kKeys <= w.keys.end && all_seen(w.p, query, query + count, {j, j + kKeys})) return;
    for (size_t row = 0; row < kRows; ++row) {
        // Rows beyond the last query see what the last one sees.
        const size_t q = query + least(row, count - 1);
        const Range seen = seen_by(w.p, q, q + 1);
        const __mmask32 from = seen.begin > j ? lowest(seen.begin - j) : 0,
                        to = seen.end > j ? lowest(seen.end - j) : 0;
        const __mmask32 out = ~(to & ~from);
        float* at = w.scores + row * w.score_stride + step * kKeys;
        _mm512_mask_store_ps(at, (__mmask16)out, _mm512_set1_ps(-INFINITY));
        _mm512_mask_store_ps(at + 16, (__mmask16)(out >> 16), _mm512_set1_ps(-INFINITY));
    }
}

// Scores with scale and bias.
void add_bias(const Work& w, size_t query, size_t count, size_t first, size_t last) {
    const Attention& p = w.p;
    const __m512 scale = _mm512_set1_ps(p.scale);
    for (size_t row = 0; row < count; ++row) {
        float* at = w.scores + row * w.score_stride;
        const float* bias = p.bias + w.head * p.bias_stride + ((ptrdiff_t)w.keys.begin - (ptrdiff_t)(query + row));
        const size_t end = w.keys.end - w.keys.begin;
        for (size_t i = first * kKeys; i < last * kKeys; i += 16) {
            const __mmask16 mask = i < end ? (__mmask16)lowest(end - i) : (__mmask16)0;
            _mm512_store_ps(at + i,
                            _mm512_fmadd_ps(_mm512_load_ps(at + i), scale, _mm512_maskz_loadu_ps(mask, bias + i)));
        }
    }
}

// The largest of each of 16 vectors.
ALWAYS_INLINE __m512 largest_of(__m512 (&x)[16]) {
    __m512 t[8];
    const __m512i swapped = _mm512_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    (void)swapped;
    unroll<8>([&](auto i) INLINED {  // lanes 0-7 of the first, 8-15 of the second
        const __m512 low = _mm512_shuffle_f32x4(x[i.value], x[i.value + 8], 0x44);
        const __m512 high = _mm512_shuffle_f32x4(x[i.value], x[i.value + 8], 0xee);
        t[i.value] = _mm512_max_ps(low, high);
    });
    unroll<4>([&](auto i) INLINED {  // four lanes each: rows i, i + 4, i + 8, i + 12
        const __m512 low = _mm512_shuffle_f32x4(t[i.value], t[i.value + 4], 0x88);
        const __m512 high = _mm512_shuffle_f32x4(t[i.value], t[i.value + 4], 0xdd);
        t[i.value] = _mm512_max_ps(low, high);
    });
    unroll<2>([&](auto i) INLINED {
        const __m512 low = _mm512_unpacklo_ps(t[i.value], t[i.value + 2]);
        const __m512 high = _mm512_unpackhi_ps(t[i.value], t[i.value + 2]);
        t[i.value] = _mm512_max_ps(low, high);
    });
    const __m512 low = _mm512_unpacklo_ps(t[0], t[1]), high = _mm512_unpackhi_ps(t[0], t[1]);
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(order, _mm512_max_ps(low, high));
}

ALWAYS_INLINE __m512 power(__m512 x) {
    const __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_set1_ps(kPowerOfFraction[3]);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(kPowerOfFraction[2]));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(kPowerOfFraction[1]));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(kPowerOfFraction[0]));
    return _mm512_scalef_ps(y, x);  // by 2 to the floor of x
}

void softmax(const Work& w, size_t first, size_t last) {
    alignas(64) float less[kRows];
    __m512 largest[kRows];
    unroll<kRows>([&](auto r) INLINED {
        largest[r.value] = _mm512_load_ps(w.scores + r.value * w.score_stride + first * kKeys);
    });
    for (size_t i = first * kKeys + 16; i < last * kKeys; i += 16) {
        unroll<kRows>([&](auto r) INLINED {
            largest[r.value] = _mm512_max_ps(_mm512_load_ps(w.scores + r.value * w.score_stride + i), largest[r.value]);
        });
    }
    const __m512 scale = _mm512_set1_ps((w.p.bias ? 1.0f : w.p.scale) * kLog2E);
    _mm512_store_ps(less, _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), largest_of(largest)), scale));
    for (size_t step = first; step < last; ++step) {
        const float* at = w.scores + step * kKeys;
        uint16_t* to = w.weights + step * kTile;
        for (size_t row = 0; row < kRows; ++row, at += w.score_stride, to += kKeys) {
            const __m512 minus = _mm512_set1_ps(less[row]);
            const __m512 a = power(_mm512_fmadd_ps(_mm512_load_ps(at), scale, minus));
            const __m512 b = power(_mm512_fmadd_ps(_mm512_load_ps(at + 16), scale, minus));
            _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
    }
}

// Weighted sums of 64 head dimensions, or of the last 32; with the first also the sum of weights.
template <bool wide>
void average(const Work& w, size_t first, size_t last, size_t dim) {
    const size_t next = w.dim_steps * 2 * kTile;
    const uint16_t *a = w.weights + first * kTile, *b = w.value_tiles + first * next + dim * 2 * kTile;
    _tile_zero(0);
    _tile_zero(1);
    if (wide) {
        _tile_zero(2);
        _tile_zero(3);
    }
    _tile_zero(4);
    _tile_loadd(7, kOnes.pair, 64);
    for (size_t step = first; step < last; ++step, a += kTile, b += next) {
        _tile_loadd(5, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 5, 6);
        _tile_loadd(6, b + kTile, 64);
        _tile_dpbf16ps(1, 5, 6);
        if (wide) {
            _tile_loadd(6, b + 2 * kTile, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_loadd(6, b + 3 * kTile, 64);
            _tile_dpbf16ps(3, 5, 6);
        }
        if (dim == 0) _tile_dpbf16ps(4, 5, 7);
    }
    float* to = w.out + dim * kDims;
    const size_t stride = w.dim_steps * kDims * 4;
    _tile_stored(0, to, stride);
    _tile_stored(1, to + 16, stride);
    if (wide) {
        _tile_stored(2, to + 32, stride);
        _tile_stored(3, to + 48, stride);
    }
    if (dim == 0) _tile_stored(4, w.sums, 64);
}

void write(const Work& w, size_t query, size_t count) {
    const Attention& p = w.p;
    const __m512i diagonal = _mm512_setr_epi32(0, 17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238, 255);
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    alignas(64) float inverse[kRows];
    _mm512_store_ps(inverse, _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_i32gather_ps(diagonal, w.sums, 4)));
    uint16_t* out = p.out + query * p.out_stride + w.head * p.head_size;
    for (size_t row = 0; row < count; ++row, out += p.out_stride) {
        const __m512 factor = _mm512_set1_ps(inverse[row]);
        const float* from = w.out + row * w.dim_steps * kDims;
        for (size_t i = 0; i < p.head_size; i += kDims, from += kDims) {
            const __m512 a = _mm512_mul_ps(_mm512_load_ps(from), factor),
                         b = _mm512_mul_ps(_mm512_load_ps(from + 16), factor);
            const __m512i both = _mm512_permutexvar_epi64(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
            if (p.head_size - i >= kDims) {
                _mm512_storeu_si512(out + i, both);
            } else {
                _mm512_mask_storeu_epi16(out + i, lowest(p.head_size - i), both);
            }
        }
    }
}

void attend(const Work& w, size_t query, size_t count) {
    const Range seen = seen_by(w.p, query, query + count);
    const size_t first = (seen.begin - w.keys.begin) / kKeys, last = (seen.end - w.keys.begin + kKeys - 1) / kKeys;
    size_t stride;
    const uint16_t* q = rows_of_queries(w, query, count, stride);
    for (size_t step = first; step < last; ++step) score(w, q, stride, step);
    if (w.p.bias) add_bias(w, query, count, first, last);
    for (size_t step = first; step < last; ++step) leave_out(w, query, count, step);
    softmax(w, first, last);
    size_t dim = 0;
    for (; dim + 2 <= w.dim_steps; dim += 2) average<true>(w, first, last, dim);
    if (dim < w.dim_steps) average<false>(w, first, last, dim);
    write(w, query, count);
}

}  // namespace

void attention_amx(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                   void* scratch) {
    if (query_begin >= query_end) return;
    Range keys = seen_by(*p, query_begin, query_end);
    keys.begin -= keys.begin % kKeys;
    const size_t dims = round_up(p->head_size, kDims), padded = round_up(keys.end - keys.begin, kKeys);
    uint16_t *key_tiles = (uint16_t*)scratch, *value_tiles = key_tiles + padded * dims;
    uint16_t *weights = value_tiles + padded * dims, *queries = weights + kRows * padded;
    float *sums = (float*)(queries + kRows * dims), *out = sums + kRows * 16, *scores = out + kRows * dims;
    _tile_loadconfig(&kTileConfig);
    for (size_t head = head_begin; head < head_end; ++head) {
        const Work w = {*p,     head,        padded / kKeys, dims / kDims, keys, key_tiles, value_tiles,
                        scores, padded + 16, weights,        queries,      sums, out};
        const size_t first = keys.begin * p->stride + head * p->head_size, count = keys.end - keys.begin;
        const bool finite = finite_avx512(p->k + first, p->stride, count, p->head_size) &&
                            finite_avx512(p->v + first, p->stride, count, p->head_size);
        pack_keys(w);
        pack_values(w);
        if (!finite) zero_what_is_not_finite(value_tiles, padded * dims);
        for (size_t query = query_begin; query < query_end; query += kRows)
            attend(w, query, least(kRows, query_end - query));
        if (!finite) poison(*p, head, query_begin, query_end);
    }
    _tile_release();
}
