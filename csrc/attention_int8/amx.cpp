// attention_int8, AMX: `attention` itself. Tiles multiply bf16 so fast that the softmax takes most of the time, and codes
// would only add to it.
#include "contract.h"

void attention_int8_amx(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                        void* scratch) {
    attention_amx(p, head_begin, head_end, query_begin, query_end, scratch);
}
