#include "binding.h"

#include "dispatch.h"

void bind_linear_w4a16(nb::module_& m) {
    using Rows = PrepareW4A16;
    using Op = LinearW4A16;
    bind_struct(m, "PrepareW4A16", Field{"x", &Rows::x}, Field{"bf16", &Rows::bf16}, Field{"x_stride", &Rows::x_stride},
                Field{"k", &Rows::k}, Field{"group", &Rows::group}, Field{"rows", &Rows::rows},
                Field{"row_stride", &Rows::row_stride}, Field{"sum", &Rows::sum},
                Field{"group_stride", &Rows::group_stride});
    bind_struct(m, "LinearW4A16", Field{"rows", &Op::rows}, Field{"row_stride", &Op::row_stride},
                Field{"sum_m", &Op::sum_m}, Field{"group_stride", &Op::group_stride}, Field{"weight", &Op::weight},
                Field{"levels", &Op::levels}, Field{"bias", &Op::bias}, Field{"y", &Op::y},
                Field{"out_stride", &Op::out_stride}, Field{"n", &Op::n}, Field{"activation", &Op::activation},
                Field{"output", &Op::output});
    bind_function(
        m, "prepare_w4a16", +[](const char* variant, const Rows& op, size_t row_begin, size_t row_end) {
            kernel_of(linear_w4a16_variants, variant).prepare(&op, row_begin, row_end);
        });
    bind_function(
        m, "linear_w4a16",
        +[](const char* variant, const Op& op, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
            kernel_of(linear_w4a16_variants, variant).multiply(&op, row_begin, row_end, block_begin, block_end);
        });
}
