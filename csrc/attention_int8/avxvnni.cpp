// attention_int8, AVX-VNNI: a cell is four codes. Tiles of 4 keys x 2 vectors of 8 queries, and of 4 queries x 2 vectors
// of head dimensions.
// Bound: compute. 8 scores at head size 32 are 16 vpdpbusd, of two a cycle, and 18 operations more.
#include "cells_avx2.h"

namespace {

struct AvxVnni : Cells<4> {
    // left is unsigned. In assembly, for GCC 12 copies every sum before and after the intrinsic.
    static ALWAYS_INLINE I multiply(I sum, I left, I right) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(left), "x"(right));
        return sum;
    }
    static ALWAYS_INLINE I add_cells(I sum, I cells) { return multiply(sum, cells, _mm256_set1_epi8(1)); }
};

}  // namespace

void attention_int8_avxvnni(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin,
                            size_t query_end, void* scratch) {
    run<AvxVnni>(*p, {.attention = attention_avx2, .fewest = 24}, head_begin, head_end, query_begin, query_end, scratch);
}
