// rows, AVX-512: see rows.h.
#include "rows.h"

const RowOperators kRowsAvx512 = kRows;
