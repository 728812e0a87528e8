// attention_int8 with a query per lane, as in attention/columns.h: scores lie as [keys, queries], so that a row's
// largest and its sum are those of a column. Shared by the vector variants, which hand in the instruction set M;
// everything is internal to the file that includes it.
//
// A cell of 32 bits holds the codes of M::kPerCell values that are multiplied and added by one instruction: of head
// dimensions in queries and keys, of keys in weights and values. In both products a cell of the left side is broadcast.
//
//   keys     [key / M::kLanes, head_size / M::kPerCell, M::kLanes] cells: packed, once per head and call
//   queries  [vector, head_size / M::kPerCell, M::kLanes] cells: packed by the same function, once per block of queries
//   values   [key / M::kPerCell, head size rounded up to a vector] cells: packed, once per head and call
//   scores   [kKeyBlock, lanes] f32, of one block of keys
//   weights  [key / M::kPerCell, lanes] cells
//
// M: V and I (vectors of f32 and of cells), kLanes, kPerCell, kScoreRows (keys of a tile of scores), kRows (queries of
// a tile of the output), kUnit (of distances to the largest score), and what is called below.
#pragma once
#include <float.h>
#include <math.h>

#include "attention/common.h"
#include "contract.h"
#include "vectors/unroll.h"

namespace {

constexpr int kWide = 2;
constexpr size_t kCell = 4, kAlignment = 64;

// The packed keys and values of a head.
struct Head {
    const Attention& p;
    size_t head;
    Range keys;          // that are packed; begins at a multiple of kKeyBlock
    char* key;           //
    float* key_scale;    // [keys]
    int32_t* key_start;  // [keys], where the sum of its products begins: what is off by unsigned codes of queries
    char* value;         //
    float* value_scale;  // [columns]
    size_t columns, row_cells;  // head size, rounded up to a vector; in cells
};

// A block of queries, and its results on the way.
struct Queries {
    size_t query, count;  // at most kWide vectors
    Range keys;           // that one of them sees; begins at a multiple of kKeyBlock
    char* codes;
    float* scale;    // [lanes], times p.scale
    float* scores;   // [kKeyBlock, lanes]
    char* weights;   // [keys / M::kPerCell, lanes] cells
    float* largest;  // [blocks, lanes], in the end the factor of each block
    float* sum;      // [blocks, lanes]
    float* poison;   // [lanes]: NaN if a bias is
    float* inverse;  // [lanes], of the sum
};

// What is added to the scores of key j, one query a lane, the last lanes zero. Rows of queries are read one by one: a
// gather is no faster, and on some processors far slower.
template <class M>
typename M::V biases(const Head& h, const Queries& q, size_t j, size_t lane) {
    const ptrdiff_t step = h.p.bias_query_step;
    const float* at = bias_of(h.p, h.head, q.query + lane) + j;
    const size_t count = least(M::kLanes, q.count > lane ? q.count - lane : 0);
    if (step == -1 && count == M::kLanes) return M::reversed(at - (M::kLanes - 1));
    alignas(kAlignment) float some[M::kLanes] = {0};
    for (size_t i = 0; i < count; ++i) some[i] = at[(ptrdiff_t)i * step];
    return M::load(some);
}

// Scores of `count` keys from j on: with the bias, minus infinity where not seen; and the largest.
template <class M, int C>
__attribute__((noinline)) void adjust(const Head& h, const Queries& q, size_t j, size_t count, float* at,
                                      float* largest) {
    using V = typename M::V;
    for (size_t end = j + count; j < end; ++j) {
        const Range seen = j < h.keys.end ? seen_by(h.p, j, j + 1) : Range{0, 0};
        for (size_t lane = 0; lane < C * M::kLanes; lane += M::kLanes, at += M::kLanes) {
            V score = M::load(at);
            if (h.p.bias && j < h.keys.end) {
                score = M::fma(score, M::load(q.scale + lane), biases<M>(h, q, j, lane));
                M::store(q.poison + lane, M::fma(score, M::zero(), M::load(q.poison + lane)));
            }
            const ptrdiff_t first = (ptrdiff_t)(q.query + lane);
            score = M::between(score, (ptrdiff_t)seen.begin - first, (ptrdiff_t)seen.end - first, M::all(-INFINITY));
            M::store(at, score);
            M::store(largest + lane, M::max(score, M::load(largest + lane)));
        }
    }
}

// Scores of M::kScoreRows keys from j on, and the largest so far. They lack the query's scale if no bias is added.
template <class M, int C>
ALWAYS_INLINE void score(const Head& h, const Queries& q, size_t j, float* out, typename M::V (&largest)[C],
                         float* stored_largest) {
    using V = typename M::V;
    using I = typename M::I;
    constexpr int R = M::kScoreRows;
    static_assert(M::kLanes % R == 0);
    const size_t at = j - h.keys.begin, vector = h.row_cells * M::kLanes * kCell;
    const char* key = h.key + at / M::kLanes * vector + at % M::kLanes * kCell;
    I sum[R][C];
    unroll<R>([&](auto r) INLINED {
        unroll<C>([&](auto c) INLINED { sum[r.value][c.value] = M::broadcast(h.key_start + at + r.value); });
    });
    for (size_t step = 0; step < vector; step += M::kLanes * kCell) {
        I right[C];
        unroll<C>([&](auto c) INLINED { right[c.value] = M::load_cells(q.codes + c.value * vector + step); });
        unroll<R>([&](auto r) INLINED {
            const I left = M::broadcast(key + step + r.value * kCell);
            unroll<C>([&](auto c) INLINED {
                sum[r.value][c.value] = M::multiply(sum[r.value][c.value], right[c.value], left);
            });
        });
    }
    V scores[R][C];
    unroll<R>([&](auto r) INLINED {
        const V scale = M::all(h.key_scale[at + r.value]);
        unroll<C>([&](auto c) INLINED {
            scores[r.value][c.value] = M::mul(M::to_float(sum[r.value][c.value]), scale);
            M::store(out + (r.value * C + c.value) * M::kLanes, scores[r.value][c.value]);
        });
    });
    if (h.p.bias || j + R > h.keys.end || !all_seen(h.p, q.query, q.query + q.count, {j, j + R})) {
        unroll<C>([&](auto c) INLINED { M::store(stored_largest + c.value * M::kLanes, largest[c.value]); });
        adjust<M, C>(h, q, j, R, out, stored_largest);
        unroll<C>([&](auto c) INLINED { largest[c.value] = M::load(stored_largest + c.value * M::kLanes); });
        return;
    }
    unroll<R>([&](auto r) INLINED {
        unroll<C>([&](auto c) INLINED { largest[c.value] = M::max(scores[r.value][c.value], largest[c.value]); });
    });
}

// The weights of `count` keys, and their sum. distance(score, lane vector): to the largest, in M::kUnit of log2.
template <class M, int C, class Distance>
ALWAYS_INLINE void write_weights(const Queries& q, size_t count, char* out, typename M::I (&sum)[C],
                                 Distance distance) {
    using V = typename M::V;
    using I = typename M::I;
    constexpr size_t lanes = C * M::kLanes;
    for (size_t j = 0; j < count; j += M::kPerCell, out += lanes * kCell) {
        unroll<C>([&](auto c) INLINED {
            const float* rows = q.scores + j * lanes + c.value * M::kLanes;
            V x[M::kPerCell];
            unroll<M::kPerCell>([&](auto i) INLINED { x[i.value] = distance(M::load(rows + i.value * lanes), c); });
            const I cells = M::weights(x);
            M::store_cells(out + c.value * M::kLanes * kCell, cells);
            sum[c.value] = M::add_cells(sum[c.value], cells);
        });
    }
}

// The weights of one block of keys, their sum, and the largest score.
template <class M, int C>
ALWAYS_INLINE void weigh(const Head& h, const Queries& q, size_t key, size_t number) {
    using V = typename M::V;
    using I = typename M::I;
    constexpr int lanes = C * M::kLanes;
    const size_t count = least(kKeyBlock, q.keys.end - key);
    float* stored = q.largest + number * lanes;
    V largest[C], top[C], scale[C];
    unroll<C>([&](auto c) INLINED { largest[c.value] = M::all(-FLT_MAX); });
    for (size_t j = 0; j < count; j += M::kScoreRows) {
        score<M, C>(h, q, key + j, q.scores + j * lanes, largest, stored);
    }
    I sum[C];
    unroll<C>([&](auto c) INLINED {
        M::store(stored + c.value * M::kLanes, largest[c.value]);
        scale[c.value] = h.p.bias ? M::all(1.0f) : M::load(q.scale + c.value * M::kLanes);
        scale[c.value] = M::mul(scale[c.value], M::all(kLog2E * M::kUnit));
        top[c.value] = M::mul(largest[c.value], scale[c.value]);
        sum[c.value] = M::no_cells();
    });
    char* out = q.weights + (key - q.keys.begin) / M::kPerCell * lanes * kCell;
    // One rounding less, which below this is less than half a unit: the largest is at distance zero then too. Each
    // query decides for itself: the others of its vector depend on how the range is cut.
    constexpr float kFew = 0x1p22f;
    const auto few_roundings = [&](V score, auto c) INLINED { return M::fnma(score, scale[c.value], top[c.value]); };
    if (M::all_below(top, kFew)) {
        write_weights<M, C>(q, count, out, sum, few_roundings);
    } else {
        write_weights<M, C>(q, count, out, sum, [&](V score, auto c) INLINED {
            const V far = M::mul(M::sub(largest[c.value], score), scale[c.value]);
            return M::where_below(top[c.value], kFew, few_roundings(score, c), far);
        });
    }
    unroll<C>([&](auto c)
                  INLINED { M::store(q.sum + number * lanes + c.value * M::kLanes, M::to_float(sum[c.value])); });
}

// What each block is multiplied by, and the reciprocal of the sum of all weights.
template <class M, int C>
void merge(const Head& h, const Queries& q, size_t blocks) {
    using V = typename M::V;
    constexpr size_t lanes = C * M::kLanes;
    for (size_t lane = 0; lane < lanes; lane += M::kLanes) {
        const V scale = M::mul(h.p.bias ? M::all(1.0f) : M::load(q.scale + lane), M::all(kLog2E));
        V largest = M::load(q.largest + lane), sum = M::zero();
        for (size_t b = 1; b < blocks; ++b) largest = M::max(M::load(q.largest + b * lanes + lane), largest);
        for (size_t b = 0; b < blocks; ++b) {
            float* at = q.largest + b * lanes + lane;
            const V factor = M::power(M::mul(M::sub(M::load(at), largest), scale));
            M::store(at, factor);
            sum = M::fma(factor, M::load(q.sum + b * lanes + lane), sum);
        }
        const V inverse = M::div(M::all(1.0f), sum);
        M::store(q.inverse + lane, h.p.bias ? M::add(inverse, M::load(q.poison + lane)) : inverse);
    }
}

// Output columns of R queries from `lane` on: C vectors of head dimensions from `column` on.
template <class M, int R, int C>
void average(const Head& h, const Queries& q, size_t lanes, size_t lane, size_t column) {
    using V = typename M::V;
    using I = typename M::I;
    V mixed[R][C];
    unroll<R>([&](auto r) INLINED { unroll<C>([&](auto c) INLINED { mixed[r.value][c.value] = M::zero(); }); });
    const size_t cells = (q.keys.end - q.keys.begin + M::kPerCell - 1) / M::kPerCell;
    const char* weight = q.weights + lane * kCell;
    const size_t skipped = (q.keys.begin - h.keys.begin) / M::kPerCell;
    const char* value = h.value + (skipped * h.columns + column) * kCell;
    const float* factor = q.largest + lane;
    for (size_t cell = 0; cell < cells; factor += lanes) {
        I sum[R][C];
        unroll<R>([&](auto r) INLINED { unroll<C>([&](auto c) INLINED { sum[r.value][c.value] = M::no_cells(); }); });
        const size_t end = least(cells, cell + kKeyBlock / M::kPerCell);
        do {
            I right[C];
            unroll<C>([&](auto c) INLINED { right[c.value] = M::load_cells(value + c.value * M::kLanes * kCell); });
            unroll<R>([&](auto r) INLINED {
                const I left = M::broadcast(weight + r.value * kCell);
                unroll<C>([&](auto c) INLINED {
                    sum[r.value][c.value] = M::multiply(sum[r.value][c.value], left, right[c.value]);
                });
            });
            weight += lanes * kCell;
            value += h.columns * kCell;
        } while (++cell < end);
        unroll<R>([&](auto r) INLINED {
            const V times = M::all(factor[r.value]);
            unroll<C>([&](auto c) INLINED {
                mixed[r.value][c.value] = M::fma(M::to_float(sum[r.value][c.value]), times, mixed[r.value][c.value]);
            });
        });
    }
    uint16_t* out = h.p.out + (q.query + lane) * h.p.out_stride + h.head * h.p.head_size + column;
    unroll<R>([&](auto r) INLINED {
        const V inverse = M::all(q.inverse[lane + r.value]);
        unroll<C>([&](auto c) INLINED {
            constexpr size_t first = c.value * M::kLanes;
            const V scale = M::mul(M::load(h.value_scale + column + first), inverse);
            M::store_bf16(out + r.value * h.p.out_stride + first, M::mul(mixed[r.value][c.value], scale),
                          h.p.head_size - column - first);
        });
    });
}

template <class M, int C, int R = M::kRows>
ALWAYS_INLINE void average_rows(const Head& h, const Queries& q, size_t lanes, size_t lane, size_t column) {
    if constexpr (R > 1) {
        if (q.count - lane < R) return average_rows<M, C, R - 1>(h, q, lanes, lane, column);
    }
    average<M, R, C>(h, q, lanes, lane, column);
}

template <class M, int C>
void attend(const Head& h, const Queries& q) {
    const Attention& p = h.p;
    const uint16_t* from = p.q + q.query * p.stride + h.head * p.head_size;
    for (int c = 0; c < C; ++c) {
        const size_t first = c * M::kLanes;
        M::pack_queries(from + first * p.stride, p.stride, least(M::kLanes, q.count - first), p.head_size,
                        q.codes + first * h.row_cells * kCell, q.scale + first);
        M::store(q.scale + first, M::mul(M::load(q.scale + first), M::all(p.scale)));
        M::store(q.poison + first, M::zero());
    }
    size_t blocks = 0;
    for (size_t key = q.keys.begin; key < q.keys.end; key += kKeyBlock) weigh<M, C>(h, q, key, blocks++);
    merge<M, C>(h, q, blocks);
    constexpr size_t lanes = C * M::kLanes;
    for (size_t column = 0; column < p.head_size; column += 2 * M::kLanes) {
        for (size_t lane = 0; lane < q.count; lane += M::kRows) {
            if (p.head_size - column > M::kLanes) {
                average_rows<M, 2>(h, q, lanes, lane, column);
            } else {
                average_rows<M, 1>(h, q, lanes, lane, column);
            }
        }
    }
}

// Packs keys and values of a head. False if one of the sequence is not finite.
template <class M>
bool pack_head(const Head& h, float* mean) {
    const Attention& p = h.p;
    const uint16_t *k = p.k + h.head * p.head_size, *v = p.v + h.head * p.head_size;
    if (!M::value_scales(v, p.stride, p.tokens, p.head_size, h.value_scale)) return false;
    M::means(k, p.stride, p.tokens, p.head_size, mean);
    for (size_t at = 0, count = h.keys.end - h.keys.begin; at < count; at += M::kLanes) {
        if (!M::pack_keys(k + (h.keys.begin + at) * p.stride, p.stride, least(M::kLanes, count - at), p.head_size, mean,
                          h.key + at * h.row_cells * kCell, h.key_scale + at, h.key_start + at)) {
            return false;
        }
    }
    M::pack_values(v + h.keys.begin * p.stride, p.stride, h.keys.end - h.keys.begin, p.head_size, h.value_scale,
                   h.columns, h.value);
    return true;
}

// Cuts scratch into parts, each aligned.
struct Scratch {
    char* at;

