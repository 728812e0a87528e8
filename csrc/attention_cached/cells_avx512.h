// Vectors and cells of attention_cached in 512 bits. Tiles of up to 8 lines x 2 or 4 vectors. Bound: memory with up to
// about 8 lines, then compute: at head size 64 a line and 64 keys are 128 vpdpbusd, and about 120 operations more.
// Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "attention/vectors_avx512.h"
#include "tiles.h"
#include "vectors/bf16_avx512.h"

namespace {

struct Wide : Vectors {
    static constexpr int kRows = 8;
    static constexpr int columns(int rows) { return rows > 4 ? 2 : 4; }

    static ALWAYS_INLINE V load(const float* at) { return _mm512_loadu_ps(at); }
    static ALWAYS_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
    static ALWAYS_INLINE V min(V a, V b) { return _mm512_min_ps(a, b); }
    static ALWAYS_INLINE V if_greater(V a, V b, V yes, V no) {
        return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), yes);
    }
    // Lane r: the largest of 16 floats from x + 16 r on; r < R.
    template <int R>
    static ALWAYS_INLINE V largest_of(const float* x) {
        V t[8];
        unroll<8>([&](auto r) INLINED { t[r.value] = _mm512_load_ps(x + (r.value < R ? r.value : 0) * 16); });
        unroll<4>([&](auto r) INLINED {  // eight lanes of each of two rows
            t[r.value] = max(_mm512_shuffle_f32x4(t[r.value], t[r.value + 4], 0x44),
                             _mm512_shuffle_f32x4(t[r.value], t[r.value + 4], 0xee));
        });
        unroll<2>([&](auto r) INLINED {  // four lanes of each of rows r, r + 4, r + 2, r + 6
            t[r.value] = max(_mm512_shuffle_f32x4(t[r.value], t[r.value + 2], 0x88),
                             _mm512_shuffle_f32x4(t[r.value], t[r.value + 2], 0xdd));
        });
        t[0] = max(_mm512_unpacklo_ps(t[0], t[1]), _mm512_unpackhi_ps(t[0], t[1]));
        t[0] = max(t[0], _mm512_permute_ps(t[0], 0x4e));
        const __m512i order = _mm512_setr_epi32(0, 1, 8, 9, 4, 5, 12, 13, 0, 1, 8, 9, 4, 5, 12, 13);
        return _mm512_permutexvar_ps(order, t[0]);
    }
};

struct Bytes {
    using Sum = __m512i;
    using Right = __m512i;
    static constexpr bool kBytes = true;
    static constexpr bool kGrouped = false;
    static constexpr size_t kPerCell = 4, kLeft = 4, kHalves = 1, kMostGroups = 1;

    static constexpr size_t key_group(size_t size) { return size; }
    static constexpr size_t value_group(size_t size) { return size; }
    static ALWAYS_INLINE Sum begin(int32_t start) { return _mm512_set1_epi32(start); }
    static ALWAYS_INLINE Right load_key(const char* at, Index<0> = {}) { return _mm512_load_si512(at); }
    static ALWAYS_INLINE Right load_value(const char* at, Index<0>, const char*) { return _mm512_load_si512(at); }
    static ALWAYS_INLINE __m512i broadcast(const char* at) {
        int32_t cell;
        memcpy(&cell, at, 4);
        return _mm512_set1_epi32(cell);
    }
    // In assembly, for GCC 12 copies every sum before and after the intrinsic.
    static ALWAYS_INLINE Sum multiply(Sum sum, __m512i without_sign, __m512i with_sign) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(without_sign), "v"(with_sign));
        return sum;
    }
    static ALWAYS_INLINE Sum add_key(Sum sum, Right key, __m512i query) { return multiply(sum, key, query); }
    static ALWAYS_INLINE Sum add_value(Sum sum, __m512i weights, Right value) { return multiply(sum, weights, value); }
    static ALWAYS_INLINE __m512 to_float(Sum x) { return _mm512_cvtepi32_ps(x); }
    // Scales as the cache holds them, from the one of key i on.
    static ALWAYS_INLINE __m512 held(const char* scales, size_t i) { return _mm512_load_ps((const float*)scales + i); }
    static ALWAYS_INLINE __m512 scales(const char* of_keys, size_t key, float scale) {
        return _mm512_mul_ps(held(of_keys, key), _mm512_set1_ps(scale));
    }
    // A NaN converts to INT_MIN, and becomes 0; its line's sum is NaN. The packs work within 128 bits.
    static ALWAYS_INLINE void store_weights(char* out, const __m512 (&x)[4]) {
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        __m512i codes[4];
        unroll<4>([&](auto n) INLINED { codes[n.value] = _mm512_cvtps_epi32(x[n.value]); });
        const __m512i low = _mm512_packs_epi32(codes[0], codes[1]), high = _mm512_packs_epi32(codes[2], codes[3]);
        _mm512_store_si512(out, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
    }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        float wide[kMaxHeadSize];
        rotated_query(q, size, wide);
        const float scale = row_codes(wide, size, (int8_t*)out);
        int32_t sum = 0;
        for (size_t i = 0; i < size; ++i) sum += (int8_t)out[i];
        *start = -128 * sum;
        return scale;
    }
};

