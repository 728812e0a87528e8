// linear_bf16, AMX: 2 x 2 tiles of 16 x 16 sums by tdpbf16ps; linear/amx.h.
// Layout: contract.h; a B tile is one column block and 32 K values.
// Bound: L2. Four tdpbf16ps are 65536 operations in 64 cycles and take 64 lines of x and weights; a short K leaves x in
// L1.
#include "linear/amx.h"

#include <immintrin.h>

#include "contract.h"
#include "epilogue_avx512.h"

void linear_bf16_amx(const LinearBf16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    run_squares<Bf16>(*p, row_begin, row_end, block_begin, block_end);
}
