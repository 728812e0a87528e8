#include "binding.h"

#include "dispatch.h"

void bind_norm(nb::module_& m) {
    bind_struct(m, "Norm", Field{"x", &Norm::x}, Field{"residual", &Norm::residual}, Field{"sum", &Norm::sum},
                Field{"y", &Norm::y}, Field{"weight", &Norm::weight}, Field{"bias", &Norm::bias},
                Field{"stride", &Norm::stride}, Field{"n", &Norm::n}, Field{"eps", &Norm::eps},
                Field{"centred", &Norm::centred});
    bind_function(
        m, "norm", +[](const char* variant, const Norm& op, size_t row_begin, size_t row_end) {
            kernel_of(norm_variants, variant)(&op, row_begin, row_end);
        });
}
