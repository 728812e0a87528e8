// linear_w8a8, AMX: 2 x 2 tiles of 16 x 16 int32 sums by tdpbusd; linear/amx.h.
// Layout: contract.h; a B tile is one column block and 64 K values.
// Bound: compute, tdpbusd is 32768 operations in 16 cycles. Squares with a short K are bound by L2: 128 lines of codes
// and weights for every 64 values of K, and 64 of output.
#include "linear/amx.h"

#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

void linear_w8a8_amx(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_squares<W8A8>(*p, row_begin, row_end, block_begin, block_end);
}
