// attention_cached, AVX-512 VNNI; bf16 is widened to f32. See cells_avx512.h.
#include "cells_avx512.h"

const CachedKernels kCachedAvx512Vnni = {append, attend<Wide, Bytes, Nibbles, Halves>, merge};
