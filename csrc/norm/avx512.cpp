// norm, AVX-512: see rows.h.
#include "rows.h"

void norm_avx512(const Norm* p, size_t row_begin, size_t row_end) { norm_rows(*p, row_begin, row_end); }
