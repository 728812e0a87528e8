// attend of attention_cached in tiles of lines x keys, then lines x head dimensions. Shared by the vector variants,
// which hand in vectors M and, for each kind of cache, cells C; everything is internal to the file that includes it.
//
// The keys of a block are taken once for all lines of a call, up to kLines, so that from the second tile of lines on
// they come from L1. Results on the way lie in the partials.
//
// M: V (vectors of f32), kLanes, kRows (lines of a tile), columns(lines) (vectors side by side), and what is called
// below. C: kPerCell values that one instruction multiplies and adds; kLeft bytes of a cell of queries or weights,
// which are broadcast; Sum, Right; what packs and multiplies cells.
#pragma once
#include "weigh.h"

namespace {

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
