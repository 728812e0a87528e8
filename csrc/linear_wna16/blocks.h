// What the variants have in common: the order of blocks and groups, and the zeros beyond K. Everything is internal to
// the file that includes it.
#pragma once
#include <string.h>

#include "contract.h"

namespace {

constexpr size_t kColumns = 16;

// Of one block: the codes of a group, its scales and zero points, and where its part of the panel begins.
struct Group {
    const uint8_t* codes;
    const float* scale;
    const int8_t* zero;  // or null
    size_t words;        // of 4 bytes for each column: 8 or 4 values of K
    uint16_t* panel;
};

// unpack(group) for every group of blocks [block, block + count). A group that does not end with a word, which only
// the last one may do, writes values beyond K, which become zeros.
template <class Unpack>
inline void unpack_blocks(const Wna16& w, size_t block, size_t count, uint16_t* panel, Unpack unpack) {
    const size_t values = w.levels ? 8 : 4, pad = w.levels ? 32 : 64;  // of K: in a word; to which codes are padded
    const size_t padded = (w.k + 31) / 32 * 32, groups = w.k / w.group;
    const size_t block_bytes = (w.k + pad - 1) / pad * pad / values * 4 * kColumns;
    for (size_t b = block; b < block + count; ++b, panel += padded * kColumns) {
        for (size_t g = 0; g < groups; ++g) {
            const size_t first = g * w.group, scales = (b * groups + g) * kColumns;
            unpack(Group{w.codes + b * block_bytes + first / values * 4 * kColumns, w.scale + scales,
                         w.zero ? w.zero + scales : nullptr, (w.group + values - 1) / values,
                         panel + first * kColumns});
        }
        const size_t whole = (w.k + 1) / 2 * 2;  // values of K lie in pairs
        if (whole > w.k) {
            for (size_t c = 0; c < kColumns; ++c) panel[(w.k - 1) * kColumns + 2 * c + 1] = 0;
        }
        memset(panel + whole * kColumns, 0, (padded - whole) * kColumns * sizeof(uint16_t));
    }
}

}  // namespace
