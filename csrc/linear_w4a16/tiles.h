// What the variants in vectors have in common: tiles of R rows x as many columns as a vector has lanes, whose sums over
// a group of K stay in registers. Some groups side by side if rows are few: a sum waits for the one before it.
// Everything is internal to the file that includes it.
//
// An instruction set is a type Op with
//   F, I            vectors of f32 and of integers, and kLanes of the former
//   kRows, kSide    rows of a tile, at most; groups side by side of a tile of so many rows, by rows - 1
//   X, kParts       values of rows as it multiplies them: bf16, two of four parts; or f32, each alone
//   Op(levels), weights<bits>(index)
//                   the lowest bits of each lane looked up
//   shifted<by>     of lanes, to the right
//   two_and_rest    the lowest two bits of each byte, and the other bits of another vector
//   add, fma, load, load_bf16, load_u8, store, set1, zero
//   multiply_add    (sum, weights, x), x an address
//   widen(x, count, out)
//                   rows to f32, where those are X
//   write(p, y, rows, m, block)
#pragma once
#include <immintrin.h>

#include <type_traits>

#include "index.h"
#include "levels.h"
#include "sizes.h"

namespace {

constexpr size_t kBlock = 16;               // columns
constexpr size_t kMostGroup = 128;          // values of K
constexpr size_t kChunkBytes = 384 * 1024;  // of rows, which stay in L2 while all the weights pass by
constexpr size_t kAhead = 4096;             // bytes of codes that are fetched before they are used

// Where the next groups of a tile are.
struct Place {
    const uint8_t* codes;
    const uint16_t* rows;
    const float* sum_m;
    size_t scale, left;  // of the groups that share the scale
};

// J groups, added to y.
template <class Op, int bits, int R, int J>
ALWAYS_INLINE void add_groups(const LinearW4A16& p, const Op& op, Place& at, typename Op::F (&y)[R]) {
    using W = Word<bits>;
    using F = typename Op::F;
    const Wna8& w = p.weight;
    const size_t group = w.group, words = group / W::values, group_bytes = words * W::bytes;
    constexpr bool widened = std::is_same_v<typename Op::X, float>;
    alignas(64) float wide[widened ? R * J * kMostGroup : 1];
    const typename Op::X* x;
    size_t stride;
    if constexpr (widened) {
        x = wide, stride = J * kMostGroup;
        for (int r = 0; r < R; ++r) Op::widen(at.rows + r * p.row_stride, J * group, wide + r * stride);
    } else {
        x = at.rows, stride = p.row_stride;
    }
    F sums[J][2][R];
    unroll<J * 2 * R>([&](auto i) INLINED { sums[i.value / (2 * R)][i.value / R % 2][i.value % R] = Op::zero(); });
    // One pointer each: GCC would make one of them and as many offsets as there are loads, more than registers.
    const uint8_t* codes[J];
    const typename Op::X* values[J];
    unroll<J>([&](auto j) INLINED {
        codes[j.value] = at.codes + j.value * group_bytes;
        values[j.value] = x + j.value * group;
    });
    for (size_t i = 0; i < words; ++i) {
        unroll<J>([&](auto j) INLINED {
            __asm__("" : "+r"(codes[j.value]), "+r"(values[j.value]));
            const uint8_t* from = codes[j.value];
            typename Op::I word[W::bytes / 64];
            unroll<W::bytes / 64>([&](auto line) INLINED {
                __builtin_prefetch(from + line.value * 64 + kAhead);
                word[line.value] = Op::load(from + line.value * 64);
            });
            unroll<W::runs>([&](auto run) INLINED {
                unroll<Op::kParts>([&](auto part) INLINED {
                    const auto weights = op.template weights<bits>(index_of<Op, bits, run.value, part.value>(word));
                    const typename Op::X* first = values[j.value] + run.value * 4 + part.value * (4 / Op::kParts);
                    unroll<R>([&](auto r) INLINED {
                        F& sum = sums[j.value][run.value % 2][r.value];
                        sum = Op::multiply_add(sum, weights, first + r.value * stride);
                    });
                });
            });
            codes[j.value] += W::bytes;
            values[j.value] += W::values;
        });
    }
    unroll<J>([&](auto j) INLINED {
        F(&t)[R] = sums[j.value][0];
        unroll<R>([&](auto r) INLINED { t[r.value] = Op::add(t[r.value], sums[j.value][1][r.value]); });
        const float* sum = at.sum_m + j.value;
        if (w.zero) {
            const F middle = Op::add(Op::set1(middle_of(w)), Op::minus_u8(w.zero + at.scale));
            unroll<R>([&](auto r) INLINED {
                t[r.value] = Op::fma(Op::set1(sum[r.value * p.group_stride]), middle, t[r.value]);
            });
        }
        const F scale = Op::of_group(w, w.scale, at.scale);
        unroll<R>([&](auto r) INLINED { y[r.value] = Op::fma(t[r.value], scale, y[r.value]); });
        if (w.minimum) {
            const F minimum = Op::of_group(w, w.minimum, at.scale);
            unroll<R>([&](auto r) INLINED {
                y[r.value] = Op::fma(Op::set1(sum[r.value * p.group_stride]), minimum, y[r.value]);
            });
        }
        if (--at.left == 0) at.scale += kBlock, at.left = w.per;
    });
    at.codes += J * group_bytes;
    at.rows += J * group;
    at.sum_m += J;
}

template <class Op, int bits, int R>
void tile(const LinearW4A16& p, const Op& op, size_t m, size_t block) {
    constexpr int side = Op::kSide[R - 1];
    const Wna8& w = p.weight;
    const size_t groups = w.k / w.group;
    alignas(64) float out[R * kBlock];
    for (size_t lane = 0; lane < kBlock; lane += Op::kLanes) {
        Place at = {w.codes + block * (w.k / Word<bits>::values * Word<bits>::bytes) + lane * 4,
                    p.rows + m * p.row_stride, p.sum_m + m * p.group_stride, block * (groups / w.per) * kBlock + lane,
                    w.per};
        typename Op::F y[R];
        unroll<R>([&](auto r) INLINED { y[r.value] = Op::zero(); });
        size_t g = 0;
        for (; g + side <= groups; g += side) add_groups<Op, bits, R, side>(p, op, at, y);
        if constexpr (side > 1) {
            for (; g < groups; ++g) add_groups<Op, bits, R, 1>(p, op, at, y);
        }
        unroll<R>([&](auto r) INLINED { Op::store(out + r.value * kBlock + lane, y[r.value]); });
    }
    Op::write(p, out, R, m, block);
}

template <class Op, int bits, int R>
void run_tile(const LinearW4A16& p, const Op& op, size_t rows, size_t m, size_t block) {
    if (rows == R) return tile<Op, bits, R>(p, op, m, block);
    if constexpr (R > 1) run_tile<Op, bits, R - 1>(p, op, rows, m, block);
}

template <class Op>
void run_tiles(const LinearW4A16& p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const Op op{Levels(p)};
    const size_t chunk = (kChunkBytes / 2 / p.weight.k / Op::kRows + 1) * Op::kRows;
    for_bits(p.weight.bits, [&](auto bits) {
        for (size_t first = row_begin; first < row_end; first += chunk) {
            const size_t last = least(first + chunk, row_end), parts = (last - first + Op::kRows - 1) / Op::kRows;
            for (size_t block = block_begin; block < block_end; ++block) {
                for (size_t i = 0, m = first; i < parts; ++i) {  // of nearly the same size
                    const size_t end = first + (last - first) * (i + 1) / parts;
                    run_tile<Op, bits.value, Op::kRows>(p, op, end - m, m, block);
                    m = end;
                }
            }
        }
    });
}

}  // namespace
