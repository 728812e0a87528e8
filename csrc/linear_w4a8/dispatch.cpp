#include "dispatch.h"

namespace {

constexpr Variant<LinearW4A8Fn*> kVariants[] = {
    {"amx", Isa::kAmx, linear_w4a8_amx},
    {"avx512vnni", Isa::kAvx512Vnni, linear_w4a8_avx512vnni},
    {"avxvnni", Isa::kAvxVnni, linear_w4a8_avxvnni},
    {"avx2", Isa::kAvx2, linear_w4a8_avx2},
    {"scalar", Isa::kScalar, linear_w4a8_scalar},
};

}  // namespace

constinit const Variants<LinearW4A8Fn*> linear_w4a8_variants = kVariants;
