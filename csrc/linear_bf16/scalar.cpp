// linear_bf16, the definition in C++. See contract.h.
#include "contract.h"
#include "linear/output_scalar.h"
#include "vectors/bf16.h"

void linear_bf16_scalar(const LinearBf16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const size_t end = block_end * 16 < p->n ? block_end * 16 : p->n;
    for (size_t m = row_begin; m < row_end; ++m) {
        const uint16_t* x = p->x + m * p->x_stride;
        for (size_t n = block_begin * 16; n < end; ++n) {
            const uint16_t* weight = p->weight + n / 16 * 16 * p->k_padded + n % 16 * 2;
            float sum = 0.0f;  // a product of two bf16 values is exact in f32, so that fma would give the same
            for (size_t k = 0; k < p->k_padded; ++k) sum += widen(x[k]) * widen(weight[k / 2 * 32 + k % 2]);
            write_output(*p, sum + p->bias[n], m * p->out_stride + n);
        }
    }
}
