#include "dispatch.h"

namespace {

constexpr Variant<QuantizeGroupsFn*> kVariants[] = {
    {"avx512", Isa::kAvx512Vnni, quantize_groups_avx512},
    {"avx2", Isa::kAvx2, quantize_groups_avx2},
    {"scalar", Isa::kScalar, quantize_groups_scalar},
};

}  // namespace

constinit const Variants<QuantizeGroupsFn*> quantize_groups_variants = kVariants;
