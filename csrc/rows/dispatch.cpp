#include "contract.h"

const RowOperators& rows_for(int isa) {
    static constexpr const RowOperators* variants[] = {
        &kRowsScalar,
        &kRowsAvx2,
        &kRowsAvx512Vnni,
        &kRowsAvx512Vnni,  // amx: nothing in this operator for tiles
    };
    return *variants[isa];
}
