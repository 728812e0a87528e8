// linear_w8a8, AVX-512 VNNI. See vnni_avx512.h.
#include "vnni_avx512.h"

void linear_w8a8_avx512vnni(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin,
                            size_t block_end) {
    run_tiles<Vnni>(*p, row_begin, row_end, block_begin, block_end);
}
