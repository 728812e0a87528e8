// Masks of AVX-512's lanes. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>
#include <stddef.h>

#include <type_traits>

namespace {

// The lowest `count` lanes of 32 or 64; all, if there are no more.
template <class Mask>
inline Mask lowest(size_t count) {
    return count >= 8 * sizeof(Mask) ? ~Mask(0) : (Mask(1) << count) - 1;
}

// Lanes of the 16, 32 or 64 columns from n on that come before column `end`.
template <class Mask>
inline Mask lanes_before(size_t n, size_t end) {
    using Wide = std::conditional_t<sizeof(Mask) == 8, __mmask64, __mmask32>;
    return n < end ? (Mask)lowest<Wide>(end - n) : Mask(0);
}

}  // namespace
