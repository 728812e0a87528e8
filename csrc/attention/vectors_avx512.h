// What the AVX-512 variants of attention share. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "common.h"
#include "vectors/masks_avx512.h"
#include "vectors/unroll.h"

namespace {

// Up to 32 bf16, zero beyond.
ALWAYS_INLINE __m512i load_bf16(const uint16_t* x, size_t left) {
    if (left >= 32) return _mm512_loadu_si512(x);
    return _mm512_maskz_loadu_epi16(lowest<__mmask32>(left), x);
}

// Whether `rows` rows of `size` bf16 are finite.
inline bool finite_avx512(const uint16_t* x, size_t stride, size_t rows, size_t size) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t row = 0; row < rows; ++row, x += stride) {
        for (size_t i = 0; i < size; i += 32) {
            const __m512i bits = _mm512_and_si512(load_bf16(x + i, size - i), _mm512_set1_epi16(0x7fff));
            largest = _mm512_max_epi16(largest, bits);
        }
    }
    return _mm512_cmpgt_epi16_mask(largest, _mm512_set1_epi16(0x7f7f)) == 0;
}

// Of 16 rows of 16 cells, the columns.
ALWAYS_INLINE void transpose(__m512i (&row)[16]) {
    __m512i t[16];
    unroll<8>([&](auto i) INLINED {
        t[2 * i.value] = _mm512_unpacklo_epi32(row[2 * i.value], row[2 * i.value + 1]);
        t[2 * i.value + 1] = _mm512_unpackhi_epi32(row[2 * i.value], row[2 * i.value + 1]);
    });
    unroll<4>([&](auto i) INLINED {  // row[4 i + k]: columns k, 4 + k, 8 + k, 12 + k of rows 4 i to 4 i + 3
        unroll<2>([&](auto half) INLINED {
            constexpr int at = 4 * i.value + half.value;
            row[4 * i.value + 2 * half.value] = _mm512_unpacklo_epi64(t[at], t[at + 2]);
            row[4 * i.value + 2 * half.value + 1] = _mm512_unpackhi_epi64(t[at], t[at + 2]);
        });
    });
    unroll<4>([&](auto k) INLINED {
        t[k.value] = _mm512_shuffle_i32x4(row[k.value], row[4 + k.value], 0x88);
        t[4 + k.value] = _mm512_shuffle_i32x4(row[8 + k.value], row[12 + k.value], 0x88);
        t[8 + k.value] = _mm512_shuffle_i32x4(row[k.value], row[4 + k.value], 0xdd);
        t[12 + k.value] = _mm512_shuffle_i32x4(row[8 + k.value], row[12 + k.value], 0xdd);
    });
    unroll<4>([&](auto k) INLINED {
        row[k.value] = _mm512_shuffle_i32x4(t[k.value], t[4 + k.value], 0x88);
        row[8 + k.value] = _mm512_shuffle_i32x4(t[k.value], t[4 + k.value], 0xdd);
        row[4 + k.value] = _mm512_shuffle_i32x4(t[8 + k.value], t[12 + k.value], 0x88);
        row[12 + k.value] = _mm512_shuffle_i32x4(t[8 + k.value], t[12 + k.value], 0xdd);
    });
}

// 32 values of up to 16 rows, zero beyond: out[i] holds values 2 i and 2 i + 1 of each row.
ALWAYS_INLINE void load_pairs(const uint16_t* x, size_t stride, size_t rows, size_t left, __m512i (&out)[16]) {
    if (rows >= 16 && left >= 32) {
        unroll<16>([&](auto r) INLINED { out[r.value] = _mm512_loadu_si512(x + r.value * stride); });
    } else {
        unroll<16>([&](auto r) INLINED {
            out[r.value] = r.value < rows ? load_bf16(x + r.value * stride, left) : _mm512_setzero_si512();
        });
    }
    transpose(out);
}

