// A loop that is unrolled before the compiler sees it. For the files of one instruction set: everything is internal to
// the file that includes it.
#pragma once

#define INLINED __attribute__((always_inline))  // after a lambda's parameters
#define ALWAYS_INLINE inline INLINED

namespace {

template <int I>
struct Index {
    static constexpr int value = I;
};

// f(Index<0>), ..., f(Index<N - 1>). GCC 12 keeps an array in registers only if every subscript is a constant before
// its loops are unrolled; in a plain loop it stores each element to the stack after each instruction.
template <int N, class F>
ALWAYS_INLINE void unroll(F f) {
    if constexpr (N > 1) unroll<N - 1>(f);
    f(Index<N - 1>{});
}

}  // namespace
