// Where a run's codes are in a word, as vectors look them up. Everything is internal to the file that includes it.
#pragma once
#include "linear_w4a8/words.h"

namespace {

// What a part of a run looks up, in the lowest bits of lanes. The bits above are those of other fields.
template <class Op, int bits, int run, int part>
ALWAYS_INLINE auto index_of(const typename Op::I (&word)[Word<bits>::bytes / 64]) {
    using W = Word<bits>;
    constexpr int byte = Op::kParts == 2 ? part : part == 1 ? 2 : part == 2 ? 1 : part;
    if constexpr (run < W::whole) {
        return Op::template shifted<run % W::fields * bits + byte * 8>(word[run / W::fields]);
    } else {
        const auto two = Op::template shifted<6>(word[run - 6]), rest = Op::template shifted<run - 2>(word[2]);
        return Op::template shifted<byte * 8>(Op::two_and_rest(two, rest));
    }
}

}  // namespace
