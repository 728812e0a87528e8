// attention_int8, AVX2: a cell is two codes in words, as vpmaddwd takes them; vpmaddubsw would saturate. Tiles of 4 keys
// x 2 vectors of 8 queries, and of 4 queries x 2 vectors of head dimensions.
// Bound: compute. 8 scores at head size 32 are 32 vpmaddwd and as many additions, of two or three a cycle, and 18
// operations more.
#include "cells_avx2.h"

namespace {

struct Avx2 : Cells<2> {
    static ALWAYS_INLINE I multiply(I sum, I left, I right) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));
    }
    static ALWAYS_INLINE I add_cells(I sum, I cells) { return multiply(sum, cells, _mm256_set1_epi16(1)); }
};

}  // namespace

void attention_int8_avx2(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                         void* scratch) {
    run<Avx2>(*p, {.attention = attention_avx2, .fewest = 40}, head_begin, head_end, query_begin, query_end, scratch);
}
