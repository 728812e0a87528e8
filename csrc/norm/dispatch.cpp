#include "dispatch.h"

namespace {

constexpr Variant<NormFn*> kVariants[] = {
    {"avx512", Isa::kAvx512Vnni, norm_avx512},
    {"avx2", Isa::kAvx2, norm_avx2},
    {"scalar", Isa::kScalar, norm_scalar},
};

}  // namespace

constinit const Variants<NormFn*> norm_variants = kVariants;
