// Linears that integer kernels have run in this process, so that a verification can tell what a model really ran.
#pragma once
#include <stdint.h>

#include <atomic>

inline std::atomic<uint64_t> integer_linears{0};
