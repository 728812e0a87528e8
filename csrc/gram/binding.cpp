#include "binding.h"

#include "gram/passes.h"

void bind_gram(nb::module_& m) {
    bind_struct(m, "Gram", Field{"x", &Gram::x}, Field{"bf16", &Gram::bf16}, Field{"x_stride", &Gram::x_stride},
                Field{"m", &Gram::m}, Field{"k", &Gram::k}, Field{"packed", &Gram::packed}, Field{"low", &Gram::low},
                Field{"high", &Gram::high}, Field{"sum", &Gram::sum}, Field{"sum_abs", &Gram::sum_abs},
                Field{"gram", &Gram::gram});
    m.def("gram_scratch_bytes", &gram_scratch_bytes);
    bind_function(
        m, "add_gram", +[](Isa isa, int threads, const Gram& op) {
            const Variant<GramKernels>* variant = best_variant(gram_variants, isa);
            if (!variant) throw nb::value_error("this processor does not multiply bf16 with these instructions");
            add_gram(variant->kernel, threads, op);
        });
}
