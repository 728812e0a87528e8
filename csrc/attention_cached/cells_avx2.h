// Vectors and cells of attention_cached in 256 bits. Tiles of up to 4 lines x 2 vectors. Everything is internal to the
// file that includes it.
#pragma once
#include <immintrin.h>

#include "attention/vectors_avx2.h"
#include "tiles.h"

namespace {

struct Narrow : Vectors {
    static constexpr int kRows = 4;
    static constexpr int columns(int) { return 2; }

    static ALWAYS_INLINE V load(const float* at) { return _mm256_loadu_ps(at); }
    static ALWAYS_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
    static ALWAYS_INLINE V min(V a, V b) { return _mm256_min_ps(a, b); }
    static ALWAYS_INLINE V if_greater(V a, V b, V yes, V no) {
        return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
    }
    // Lane r: the largest of 8 floats from x + 8 r on; r < R.
    template <int R>
    static ALWAYS_INLINE V largest_of(const float* x) {
        V t[4];
        unroll<4>([&](auto r) INLINED { t[r.value] = _mm256_load_ps(x + (r.value < R ? r.value : 0) * 8); });
        unroll<2>([&](auto r) INLINED {  // four lanes of each of two rows
            t[r.value] = max(_mm256_permute2f128_ps(t[r.value], t[r.value + 2], 0x20),
                             _mm256_permute2f128_ps(t[r.value], t[r.value + 2], 0x31));
        });
        t[0] = max(_mm256_unpacklo_ps(t[0], t[1]), _mm256_unpackhi_ps(t[0], t[1]));
        t[0] = max(t[0], _mm256_permute_ps(t[0], 0x4e));
        return _mm256_permutevar8x32_ps(t[0], _mm256_setr_epi32(0, 1, 4, 5, 0, 1, 4, 5));
    }
};

ALWAYS_INLINE __m256i broadcast_cell(const char* at) {
    int32_t cell;
    memcpy(&cell, at, 4);
    return _mm256_set1_epi32(cell);
}

struct Halves {
    using Sum = __m256;
    struct Right {
        __m256 even, odd;
    };
    static constexpr bool kBytes = false;
    static constexpr bool kGrouped = false;
    static constexpr size_t kPerCell = 2, kLeft = 8, kHalves = 1, kMostGroups = 1;

    static constexpr size_t key_group(size_t size) { return size; }
    static constexpr size_t value_group(size_t size) { return size; }
    static ALWAYS_INLINE Sum begin(int32_t) { return _mm256_setzero_ps(); }
    static ALWAYS_INLINE Right load_key(const char* at, Index<0> = {}) {
        const __m256i cells = _mm256_load_si256((const __m256i*)at), upper = _mm256_set1_epi32((int)0xffff0000);
        return {_mm256_castsi256_ps(_mm256_slli_epi32(cells, 16)), _mm256_castsi256_ps(_mm256_and_si256(cells, upper))};
    }
    static ALWAYS_INLINE Right load_value(const char* at, Index<0>, const char*) { return load_key(at); }
    static ALWAYS_INLINE Right broadcast(const char* at) {
        return {_mm256_broadcast_ss((const float*)at), _mm256_broadcast_ss((const float*)at + 1)};
    }
    static ALWAYS_INLINE Sum add_key(Sum sum, Right key, Right query) {
        return _mm256_fmadd_ps(key.odd, query.odd, _mm256_fmadd_ps(key.even, query.even, sum));
    }
    static ALWAYS_INLINE Sum add_value(Sum sum, Right weights, Right value) { return add_key(sum, value, weights); }
    static ALWAYS_INLINE __m256 to_float(Sum x) { return x; }
    static ALWAYS_INLINE __m256 scales(const char*, size_t, float scale) { return _mm256_set1_ps(scale); }
    static ALWAYS_INLINE void store_weights(char* out, const __m256 (&x)[8]) {
        unroll<8>([&](auto n) INLINED { _mm256_store_ps((float*)out + n.value * 8, x[n.value]); });
    }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        for (size_t i = 0; i < size; ++i) ((float*)out)[i] = widen(q[i]);
        *start = 0;
        return 1.0f;
    }
};

