#include "binding.h"

#include "dispatch.h"

void bind_attention(nb::module_& m) {
    bind_struct(m, "Attention", Field{"q", &Attention::q}, Field{"k", &Attention::k}, Field{"v", &Attention::v},
                Field{"stride", &Attention::stride}, Field{"out", &Attention::out},
                Field{"out_stride", &Attention::out_stride}, Field{"tokens", &Attention::tokens},
                Field{"head_size", &Attention::head_size}, Field{"scale", &Attention::scale},
                Field{"bias", &Attention::bias}, Field{"bias_stride", &Attention::bias_stride},
                Field{"bias_query_step", &Attention::bias_query_step}, Field{"window", &Attention::window});
    m.attr("NO_WINDOW") = size_t(kNoWindow);
    m.def("attention_scratch_bytes", &attention_scratch_bytes);
    bind_function(
        m, "attention",
        +[](const char* variant, const Attention& op, size_t head_begin, size_t head_end, size_t query_begin,
            size_t query_end, uintptr_t scratch) {
            kernel_of(attention_variants, variant)(&op, head_begin, head_end, query_begin, query_end,
                                                   reinterpret_cast<void*>(scratch));
        });
}