    template <class T>
    T* take(size_t count) {
        T* taken = reinterpret_cast<T*>(at);
        at += round_up(count * sizeof(T), kAlignment);
        return taken;
    }
};

// `attention` of the same instruction set: for heads that are not finite, and for sequences of so few tokens that the
// codes take longer than what they save.
struct InFloats {
    AttentionFn* attention;
    size_t fewest;  // tokens that are computed in integers
};

template <class M>
void run(const Attention& p, InFloats in_floats, size_t head_begin, size_t head_end, size_t query_begin,
         size_t query_end, void* scratch) {
    if (query_begin >= query_end) return;
    if (p.tokens < in_floats.fewest) {
        return in_floats.attention(&p, head_begin, head_end, query_begin, query_end, scratch);
    }
    constexpr size_t lanes = kWide * M::kLanes;
    Range all = seen_by(p, query_begin, query_end);
    all.begin -= all.begin % kKeyBlock;
    const size_t keys = round_up(all.end - all.begin, kKeyBlock), blocks = keys / kKeyBlock,
                 columns = round_up(p.head_size, M::kLanes), row_cells = p.head_size / M::kPerCell;
    Scratch room{(char*)scratch};
    Head h{p,
           0,
           all,
           room.take<char>(keys * row_cells * kCell),
           room.take<float>(keys),
           room.take<int32_t>(keys),
           room.take<char>(keys / M::kPerCell * columns * kCell),
           room.take<float>(columns),
           columns,
           row_cells};
    Queries q{0,
              0,
              all,
              room.take<char>(lanes * row_cells * kCell),
              room.take<float>(lanes),
              room.take<float>(kKeyBlock * lanes),
              room.take<char>(keys / M::kPerCell * lanes * kCell),
              room.take<float>(blocks * lanes),
              room.take<float>(blocks * lanes),
              room.take<float>(lanes),
              room.take<float>(lanes)};
    float* mean = room.take<float>(round_up(p.head_size, 32));
    for (h.head = head_begin; h.head < head_end; ++h.head) {
        if (!pack_head<M>(h, mean)) {
            in_floats.attention(&p, h.head, h.head + 1, query_begin, query_end, scratch);
            continue;
        }
        for (q.query = query_begin; q.query < query_end; q.query += lanes) {
            q.count = least(lanes, query_end - q.query);
            q.keys = seen_by(p, q.query, q.query + q.count);
            q.keys.begin -= q.keys.begin % kKeyBlock;
            q.count > M::kLanes ? attend<M, 2>(h, q) : attend<M, 1>(h, q);
        }
    }
}

}  // namespace
