// Masks of AVX-512's lanes. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stddef.h>

namespace {

// The lowest `count` lanes; all, if there are no more.
template <class Mask>
inline Mask lowest(size_t count) {
    return count >= 8 * sizeof(Mask) ? (Mask)~Mask(0) : (Mask)((Mask(1) << count) - 1);
}

// Lanes of the columns from n on that come before column `end`.
template <class Mask>
inline Mask lanes_before(size_t n, size_t end) {
    return n < end ? lowest<Mask>(end - n) : Mask(0);
}

}  // namespace
