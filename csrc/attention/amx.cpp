// attention, AMX: tdpbf16ps for both products, blocks of 16 queries.
// Layout: tiles_amx.h; keys and values are packed once per head and call.
// Bound: the softmax. 16 x 16 weights at head size 32 are two tdpbf16ps of 16 cycles, three loads and a store of a
// tile, and 16 vectors of 10 operations. Making the scores of the next block meanwhile, by hand, was no faster.
#include <immintrin.h>
#include <math.h>

#include "contract.h"
#include "tiles_amx.h"
#include "vectors/tiles.h"

namespace {

constexpr int kRowsAtOnce = 4;  // of which weights are made: chains side by side

// 2^x for x in [0, 1]: minimax, relative error 7.5e-5. Lowest power first.
constexpr float kPowerOfFraction[4] = {0.9999252f, 0.6958335f, 0.22606717f, 0.07802452f};

// Scores of 32 keys, into their columns.
ALWAYS_INLINE void score(const Work& w, const Block& block, size_t step) {
    const uint16_t* tile = w.key_tiles + (block.first + step) * 2 * w.dim_steps * kTile;
    finish_stores();
    _tile_zero(4);
    _tile_zero(5);
    for (size_t i = 0; i < w.dim_steps; ++i, tile += kTile) {
        _tile_loadd(6, block.rows + i * kDims, block.row_stride * 2);
        _tile_loadd(7, tile, 64);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, tile + w.dim_steps * kTile, 64);
        _tile_dpbf16ps(5, 6, 7);
    }
    float* to = w.scores + step * kKeys;
    _tile_stored(4, to, w.score_stride * 4);
    _tile_stored(5, to + 16, w.score_stride * 4);
}

// Minus infinity where a key of a step is missing or not seen.
void leave_out(const Work& w, const Block& block, size_t step) {
    const size_t j = w.keys.begin + (block.first + step) * kKeys, last = block.query + block.count - 1;
    if (j + kKeys <= w.keys.end && all_seen(w.p, block.query, last + 1, {j, j + kKeys})) return;
    for (size_t row = 0; row < kRows; ++row) {
        const size_t q = least(block.query + row, last);  // rows beyond the last query see what that one sees
        const Range seen = seen_by(w.p, q, q + 1);
        const __mmask32 before = lanes_before<__mmask32>(j, seen.begin), to = lanes_before<__mmask32>(j, seen.end);
        const __mmask32 out = ~(to & ~before);
        float* at = w.scores + row * w.score_stride + step * kKeys;
        _mm512_mask_store_ps(at, (__mmask16)out, _mm512_set1_ps(-INFINITY));
        _mm512_mask_store_ps(at + 16, (__mmask16)(out >> 16), _mm512_set1_ps(-INFINITY));
    }
}

// Scale and bias, which no later step then has to know of.
void add_bias(const Work& w, const Block& block) {
    const Attention& p = w.p;
    const __m512 scale = _mm512_set1_ps(p.scale);
    const size_t begin = w.keys.begin + block.first * kKeys;
    for (size_t row = 0; row < block.count; ++row) {
        float* at = w.scores + row * w.score_stride;
        const float* bias = bias_of(p, block.head, block.query + row) + begin;
        for (size_t i = 0; i < block.steps * kKeys; i += 16) {
            const __mmask16 mask = lanes_before<__mmask16>(begin + i, w.keys.end);
            _mm512_store_ps(at + i,
                            _mm512_fmadd_ps(_mm512_load_ps(at + i), scale, _mm512_maskz_loadu_ps(mask, bias + i)));
        }
    }
}

// 2^x of N vectors, whose chains of dependent instructions run side by side. 0 for minus infinity; a NaN stays one.
template <int N>
ALWAYS_INLINE void power(__m512 (&x)[N]) {
    __m512 part[N], y[N];
    unroll<N>([&](auto i)
                  INLINED { part[i.value] = _mm512_reduce_ps(x[i.value], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); });
    unroll<N>([&](auto i) INLINED { y[i.value] = _mm512_set1_ps(kPowerOfFraction[3]); });
    unroll<3>([&](auto term) INLINED {
        const __m512 c = _mm512_set1_ps(kPowerOfFraction[2 - term.value]);
        unroll<N>([&](auto i) INLINED { y[i.value] = _mm512_fmadd_ps(y[i.value], part[i.value], c); });
    });
    unroll<N>([&](auto i)
                  INLINED { x[i.value] = _mm512_scalef_ps(y[i.value], x[i.value]); });  // by 2 to the floor of x
}

