// rows, AVX2: see rows.h.
#include "rows.h"

const RowOperators kRowsAvx2 = kRows;
