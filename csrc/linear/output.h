// What a linear does to its sums, and what its output holds. An activation that is not in this list is an operator of
// its own (rows/contract.h).
#pragma once

enum class Activation { kNone, kGelu };

// kCodes and kSums are for operators with integer sums.
enum class Output { kF32, kBf16, kCodes, kSums };