ALWAYS_INLINE __m512 scale_of(const Attention& p) { return _mm512_set1_ps((p.bias ? 1.0f : p.scale) * kLog2E); }

// When all scores of a block are there: the largest of each row.
void find_largest(const Work& w, const Block& block) {
    if (w.p.bias) add_bias(w, block);
    for (size_t step = 0; step < block.steps; ++step) leave_out(w, block, step);
    __m512 largest[kRows];
    unroll<kRows>([&](auto r) INLINED { largest[r.value] = _mm512_load_ps(w.scores + r.value * w.score_stride); });
    for (size_t i = 16; i < block.steps * kKeys; i += 16) {
        unroll<kRows>([&](auto r) INLINED {
            const __m512 x = _mm512_load_ps(w.scores + r.value * w.score_stride + i);
            largest[r.value] = _mm512_max_ps(x, largest[r.value]);
        });
    }
    const __m512 all = joined(largest, [](__m512 a, __m512 b) INLINED { return _mm512_max_ps(a, b); });
    _mm512_store_ps(w.less, _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), all), scale_of(w.p)));
    for (size_t row = 0; row < kRows; ++row) _mm512_store_ps(w.sums + row * 16, _mm512_setzero_ps());
}

// 2^(score * scale - largest * scale), in which the rounding of the second product is the same for all keys.
ALWAYS_INLINE void weigh(const Work& w, size_t step) {
    const __m512 scale = scale_of(w.p);
    const float* at = w.scores + step * kKeys;
    uint16_t* to = w.weights + step * kTile;
    const float* less = w.less;
    float* sums = w.sums;
    const size_t stride = w.score_stride;
    constexpr int R = kRowsAtOnce;
    for (size_t row = 0; row < kRows; row += R, at += R * stride, to += R * kKeys, sums += R * 16) {
        __m512 x[2 * R];
        unroll<2 * R>([&](auto i) INLINED {
            const __m512 score = _mm512_load_ps(at + i.value / 2 * stride + i.value % 2 * 16);
            x[i.value] = _mm512_fmadd_ps(score, scale, _mm512_set1_ps(less[row + i.value / 2]));
        });
        power(x);
        unroll<R>([&](auto r) INLINED {
            const __m512 a = x[2 * r.value], b = x[2 * r.value + 1];
            _mm512_store_si512(to + r.value * kKeys, (__m512i)_mm512_cvtne2ps_pbh(b, a));
            _mm512_store_ps(sums + r.value * 16,
                            _mm512_add_ps(_mm512_load_ps(sums + r.value * 16), _mm512_add_ps(a, b)));
        });
    }
}

// Tiles 0-3: weighted sums of 64 head dimensions, or of the last 32. Of one step; tiles 6-7 besides.
template <bool wide>
ALWAYS_INLINE void average(const Work& w, const Block& block, size_t step, size_t dim) {
    const uint16_t* b = w.values + ((block.first + step) * w.dim_steps + dim) * 2 * kTile;
    finish_stores();
    _tile_loadd(6, w.weights + step * kTile, 64);
    _tile_loadd(7, b, 64);
    _tile_dpbf16ps(0, 6, 7);
    _tile_loadd(7, b + kTile, 64);
    _tile_dpbf16ps(1, 6, 7);
    if (wide) {
        _tile_loadd(7, b + 2 * kTile, 64);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(7, b + 3 * kTile, 64);
        _tile_dpbf16ps(3, 6, 7);
    }
}

template <bool wide>
ALWAYS_INLINE void store_average(const Work& w, size_t dim) {
    float* to = w.out + dim * kDims;
    const size_t stride = w.dim_steps * kDims * 4;
    _tile_stored(0, to, stride);
    _tile_stored(1, to + 16, stride);
    if (wide) {
        _tile_stored(2, to + 32, stride);
        _tile_stored(3, to + 48, stride);
    }
}

