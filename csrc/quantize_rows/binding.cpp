#include "binding.h"

#include "dispatch.h"

void bind_quantize_rows(nb::module_& m) {
    nb::enum_<QuantizeMode>(m, "QuantizeMode")
        .value("asymmetric", QuantizeMode::kAsymmetric)
        .value("symmetric", QuantizeMode::kSymmetric)
        .value("static", QuantizeMode::kStatic);
    bind_struct(m, "QuantizeRows", Field{"x", &QuantizeRows::x}, Field{"bf16", &QuantizeRows::bf16},
                Field{"x_stride", &QuantizeRows::x_stride}, Field{"k", &QuantizeRows::k},
                Field{"shift", &QuantizeRows::shift}, Field{"multiplier", &QuantizeRows::multiplier},
                Field{"codes", &QuantizeRows::codes}, Field{"code_stride", &QuantizeRows::code_stride},
                Field{"scale", &QuantizeRows::scale}, Field{"zero_point", &QuantizeRows::zero_point},
                Field{"mode", &QuantizeRows::mode}, Field{"static_scale", &QuantizeRows::static_scale},
                Field{"static_zero_point", &QuantizeRows::static_zero_point},
                Field{"code_min", &QuantizeRows::code_min});
    bind_function(
        m, "quantize_rows", +[](const char* variant, const QuantizeRows& op, size_t row_begin, size_t row_end) {
            kernel_of(quantize_rows_variants, variant)(&op, row_begin, row_end);
        });
}
