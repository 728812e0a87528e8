#include "dispatch.h"

namespace {

constexpr Variant<PeakInt8Fn*> kVariants[] = {
    {"amx", Isa::kAmx, peak_int8_amx},
    {"avx512vnni", Isa::kAvx512Vnni, peak_int8_avx512vnni},
    {"avxvnni", Isa::kAvxVnni, peak_int8_avxvnni},
    {"avx2", Isa::kAvx2, peak_int8_avx2},
};

}  // namespace

constinit const Variants<PeakInt8Fn*> peak_int8_variants = kVariants;
