// linear_w4a8, AMX: tiles of 16 x 16 int32 sums by tdpbssd, over a group of K at a time. Layout: contract.h. A run of
// four K values of a word is a row of a B tile as the instruction wants it.
//
// A group of two column blocks is unpacked once for up to 96 rows, into a panel of s8, less its zero points: 4 KiB,
// which with the rows' f32 sums stay in L1. The sums of 16 rows are two tiles, and those of the next 16 are two others:
// tile registers are not renamed, so that one pair is stored while the other is multiplied. A group that is no multiple
// of 64 is cut into tiles of fewer values of K.
//
// Bound: compute, but not of the tiles alone. Over a group of 128, 32 rows x 32 columns are 16 tdpbssd, and as many
// vectors of sums to convert, to scale and to add as over a group of 32. Measured on one core of a Xeon with AMX, whose
// tiles alone reach 2490 GOP/s and whose vectors 590: 1460 in groups of 128, 1020 of 64, 550 of 32. To let the sums
// wait for longer, to scale them in smaller parts, or to unpack a group ahead gained nothing there.
//
// With few rows most of a tile is idle: those are left to AVX-512 VNNI. The bits are the same.
#include "avx512.h"
#include "sizes.h"
#include "vectors/tiles.h"

namespace {

constexpr size_t kTileRows = 16;
constexpr size_t kStripRows = 96;            // that share what was unpacked
constexpr size_t kChunkBytes = 1024 * 1024;  // of rows' codes, which stay in L2 while all the weights pass by
constexpr size_t kMostGroup = 128;           // values of K
constexpr size_t kPanel = kMostGroup * kLanes;
constexpr size_t kAhead = 4096;  // bytes of a block's weights that are fetched before they are used

// From so many rows on tiles are faster: measured at 6 to 48 rows.
size_t fewest_rows(size_t group) { return 16 - group / 16; }

// One group of one block, as tiles take it: for each four values of K a vector of four for each column. zero: of its
// columns, or null.
using UnpackFn = void (*)(const Wna8& w, const uint8_t* codes, const uint8_t* zero, int8_t* panel);

template <int bits, bool has_levels>
void unpack(const Wna8& w, const uint8_t* codes, const uint8_t* zero, int8_t* panel) {
    using W = Word<bits>;
    const size_t words = w.group / W::values;
    __m512i less = _mm512_set1_epi8(bits == 1 ? 1 : w.minimum ? 0 : 1 << (bits - 1));
    if (zero) {
        const __m512i columns = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)zero));
        less = _mm512_mullo_epi32(columns, _mm512_set1_epi32(0x01010101));
    }
    __m512i levels;
    if (has_levels) levels = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)w.levels));
    for (size_t i = 0; i < words; ++i, codes += W::bytes, panel += W::values * kLanes) {
        unroll<W::bytes / 64>([&](auto line) INLINED { __builtin_prefetch(codes + kAhead + line.value * 64); });
        unroll<W::runs>([&](auto run) INLINED {
            const __m512i code = W::template run_of<Block>(codes, run);
            __m512i value;
            if constexpr (has_levels) {
                value = _mm512_shuffle_epi8(levels, code);
            } else if constexpr (bits == 1) {
                value = _mm512_sub_epi8(_mm512_add_epi8(code, code), less);
            } else {
                value = _mm512_sub_epi8(code, less);
            }
            _mm512_store_si512(panel + run.value * 64, value);
        });
    }
}

// Where sums of a group that wait in tiles will be added.
struct Waiting {
    float* y;
    size_t rows;
    const float* scale_m;  // of the first row
    const int32_t* sum_m;
    size_t group;  // of the weight
};

struct Shape {
    size_t block_bytes, block_groups;  // a block's codes; its scales
    size_t steps, step;                // tiles of a group; values of K in each
};

// Values of its own: the stores of y could alias any field, as far as the compiler knows.
template <int C, bool minima>
ALWAYS_INLINE void add(const LinearW4A8& p, const Shape& shape, const Waiting& from, const int32_t* sums,
                       size_t block) {
    const Wna8& w = p.weight;
    const size_t stride = p.group_stride;
    float* y = from.y;
    const float* scale_m = from.scale_m;
    const int32_t* sum_m = from.sum_m;
    __m512 scale[C], minimum[C];
    unroll<C>([&](auto c) INLINED {
        const size_t at = (block + c.value) * shape.block_groups + from.group * kLanes;
        scale[c.value] = of_group(w, w.scale, at);
        if (minima) minimum[c.value] = of_group(w, w.minimum, at);
    });
    for (size_t left = from.rows; left; --left, scale_m += stride, sum_m += stride) {
        const __m512 row = _mm512_set1_ps(*scale_m);
        unroll<C>([&](auto c) INLINED {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + c.value * kLanes));
            const __m512 before = _mm512_load_ps(y + c.value * kLanes);
            __m512 after = _mm512_fmadd_ps(sum, _mm512_mul_ps(row, scale[c.value]), before);
            if (minima) {
                const __m512 rows = _mm512_set1_ps((float)*sum_m);
                after = _mm512_fmadd_ps(rows, _mm512_mul_ps(row, minimum[c.value]), after);
            }
            _mm512_store_ps(y + c.value * kLanes, after);
        });
        sums += C * kLanes;
        y += C * kLanes;
    }
}

