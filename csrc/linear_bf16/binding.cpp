#include "binding.h"

#include "dispatch.h"

void bind_linear_bf16(nb::module_& m) {
    bind_struct(m, "LinearBf16", Field{"x", &LinearBf16::x}, Field{"x_stride", &LinearBf16::x_stride},
                Field{"weight", &LinearBf16::weight}, Field{"bias", &LinearBf16::bias}, Field{"y", &LinearBf16::y},
                Field{"out_stride", &LinearBf16::out_stride}, Field{"n", &LinearBf16::n},
                Field{"k_padded", &LinearBf16::k_padded}, Field{"activation", &LinearBf16::activation},
                Field{"output", &LinearBf16::output});
    bind_function(
        m, "linear_bf16",
        +[](const char* variant, const LinearBf16& op, size_t row_begin, size_t row_end, size_t block_begin,
            size_t block_end) {
            kernel_of(linear_bf16_variants, variant)(&op, row_begin, row_end, block_begin, block_end);
        });
}
