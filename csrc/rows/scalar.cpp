// rows, the baseline: see rows.h.
#include "rows.h"

const RowOperators kRowsScalar = kRows;
