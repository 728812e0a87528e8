// unpack_wna16, AVX2: a vector is a word of each of eight columns, and becomes four or two vectors of pairs.
// Layout: contract.h. Four bits: the levels are two registers, each a vpermps by the lowest three bits of a lane; the
// fourth, shifted into the sign, chooses between the two.
// Bound: compute, about 12 cycles for 16 values of a pair.
#include <immintrin.h>

#include "blocks.h"
#include "vectors/unroll.h"

namespace {

constexpr size_t kHalf = 8;  // columns

struct Grid {
    __m256 zero, scale;

    ALWAYS_INLINE Grid(const Group& g, size_t column)
        : zero(_mm256_setzero_ps()), scale(_mm256_load_ps(g.scale + column)) {
        if (g.zero) zero = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(g.zero + column))));
    }

    // The bits of (level - zero) * scale; their upper half is that of the nearest bf16, half to even.
    ALWAYS_INLINE __m256i rounded(__m256 level) const {
        const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(_mm256_sub_ps(level, zero), scale));
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    }

    ALWAYS_INLINE void store(__m256 even, __m256 odd, uint16_t* pairs) const {
        _mm256_store_si256((__m256i*)pairs,
                           _mm256_blend_epi16(_mm256_srli_epi32(rounded(even), 16), rounded(odd), 0xaa));
    }
};

struct Levels {
    __m256 low, high;

    template <int bit>
    ALWAYS_INLINE __m256 of(__m256i codes) const {
        const __m256i code = _mm256_srli_epi32(codes, bit);
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code), _mm256_permutevar8x32_ps(high, code),
                                _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28 - bit)));
    }
};

void unpack_4bit(const Group& g, const Levels& levels, size_t column) {
    const Grid grid(g, column);
    for (size_t word = 0; word < g.words; ++word) {
        const __m256i codes = _mm256_load_si256((const __m256i*)(g.codes + word * 64 + column * 4));
        unroll<4>([&](auto pair) INLINED {
            constexpr int bit = pair.value * 8;
            grid.store(levels.of<bit>(codes), levels.of<bit + 4>(codes),
                       g.panel + (word * 4 + pair.value) * 32 + column * 2);
        });
    }
}

void unpack_8bit(const Group& g, size_t column) {
    const Grid grid(g, column);
    for (size_t word = 0; word < g.words; ++word) {
        const __m256i codes = _mm256_load_si256((const __m256i*)(g.codes + word * 64 + column * 4));
        unroll<2>([&](auto pair) INLINED {
            constexpr int bit = pair.value * 16;
            const __m256i even = _mm256_slli_epi32(codes, 24 - bit), odd = _mm256_slli_epi32(codes, 16 - bit);
            grid.store(_mm256_cvtepi32_ps(_mm256_srai_epi32(even, 24)), _mm256_cvtepi32_ps(_mm256_srai_epi32(odd, 24)),
                       g.panel + (word * 2 + pair.value) * 32 + column * 2);
        });
    }
}

}  // namespace

void unpack_wna16_avx2(const Wna16* p, size_t block, size_t count, uint16_t* panel) {
    if (p->levels) {
        const Levels levels{_mm256_loadu_ps(p->levels), _mm256_loadu_ps(p->levels + kHalf)};
        unpack_blocks(*p, block, count, panel, [&](const Group& g) {
            unpack_4bit(g, levels, 0);
            unpack_4bit(g, levels, kHalf);
        });
    } else {
        unpack_blocks(*p, block, count, panel, [](const Group& g) {
            unpack_8bit(g, 0);
            unpack_8bit(g, kHalf);
        });
    }
}
