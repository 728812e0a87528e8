// attend of attention_cached in tiles of lines x keys, then lines x head dimensions. Shared by the vector variants,
// which hand in vectors M and, for each kind of cache, cells C; everything is internal to the file that includes it.
//
// The keys of a block are taken once for all lines of a call, up to kLines, so that from the second tile of lines on
// they come from L1. Results on the way lie in the partials.
//
// M: V (vectors of f32), kLanes, kRows (lines of a tile), columns(lines) (vectors side by side), and what is called
// below. C: kPerCell numbers that one instruction multiplies and adds; kHalves cells that lie in the bytes of one;
// kLeft bytes of a cell of queries or weights, which are broadcast; kGrouped: not the whole head has a scale, but each
// key_group(size) and value_group(size) numbers have one, at most kMostGroups of them; Sum, Right; what packs and
// multiplies cells.
#pragma once
#include "weigh.h"

namespace {

// Sums of products of R lines and the 64 keys of a block, as f32: [R, 64]; where keys have a scale for each group,
// times these.
template <class M, class C, int R, int N>
ALWAYS_INLINE void score(const Lines& lines, size_t line, const CachedHead& h, float* scores, Fetch& fetch) {
    constexpr size_t kTile = 16 * kCell, kPerTile = 16 / M::kLanes;
    static_assert(N % kPerTile == 0);
    const size_t size = lines.p.cache.head_size, groups = size / C::key_group(size);
    const size_t rows = size / C::kPerCell / C::kHalves;  // of a tile
    for (size_t key = 0; key < kCacheBlock; key += N * M::kLanes) {
        const char *keys = h.keys + key / 16 * rows * kTile, *left = lines.left + line * lines.left_bytes;
        for (size_t g = 0; g < groups; ++g) {
            typename C::Sum sum[R][N];
            unroll<R>([&](auto r) INLINED {
                const auto start = C::begin(lines.start[(line + r.value) * groups + g]);
                unroll<N>([&](auto n) INLINED { sum[r.value][n.value] = start; });
            });
            for (size_t row = 0; row < rows / groups; ++row, keys += kTile) {
                fetch.beside(N / kPerTile);
                unroll<C::kHalves>([&](auto half) INLINED {
                    typename C::Right right[N];
                    unroll<N>([&](auto n) INLINED {
                        constexpr size_t tile = n.value / kPerTile, part = n.value % kPerTile;
                        right[n.value] = C::load_key(keys + tile * rows * kTile + part * M::kLanes * kCell, half);
                    });
                    unroll<R>([&](auto r) INLINED {
                        const auto cells_of_line = C::broadcast(left + r.value * lines.left_bytes);
                        unroll<N>([&](auto n) INLINED {
                            sum[r.value][n.value] = C::add_key(sum[r.value][n.value], right[n.value], cells_of_line);
                        });
                    });
                    left += C::kLeft;
                });
            }
            unroll<N>([&](auto n) INLINED {
                unroll<R>([&](auto r) INLINED {
                    float* at = scores + r.value * kCacheBlock + key + n.value * M::kLanes;
                    auto x = C::to_float(sum[r.value][n.value]);
                    if constexpr (C::kGrouped) {
                        x = M::mul(x, C::held(h.key_scales, g * kCacheBlock + key + n.value * M::kLanes));
                        if (g > 0) x = M::add(M::load(at), x);
                    }
                    M::store(at, x);
                });
            });
        }
    }
}

// N vectors of head dimensions of R lines, times the weights of a block. zeros: of values that have some.
template <class M, class C, int R, int N>
ALWAYS_INLINE void mix(const char* weights, const float* factor, const float* step, const char* values,
                       const char* zeros, size_t size, float* out, size_t out_stride, Fetch& fetch) {
    constexpr size_t kCells = kCacheBlock / C::kPerCell;
    typename C::Sum sum[R][N];
    unroll<R>([&](auto r) INLINED { unroll<N>([&](auto n) INLINED { sum[r.value][n.value] = C::begin(0); }); });
    for (size_t cell = 0; cell < kCells; cell += C::kHalves, values += size * kCell) {
        fetch.beside(N * M::kLanes / 16);
        unroll<C::kHalves>([&](auto half) INLINED {
            typename C::Right right[N];
            unroll<N>([&](auto n) INLINED {
                right[n.value] = C::load_value(values + n.value * M::kLanes * kCell, half, zeros);
            });
            unroll<R>([&](auto r) INLINED {
                const auto left = C::broadcast(weights + r.value * kCells * C::kLeft);
                unroll<N>([&](auto n) INLINED {
                    sum[r.value][n.value] = C::add_value(sum[r.value][n.value], left, right[n.value]);
                });
            });
            weights += C::kLeft;
            zeros += C::kPerCell;
        });
    }
    unroll<R>([&](auto r) INLINED {
        unroll<N>([&](auto n) INLINED {
            float* at = out + r.value * out_stride + n.value * M::kLanes;
            const auto before = M::mul(M::load(at), M::all(factor[r.value]));
            M::store(at, M::fma(C::to_float(sum[r.value][n.value]), M::all(step[r.value]), before));
        });
    });
}

// Lines [line, line + R) and the block of keys from position `begin` on.
template <class M, class C, int R>
void attend_tile(const Lines& lines, size_t line, const CachedHead& h, size_t begin, Fetch fetch) {
    constexpr size_t N = M::columns(R), kLeast = 16 / M::kLanes;
    const size_t size = lines.p.cache.head_size, stride = partial_floats(size), group = C::value_group(size);
    alignas(64) float scores[C::kMostGroups * R * kCacheBlock];
    alignas(64) char weights[C::kMostGroups * R * kBytesOfWeights<C>];
    Weights<C::kMostGroups> of;
    score<M, C, R, N>(lines, line, h, scores, fetch);
    weigh<M, C, R>(lines, line, h, begin, scores, weights, of, fetch);
    float* partial = lines.partial(line);
    size_t column = 0;
    for (size_t g = 0; g < size / group; ++g) {
        const auto mixed = [&](auto n) INLINED {
            mix<M, C, R, n.value>(weights + g * R * kBytesOfWeights<C>, of.factor, of.step + 16 * g,
                                  h.values + column * kCell, h.zeros + g * kCacheBlock, size, partial + column, stride,
                                  fetch);
            column += n.value * M::kLanes;
        };
        const size_t end = (g + 1) * group;
        while (column + N * M::kLanes <= end) mixed(Index<N>{});
        if constexpr (N > kLeast) {
            while (column < end) mixed(Index<kLeast>{});
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

// All lines and the block of keys from position `begin` on.
template <class M, class C>
void attend_block(const Lines& lines, const CachedHead& h, size_t begin, Fetch fetch) {
    for (size_t line = 0; line < lines.count; line += M::kRows) {
        const size_t rows = least(M::kRows, lines.count - line);
        if (lines.seen[line].begin >= begin + kCacheBlock || lines.seen[line + rows - 1].end <= begin) continue;
        attend_tile<M, C>(lines, line, rows, h, begin, fetch);
        fetch.at = fetch.end;  // once for all lines
    }
}

// Hot: of blocks that these lines see in 8 bits, where C has 4; else the same as C. The lines' queries lie in one
// block.
template <class M, class C, class Hot>
void attend_lines(const AttendCached& p, size_t head, size_t line_begin, size_t count, size_t part, float* partials) {
    constexpr bool kSome = C::kGrouped;
    PackedLines<C> packed;
    const Lines lines = pack_lines<C>(p, head, line_begin, count, packed, partials);
    PackedLines<Hot> hot_packed;
    const Lines hot_lines = kSome ? pack_lines<Hot>(p, head, line_begin, count, hot_packed, partials) : lines;
    clear_partials(lines);
    // Later lines see later keys: the first and the last line of some see all that one of them sees.
    const CachedRange seen = keys_seen(&p, line_begin / p.heads_per_kv, (line_begin + count - 1) / p.heads_per_kv + 1);
    const size_t end = least(seen.end, (part + 1) * kPart);
    size_t begin = part * kPart;
    if (seen.begin > begin) begin = seen.begin / kCacheBlock * kCacheBlock;
    const size_t own = (p.past + line_begin / p.heads_per_kv) / kCacheBlock;
    for (; begin < end; begin += kCacheBlock) {
        const size_t block = begin / kCacheBlock, next = block + 1;
        // What is hot was read a moment ago, and lies in two places.
        const bool fetched = next * kCacheBlock < seen.end && !(kSome && is_hot(own, next));
        const Fetch fetch = fetched ? fetch_of(p, head, next) : Fetch{nullptr, nullptr};
        if constexpr (kSome) {
            if (is_hot(own, block)) {
                attend_block<M, Hot>(hot_lines, hot_head(p, block, head), begin, fetch);
                continue;
            }
        }
        attend_block<M, C>(lines, cached_head(p, block, head), begin, fetch);
    }
}

template <class M, class Int8, class Int4, class Bf16>
void attend(const AttendCached* p, size_t head, size_t line_begin, size_t line_end, size_t part, float* partials) {
    const CacheKind kind = p->cache.kind;
    const auto some = kind == CacheKind::kInt8   ? attend_lines<M, Int8, Int8>
                      : kind == CacheKind::kInt4 ? attend_lines<M, Int4, Int8>
                                                 : attend_lines<M, Bf16, Bf16>;
    const size_t floats = partial_floats(p->cache.head_size);
    for (size_t line = line_begin, next; line < line_end; partials += (next - line) * floats, line = next) {
        next = least(line + kLines, line_end);
        if (kind == CacheKind::kInt4) {  // and no further than the last line of this block
            const size_t in_block = (p->past + line / p->heads_per_kv) % kCacheBlock;
            next = least(next, (line / p->heads_per_kv + kCacheBlock - in_block) * p->heads_per_kv);
        }
        some(*p, head, line, next - line, part, partials);
    }
}

}  // namespace
