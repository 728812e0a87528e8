// attend of attention_cached in tiles of lines x keys, then lines x head dimensions. Shared by the vector variants,
// which hand in vectors M and, for each kind of cache, cells C; everything is internal to the file that includes it.
//
// The keys of a block are taken once for all lines of a call, up to kLines, so that from the second tile of lines on
// they come from L1. Results on the way lie in the partials.
//
// M: V (vectors of f32), kLanes, kRows (lines of a tile), kColumns(lines) (vectors side by side), and what is called
// below. C: kPerCell values that one instruction multiplies and adds; kLeft bytes of a cell of queries or weights,
// which are broadcast; Sum, Right; what packs and multiplies cells.
#pragma once
#include "common.h"
#include "vectors/gelu.h"
#include "vectors/unroll.h"

namespace {

constexpr size_t kLines = 32, kCell = 4;

// Lines of one head of the cache, ready to be multiplied.
struct Lines {
    const AttendCached& p;
    size_t count, left_bytes;  // bytes of a line in left
    CachedRange seen[kLines];  // keys
    float factor[kLines];      // of a sum of products, to units of log2
    int32_t start[kLines];     // where the sum of products begins: what is off by unsigned codes of keys
    char* left;
    float* partials;

    float* partial(size_t i) const { return partials + i * partial_floats(p.cache.head_size); }
};

template <class C>
void pack_lines(Lines& lines, size_t head, size_t line_begin) {
    const AttendCached& p = lines.p;
    const size_t size = p.cache.head_size;
    for (size_t i = 0; i < lines.count; ++i) {
        const Line line = line_of(p, head, line_begin + i);
        lines.seen[i] = keys_seen(&p, line.row, line.row + 1);
        lines.factor[i] = p.scale * kLog2E *
                          C::pack_query(query_of(p, line), size, lines.left + i * lines.left_bytes, &lines.start[i]);
        float* partial = lines.partial(i);
        memset(partial, 0, (size + kSums) * sizeof(float));
        partial[size + kLargest] = -INFINITY;
    }
}

// Brings into the cache what will be read after this block: blocks lie anywhere, so the processor would notice at each
// of them anew. Evenly through all that is done to a block, and in the order of addresses: more at once than the
// processor keeps count of would hold up the loads that are needed now.
struct Fetch {
    static constexpr size_t kPiece = 64;
    const char *at, *end;

