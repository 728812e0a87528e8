#include "binding.h"

#include "dispatch.h"

void bind_linear_wna16(nb::module_& m) {
    bind_struct(m, "Wna16", Field{"codes", &Wna16::codes}, Field{"levels", &Wna16::levels},
                Field{"scale", &Wna16::scale}, Field{"zero", &Wna16::zero}, Field{"k", &Wna16::k},
                Field{"group", &Wna16::group});
    bind_struct(m, "LinearWna16", Field{"linear", &LinearWna16::linear}, Field{"weight", &LinearWna16::weight});
    m.def("wna16_scratch_bytes", &wna16_scratch_bytes);
    bind_function(
        m, "unpack_wna16", +[](const char* variant, const Wna16& weight, size_t block, size_t count, uintptr_t panel) {
            kernel_of(linear_wna16_variants, variant)(&weight, block, count, reinterpret_cast<uint16_t*>(panel));
        });
    bind_function(
        m, "linear_wna16",
        +[](Isa isa, const LinearWna16& op, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end,
            uintptr_t scratch) {
            linear_wna16(isa, &op, row_begin, row_end, block_begin, block_end, reinterpret_cast<void*>(scratch));
        });
}
