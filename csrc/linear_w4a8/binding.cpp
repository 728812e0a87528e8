#include "binding.h"

#include "dispatch.h"

void bind_linear_w4a8(nb::module_& m) {
    using Op = LinearW4A8;
    bind_struct(m, "Wna8", Field{"codes", &Wna8::codes}, Field{"bits", &Wna8::bits}, Field{"levels", &Wna8::levels},
                Field{"scale", &Wna8::scale}, Field{"bf16_scale", &Wna8::bf16_scale}, Field{"zero", &Wna8::zero},
                Field{"minimum", &Wna8::minimum}, Field{"k", &Wna8::k}, Field{"group", &Wna8::group},
                Field{"per", &Wna8::per});
    bind_struct(m, "LinearW4A8", Field{"codes", &Op::codes}, Field{"code_stride", &Op::code_stride},
                Field{"scale_m", &Op::scale_m}, Field{"sum_m", &Op::sum_m}, Field{"group_stride", &Op::group_stride},
                Field{"weight", &Op::weight}, Field{"bias", &Op::bias}, Field{"y", &Op::y},
                Field{"out_stride", &Op::out_stride}, Field{"n", &Op::n}, Field{"activation", &Op::activation},
                Field{"output", &Op::output});
    bind_function(
        m, "linear_w4a8",
        +[](const char* variant, const LinearW4A8& op, size_t row_begin, size_t row_end, size_t block_begin,
            size_t block_end) {
            kernel_of(linear_w4a8_variants, variant)(&op, row_begin, row_end, block_begin, block_end);
        });
}