// What all kinds of bytes share.
struct Integers {
    using Sum = __m256i;
    static constexpr bool kBytes = true, kGrouped = false;
    static constexpr size_t kPerCell = 4, kHalves = 1, kMostGroups = 1;

    static constexpr size_t key_group(size_t size) { return size; }
    static constexpr size_t value_group(size_t size) { return size; }
    static ALWAYS_INLINE Sum begin(int32_t start) { return _mm256_set1_epi32(start); }
    static ALWAYS_INLINE __m256 to_float(Sum x) { return _mm256_cvtepi32_ps(x); }
    // Scales as the cache holds them, from the one of key i on.
    static ALWAYS_INLINE __m256 held(const char* scales, size_t i) { return _mm256_load_ps((const float*)scales + i); }
    static ALWAYS_INLINE __m256 scales(const char* of_keys, size_t key, float scale) {
        return _mm256_mul_ps(held(of_keys, key), _mm256_set1_ps(scale));
    }
    // Words in order. A NaN converts to INT_MIN; its line's sum is NaN too.
    static ALWAYS_INLINE __m128i words(__m256 x) {
        const __m256i codes = _mm256_cvtps_epi32(x);
        return _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    }
    static int32_t start_of(const int8_t* codes, size_t size) {
        int32_t sum = 0;
        for (size_t i = 0; i < size; ++i) sum += codes[i];
        return -128 * sum;
    }
};

// A cell is four codes.
struct Packed : Integers {
    static constexpr size_t kLeft = 4;

    static ALWAYS_INLINE __m256i broadcast(const char* at) { return broadcast_cell(at); }
    static ALWAYS_INLINE void store_weights(char* out, const __m256 (&x)[8]) {
        unroll<4>([&](auto n) INLINED {
            const __m128i low = words(x[2 * n.value]), high = words(x[2 * n.value + 1]);
            _mm_store_si128((__m128i*)out + n.value, _mm_packus_epi16(low, high));
        });
    }
};

// Two cells in the halves of bytes. multiply(sum, without sign, with sign): adds products of bytes, of 255 and 15 at
// most.
template <__m256i (*multiply)(__m256i, __m256i, __m256i)>
struct Nibbles : Packed {
    using Right = __m256i;
    static constexpr bool kGrouped = true;
    static constexpr size_t kHalves = 2, kMostGroups = ::kMostGroups;

    static size_t key_group(size_t size) { return ::key_group(size); }
    static size_t value_group(size_t size) { return ::value_group(size); }
    template <int Half>
    static ALWAYS_INLINE Right load_key(const char* at, Index<Half>) {
        const __m256i two = _mm256_load_si256((const __m256i*)at);
        return _mm256_and_si256(Half ? _mm256_srli_epi16(two, 4) : two, _mm256_set1_epi8(15));
    }
    template <int Half>
    static ALWAYS_INLINE Right load_value(const char* at, Index<Half> half, const char* zeros) {
        return _mm256_sub_epi8(load_key(at, half), broadcast_cell(zeros));
    }
    static ALWAYS_INLINE Sum add_key(Sum sum, Right key, __m256i query) { return multiply(sum, key, query); }
    static ALWAYS_INLINE Sum add_value(Sum sum, __m256i weights, Right value) { return multiply(sum, weights, value); }
    static ALWAYS_INLINE __m256 held(const char* scales, size_t i) {
        return Vectors::widened((const uint16_t*)scales + i);
    }
    static ALWAYS_INLINE __m256 scales(const char*, size_t, float scale) { return _mm256_set1_ps(scale); }
    static float pack_query(const uint16_t* q, size_t size, char* out, int32_t* start) {
        return rotated_codes(q, size, (int8_t*)out, start);
    }
};

}  // namespace
