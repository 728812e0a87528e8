// attention_int8, AVX-512 VNNI. See vnni_avx512.h.
#include "vnni_avx512.h"

void attention_int8_avx512vnni(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin,
                               size_t query_end, void* scratch) {
    run<Vnni>(*p, {.attention = attention_avx512, .fewest = 1}, head_begin, head_end, query_begin, query_end, scratch);
}