// Two cells in the halves of bytes.
struct Nibbles : Bytes {
    static constexpr bool kGrouped = true;
    static constexpr size_t kHalves = 2, kMostGroups = ::kMostGroups;

    static size_t key_group(size_t size) { return ::key_group(size); }
    static size_t value_group(size_t size) { return ::value_group(size); }
    template <int Half>
    static ALWAYS_INLINE Right load_key(const char* at, Index<Half>) {
        const __m512i two = _mm512_load_si512(at);
        return _mm512_and_si512(Half ? _mm512_srli_epi16(two, 4) : two, _mm512_set1_epi8(15));
    }
    template <int Half>
    static ALWAYS_INLINE Right load_value(const char* at, Index<Half> half, const char* zeros) {
        return _mm512_sub_epi8(load_key(at, half), broadcast(zeros));
    }
    static ALWAYS_INLINE __m512 held(const char* scales, size_t i) {
        return load16((const uint16_t*)scales + i, (__mmask16)-1);
    }
    static ALWAYS_INLINE __m512 scales(const char*, size_t, float scale) { return _mm512_set1_ps(scale); }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        return rotated_codes(q, size, (int8_t*)out, start);
    }
};

// Products of bf16 where there is an instruction for them.
#ifdef __AVX512BF16__
struct Halves {
    using Sum = __m512;
    using Right = __m512i;
    static constexpr bool kBytes = false;
    static constexpr bool kGrouped = false;
    static constexpr size_t kPerCell = 2, kLeft = 4, kHalves = 1, kMostGroups = 1;

    static constexpr size_t key_group(size_t size) { return size; }
    static constexpr size_t value_group(size_t size) { return size; }
    static ALWAYS_INLINE Sum begin(int32_t) { return _mm512_setzero_ps(); }
    static ALWAYS_INLINE Right load_key(const char* at, Index<0> = {}) { return _mm512_load_si512(at); }
    static ALWAYS_INLINE Right load_value(const char* at, Index<0>, const char*) { return _mm512_load_si512(at); }
    static ALWAYS_INLINE __m512i broadcast(const char* at) { return Bytes::broadcast(at); }
    static ALWAYS_INLINE Sum add_key(Sum sum, Right key, __m512i query) {
        return _mm512_dpbf16_ps(sum, (__m512bh)key, (__m512bh)query);
    }
    static ALWAYS_INLINE Sum add_value(Sum sum, __m512i weights, Right value) { return add_key(sum, value, weights); }
    static ALWAYS_INLINE __m512 to_float(Sum x) { return x; }
    static ALWAYS_INLINE __m512 scales(const char*, size_t, float scale) { return _mm512_set1_ps(scale); }
    static ALWAYS_INLINE void store_weights(char* out, const __m512 (&x)[4]) {
        _mm512_store_si512(out, to_bf16(x[0], x[1]));
        _mm512_store_si512(out + 64, to_bf16(x[2], x[3]));
    }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        memcpy(out, q, size * sizeof *q);
        *start = 0;
        return 1.0f;
    }
};
#else
struct Halves {
    using Sum = __m512;
    struct Right {
        __m512 even, odd;
    };
    static constexpr bool kBytes = false;
    static constexpr bool kGrouped = false;
    static constexpr size_t kPerCell = 2, kLeft = 8, kHalves = 1, kMostGroups = 1;

    static constexpr size_t key_group(size_t size) { return size; }
    static constexpr size_t value_group(size_t size) { return size; }
    static ALWAYS_INLINE Sum begin(int32_t) { return _mm512_setzero_ps(); }
    static ALWAYS_INLINE Right load_key(const char* at, Index<0> = {}) {
        const __m512i cells = _mm512_load_si512(at), upper = _mm512_set1_epi32((int)0xffff0000);
        return {_mm512_castsi512_ps(_mm512_slli_epi32(cells, 16)), _mm512_castsi512_ps(_mm512_and_si512(cells, upper))};
    }
    static ALWAYS_INLINE Right load_value(const char* at, Index<0>, const char*) { return load_key(at); }
    static ALWAYS_INLINE Right broadcast(const char* at) {
        float cell[2];
        memcpy(cell, at, sizeof cell);
        return {_mm512_set1_ps(cell[0]), _mm512_set1_ps(cell[1])};
    }
    static ALWAYS_INLINE Sum add_key(Sum sum, Right key, Right query) {
        return _mm512_fmadd_ps(key.odd, query.odd, _mm512_fmadd_ps(key.even, query.even, sum));
    }
    static ALWAYS_INLINE Sum add_value(Sum sum, Right weights, Right value) { return add_key(sum, value, weights); }
    static ALWAYS_INLINE __m512 to_float(Sum x) { return x; }
    static ALWAYS_INLINE __m512 scales(const char*, size_t, float scale) { return _mm512_set1_ps(scale); }
    static ALWAYS_INLINE void store_weights(char* out, const __m512 (&x)[4]) {
        unroll<4>([&](auto n) INLINED { _mm512_store_ps(out + n.value * 64, x[n.value]); });
    }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        for (size_t i = 0; i < size; ++i) ((float*)out)[i] = widen(q[i]);
        *start = 0;
        return 1.0f;
    }
};
#endif

}  // namespace
