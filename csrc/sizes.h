// Arithmetic of sizes. Everything is internal to the file that includes it: files of different instruction sets do.
#pragma once
#include <stddef.h>

namespace {

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }
inline size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace
