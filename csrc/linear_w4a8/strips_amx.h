// What the AMX variants of linear_w4a8 and linear_w4a16 have in common: tiles of 16 x 16 sums over a group of K at a
// time. Everything is internal to the file that includes it.
//
// A group of two column blocks is unpacked once for up to 96 rows, into a panel as the instructions want it (four bytes
// of K for each of 16 columns, linear/amx.h), which with the rows' f32 sums stays in L1. The sums of 16 rows are two
// tiles, and those of the next 16 are two others: one pair is stored while the other is made.
//
// Bound: compute, but not of the tiles alone. Where the time of 32 rows x 32 columns x 128 codes of K goes, 170 ns on
// one core of a Xeon at 2.9 GHz: 45 for 8 tdpbssd, 15 more with their loads and stores (35 more with one pair of sums),
// 45 to add the sums to y, 30 to unpack, 20 as rows come from L2, 15 for the rest. Groups of 64 and 32 have the same
// sums to add for half and a quarter of the products. These gained nothing there: sums that wait for longer, that are
// added in smaller parts, a group unpacked ahead, weights that stay in tiles while the rows pass by, strips of 48 to
// 192 rows.
//
// An operator is a type Op with
//   Problem             of its contract
//   Value, Sum          of rows and of the panel; in tiles: int8_t and int32_t, or uint16_t (bf16) and float
//   rows(p), stride(p)  where its rows begin; values from one to the next
//   Op(p), unpack<bits, has_levels>(w, codes, zero, panel)
//                       one group of one block; zero: its columns' zero points, or null
//   for_kind(w, f)      f of the weight's bits, of whether it has levels, and of what is added beside sums, as types
//   Scales<C, kind>     (p, at, next): of a group of C blocks from at on, so far from one to the next;
//                       add(index, sums, y) adds 16 C sums of the row and group of that index into scale_m or sum_m
#pragma once
#include "avx512.h"
#include "sizes.h"
#include "vectors/tiles.h"

namespace {

constexpr size_t kTileRows = 16;
constexpr size_t kStripRows = 96;            // that share what was unpacked
constexpr size_t kChunkBytes = 1024 * 1024;  // of rows, which stay in L2 while all the weights pass by
constexpr size_t kMostGroup = 128;           // values of K
constexpr size_t kAhead = 4096;              // bytes of a block's weights that are fetched before they are used

// Tiles are named in the instructions, not passed: macros.
#define MULTIPLY_ADD(sums, a, b)                               \
    do {                                                       \
        if constexpr (std::is_same_v<typename Op::Sum, float>) \
            _tile_dpbf16ps(sums, a, b);                        \
        else                                                   \
            _tile_dpbssd(sums, a, b);                          \
    } while (0)

struct Shape {
    size_t block_bytes, block_groups;  // a block's codes; its scales
    size_t steps, step;                // tiles of a group; bytes of K in each
};

// Where sums of a group that wait in tiles will be added.
struct Waiting {
    float* y;
    size_t rows;
    size_t index;  // of the first row and the group
    size_t group;  // of the weight
};

template <class Op, int C, int kind>
ALWAYS_INLINE void add(const typename Op::Problem& p, const Shape& shape, const Waiting& from,
                       const typename Op::Sum* sums, size_t block) {
    const size_t at = block * shape.block_groups + from.group * kLanes, stride = p.group_stride;
    const typename Op::template Scales<C, kind> scales(p, at, shape.block_groups);
    float* y = from.y;
    size_t index = from.index;
    for (size_t left = from.rows; left; --left, index += stride, sums += C * kLanes, y += C * kLanes) {
        scales.add(index, sums, y);
    }
}

// Sums over a group of 16 rows x C column blocks, in tiles 0 and 1 or in 2 and 3.
template <class Op, int set, int C>
ALWAYS_INLINE void multiply(const Shape& shape, const char* a, size_t stride, const char* panel) {
    constexpr size_t panel_bytes = kMostGroup * kLanes * sizeof(typename Op::Value);
    if constexpr (set == 0) {
        _tile_zero(0);
        if (C == 2) _tile_zero(1);
    } else {
        _tile_zero(2);
        if (C == 2) _tile_zero(3);
    }
    for (size_t i = 0; i < shape.steps; ++i, a += shape.step, panel += shape.step * kLanes) {
        _tile_loadd(6, panel, 64);
        if (C == 2) _tile_loadd(7, panel + panel_bytes, 64);
        if constexpr (set == 0) {
            _tile_loadd(4, a, stride);
            MULTIPLY_ADD(0, 4, 6);
            if (C == 2) MULTIPLY_ADD(1, 4, 7);
        } else {
            _tile_loadd(5, a, stride);
            MULTIPLY_ADD(2, 5, 6);
            if (C == 2) MULTIPLY_ADD(3, 5, 7);
        }
    }
}

template <int set, int C>
void store(void* sums) {
    if constexpr (set == 0) {
        _tile_stored(0, sums, C * 64);
        if (C == 2) _tile_stored(1, (char*)sums + 64, C * 64);
    } else {
        _tile_stored(2, sums, C * 64);
        if (C == 2) _tile_stored(3, (char*)sums + 64, C * 64);
    }
}

// Rows [m, m + rows), at most a strip, of C blocks.
template <class Op, int bits, bool has_levels, int C, int kind>
void strip(const typename Op::Problem& p, const Op& op, const Shape& shape, size_t m, size_t rows, size_t block) {
    using Value = typename Op::Value;
    const Wna8& w = p.weight;
    alignas(64) Value panel[2][kMostGroup * kLanes], last[kTileRows * kMostGroup];
    alignas(64) typename Op::Sum sums[kTileRows * C * kLanes];
    alignas(64) float y[kStripRows * C * kLanes];
    for (size_t i = 0; i < rows * C; ++i) _mm512_store_ps(y + i * kLanes, _mm512_setzero_ps());
    const uint8_t* codes = w.codes + block * shape.block_bytes;
    const size_t groups = w.k / w.group, whole = rows / kTileRows * kTileRows, group_bytes = shape.block_bytes / groups;
    Waiting waiting = {y, 0, 0, 0};
    int set = 0;
    for (size_t g = 0; g < groups; ++g, codes += group_bytes) {
        unroll<C>([&](auto c) INLINED {
            const size_t at = (block + c.value) * shape.block_groups + g / w.per * kLanes;
            op.template unpack<bits, has_levels>(w, codes + c.value * shape.block_bytes, w.zero ? w.zero + at : nullptr,
                                                 panel[c.value]);
        });
        const Value* a = Op::rows(p) + m * Op::stride(p) + g * w.group;
        // A tile is loaded whole: the last rows are copied, so that nothing beyond them is read.
        for (size_t r = whole; r < rows; ++r) {
            __builtin_memcpy(last + (r - whole) * kMostGroup, a + r * Op::stride(p), w.group * sizeof(Value));
        }
        finish_stores();
        for (size_t r = 0; r < rows; r += kTileRows, set ^= 1) {
            const bool copied = r == whole;
            const auto* from = (const char*)(copied ? last : a + r * Op::stride(p));
            const size_t stride = (copied ? kMostGroup : Op::stride(p)) * sizeof(Value);
            if (set == 0) {
                multiply<Op, 0, C>(shape, from, stride, (const char*)panel);
                store<1, C>(sums);
            } else {
                multiply<Op, 1, C>(shape, from, stride, (const char*)panel);
                store<0, C>(sums);
            }
            add<Op, C, kind>(p, shape, waiting, sums, block);
            waiting = {y + r * C * kLanes, least(kTileRows, rows - r), (m + r) * p.group_stride + g, g / w.per};
        }
    }
    (set ? store<0, C> : store<1, C>)(sums);
    add<Op, C, kind>(p, shape, waiting, sums, block);
    write_rows<C>(p, y, rows, m, block);
}

template <class Op, int bits, bool has_levels, int kind>
void run_kind(const typename Op::Problem& p, const Shape& shape, size_t row_begin, size_t row_end, size_t block_begin,
              size_t block_end) {
    const Op op(p);
    const size_t row_bytes = p.weight.k * sizeof(typename Op::Value);
    const size_t chunk = (kChunkBytes / row_bytes / kStripRows + 1) * kStripRows;
    for (size_t first = row_begin; first < row_end; first += chunk) {
        const size_t last = least(first + chunk, row_end);
        for (size_t block = block_begin; block < block_end; block += 2) {
            for (size_t m = first; m < last; m += kStripRows) {
                const size_t count = least(kStripRows, last - m);
                if (block_end - block > 1) {
                    strip<Op, bits, has_levels, 2, kind>(p, op, shape, m, count, block);
                } else {
                    strip<Op, bits, has_levels, 1, kind>(p, op, shape, m, count, block);
                }
            }
        }
    }
}

template <class Op>
void run_strips(const typename Op::Problem& p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const Wna8& w = p.weight;
    const size_t bytes = w.group * sizeof(typename Op::Value);
    size_t steps = (bytes + 63) / 64;
    while (bytes % (4 * steps)) ++steps;
    const Shape shape = {w.k * w.bits * 2, w.k / w.group / w.per * kLanes, steps, bytes / steps};
    TileConfig config = kTileConfig;
    config.row_bytes[4] = config.row_bytes[5] = (uint16_t)shape.step;
    config.rows[6] = config.rows[7] = (uint8_t)(shape.step / 4);
    __asm__ volatile("" : : "r"(&config) : "memory");  // see tiles.h
    _tile_loadconfig(&config);
    Op::for_kind(w, [&](auto bits, auto has_levels, auto kind) {
        run_kind<Op, bits.value, has_levels.value, kind.value>(p, shape, row_begin, row_end, block_begin, block_end);
    });
    _tile_release();
}

}  // namespace
