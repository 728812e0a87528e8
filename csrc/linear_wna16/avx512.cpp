// unpack_wna16, AVX-512: a vector is a word of each of sixteen columns, and becomes four or two vectors of pairs.
// Layout: contract.h. Four bits: the levels are one register, and vpermps looks at the lowest four bits of a lane only,
// so that a value is a shift and a lookup. A pair is then 2 vsubps or none, 2 vmulps, 8 operations to round, a store.
// Bound: compute, 8 or 9 cycles for the 32 values of a pair on two ports.
#include <immintrin.h>

#include "blocks.h"
#include "vectors/unroll.h"

namespace {

// zeros: whether there are zero points.
template <bool zeros>
struct Grid {
    __m512 zero, scale;

    ALWAYS_INLINE explicit Grid(const Group& g) : zero(_mm512_setzero_ps()), scale(_mm512_load_ps(g.scale)) {
        if (zeros) zero = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i*)g.zero)));
    }

    // The bits of (level - zero) * scale; their upper half is that of the nearest bf16, half to even.
    ALWAYS_INLINE __m512i rounded(__m512 level) const {
        const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(zeros ? _mm512_sub_ps(level, zero) : level, scale));
        const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
        const __m512i below_half = _mm512_set1_epi32(0x7fff), half = _mm512_set1_epi32(0x8000);
        return _mm512_add_epi32(bits, _mm512_mask_mov_epi32(below_half, odd, half));
    }

    ALWAYS_INLINE void store(__m512 even, __m512 odd, uint16_t* pairs) const {
        const __m512i low = _mm512_srli_epi32(rounded(even), 16);
        _mm512_store_si512(pairs, _mm512_mask_mov_epi16(low, 0xaaaaaaaa, rounded(odd)));
    }
};

template <bool zeros>
void unpack_4bit(const Group& g, __m512 levels) {
    const Grid<zeros> grid(g);
    for (size_t word = 0; word < g.words; ++word) {
        const __m512i codes = _mm512_load_si512(g.codes + word * 64);
        unroll<4>([&](auto pair) INLINED {
            constexpr int bit = pair.value * 8;
            grid.store(_mm512_permutexvar_ps(_mm512_srli_epi32(codes, bit), levels),
                       _mm512_permutexvar_ps(_mm512_srli_epi32(codes, bit + 4), levels),
                       g.panel + (word * 4 + pair.value) * 32);
        });
    }
}

template <bool zeros>
void unpack_8bit(const Group& g) {
    const Grid<zeros> grid(g);
    for (size_t word = 0; word < g.words; ++word) {
        const __m512i codes = _mm512_load_si512(g.codes + word * 64);
        unroll<2>([&](auto pair) INLINED {
            constexpr int bit = pair.value * 16;
            const __m512i even = _mm512_slli_epi32(codes, 24 - bit), odd = _mm512_slli_epi32(codes, 16 - bit);
            grid.store(_mm512_cvtepi32_ps(_mm512_srai_epi32(even, 24)), _mm512_cvtepi32_ps(_mm512_srai_epi32(odd, 24)),
                       g.panel + (word * 2 + pair.value) * 32);
        });
    }
}

template <bool zeros>
void unpack(const Wna16& w, size_t block, size_t count, uint16_t* panel) {
    if (!w.levels) return unpack_blocks(w, block, count, panel, unpack_8bit<zeros>);
    const __m512 levels = _mm512_loadu_ps(w.levels);
    unpack_blocks(w, block, count, panel, [&](const Group& g) { unpack_4bit<zeros>(g, levels); });
}

}  // namespace

void unpack_wna16_avx512(const Wna16* p, size_t block, size_t count, uint16_t* panel) {
    (p->zero ? unpack<true> : unpack<false>)(*p, block, count, panel);
}
