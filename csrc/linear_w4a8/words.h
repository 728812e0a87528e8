// Words of a weight's codes, as contract.h describes them. Everything is internal to the file that includes it.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "contract.h"
#include "vectors/unroll.h"

namespace {

template <int bits>
struct Word {
    static constexpr size_t values = bits == 4 ? 8 : bits == 2 ? 16 : 32;  // of K
    static constexpr size_t bytes = values * bits * 2;                     // of 16 columns
    static constexpr int runs = values / 4;                                // of four values: operands of vpdpbusd
    static constexpr int fields = 8 / bits;                                // in a byte, each of a run
    static constexpr int whole = bytes / 64 * fields;                      // runs that are fields

    // A run of a word, of as many bytes as Vector has, the same in each of the vectors.
    //   Vector::field<shift, width>(at)            the bytes there, of each so many bits from that bit on
    //   Vector::with_bit<from, to>(field, at)      and beside a field one bit of the bytes there, as another bit
    template <class Vector, int run>
    ALWAYS_INLINE static auto run_of(const uint8_t* word, Index<run>) {
        if constexpr (run < whole) {
            return Vector::template field<run % fields * bits, bits>(word + run / fields * 64);
        } else {
            return Vector::template with_bit<run, 2>(Vector::template field<6, 2>(word + (run - 6) * 64), word + 128);
        }
    }
};

// f of a weight's bits as a type, but of 1.
template <class F>
ALWAYS_INLINE void for_bits(int bits, F f) {
    if (bits == 4) return f(Index<4>{});
    if (bits == 3) return f(Index<3>{});
    f(Index<2>{});
}

// f of them, and of whether the weight has levels.
template <class F>
ALWAYS_INLINE void for_codes(const Wna8& w, F f) {
    if (w.levels) return f(Index<4>{}, Index<1>{});
    if (w.bits == 1) return f(Index<1>{}, Index<0>{});
    for_bits(w.bits, [&](auto bits) { f(bits, Index<0>{}); });
}

}  // namespace
