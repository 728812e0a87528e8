// A random program, its weights, and what it makes of some sequences.
#pragma once
#include <memory>
#include <vector>

#include "engine/program.h"
#include "exact.h"

// ids, types: of sequences laid end to end; types is empty where the program's batches have none.
struct Sequences {
    std::vector<int32_t> ids, types;
    std::vector<int64_t> starts = {0};

    size_t tokens(size_t s) const { return size_t(starts[s + 1] - starts[s]); }
};

struct Model {
    std::vector<Exact> weights;
    std::unique_ptr<Program> program;
    size_t operators[std::variant_size_v<Op>] = {};  // how many of each kind it has
    size_t vocabulary = 0, types = 0, longest = 0;   // ids, types of tokens, and tokens of a sequence
    size_t width = 0;                                // of a row of the output
    Per per = Per::kToken;                           // of the output
    size_t cache_bytes = 0;                          // of a block of every head of every layer; 0: it has no state
    size_t undone = kCacheBlock;                     // tokens that a sequence can be taken back by
    bool causal = true;                              // if not, a sequence comes in one step
    Sequences pool;
    std::vector<std::vector<float>> alone;  // what one thread makes of each sequence of the pool by itself

    // Runs a batch, or the steps, of 1 to `most` of them on 1 to `most_threads` threads; any result must be what came
    // alone. callers: of steps of one cache at once, at most; two or one.
    void check(Random& random, size_t most, int most_threads, int callers) const;
};

// number: consecutive ones vary what random choice would only vary now and then.
std::unique_ptr<Model> random_model(Random& random, Isa isa, size_t number);
