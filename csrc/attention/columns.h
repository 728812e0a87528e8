// attention with a query per lane: scores lie as [keys, queries], so that a row's largest and its sum are those of a
// column, taken without a shuffle, and keys are read where they are. Shared by the variants without tiles, which hand
// in the instruction set M; everything is internal to the file that includes it.
//
// Both products are one loop over cells of 32 bits: a cell of the left side is broadcast, multiplied by a vector of
// cells of the right side and added to a vector of f32. A cell is one f32, or where the processor multiplies them, two
// bf16.
//
//   keys     [keys, head_size / M::kPerCell] cells: as they are given, or widened
//   queries  [head_size / M::kPerCell, lanes] cells, zero beyond the last query: packed, once per block of queries
//   values   [keys / M::kPerCell, head size rounded up to a vector] cells: packed, once per head and call
//   scores   [keys, lanes] f32; then the weights in their place, [keys / M::kPerCell, lanes] cells M::kPerCell rows
//   apart
//
// lanes is kWide vectors of queries, one for the last few.
//
//              head dimensions              lanes: queries
//             +---------------+           +---------------+
//             |               |     head  |               |     scores: in each lane a query's, in each row a key's,
//       keys  | [cell] -------|-->  dim.  | [  vector   ] |  =  so that the largest, the weights and their sum need
//             |   broadcast   |           |               |     nothing of another lane
//             +---------------+           +---------------+
//
//                   keys                   head dimensions
//             +---------------+           +---------------+
//             |               |           |               |
//    queries  | [cell] -------|-->  keys  | [  vector   ] |  =  out, row by row: a query's weights are a column of the
//             |   broadcast   |           |               |     scores, read cell by cell where they lie
//             +---------------+           +---------------+
//
// M: V, kLanes, kPerCell, kRows x kCols (of a tile), wider words of vectors, and what is called below.
#pragma once
#include <math.h>

#include "common.h"
#include "vectors/unroll.h"

