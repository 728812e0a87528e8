#include "contract.h"

QuantizeRowsFn quantize_rows_for(int isa) {
    static constexpr QuantizeRowsFn variants[] = {
        quantize_rows_scalar,
        quantize_rows_avx2,
        quantize_rows_avx512vnni,
        quantize_rows_avx512vnni,  // amx: nothing in this operator for tiles
    };
    return variants[isa];
}