    ALWAYS_INLINE void some(size_t pieces) {
        if (at >= end) return;
        for (size_t i = 0; i < pieces; ++i) __builtin_prefetch(at + i * kPiece);
        at += pieces * kPiece;
    }
    // While so many vectors of 64 bytes are read from the block.
    ALWAYS_INLINE void beside(size_t vectors) { some(vectors - vectors / 4); }
};

// Of a head's part of the block that holds a position.
inline Fetch fetch_of(const AttendCached& p, size_t head, size_t position) {
    const char* at = cached_head(p.cache, p.table[position / kCacheBlock], head).keys;
    return {at, at + cache_head_bytes(p.cache.kind, p.cache.head_size)};
}

// 2^x, to the last bits.
template <class M>
ALWAYS_INLINE typename M::V exact_power(typename M::V x) {
    const auto magic = M::all(0x1.8p23f);
    const auto whole = M::sub(M::add(x, magic), magic), part = M::sub(x, whole);
    auto y = M::all(kExp2[5]);
    unroll<5>([&](auto i) INLINED { y = M::fma(y, part, M::all(kExp2[4 - i.value])); });
    return M::mul(M::mul(M::power(whole), M::all(1.0f / kPower[0])), y);
}

// cap * tanh(score / cap), both in units of log2: tanh x = 1 - 2 / (1 + e^2x).
template <class M>
ALWAYS_INLINE typename M::V capped(typename M::V score, float cap) {
    auto x = M::mul(score, M::all(2.0f * kLog2E / cap));
    x = M::max(M::all(-60.0f), M::min(M::all(60.0f), x));  // the second operand if either is NaN
    const auto below = M::div(M::all(2.0f), M::add(M::all(1.0f), exact_power<M>(x)));
    return M::mul(M::sub(M::all(1.0f), below), M::all(cap));
}

// Sums of products of R lines and the 64 keys of a block, as f32: [R, 64].
template <class M, class C, int R, int N>
ALWAYS_INLINE void score(const char* left, size_t left_bytes, const int32_t* start, const char* keys, size_t cells,
                         float* scores, Fetch& fetch) {
    constexpr size_t kTile = 16 * kCell, kPerTile = 16 / M::kLanes;
    static_assert(N % kPerTile == 0);
    for (size_t key = 0; key < kCacheBlock; key += N * M::kLanes, keys += N / kPerTile * cells * kTile) {
        typename C::Sum sum[R][N];
        unroll<R>([&](auto r) INLINED {
            unroll<N>([&](auto n) INLINED { sum[r.value][n.value] = C::begin(start[r.value]); });
        });
        const char* line = left;
        for (size_t cell = 0; cell < cells; ++cell, line += C::kLeft) {
            typename C::Right right[N];
            unroll<N>([&](auto n) INLINED {
                constexpr size_t tile = n.value / kPerTile, part = n.value % kPerTile;
                right[n.value] = C::load_key(keys + (tile * cells + cell) * kTile + part * M::kLanes * kCell);
            });
            fetch.beside(N / kPerTile);
            unroll<R>([&](auto r) INLINED {
                const auto cells_of_line = C::broadcast(line + r.value * left_bytes);
                unroll<N>([&](auto n) INLINED {
                    sum[r.value][n.value] = C::add_key(sum[r.value][n.value], right[n.value], cells_of_line);
                });
            });
        }
        unroll<R>([&](auto r) INLINED {
            unroll<N>([&](auto n) INLINED {
                M::store(scores + r.value * kCacheBlock + key + n.value * M::kLanes,
                         C::to_float(sum[r.value][n.value]));
            });
        });
    }
}

// Of each line of a tile, a lane: its largest score, the factor of what was summed before, and what its bytes count in.
struct Weights {
    alignas(64) float largest[16], factor[16], step[16];
};

// Scores of one line, in units of log2 and -inf where it sees no key, in place; and the largest in each lane. first,
// last: the keys that it sees.
template <class M, class C>
ALWAYS_INLINE void adjust(const float* key_scales, float scale, float cap, size_t first, size_t last, float* scores,
                          float* largest) {
    typename M::V top = M::all(-INFINITY);
    const auto each = [&](auto plain) INLINED {
        unroll<kCacheBlock / M::kLanes>([&](auto n) INLINED {
            constexpr ptrdiff_t key = n.value * M::kLanes;
            auto x = M::mul(M::load(scores + key), C::scales(key_scales + key, scale));
            if constexpr (!plain.value) {
                if (cap > 0.0f) x = capped<M>(x, cap);
                x = M::between(x, (ptrdiff_t)first - key, (ptrdiff_t)last - key, M::all(-INFINITY));
            }
            M::store(scores + key, x);
            top = M::max(x, top);  // the second if either is NaN
        });
    };
    first == 0 && last == kCacheBlock&& cap == 0.0f ? each(Index<true>{}) : each(Index<false>{});
    M::store(largest, top);
}

// The largest score of each line so far.
template <class M, int R>
ALWAYS_INLINE void update_largest(const float* largest, float* partial, size_t stride, Weights& w) {
    alignas(64) float before[M::kLanes];
    for (int r = 0; r < R; ++r) before[r] = partial[r * stride + kLargest];
    const auto old = M::load(before), now = M::max(M::template largest_of<R>(largest), old);
    M::store(w.largest, now);
    M::store(w.factor, M::if_greater(now, old, M::power(M::sub(old, now)), M::all(1.0f)));
    for (int r = 0; r < R; ++r) partial[r * stride + kLargest] = w.largest[r];
}

// Scores of one line become weights, times the scales of values in place if they will be bytes, with the largest in
// each lane; they are added to the line's sums.
template <class M, class C>
ALWAYS_INLINE void exponentiate(const float* value_scales, float top, float factor, float* scores, float* sums,
                                char* cells, float* largest) {
    using V = typename M::V;
    const V highest = M::all(top), before = M::all(factor);
    V sum[16 / M::kLanes], most = M::zero();
    unroll<16 / M::kLanes>([&](auto i) INLINED { sum[i.value] = M::mul(M::load(sums + i.value * M::kLanes), before); });
    V x[kCacheBlock / M::kLanes];
    unroll<kCacheBlock / M::kLanes>([&](auto n) INLINED {
        constexpr ptrdiff_t key = n.value * M::kLanes;
        x[n.value] = M::power(M::sub(M::load(scores + key), highest));
        V& into = sum[n.value % (16 / M::kLanes)];
        into = M::add(into, x[n.value]);
        if constexpr (C::kBytes) {
            const V scaled = M::mul(x[n.value], M::load(value_scales + key));  // which are finite, seen or not
            M::store(scores + key, scaled);
            most = M::max(scaled, most);
        }
    });
    if constexpr (!C::kBytes) C::store_weights(cells, x);
    unroll<16 / M::kLanes>([&](auto i) INLINED { M::store(sums + i.value * M::kLanes, sum[i.value]); });
    M::store(largest, most);
}

// Weights times scales become bytes, in steps that make the largest of a line 255.
template <class M, class C, int R>
ALWAYS_INLINE void round_weights(const float* scaled, const float* largest, char* cells, float* step) {
    using V = typename M::V;
    constexpr float kLeast = 0x1p-119f;  // 255 / kLeast is finite
    const V most = M::template largest_of<R>(largest), least = M::all(kLeast / 2), none = M::zero();
    alignas(64) float inverse[M::kLanes];
    M::store(inverse, M::if_greater(most, least, M::div(M::all(255.0f), most), none));
    M::store(step, M::if_greater(most, least, M::mul(most, M::all(1.0f / 255.0f)), none));
    for (int r = 0; r < R; ++r, scaled += kCacheBlock, cells += kCacheBlock / C::kPerCell * C::kLeft) {
        const V times = M::all(inverse[r]);
        V x[kCacheBlock / M::kLanes];
        unroll<kCacheBlock / M::kLanes>(
            [&](auto n) INLINED { x[n.value] = M::mul(M::load(scaled + n.value * M::kLanes), times); });
        C::store_weights(cells, x);
    }
}

// Scores of the lines [line, line + R), as sums of products, become weights.
template <class M, class C, int R>
ALWAYS_INLINE void weigh(const Lines& lines, size_t line, const CachedHead& h, size_t begin, float* scores, char* cells,
                         Weights& w, Fetch& fetch) {
    const size_t size = lines.p.cache.head_size, stride = partial_floats(size),
                 share = (fetch.end - fetch.at) / Fetch::kPiece / (2 * R) + 1;
    const float cap = lines.p.softcap * kLog2E;
    float* behind = lines.partial(line) + size;
    alignas(64) float largest[R * M::kLanes];
    size_t first[R], last[R];
    for (int r = 0; r < R; ++r) {
        const CachedRange seen = lines.seen[line + r];
        first[r] = seen.begin > begin ? seen.begin - begin : 0;
        last[r] = seen.end > begin ? least(seen.end - begin, kCacheBlock) : 0;
        adjust<M, C>(h.key_scales, lines.factor[line + r], cap, first[r], last[r], scores + r * kCacheBlock,
                     largest + r * M::kLanes);
    }
    update_largest<M, R>(largest, behind, stride, w);
    for (int r = 0; r < R; ++r) {
        fetch.some(share);
        char* of_line = cells + r * (kCacheBlock / C::kPerCell * C::kLeft);
        if (first[r] < last[r]) {
            exponentiate<M, C>(h.value_scales, w.largest[r], w.factor[r], scores + r * kCacheBlock, behind + r * stride,
                               of_line, largest + r * M::kLanes);
        } else {
            memset(scores + r * kCacheBlock, 0, kCacheBlock * sizeof *scores);
            memset(of_line, 0, kCacheBlock / C::kPerCell * C::kLeft);
            M::store(largest + r * M::kLanes, M::zero());
        }
    }
    if constexpr (C::kBytes) {
        round_weights<M, C, R>(scores, largest, cells, w.step);
    } else {
        for (float& step : w.step) step = 1.0f;
    }
}

// N vectors of head dimensions of R lines, times the weights of a block.
template <class M, class C, int R, int N>
ALWAYS_INLINE void mix(const char* weights, const Weights& of, const char* values, size_t size, float* out,
                       size_t out_stride, Fetch& fetch) {
    constexpr size_t kCells = kCacheBlock / C::kPerCell;
    typename C::Sum sum[R][N];
    unroll<R>([&](auto r) INLINED { unroll<N>([&](auto n) INLINED { sum[r.value][n.value] = C::begin(0); }); });
    for (size_t cell = 0; cell < kCells; ++cell, weights += C::kLeft, values += size * kCell) {
        typename C::Right right[N];
        unroll<N>([&](auto n) INLINED { right[n.value] = C::load_value(values + n.value * M::kLanes * kCell); });
        fetch.beside(N * M::kLanes / 16);
        unroll<R>([&](auto r) INLINED {
            const auto left = C::broadcast(weights + r.value * kCells * C::kLeft);
            unroll<N>([&](auto n) INLINED {
                sum[r.value][n.value] = C::add_value(sum[r.value][n.value], left, right[n.value]);
            });
        });
    }
    unroll<R>([&](auto r) INLINED {
        unroll<N>([&](auto n) INLINED {
            float* at = out + r.value * out_stride + n.value * M::kLanes;
            const auto before = M::mul(M::load(at), M::all(of.factor[r.value]));
            M::store(at, M::fma(C::to_float(sum[r.value][n.value]), M::all(of.step[r.value]), before));
        });
    });
}

// Lines [line, line + R) and the block of keys from position `begin` on.
template <class M, class C, int R>
void attend_tile(const Lines& lines, size_t line, const CachedHead& h, size_t begin, Fetch fetch) {
    const size_t size = lines.p.cache.head_size, stride = partial_floats(size);
    alignas(64) float scores[R * kCacheBlock];
    alignas(64) char weights[R * kCacheBlock / C::kPerCell * C::kLeft];
    Weights of;
    score<M, C, R, M::columns(R)>(lines.left + line * lines.left_bytes, lines.left_bytes, lines.start + line, h.keys,
                                  size / C::kPerCell, scores, fetch);
    weigh<M, C, R>(lines, line, h, begin, scores, weights, of, fetch);
    float* partial = lines.partial(line);
    constexpr size_t N = M::columns(R), kLeast = 16 / M::kLanes;
    size_t column = 0;
    for (; column + N * M::kLanes <= size; column += N * M::kLanes) {
        mix<M, C, R, N>(weights, of, h.values + column * kCell, size, partial + column, stride, fetch);
    }
    if constexpr (N > kLeast) {
        for (; column < size; column += 16) {
            mix<M, C, R, kLeast>(weights, of, h.values + column * kCell, size, partial + column, stride, fetch);
        }
    }
}

// The same of `count` lines, up to R.
template <class M, class C, int R = M::kRows>
ALWAYS_INLINE void attend_tile(const Lines& lines, size_t line, size_t count, const CachedHead& h, size_t begin,
                               Fetch fetch) {
    if constexpr (R > 1) {
        if (count < R) return attend_tile<M, C, R - 1>(lines, line, count, h, begin, fetch);
    }
    attend_tile<M, C, R>(lines, line, h, begin, fetch);
}

template <class M, class C>
void attend_lines(const AttendCached& p, size_t head, size_t line_begin, size_t count, size_t part, float* partials) {
    alignas(64) char left[kLines * kMaxHeadSize * 4];
    Lines lines{.p = p,
                .count = count,
                .left_bytes = p.cache.head_size / C::kPerCell * C::kLeft,
                .seen = {},
                .factor = {},
                .start = {},
                .left = left,
                .partials = partials};
    // Later lines see later keys: the first and the last line of some see all that one of them sees.
    const CachedRange seen = keys_seen(&p, line_begin / p.heads_per_kv, (line_begin + count - 1) / p.heads_per_kv + 1);
    const size_t end = least(seen.end, (part + 1) * kPart);
    size_t begin = part * kPart;
    if (seen.begin > begin) begin = seen.begin / kCacheBlock * kCacheBlock;
    pack_lines<C>(lines, head, line_begin);
    for (; begin < end; begin += kCacheBlock) {
        const CachedHead h = cached_head(p.cache, p.table[begin / kCacheBlock], head);
        const size_t next = begin + kCacheBlock;
        Fetch fetch = next < seen.end ? fetch_of(p, head, next) : Fetch{nullptr, nullptr};
        for (size_t line = 0; line < count; line += M::kRows) {
            const size_t rows = least(M::kRows, count - line);
            if (lines.seen[line].begin >= begin + kCacheBlock || lines.seen[line + rows - 1].end <= begin) continue;
            attend_tile<M, C>(lines, line, rows, h, begin, fetch);
            fetch.at = fetch.end;  // once for all lines
        }
    }
}

template <class M, class Int8, class Bf16>
void attend(const AttendCached* p, size_t head, size_t line_begin, size_t line_end, size_t part, float* partials) {
    for (size_t line = line_begin; line < line_end; line += kLines) {
        (p->cache.kind == CacheKind::kInt8
             ? attend_lines<M, Int8>
             : attend_lines<M, Bf16>)(*p, head, line, least(kLines, line_end - line), part,
                                      partials + (line - line_begin) * partial_floats(p->cache.head_size));
    }
}

}  // namespace
