// linear_w4a8, AVX-512 VNNI: tiles of R rows x C column blocks, whose sums over a group of K stay in registers.
// Layout: contract.h. A run of four K values is, for each block, a load, an AND and perhaps a shift, and for each row
// of it a vpdpbusd: 1.5 instructions to unpack it in 4 bits, one more for levels, 17 for eight runs in 3 bits. The end
// of a group is a conversion, a product of scales and an fma for each sum.
//
//   1-3 rows x 1 block   Bound: memory.
//   4-8 rows x 2 blocks  Bound: memory up to some 6 rows, then compute: 25 GB/s with 8 on each core of Zen 5.
//   6 rows x 2 blocks    more rows, in tiles. Bound: compute. vpdpbusd is 128 operations; of the instructions that
//                        take its ports, a sum over a group of 64 is 16 of 18.5.
//
// A tile unpacks the weight for itself, into registers. To do it once for all rows, into a panel that stays in L2, was
// measured as no faster at 512 rows and slower below (Zen 5): unpacking takes ports that vpdpbusd leaves idle, and
// packed weights are half the loads from L2.
#include "avx512.h"
#include "sizes.h"

namespace {

constexpr size_t kMemoryRows = 3;           // up to here memory is slower
constexpr int kFewRows = 8;                 // of one tile
constexpr size_t kTileRows = 6;             // of one tile among several
constexpr size_t kChunkBytes = 384 * 1024;  // of codes, which stay in L2 while all the weights pass by
constexpr size_t kAhead = 4096;             // bytes of a block's weights that are fetched before they are used

// What is taken off codes: their middle; zero points, or nothing where there may be minima; or 128, off the levels that
// they index, which are held so much above what they are.
enum class Kind { kSymmetric, kOffsets, kLevels };

// The weight of C blocks, word by word.
template <int bits, Kind kind, int C>
struct Words {
    using W = Word<bits>;

    const Wna8& w;
    size_t block_bytes, block_groups;
    const uint8_t *codes, *ahead;
    size_t at;  // of the group's scales
    __m512i levels;

    // From memory one stream of addresses is faster than several side by side: what is fetched ahead is this block's
    // next words, or with two blocks the two after them, one after the other.
    ALWAYS_INLINE Words(const Wna8& weight, size_t block)
        : w(weight),
          block_bytes(w.k / W::values * W::bytes),
          block_groups(w.k / w.group / w.per * kLanes),
          codes(w.codes + block * block_bytes),
          ahead(codes + (C == 1 ? kAhead : C * block_bytes)),
          at(block * block_groups) {
        if (kind != Kind::kLevels) return;
        levels = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)w.levels));
        levels = _mm512_xor_si512(levels, _mm512_set1_epi8(-128));
    }

    template <int run>
    ALWAYS_INLINE __m512i run_of(Index<run> index, int c) const {
        constexpr int line = run / W::fields;
        if (run % W::fields == 0 && run < W::whole) _mm_prefetch(ahead + c * W::bytes + line * 64, _MM_HINT_T0);
        const __m512i code = W::template run_of<Block>(codes + c * block_bytes, index);
        return kind == Kind::kLevels ? _mm512_shuffle_epi8(levels, code) : code;
    }
    ALWAYS_INLINE void next() { codes += W::bytes, ahead += C * W::bytes; }

    ALWAYS_INLINE __m512 of_group(const void* values, int c) const {
        return ::of_group(w, values, at + c * block_groups);
    }
    // -zero in the lower half of each lane; a group's sum, which it is multiplied by, fits into 16 bits.
    ALWAYS_INLINE __m512i minus_zero(int c) const {
        if (kind == Kind::kSymmetric) return _mm512_set1_epi32(0xffff & -(1 << (bits - 1)));
        if (kind == Kind::kLevels) return _mm512_set1_epi32(0xffff & -128);
        if (!w.zero) return _mm512_setzero_si512();
        const auto* from = (const __m128i*)(w.zero + at + c * block_groups);
        const __m512i zero = _mm512_cvtepu8_epi32(_mm_load_si128(from));
        return _mm512_maskz_sub_epi16(0x55555555, _mm512_setzero_si512(), zero);
    }
    ALWAYS_INLINE void next_group() { at += kLanes; }
};

ALWAYS_INLINE __m512i broadcast(const int8_t* codes) {
    int32_t four;
    __builtin_memcpy(&four, codes, 4);
    return _mm512_set1_epi32(four);
}

// sum + w * a. Not the intrinsic: with it GCC 12 lets sums move between registers, and runs out of them.
ALWAYS_INLINE __m512i multiply_add(__m512i sum, __m512i w, __m512i a) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));
    return sum;
}

// What the minima of a group add to y, of R rows.
template <int R, int C, class Weight>
ALWAYS_INLINE void add_minima(const Weight& weight, const float* scale_m, const int32_t* sum_m, size_t group_stride,
                              float* y) {
    unroll<R>([&](auto r) INLINED {
        const __m512 row = _mm512_set1_ps(scale_m[r.value * group_stride]);
        const __m512 sum = _mm512_set1_ps((float)sum_m[r.value * group_stride]);
        unroll<C>([&](auto c) INLINED {
            const __m512 minimum = _mm512_mul_ps(row, weight.of_group(weight.w.minimum, c.value));
            float* at = y + (r.value * C + c.value) * kLanes;
            _mm512_store_ps(at, _mm512_fmadd_ps(sum, minimum, _mm512_load_ps(at)));
        });
    });
}

