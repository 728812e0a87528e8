// The levels of a weight's codes. Everything is internal to the file that includes it.
#pragma once
#include "contract.h"
#include "vectors/bf16.h"

namespace {

// Where whole numbers stand in the codes: levels are code - middle.
ALWAYS_INLINE int middle_of(const Wna8& w) { return w.minimum ? 0 : 1 << (w.bits - 1); }

// In bf16, of the lowest bits of an index: as many times as fit.
struct Levels {
    alignas(64) uint16_t bf16[32];

    explicit Levels(const LinearW4A16& p) {
        for (int i = 0; i < 32; ++i) {
            const int code = i & ((1 << p.weight.bits) - 1);
            bf16[i] = p.levels ? p.levels[code] : to_bf16((float)(code - middle_of(p.weight)));
        }
    }
};

}  // namespace
