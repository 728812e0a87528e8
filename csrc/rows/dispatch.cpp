#include "dispatch.h"

namespace {

constexpr Variant<const RowOperators*> kVariants[] = {
    {"avx512", Isa::kAvx512Vnni, &kRowsAvx512},
    {"avx2", Isa::kAvx2, &kRowsAvx2},
    {"scalar", Isa::kScalar, &kRowsScalar},
};

}  // namespace

constinit const Variants<const RowOperators*> rows_variants = kVariants;
