// linear_w4a16, AMX: tiles of f32 sums by tdpbf16ps; linear_w4a8/strips_amx.h. Layout: contract.h. Two rows of a B tile
// are the pairs of a run of four K values (pairs_avx512.h).
//
// With few rows most of a tile is idle: of who takes another variant there, the bits change (torch/linears.cpp). One
// core of a Xeon: 950 GOP/s at 96 rows in groups of 128 and 590 of 32; twice as fast as avx512 with 4 rows, 0.8 times
// with one.
#include "contract.h"
#include "linear_w4a8/strips_amx.h"
#include "pairs_avx512.h"

namespace {

struct Tiles : Pairs {
    using Problem = LinearW4A16;
    using Value = uint16_t;
    using Sum = float;

    explicit Tiles(const LinearW4A16& p) : Pairs(Levels(p)) {}
    static const uint16_t* rows(const LinearW4A16& p) { return p.rows; }
    static size_t stride(const LinearW4A16& p) { return p.row_stride; }

    template <int bits, bool>
    ALWAYS_INLINE void unpack(const Wna8& w, const uint8_t* codes, const uint8_t*, uint16_t* panel) const {
        using W = Word<bits>;
        for (size_t i = 0; i < w.group / W::values; ++i, codes += W::bytes, panel += W::values * kLanes) {
            __m512i word[W::bytes / 64];
            unroll<W::bytes / 64>([&](auto line) INLINED {
                __builtin_prefetch(codes + kAhead + line.value * 64);
                word[line.value] = _mm512_load_si512(codes + line.value * 64);
            });
            unroll<W::runs * 2>([&](auto pair) INLINED {
                const __m512i index = index_of<Pairs, bits, pair.value / 2, pair.value % 2>(word);
                _mm512_store_si512(panel + pair.value * 32, weights<bits>(index));
            });
        }
    }

    enum Offset { kNone, kZero, kMinimum };

    template <int C, int offset>
    struct Scales {
        const float* sum_m;
        __m512 scale[C], middle[C], minimum[C];

        ALWAYS_INLINE Scales(const LinearW4A16& p, size_t at, size_t next) : sum_m(p.sum_m) {
            const Wna8& w = p.weight;
            unroll<C>([&](auto c) INLINED {
                const size_t block = at + c.value * next;
                scale[c.value] = of_group(w, w.scale, block);
                if (offset == kMinimum) minimum[c.value] = of_group(w, w.minimum, block);
                if (offset == kZero) {
                    const __m512i zero = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)(w.zero + block)));
                    middle[c.value] = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_set1_epi32(middle_of(w)), zero));
                }
            });
        }
        ALWAYS_INLINE void add(size_t index, const float* sums, float* y) const {
            const __m512 sum = _mm512_set1_ps(offset == kNone ? 0.0f : sum_m[index]);
            unroll<C>([&](auto c) INLINED {
                __m512 t = _mm512_load_ps(sums + c.value * kLanes), v = _mm512_load_ps(y + c.value * kLanes);
                if (offset == kZero) t = _mm512_fmadd_ps(sum, middle[c.value], t);
                v = _mm512_fmadd_ps(t, scale[c.value], v);
                if (offset == kMinimum) v = _mm512_fmadd_ps(sum, minimum[c.value], v);
                _mm512_store_ps(y + c.value * kLanes, v);
            });
        }
    };

    template <class F>
    static void for_kind(const Wna8& w, F f) {
        for_bits(w.bits, [&](auto bits) {
            if (w.zero) return f(bits, Index<0>{}, Index<kZero>{});
            if (w.minimum) return f(bits, Index<0>{}, Index<kMinimum>{});
            f(bits, Index<0>{}, Index<kNone>{});
        });
    }
};

}  // namespace

void linear_w4a16_amx(const LinearW4A16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    if (row_begin < row_end) run_strips<Tiles>(*p, row_begin, row_end, block_begin, block_end);
}
