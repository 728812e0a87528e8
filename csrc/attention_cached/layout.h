// Where things lie in a cache, and how rows become codes of 8 bits. Everything is internal to the file that includes
// it.
#pragma once
#include <float.h>
#include <math.h>
#include <string.h>

#include "attention/common.h"
#include "contract.h"
#include "vectors/bf16.h"

namespace {

// A head's part of a block.
struct CachedHead {
    char *keys, *values;
    char *key_scales, *value_scales;  // f32 of int8, bf16 of int4
    char* zeros;                      // of int4
};

inline char* head_in(const CacheLayer& cache, int32_t block, size_t head) {
    return cache.blocks + (size_t)block * cache.block_stride + head * cache.head_stride;
}

// Where the tokens of a block of a sequence lie; p: AppendCached or AttendCached.
template <class P>
inline CachedHead cached_head(const P& p, size_t block, size_t head) {
    const CacheLayer& cache = p.cache;
    char* at = head_in(cache, p.table[block], head);
    const size_t size = cache.head_size;
    if (cache.kind == CacheKind::kInt4) {
        const size_t bytes = kCacheBlock * size / 2;
        char* scales = at + 2 * bytes;
        char* of_values = scales + size / key_group(size) * kCacheBlock * sizeof(uint16_t);
        return {at, at + bytes, scales, of_values,
                of_values + size / value_group(size) * kCacheBlock * sizeof(uint16_t)};
    }
    const size_t bytes = kCacheBlock * size * (cache.kind == CacheKind::kInt8 ? 1 : 2);
    char* scales = at + 2 * bytes;
    return {at, at + bytes, scales, scales + kCacheBlock * sizeof(float), nullptr};
}

// Bytes of keys or values in 8 bits, with their scales.
inline size_t hot_bytes(size_t size) { return kCacheBlock * (size + sizeof(float)); }

// Where int4 has the same tokens in 8 bits.
template <class P>
inline CachedHead hot_head(const P& p, size_t block, size_t head) {
    char *keys = head_in(p.cache, p.table[p.table_stride + block], head),
         *values = head_in(p.cache, p.table[2 * p.table_stride + block], head);
    const size_t bytes = kCacheBlock * p.cache.head_size;
    return {keys, values, keys + bytes, values + bytes, nullptr};
}

// Where value i of token t of a block lies, in values, and where PerCell of them are a cell.
template <size_t PerCell>
inline size_t place_of_key(size_t t, size_t i, size_t size) {
    return (t / 16 * (size / PerCell) + i / PerCell) * 16 * PerCell + t % 16 * PerCell + i % PerCell;
}
template <size_t PerCell>
inline size_t place_of_value(size_t t, size_t i, size_t size) {
    return (t / PerCell * size + i) * PerCell + t % PerCell;
}

inline void widen_row(const uint16_t* x, size_t size, float* out) {
    for (size_t i = 0; i < size; ++i) out[i] = widen(x[i]);
}

// Codes of a row, and their scale; NaN and zeros if a value is not finite.
inline float row_codes(const float* x, size_t size, int8_t* codes) {
    uint32_t bits = 0;
    for (size_t i = 0; i < size; ++i) {
        const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        bits = magnitude > bits ? magnitude : bits;
    }
    const float largest = float_of(bits);
    const bool some = largest >= FLT_MIN && largest <= FLT_MAX;
    const float inverse = some ? 127.0f / largest : 0.0f;
    if (!some) {
        memset(codes, 0, size);
        return largest <= FLT_MAX ? 0.0f : NAN;
    }
    for (size_t i = 0; i < size; ++i) codes[i] = (int8_t)(int32_t)rintf(x[i] * inverse);
    return largest * (1.0f / 127.0f);
}

// Keys and values of a token go into int8; a NaN among them goes into the key's scale.
inline void append_bytes(const CachedHead& h, size_t t, const float* k, const float* v, size_t size) {
    int8_t keys[kMaxHeadSize], values[kMaxHeadSize];
    const float key_scale = row_codes(k, size, keys), value_scale = row_codes(v, size, values);
    const bool finite = value_scale == value_scale;
    ((float*)h.key_scales)[t] = finite ? key_scale : NAN;
    ((float*)h.value_scales)[t] = finite && key_scale == key_scale ? value_scale : 0.0f;
    for (size_t i = 0; i < size; i += 4) {
        uint32_t cell;
        memcpy(&cell, keys + i, 4);
        cell ^= 0x80808080u;
        memcpy(h.keys + place_of_key<4>(t, i, size), &cell, 4);
    }
    for (size_t i = 0; i < size; ++i) h.values[place_of_value<4>(t, i, size)] = (char)values[i];
}

inline bool row_is_finite(const uint16_t* x, size_t size) {
    bool finite = true;
    for (size_t i = 0; i < size; ++i) finite &= is_finite(x[i]);
    return finite;
}

}  // namespace
