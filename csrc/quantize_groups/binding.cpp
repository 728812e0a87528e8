#include "binding.h"

#include "dispatch.h"

void bind_quantize_groups(nb::module_& m) {
    using Op = QuantizeGroups;
    bind_struct(m, "QuantizeGroups", Field{"x", &Op::x}, Field{"bf16", &Op::bf16}, Field{"x_stride", &Op::x_stride},
                Field{"k", &Op::k}, Field{"group", &Op::group}, Field{"by_row", &Op::by_row},
                Field{"shift", &Op::shift}, Field{"multiplier", &Op::multiplier}, Field{"codes", &Op::codes},
                Field{"code_stride", &Op::code_stride}, Field{"scale", &Op::scale}, Field{"sum", &Op::sum},
                Field{"group_stride", &Op::group_stride});
    bind_function(
        m, "quantize_groups", +[](const char* variant, const QuantizeGroups& op, size_t row_begin, size_t row_end) {
            kernel_of(quantize_groups_variants, variant)(&op, row_begin, row_end);
        });
}
