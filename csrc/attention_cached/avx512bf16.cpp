// attention_cached, AVX-512 with VNNI and products of bf16. See cells_avx512.h.
#include "cells_avx512.h"

const CachedKernels kCachedAvx512Bf16 = {append, attend<Wide, Bytes, Nibbles, Halves>, merge};
