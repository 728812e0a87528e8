// Masks of AVX-512's lanes. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stddef.h>

namespace {

// Lanes of the sixteen columns at n that come before column `end`.
inline __mmask16 column_mask(size_t n, size_t end) {
    return n + 16 <= end ? (__mmask16)0xffff : n >= end ? (__mmask16)0 : (__mmask16)((1u << (end - n)) - 1);
}

}  // namespace
