// A program with state: sequences that grow step by step in one cache.
#pragma once
#include <vector>

#include "model.h"

// The output's rows of all tokens of a sequence of the pool, by one thread in one step by itself.
std::vector<float> in_one_step(Random& random, const Model& model, size_t s);

// These sequences of the pool in one cache, in steps cut anywhere and in any company, by one caller or, if `callers` is
// two, by two at once; with drafted tokens that turn out wrong, and now and then set back. Any result must be what came
// in one step alone.
void check_steps(Random& random, const Model& model, const std::vector<size_t>& chosen, int most_threads, int callers);
