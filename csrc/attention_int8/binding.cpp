#include "binding.h"

#include "dispatch.h"

void bind_attention_int8(nb::module_& m) {
    m.def("attention_int8_scratch_bytes", &attention_int8_scratch_bytes);
    bind_function(
        m, "attention_int8",
        +[](const char* variant, const Attention& op, size_t head_begin, size_t head_end, size_t query_begin,
            size_t query_end, uintptr_t scratch) {
            kernel_of(attention_int8_variants, variant)(&op, head_begin, head_end, query_begin, query_end,
                                                        reinterpret_cast<void*>(scratch));
        });
}