namespace {

constexpr int kWide = 2;
constexpr size_t kCell = 4, kAlignment = 64;

// A block of queries of one head, its packed operands and its results on the way.
struct Block {
    const Attention& p;
    size_t head, query, count;  // of queries; at most kWide vectors
    Range keys;                 // begins at a multiple of M::kPerCell
    const char* key;            // the first of `keys`
    size_t key_bytes;           // from one to the next
    const char* value;          // likewise
    size_t value_bytes;         // from one row of cells to the next
    char* queries;
    float* scores;
    float* largest;  // [lanes]
    float* inverse;  // [lanes], of the sum
};

// R x C sums of products. Left cell (r, step) at a + r * a_row + step * a_step, right vectors at b + step * b_step.
template <class M, int R, int C>
ALWAYS_INLINE void multiply(const char* a, size_t a_row, size_t a_step, const char* b, size_t b_step, size_t steps,
                            typename M::V (&sum)[R][C]) {
    unroll<R>([&](auto r) INLINED { unroll<C>([&](auto c) INLINED { sum[r.value][c.value] = M::zero(); }); });
    const char* rows[R];
    unroll<R>([&](auto r) INLINED { rows[r.value] = a + r.value * a_row; });
    for (size_t step = 0; step < steps; ++step, b += b_step) {
        typename M::V right[C];
        unroll<C>([&](auto c) INLINED { right[c.value] = M::load(b + c.value * sizeof(typename M::V)); });
        unroll<R>([&](auto r) INLINED {
            const typename M::V left = M::broadcast(rows[r.value] + step * a_step);
            unroll<C>([&](auto c) INLINED {
                sum[r.value][c.value] = M::multiply(sum[r.value][c.value], left, right[c.value]);
            });
        });
    }
}

// What is added to the scores of key j, one query a lane, the last lanes zero. Rows of queries are read one by one: a
// gather is no faster, and on some processors far slower.
template <class M>
typename M::V biases(const Block& block, size_t j, size_t lane) {
    const ptrdiff_t step = block.p.bias_query_step;
    const float* at = bias_of(block.p, block.head, block.query + lane) + j;
    const size_t count = least(M::kLanes, block.count > lane ? block.count - lane : 0);
    if (step == -1 && count == M::kLanes) return M::reversed(at - (M::kLanes - 1));
    alignas(kAlignment) float some[M::kLanes] = {0};
    for (size_t i = 0; i < count; ++i) some[i] = at[(ptrdiff_t)i * step];
    return M::load((const char*)some);
}

// Scores of `count` keys that are products as yet, with scale and bias, minus infinity where not seen; and the largest.
template <class M, int C>
__attribute__((noinline)) void adjust(const Block& block, size_t j, size_t count) {
    using V = typename M::V;
    const Attention& p = block.p;
    float* at = block.scores + (j - block.keys.begin) * C * M::kLanes;
    for (size_t end = j + count; j < end; ++j) {
        const Range seen = seen_by(p, j, j + 1);
        for (size_t lane = 0; lane < C * M::kLanes; lane += M::kLanes, at += M::kLanes) {
            V score = M::load((const char*)at);
            if (p.bias) score = M::fma(score, M::all(p.scale), biases<M>(block, j, lane));
            const ptrdiff_t first = (ptrdiff_t)(block.query + lane);
            score = M::between(score, (ptrdiff_t)seen.begin - first, (ptrdiff_t)seen.end - first, M::all(-INFINITY));
            M::store(at, score);
            M::store(block.largest + lane, M::max(score, M::load((const char*)(block.largest + lane))));
        }
    }
}

// Scores of R keys, and the largest so far. They are products still, not scaled, if no bias is added.
template <class M, int R, int C>
void score(const Block& block, size_t j) {
    using V = typename M::V;
    const Attention& p = block.p;
    V sum[R][C], largest[C];
    const size_t row = j - block.keys.begin;
    multiply<M, R, C>(block.key + row * block.key_bytes, block.key_bytes, kCell, block.queries, C * sizeof(V),
                      p.head_size / M::kPerCell, sum);
    float* out = block.scores + row * C * M::kLanes;
    unroll<R>([&](auto r) INLINED {
        unroll<C>([&](auto c) INLINED { M::store(out + (r.value * C + c.value) * M::kLanes, sum[r.value][c.value]); });
    });
    if (p.bias || !all_seen(p, block.query, block.query + block.count, {j, j + R})) return adjust<M, C>(block, j, R);
    unroll<C>([&](auto c) INLINED { largest[c.value] = M::load((const char*)(block.largest + c.value * M::kLanes)); });
    unroll<R>([&](auto r) INLINED {
        unroll<C>([&](auto c) INLINED { largest[c.value] = M::max(sum[r.value][c.value], largest[c.value]); });
    });
    unroll<C>([&](auto c) INLINED { M::store(block.largest + c.value * M::kLanes, largest[c.value]); });
}

// Output columns of R queries from `lane` on: C vectors of head dimensions from `column` on, the last of them whole or
// half.
template <class M, int R, int C>
void average(const Block& block, size_t lanes, size_t lane, size_t column) {
    using V = typename M::V;
    V sum[R][C];
    const size_t cells = (block.keys.end - block.keys.begin + M::kPerCell - 1) / M::kPerCell;
    multiply<M, R, C>((const char*)(block.scores + lane), kCell, lanes * kCell * M::kPerCell,
                      block.value + column * kCell, block.value_bytes, cells, sum);
    uint16_t* out = block.p.out + (block.query + lane) * block.p.out_stride + block.head * block.p.head_size + column;
    unroll<R>([&](auto r) INLINED {
        const V inverse = M::all(block.inverse[lane + r.value]);
        unroll<C>([&](auto c) INLINED {
            constexpr size_t first = c.value * M::kLanes;
            M::store_bf16(out + r.value * block.p.out_stride + first, M::mul(sum[r.value][c.value], inverse),
                          block.p.head_size - column - first);
        });
    });
}

template <class M, int C, int R = M::kRows>
ALWAYS_INLINE void score_last(const Block& block, size_t j, size_t left) {
    if constexpr (R > 1) {
        if (left < R) return score_last<M, C, R - 1>(block, j, left);
    }
    score<M, R, C>(block, j);
}

template <class M, int C, int R = M::kRows>
ALWAYS_INLINE void average_rows(const Block& block, size_t lanes, size_t lane, size_t left, size_t column) {
    if constexpr (R > 1) {
        if (left < R) return average_rows<M, C, R - 1>(block, lanes, lane, left, column);
    }
    average<M, R, C>(block, lanes, lane, column);
}

template <class M, int C>
void attend(const Block& block) {
    using V = typename M::V;
    const Attention& p = block.p;
    M::pack_queries(p.q + block.query * p.stride + block.head * p.head_size, p.stride, block.count, p.head_size, C,
                    block.queries);
    for (int c = 0; c < C; ++c) M::store(block.largest + c * M::kLanes, M::all(-INFINITY));
    size_t j = block.keys.begin;
    for (; j + M::kRows <= block.keys.end; j += M::kRows) score<M, M::kRows, C>(block, j);
    if (j < block.keys.end) score_last<M, C>(block, j, block.keys.end - j);

    // 2^(score * scale - largest * scale), in which the rounding of the second product is the same for all keys.
    const size_t keys = block.keys.end - block.keys.begin, cells = (keys + M::kPerCell - 1) / M::kPerCell;
    float* missing = block.scores + keys * C * M::kLanes;  // the other half of the last cell
    for (int c = 0; c < C && keys % M::kPerCell; ++c) M::store(missing + c * M::kLanes, M::all(-INFINITY));
    const V scale = M::all((p.bias ? 1.0f : p.scale) * kLog2E);
    V less[C], sum[C];
    unroll<C>([&](auto c) INLINED {
        const V largest = M::load((const char*)(block.largest + c.value * M::kLanes));
        less[c.value] = M::sub(M::zero(), M::mul(largest, scale));
        sum[c.value] = M::zero();
    });
    float* row = block.scores;
    for (size_t cell = 0; cell < cells; ++cell, row += C * M::kLanes * M::kPerCell) {
        unroll<C>([&](auto c) INLINED {
            V weight[M::kPerCell];
            unroll<M::kPerCell>([&](auto i) INLINED {
                const V s = M::load((const char*)(row + (i.value * C + c.value) * M::kLanes));
                weight[i.value] = M::power(M::fma(s, scale, less[c.value]));
            });
            const V packed = M::cells(weight);
            M::store(row + c.value * M::kLanes, packed);
            sum[c.value] = M::add_cells(sum[c.value], packed);
        });
    }
    unroll<C>([&](auto c)
                  INLINED { M::store(block.inverse + c.value * M::kLanes, M::div(M::all(1.0f), sum[c.value])); });

    constexpr size_t lanes = C * M::kLanes;
    for (size_t column = 0; column < p.head_size;) {
        const size_t left = (p.head_size - column + M::kLanes - 1) / M::kLanes;
        const size_t columns = left == 1 ? 1 : left == 3 && M::kCols == 3 ? 3 : 2;
        for (size_t lane = 0; lane < block.count; lane += M::kRows) {
            const size_t rows = block.count - lane;
            if (columns == 1) average_rows<M, 1>(block, lanes, lane, rows, column);
            if (columns == 2) average_rows<M, 2>(block, lanes, lane, rows, column);
            if constexpr (M::kCols == 3) {
                if (columns == 3) average_rows<M, 3>(block, lanes, lane, rows, column);
            }
        }
        column += columns * M::kLanes;
    }
}

template <class M>
void run(const Attention& p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end, void* scratch) {
    if (query_begin >= query_end) return;
    constexpr size_t lanes = kWide * M::kLanes;
    Range all = seen_by(p, query_begin, query_end);
    all.begin -= all.begin % M::kPerCell;
    const size_t value_bytes = round_up(p.head_size, M::kLanes) * kCell,
                 cells = (all.end - all.begin + M::kPerCell - 1) / M::kPerCell;
    char* at = (char*)scratch;
    float *largest = (float*)at, *inverse = largest + lanes;
    char* queries = (char*)(inverse + lanes);
    char* values = queries + p.head_size / M::kPerCell * lanes * kCell;
    char* keys = values + round_up(cells * value_bytes, kAlignment);
    for (size_t head = head_begin; head < head_end; ++head) {
        const size_t first = all.begin * p.stride + head * p.head_size, count = all.end - all.begin;
        const bool finite = M::finite(p.k + first, p.stride, count, p.head_size) &&
                            M::finite(p.v + first, p.stride, count, p.head_size);
        M::pack_values(p.v + first, p.stride, count, p.head_size, values);
        if (!finite) zero_what_is_not_finite((uint16_t*)values, cells * value_bytes / 2);
        size_t key_bytes = 0;
        const char* key = M::rows_of(p.k + first, p.stride, count, p.head_size, keys, key_bytes);
        float* scores = (float*)(key == keys ? keys + round_up(count * key_bytes, kAlignment) : keys);
        for (size_t query = query_begin; query < query_end; query += lanes) {
            const size_t queries_left = least(lanes, query_end - query);
            Range seen = seen_by(p, query, query + queries_left);
            seen.begin -= seen.begin % M::kPerCell;
            const size_t skipped = seen.begin - all.begin;
            const Block block = {p,           head,
                                 query,       queries_left,
                                 seen,        key + skipped * key_bytes,
                                 key_bytes,   values + skipped / M::kPerCell * value_bytes,
                                 value_bytes, queries,
                                 scores,      largest,
                                 inverse};
            queries_left > M::kLanes ? attend<M, 2>(block) : attend<M, 1>(block);
        }
        if (!finite) poison(p, head, query_begin, query_end);
    }
}

}  // namespace
