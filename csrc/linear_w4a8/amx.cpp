// linear_w4a8, AMX: tiles of int32 sums by tdpbssd; strips_amx.h. Layout: contract.h. A run of four K values of a word,
// less the zero points, is a row of a B tile.
//
// One core of a Xeon whose tiles alone reach 5850 GOP/s, at 96 rows: 1540 GOP/s in groups of 128, 1060 of 64, 560 of
// 32; AVX-512 VNNI reaches 450, 430, 340.
//
// With few rows most of a tile is idle: those are left to AVX-512 VNNI. The bits are the same.
#define ROUND_SUBNORMALS
#include "strips_amx.h"

namespace {

// From so many rows on tiles are faster: measured at 6 to 48 rows.
size_t fewest_rows(size_t group) { return 16 - group / 16; }

struct Tiles {
    using Problem = LinearW4A8;
    using Value = int8_t;
    using Sum = int32_t;

    explicit Tiles(const LinearW4A8&) {}
    static const int8_t* rows(const LinearW4A8& p) { return p.codes; }
    static size_t stride(const LinearW4A8& p) { return p.code_stride; }

    template <int bits, bool has_levels>
    ALWAYS_INLINE static void unpack(const Wna8& w, const uint8_t* codes, const uint8_t* zero, int8_t* panel) {
        using W = Word<bits>;
        __m512i less = _mm512_set1_epi8(bits == 1 ? 1 : w.minimum ? 0 : 1 << (bits - 1)), levels;
        if (zero) {
            const __m512i columns = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)zero));
            less = _mm512_mullo_epi32(columns, _mm512_set1_epi32(0x01010101));
        }
        if (has_levels) levels = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)w.levels));
        for (size_t i = 0; i < w.group / W::values; ++i, codes += W::bytes, panel += W::values * kLanes) {
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

    // minima: whether there are any.
    template <int C, int minima>
    struct Scales {
        const float* scale_m;
        const int32_t* sum_m;
        __m512 scale[C], minimum[C];

        ALWAYS_INLINE Scales(const LinearW4A8& p, size_t at, size_t next) : scale_m(p.scale_m), sum_m(p.sum_m) {
            unroll<C>([&](auto c) INLINED {
                scale[c.value] = of_group(p.weight, p.weight.scale, at + c.value * next);
                if (minima) minimum[c.value] = of_group(p.weight, p.weight.minimum, at + c.value * next);
            });
        }
        ALWAYS_INLINE void add(size_t index, const int32_t* sums, float* y) const {
            const __m512 row = _mm512_set1_ps(scale_m[index]);
            unroll<C>([&](auto c) INLINED {
                const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + c.value * kLanes));
                __m512 v = _mm512_load_ps(y + c.value * kLanes);
                v = _mm512_fmadd_ps(sum, _mm512_mul_ps(row, scale[c.value]), v);
                if (minima) {
                    const __m512 codes = _mm512_set1_ps((float)sum_m[index]);
                    v = _mm512_fmadd_ps(codes, _mm512_mul_ps(row, minimum[c.value]), v);
                }
                _mm512_store_ps(y + c.value * kLanes, v);
            });
        }
    };

    template <class F>
    static void for_kind(const Wna8& w, F f) {
        for_codes(w, [&](auto bits, auto has_levels) {
            if (w.minimum) return f(bits, has_levels, Index<1>{});
            f(bits, has_levels, Index<0>{});
        });
    }
};

}  // namespace

void linear_w4a8_amx(const LinearW4A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    if (row_end - row_begin < fewest_rows(p->weight.group)) {
        return linear_w4a8_avx512vnni(p, row_begin, row_end, block_begin, block_end);
    }
    run_strips<Tiles>(*p, row_begin, row_end, block_begin, block_end);
}