template <int bits, Kind kind, int R, int C>
void tile(const LinearW4A8& p, size_t m, size_t block) {
    using W = Word<bits>;
    // Sums of a row and block that do not wait for one another: few would.
    constexpr int chains = R * C > 8 ? 1 : R * C > 4 || W::runs < 4 ? 2 : 4;
    const size_t groups = p.weight.k / p.weight.group, words = p.weight.group / W::values;
    const size_t stride = p.code_stride, group_stride = p.group_stride;
    const int8_t* a = p.codes + m * stride;
    const float* scale_m = p.scale_m + m * group_stride;
    const int32_t* sum_m = p.sum_m + m * group_stride;
    Words<bits, kind, C> weight(p.weight, block);
    alignas(64) float y[R * C * kLanes];
    unroll<R * C>([&](auto i) INLINED { _mm512_store_ps(y + i.value * kLanes, _mm512_setzero_ps()); });
    for (size_t g = 0, left = p.weight.per; g < groups; ++g, ++scale_m, ++sum_m) {
        __m512i sums[chains][R][C], minus_zero[C];
        unroll<C>([&](auto c) INLINED { minus_zero[c.value] = weight.minus_zero(c.value); });
        unroll<R>([&](auto r) INLINED {
            const __m512i zeros = _mm512_setzero_si512(), sum = _mm512_set1_epi32(sum_m[r.value * group_stride]);
            unroll<C>([&](auto c) INLINED {
                sums[0][r.value][c.value] = _mm512_dpwssd_epi32(zeros, minus_zero[c.value], sum);
                unroll<chains>([&](auto i) INLINED {
                    if (i.value) sums[i.value][r.value][c.value] = zeros;
                });
            });
        });
        for (size_t i = 0; i < words; ++i, a += W::values, weight.next()) {
            unroll<W::runs>([&](auto run) INLINED {
                __m512i w[C];
                unroll<C>([&](auto c) INLINED { w[c.value] = weight.run_of(run, c.value); });
                unroll<R>([&](auto r) INLINED {
                    const __m512i x = broadcast(a + r.value * stride + run.value * 4);
                    unroll<C>([&](auto c) INLINED {
                        __m512i& sum = sums[run.value % chains][r.value][c.value];
                        sum = multiply_add(sum, w[c.value], x);
                    });
                });
            });
        }
        unroll<R>([&](auto r) INLINED {
            const __m512 row = _mm512_set1_ps(scale_m[r.value * group_stride]);
            unroll<C>([&](auto c) INLINED {
                __m512i sum = sums[0][r.value][c.value];
                unroll<chains>([&](auto i) INLINED {
                    if (i.value) sum = _mm512_add_epi32(sum, sums[i.value][r.value][c.value]);
                });
                if constexpr (bits == 1) {  // twice the code less 1, from the code less 1
                    const __m512i ones = _mm512_set1_epi32(sum_m[r.value * group_stride]);
                    sum = _mm512_add_epi32(_mm512_add_epi32(sum, sum), ones);
                }
                const __m512 scale = _mm512_mul_ps(row, weight.of_group(p.weight.scale, c.value));
                float* at = y + (r.value * C + c.value) * kLanes;
                _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, _mm512_load_ps(at)));
            });
        });
        if (kind == Kind::kOffsets && p.weight.minimum) add_minima<R, C>(weight, scale_m, sum_m, group_stride, y);
        if (--left == 0) {
            weight.next_group();
            left = p.weight.per;
        }
    }
    write_rows<C>(p, y, R, m, block);
}

using TileFn = void (*)(const LinearW4A8&, size_t m, size_t block);

template <int bits, Kind kind>
constexpr TileFn kTiles[kFewRows][2] = {
    {tile<bits, kind, 1, 1>, tile<bits, kind, 1, 2>}, {tile<bits, kind, 2, 1>, tile<bits, kind, 2, 2>},
    {tile<bits, kind, 3, 1>, tile<bits, kind, 3, 2>}, {tile<bits, kind, 4, 1>, tile<bits, kind, 4, 2>},
    {tile<bits, kind, 5, 1>, tile<bits, kind, 5, 2>}, {tile<bits, kind, 6, 1>, tile<bits, kind, 6, 2>},
    {tile<bits, kind, 7, 1>, tile<bits, kind, 7, 2>}, {tile<bits, kind, 8, 1>, tile<bits, kind, 8, 2>},
};

}  // namespace

void linear_w4a8_avx512vnni(const LinearW4A8* p, size_t row_begin, size_t row_end, size_t block_begin,
                            size_t block_end) {
    const bool symmetric = !p->weight.zero && !p->weight.minimum;
    const TileFn(*tiles)[2];
    for_codes(p->weight, [&](auto bits, auto has_levels) {
        if constexpr (has_levels.value) {
            tiles = kTiles<bits.value, Kind::kLevels>;
        } else if constexpr (bits.value == 1) {
            tiles = kTiles<1, Kind::kSymmetric>;
        } else {
            tiles = symmetric ? kTiles<bits.value, Kind::kSymmetric> : kTiles<bits.value, Kind::kOffsets>;
        }
    });
    const size_t rows = row_end - row_begin, most = rows <= kFewRows ? kFewRows : kTileRows;
    const size_t width = rows <= kMemoryRows ? 1 : 2, chunk = (kChunkBytes / p->weight.k / most + 1) * most;
    for (size_t first = row_begin; first < row_end; first += chunk) {
        const size_t last = least(first + chunk, row_end), parts = (last - first + most - 1) / most;
        for (size_t block = block_begin; block < block_end; block += width) {
            const size_t columns = least(width, block_end - block);
            for (size_t i = 0, m = first; i < parts; ++i) {  // of nearly the same size
                const size_t end = first + (last - first) * (i + 1) / parts;
                tiles[end - m - 1][columns - 1](*p, m, block);
                m = end;
            }
        }
    }
}
