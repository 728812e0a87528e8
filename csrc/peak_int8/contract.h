// peak_int8: the most int8 operations (a multiply or an add) that one core can do in an instruction set: its widest
// int8 multiply-add on registers alone, enough independent sums to hide the latency. What a GEMM is measured against.
// Returns the operations that `repeats` rounds do; the caller times it. No allocation, threads or state.
#pragma once
#include <stddef.h>
#include <stdint.h>

using PeakInt8Fn = uint64_t(uint64_t repeats);

extern "C" PeakInt8Fn peak_int8_avx2, peak_int8_avxvnni, peak_int8_avx512vnni, peak_int8_amx;
