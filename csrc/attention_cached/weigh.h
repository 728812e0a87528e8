// Lines of queries, and how their scores of a block of keys become weights: what all lines of a tile need once (their
// largest, a reciprocal) is found for all of them together, a line per lane. Everything is internal to the file that
// includes it. M and C: see tiles.h.
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
    const int32_t* start;      // where the sum of products of each group begins: what is off by unsigned codes of keys
    const char* left;
    float* partials;

    float* partial(size_t i) const { return partials + i * partial_floats(p.cache.head_size); }
};

// Room for what Lines point to.
template <class C>
struct PackedLines {
    alignas(64) char left[kLines * kMaxHeadSize / C::kPerCell * C::kLeft];
    int32_t start[kLines * C::kMostGroups];
};

template <class C>
Lines pack_lines(const AttendCached& p, size_t head, size_t line_begin, size_t count, PackedLines<C>& packed,
                 float* partials) {
    const size_t size = p.cache.head_size, groups = size / C::key_group(size);
    Lines lines{.p = p,
                .count = count,
                .left_bytes = size / C::kPerCell * C::kLeft,
                .seen = {},
                .factor = {},
                .start = packed.start,
                .left = packed.left,
                .partials = partials};
    for (size_t i = 0; i < count; ++i) {
        const Line line = line_of(p, head, line_begin + i);
        lines.seen[i] = keys_seen(&p, line.row, line.row + 1);
        lines.factor[i] =
            p.scale * kLog2E *
            C::pack_query(query_of(p, line), size, packed.left + i * lines.left_bytes, packed.start + i * groups);
    }
    return lines;
}

void clear_partials(const Lines& lines) {
    const size_t size = lines.p.cache.head_size;
    for (size_t i = 0; i < lines.count; ++i) {
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

// Of a head's part of a block.
inline Fetch fetch_of(const AttendCached& p, size_t head, size_t block) {
    const char* at = cached_head(p, block, head).keys;
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

// Of each line of a tile, a lane: its largest score, the factor of what was summed before, and what its bytes count in,
// those of each group of values.
template <size_t Groups>
struct Weights {
    alignas(64) float largest[16], factor[16], step[16 * Groups];
};

// Of one line and a block.
template <class C>
constexpr size_t kBytesOfWeights = kCacheBlock / C::kPerCell * C::kLeft;

// Scores of one line, in units of log2 and -inf where it sees no key, in place; and the largest in each lane. first,
// last: the keys that it sees.
template <class M, class C>
ALWAYS_INLINE void adjust(const char* key_scales, float scale, float cap, size_t first, size_t last, float* scores,
                          float* largest) {
    typename M::V top = M::all(-INFINITY);
    const auto each = [&](auto plain) INLINED {
        unroll<kCacheBlock / M::kLanes>([&](auto n) INLINED {
            constexpr ptrdiff_t key = n.value * M::kLanes;
            auto x = M::mul(M::load(scores + key), C::scales(key_scales, key, scale));
            if constexpr (!plain.value) {
                if (cap > 0.0f) x = capped<M>(x, cap);
                x = M::between(x, (ptrdiff_t)first - key, (ptrdiff_t)last - key, M::all(-INFINITY));
            }
            M::store(scores + key, x);
            top = M::max(x, top);  // the second if either is NaN
        });
    };
    const bool all_seen = first == 0 && last == kCacheBlock;
    all_seen&& cap == 0.0f ? each(Index<true>{}) : each(Index<false>{});
    M::store(largest, top);
}

// The largest score of each line so far.
template <class M, int R, class W>
ALWAYS_INLINE void update_largest(const float* largest, float* partial, size_t stride, W& w) {
    alignas(64) float before[M::kLanes];
    for (int r = 0; r < R; ++r) before[r] = partial[r * stride + kLargest];
    const auto old = M::load(before), now = M::max(M::template largest_of<R>(largest), old);
    M::store(w.largest, now);
    M::store(w.factor, M::if_greater(now, old, M::power(M::sub(old, now)), M::all(1.0f)));
    for (int r = 0; r < R; ++r) partial[r * stride + kLargest] = w.largest[r];
}

// Scores of one line become weights, and are added to the line's sums. If they will be bytes: times the scales of each
// group of values, R lines apart from the scores on, with the largest in each lane.
template <class M, class C, int R>
ALWAYS_INLINE void exponentiate(const char* value_scales, size_t groups, float top, float factor, float* scores,
                                float* sums, char* cells, float* largest) {
    using V = typename M::V;
    const V highest = M::all(top), before = M::all(factor);
    V sum[16 / M::kLanes], most = M::zero();
    unroll<16 / M::kLanes>([&](auto i) INLINED { sum[i.value] = M::mul(M::load(sums + i.value * M::kLanes), before); });
    V x[kCacheBlock / M::kLanes];
    const auto scale = [&](size_t g, auto n) INLINED {
        if constexpr (C::kBytes) {
            constexpr ptrdiff_t key = n.value * M::kLanes;
            const V scaled = M::mul(x[n.value], C::held(value_scales, g * kCacheBlock + key));  // finite, seen or not
            M::store(scores + g * R * kCacheBlock + key, scaled);
            most = M::max(scaled, most);
        }
    };
    unroll<kCacheBlock / M::kLanes>([&](auto n) INLINED {
        x[n.value] = M::power(M::sub(M::load(scores + n.value * M::kLanes), highest));
        V& into = sum[n.value % (16 / M::kLanes)];
        into = M::add(into, x[n.value]);
        scale(0, n);
    });
    if constexpr (!C::kBytes) C::store_weights(cells, x);
    unroll<16 / M::kLanes>([&](auto i) INLINED { M::store(sums + i.value * M::kLanes, sum[i.value]); });
    M::store(largest, most);
    if constexpr (C::kGrouped) {
        for (size_t g = 1; g < groups; ++g) {
            most = M::zero();
            unroll<kCacheBlock / M::kLanes>([&](auto n) INLINED { scale(g, n); });
            M::store(largest + g * R * M::kLanes, most);
        }
    }
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
    for (int r = 0; r < R; ++r, scaled += kCacheBlock, cells += kBytesOfWeights<C>) {
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
                         Weights<C::kMostGroups>& w, Fetch& fetch) {
    const size_t size = lines.p.cache.head_size, stride = partial_floats(size), groups = size / C::value_group(size),
                 share = (fetch.end - fetch.at) / Fetch::kPiece / (2 * R) + 1;
    const float cap = lines.p.softcap * kLog2E;
    float* behind = lines.partial(line) + size;
    alignas(64) float largest[C::kMostGroups * R * M::kLanes];
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
        char* of_line = cells + r * kBytesOfWeights<C>;
        if (first[r] < last[r]) {
            exponentiate<M, C, R>(h.value_scales, groups, w.largest[r], w.factor[r], scores + r * kCacheBlock,
                                  behind + r * stride, of_line, largest + r * M::kLanes);
            continue;
        }
        memset(of_line, 0, kBytesOfWeights<C>);
        for (size_t g = 0; g < groups; ++g) {
            memset(scores + (g * R + r) * kCacheBlock, 0, kCacheBlock * sizeof *scores);
            M::store(largest + (g * R + r) * M::kLanes, M::zero());
        }
    }
    if constexpr (C::kBytes) {
        for (size_t g = 0; g < groups; ++g) {
            round_weights<M, C, R>(scores + g * R * kCacheBlock, largest + g * R * M::kLanes,
                                   cells + g * R * kBytesOfWeights<C>, w.step + 16 * g);
        }
    } else {
        for (float& step : w.step) step = 1.0f;
    }
}

}  // namespace
