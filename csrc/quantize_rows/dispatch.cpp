#include "dispatch.h"

namespace {

constexpr Variant<QuantizeRowsFn*> kVariants[] = {
    {"avx512", Isa::kAvx512Vnni, quantize_rows_avx512},
    {"avx2", Isa::kAvx2, quantize_rows_avx2},
    {"scalar", Isa::kScalar, quantize_rows_scalar},
};

}  // namespace

constinit const Variants<QuantizeRowsFn*> quantize_rows_variants = kVariants;
