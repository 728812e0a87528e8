// A weight, value by value. Everything is internal to the file that includes it.
#pragma once
#include "contract.h"
#include "vectors/bf16.h"
#include "words.h"

namespace {

// A scale, or a minimum.
inline float of_group(const Wna8& w, const void* values, size_t at) {
    return w.bf16_scale ? widen(((const uint16_t*)values)[at]) : ((const float*)values)[at];
}

// codes: of the column's block.
template <int bits>
int32_t code(const uint8_t* codes, size_t column, size_t k) {
    using W = Word<bits>;
    const uint8_t* word = codes + k / W::values * W::bytes + column * 4 + k % 4;
    const size_t run = k % W::values / 4;
    if (run < W::whole) return word[run / W::fields * 64] >> run % W::fields * bits & ((1 << bits) - 1);
    return word[(run - 6) * 64] >> 6 | (word[128] >> run & 1) << 2;
}

}  // namespace