// Lane i: all lanes of x[i] joined.
template <class Join>
ALWAYS_INLINE __m512 joined(__m512 (&x)[16], Join join) {
    __m512 t[8];
    unroll<8>([&](auto i) INLINED {  // eight lanes of each of two rows
        const __m512 low = _mm512_shuffle_f32x4(x[i.value], x[i.value + 8], 0x44);
        t[i.value] = join(low, _mm512_shuffle_f32x4(x[i.value], x[i.value + 8], 0xee));
    });
    unroll<4>([&](auto i) INLINED {  // four lanes of each of rows i, i + 4, i + 8, i + 12
        const __m512 low = _mm512_shuffle_f32x4(t[i.value], t[i.value + 4], 0x88);
        t[i.value] = join(low, _mm512_shuffle_f32x4(t[i.value], t[i.value + 4], 0xdd));
    });
    unroll<2>([&](auto i) INLINED {
        t[i.value] =
            join(_mm512_unpacklo_ps(t[i.value], t[i.value + 2]), _mm512_unpackhi_ps(t[i.value], t[i.value + 2]));
    });
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(order, join(_mm512_unpacklo_ps(t[0], t[1]), _mm512_unpackhi_ps(t[0], t[1])));
}

// 2^x for x up to 127; 0 from -127.5 down; a NaN stays one. Of instructions that take one
// operation everywhere: vreduceps and vscalefps, four fewer in all, do so on Sapphire Rapids, but not on Ice Lake.
ALWAYS_INLINE __m512 power_avx512(__m512 x) {
    const __m512 magic =
        _mm512_set1_ps(0x1.8p23f + 127.0f);         // its lowest bits take up the integer nearest to x, plus 127
    x = _mm512_max_ps(_mm512_set1_ps(-127.0f), x);  // its second operand if either is NaN
    const __m512 shifted = _mm512_add_ps(x, magic), part = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
    __m512 y = _mm512_set1_ps(kPower[3]);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(kPower[2]));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(kPower[1]));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(kPower[0]));
    return _mm512_mul_ps(y, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

// Vectors of 16 f32 as columns.h wants them, without what depends on the cell.
struct Vectors {
    using V = __m512;
    static constexpr int kLanes = 16;

    static ALWAYS_INLINE V zero() { return _mm512_setzero_ps(); }
    static ALWAYS_INLINE V all(float x) { return _mm512_set1_ps(x); }
    static ALWAYS_INLINE V load(const char* at) { return _mm512_loadu_ps((const float*)at); }
    static ALWAYS_INLINE V broadcast(const char* at) {
        float cell;
        __builtin_memcpy(&cell, at, 4);
        return _mm512_set1_ps(cell);
    }
    static ALWAYS_INLINE void store(float* at, V x) { _mm512_storeu_ps(at, x); }
    static ALWAYS_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
    static ALWAYS_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
    static ALWAYS_INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
    static ALWAYS_INLINE V div(V a, V b) { return _mm512_div_ps(a, b); }
    static ALWAYS_INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }  // b if either is NaN
    static ALWAYS_INLINE V power(V x) { return power_avx512(x); }

    // Sixteen floats from `at` on, the last first.
    static ALWAYS_INLINE V reversed(const float* at) {
        const __m512i order = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        return _mm512_permutexvar_ps(order, _mm512_loadu_ps(at));
    }

    // x in lanes [begin, end), else other.
    static ALWAYS_INLINE V between(V x, ptrdiff_t begin, ptrdiff_t end, V other) {
        const unsigned from = begin <= 0 ? 0 : begin < 16 ? (1u << begin) - 1 : 0xffff;
        const unsigned to = end <= 0 ? 0 : end < 16 ? (1u << end) - 1 : 0xffff;
        return _mm512_mask_mov_ps(other, (__mmask16)(to & ~from), x);
    }

    static bool finite(const uint16_t* x, size_t stride, size_t rows, size_t size) {
        return finite_avx512(x, stride, rows, size);
    }
};

}  // namespace
