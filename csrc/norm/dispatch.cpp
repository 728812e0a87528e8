#include "contract.h"

NormFn norm_for(int isa) {
    static constexpr NormFn variants[] = {
        norm_scalar,
        norm_avx2,
        norm_avx512vnni,
        norm_avx512vnni,  // amx: nothing in this operator for tiles
    };
    return variants[isa];
}
