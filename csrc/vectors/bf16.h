// bf16, the upper half of f32, value by value. Everything is internal to the file that includes it.
#pragma once
#include <stdint.h>
#include <string.h>

#include "vectors/unroll.h"

namespace {

ALWAYS_INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

ALWAYS_INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

ALWAYS_INLINE float widen(uint16_t x) { return float_of((uint32_t)x << 16); }

// To the nearest, half to even; of every NaN the same one.
ALWAYS_INLINE uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0 : rounded);
}

}  // namespace