// Sums over a group of 16 rows x C column blocks, in tiles 0 and 1 or in 2 and 3.
template <int set, int C>
ALWAYS_INLINE void multiply(const Shape& shape, const int8_t* a, size_t stride, const int8_t* panel) {
    if constexpr (set == 0) {
        _tile_zero(0);
        if (C == 2) _tile_zero(1);
    } else {
        _tile_zero(2);
        if (C == 2) _tile_zero(3);
    }
    for (size_t i = 0; i < shape.steps; ++i, a += shape.step, panel += shape.step * kLanes) {
        _tile_loadd(6, panel, 64);
        if (C == 2) _tile_loadd(7, panel + kPanel, 64);
        if constexpr (set == 0) {
            _tile_loadd(4, a, stride);
            _tile_dpbssd(0, 4, 6);
            if (C == 2) _tile_dpbssd(1, 4, 7);
        } else {
            _tile_loadd(5, a, stride);
            _tile_dpbssd(2, 5, 6);
            if (C == 2) _tile_dpbssd(3, 5, 7);
        }
    }
}

template <int set, int C>
void store(int32_t* sums) {
    if constexpr (set == 0) {
        _tile_stored(0, sums, C * 64);
        if (C == 2) _tile_stored(1, sums + kLanes, C * 64);
    } else {
        _tile_stored(2, sums, C * 64);
        if (C == 2) _tile_stored(3, sums + kLanes, C * 64);
    }
}

// Rows [m, m + rows), at most a strip, of C blocks.
template <int C, bool minima>
void strip(const LinearW4A8& p, const Shape& shape, UnpackFn unpack, size_t m, size_t rows, size_t block) {
    const Wna8& w = p.weight;
    alignas(64) int8_t panel[2 * kPanel], last[kTileRows * kMostGroup];
    alignas(64) int32_t sums[kTileRows * C * kLanes];
    alignas(64) float y[kStripRows * C * kLanes];
    for (size_t i = 0; i < rows * C; ++i) _mm512_store_ps(y + i * kLanes, _mm512_setzero_ps());
    const uint8_t* codes = w.codes + block * shape.block_bytes;
    const size_t groups = w.k / w.group, whole = rows / kTileRows * kTileRows, group_bytes = shape.block_bytes / groups;
    Waiting waiting = {y, 0, nullptr, nullptr, 0};
    int set = 0;
    for (size_t g = 0; g < groups; ++g, codes += group_bytes) {
        const size_t shared = g / w.per;
        unroll<C>([&](auto c) INLINED {
            const size_t at = (block + c.value) * shape.block_groups + shared * kLanes;
            unpack(w, codes + c.value * shape.block_bytes, w.zero ? w.zero + at : nullptr, panel + c.value * kPanel);
        });
        const int8_t* a = p.codes + m * p.code_stride + g * w.group;
        // A tile is loaded whole: the last rows are copied, so that nothing beyond them is read.
        for (size_t r = whole; r < rows; ++r) {
            __builtin_memcpy(last + (r - whole) * kMostGroup, a + r * p.code_stride, w.group);
        }
        finish_stores();
        for (size_t r = 0; r < rows; r += kTileRows, set ^= 1) {
            const bool copied = r == whole;
            const int8_t* from = copied ? last : a + r * p.code_stride;
            const size_t stride = copied ? kMostGroup : p.code_stride;
            if (set == 0) {
                multiply<0, C>(shape, from, stride, panel);
                store<1, C>(sums);
            } else {
                multiply<1, C>(shape, from, stride, panel);
                store<0, C>(sums);
            }
            add<C, minima>(p, shape, waiting, sums, block);
            const size_t first = (m + r) * p.group_stride + g;
            waiting = {y + r * C * kLanes, least(kTileRows, rows - r), p.scale_m + first, p.sum_m + first, shared};
        }
    }
    (set ? store<0, C> : store<1, C>)(sums);
    add<C, minima>(p, shape, waiting, sums, block);
    for_epilogue<float>(p.activation, p.output,
                        [&](auto known) { write_rows<C, known.value>(p, y, rows, m, block * kLanes); });
}

using StripFn = decltype(&strip<1, false>);

}  // namespace

void linear_w4a8_amx(const LinearW4A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const Wna8& w = p->weight;
    if (row_end - row_begin < fewest_rows(w.group)) {
        return linear_w4a8_avx512vnni(p, row_begin, row_end, block_begin, block_end);
    }
    UnpackFn unpack_group;
    for_codes(w, [&](auto bits, auto has_levels) { unpack_group = unpack<bits.value, has_levels.value>; });
    const size_t steps = (w.group + 63) / 64, step = w.group / steps;
    const Shape shape = {w.k * w.bits * 2, w.k / w.group / w.per * kLanes, steps, step};
    TileConfig config = kTileConfig;
    config.row_bytes[4] = config.row_bytes[5] = (uint16_t)step;
    config.rows[6] = config.rows[7] = (uint8_t)(step / 4);
    __asm__ volatile("" : : "r"(&config) : "memory");  // see tiles.h
    _tile_loadconfig(&config);
    static constexpr StripFn kStrips[2][2] = {{strip<1, false>, strip<2, false>}, {strip<1, true>, strip<2, true>}};
    const StripFn(&strips)[2] = kStrips[w.minimum != nullptr];
    const size_t chunk = (kChunkBytes / w.k / kStripRows + 1) * kStripRows;
    for (size_t first = row_begin; first < row_end; first += chunk) {
        const size_t last = least(first + chunk, row_end);
        for (size_t block = block_begin; block < block_end; block += 2) {
            for (size_t m = first; m < last; m += kStripRows) {
                const size_t count = least(kStripRows, last - m);
                strips[block_end - block > 1](*p, shape, unpack_group, m, count, block);
            }
        }
    }
    _tile_release();
}