void zero_average() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// The weights, and with them the first of the averages.
template <bool wide>
void weigh_and_average(const Work& w, const Block& block) {
    zero_average();
    weigh(w, 0);
    for (size_t step = 1; step < block.steps; ++step) {
        average<wide>(w, block, step - 1, 0);  // not of weights just stored, which a tile would have to wait for
        weigh(w, step);
    }
    average<wide>(w, block, block.steps - 1, 0);
    store_average<wide>(w, 0);
}

template <bool wide>
void average_rest(const Work& w, const Block& block, size_t dim) {
    zero_average();
    for (size_t step = 0; step < block.steps; ++step) average<wide>(w, block, step, dim);
    store_average<wide>(w, dim);
}

void write(const Work& w, const Block& block) {
    const Attention& p = w.p;
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    __m512 sums[kRows];
    unroll<kRows>([&](auto r) INLINED { sums[r.value] = _mm512_load_ps(w.sums + r.value * 16); });
    const __m512 sum = joined(sums, [](__m512 a, __m512 b) INLINED { return _mm512_add_ps(a, b); });
    alignas(64) float inverse[kRows];
    _mm512_store_ps(inverse, _mm512_div_ps(_mm512_set1_ps(1.0f), sum));
    uint16_t* out = p.out + block.query * p.out_stride + block.head * p.head_size;
    for (size_t row = 0; row < block.count; ++row, out += p.out_stride) {
        const __m512 factor = _mm512_set1_ps(inverse[row]);
        const float* from = w.out + row * w.dim_steps * kDims;
        for (size_t i = 0; i < p.head_size; i += kDims, from += kDims) {
            const __m512 a = _mm512_mul_ps(_mm512_load_ps(from), factor),
                         b = _mm512_mul_ps(_mm512_load_ps(from + 16), factor);
            const __m512i both = _mm512_permutexvar_epi64(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
            if (p.head_size - i >= kDims) {
                _mm512_storeu_si512(out + i, both);
            } else {
                _mm512_mask_storeu_epi16(out + i, lowest<__mmask32>(p.head_size - i), both);
            }
        }
    }
}

void attend(const Work& w, size_t head, size_t query, size_t count) {
    const Range seen = seen_by(w.p, query, query + count);
    const size_t first = (seen.begin - w.keys.begin) / kKeys, last = (seen.end - w.keys.begin + kKeys - 1) / kKeys;
    Block block = {head, query, count, first, last - first, nullptr, 0};
    find_rows(w, block);
    for (size_t step = 0; step < block.steps; ++step) score(w, block, step);
    find_largest(w, block);
    (w.dim_steps > 1 ? weigh_and_average<true> : weigh_and_average<false>)(w, block);
    for (size_t dim = 2; dim < w.dim_steps; dim += 2) {
        (w.dim_steps - dim > 1 ? average_rest<true> : average_rest<false>)(w, block, dim);
    }
    write(w, block);
}

}  // namespace

void attention_amx(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                   void* scratch) {
    if (query_begin >= query_end) return;
    Range keys = seen_by(*p, query_begin, query_end);
    keys.begin -= keys.begin % kKeys;
    const size_t dims = round_up(p->head_size, kDims), padded = round_up(keys.end - keys.begin, kKeys);
    uint16_t *key_tiles = (uint16_t*)scratch, *values = key_tiles + padded * dims, *weights = values + padded * dims;
    uint16_t* queries = weights + kRows * padded;
    float *less = (float*)(queries + kRows * dims), *sums = less + kRows, *out = sums + kRows * 16;
    float* scores = out + kRows * dims;
    const size_t stride = padded + 16;  // rows a multiple of 4 KiB apart would share their L1 sets
    const Work w = {*p, dims / kDims, stride, keys, key_tiles, values, weights, queries, less, sums, out, scores};
    _tile_loadconfig(&kTileConfig);
    for (size_t head = head_begin; head < head_end; ++head) {
        const __m512i bits = _mm512_max_epi16(pack_keys(w, head), pack_values(w, head));
        const bool finite = _mm512_cmpgt_epi16_mask(bits, _mm512_set1_epi16(0x7f7f)) == 0;
        if (!finite) zero_what_is_not_finite(values, padded * dims);
        for (size_t query = query_begin; query < query_end; query += kRows) {
            attend(w, head, query, least(kRows, query_end - query));
        }
        if (!finite) poison(*p, head, query_begin, query_end);
    }
    _tile_release();
}
