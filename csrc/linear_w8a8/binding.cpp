#include "binding.h"

#include "linear_w8a8/float_rows.h"

void bind_linear_w8a8(nb::module_& m) {
    using Grid = OutputGrid;
    using Op = LinearW8A8;
    using Rows = QuantizeLinearW8A8;
    bind_struct(m, "OutputGrid", Field{"shift", &Grid::shift}, Field{"multiplier", &Grid::multiplier},
                Field{"scale", &Grid::scale}, Field{"zero_point", &Grid::zero_point},
                Field{"code_min", &Grid::code_min});
    bind_struct(m, "LinearW8A8", Field{"codes", &Op::codes}, Field{"code_stride", &Op::code_stride},
                Field{"scale_m", &Op::scale_m}, Field{"zero_m", &Op::zero_m}, Field{"weight", &Op::weight},
                Field{"colsum", &Op::colsum}, Field{"scale_n", &Op::scale_n}, Field{"bias", &Op::bias},
                Field{"y", &Op::y}, Field{"out_stride", &Op::out_stride}, Field{"n", &Op::n},
                Field{"k_padded", &Op::k_padded}, Field{"activation", &Op::activation}, Field{"output", &Op::output},
                Field{"grid", &Op::grid});
    bind_struct(m, "QuantizeLinearW8A8", Field{"x", &Rows::x}, Field{"bf16", &Rows::bf16},
                Field{"x_stride", &Rows::x_stride}, Field{"m", &Rows::m}, Field{"k", &Rows::k},
                Field{"shift", &Rows::shift}, Field{"multiplier", &Rows::multiplier}, Field{"mode", &Rows::mode},
                Field{"static_scale", &Rows::static_scale}, Field{"static_zero_point", &Rows::static_zero_point},
                Field{"code_min", &Rows::code_min}, Field{"weight", &Rows::weight}, Field{"colsum", &Rows::colsum},
                Field{"scale_n", &Rows::scale_n}, Field{"bias", &Rows::bias}, Field{"y", &Rows::y},
                Field{"n", &Rows::n}, Field{"activation", &Rows::activation}, Field{"scratch", &Rows::scratch});
    m.def("code_stride", &code_stride);
    m.def("scratch_bytes", &scratch_bytes);
    bind_function(
        m, "linear_w8a8",
        +[](const char* variant, const LinearW8A8& op, size_t row_begin, size_t row_end, size_t block_begin,
            size_t block_end) {
            kernel_of(linear_w8a8_variants, variant)(&op, row_begin, row_end, block_begin, block_end);
        });
    bind_function(m, "quantize_linear_w8a8", &quantize_linear_w8a8);
}
