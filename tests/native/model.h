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
};

struct Model {
    std::vector<Exact> weights;
    std::unique_ptr<Program> program;
    size_t operators[std::variant_size_v<Op>] = {};  // how many of each kind it has
    size_t width = 0;                                // of a row of the output
    Per per = Per::kToken;                           // of the output
    Sequences pool;
    std::vector<std::vector<float>> alone;  // what one thread makes of each sequence of the pool by itself

    // The output's rows of these sequences of the pool, as one batch.
    std::vector<float> compute(Random& random, const std::vector<size_t>& chosen, int threads) const;
    // Runs a batch of 1 to `most` of them on 1 to `most_threads` threads; any result must be what came alone.
    void check(Random& random, size_t most, int most_threads) const;
};

// number: consecutive ones vary what random choice would only vary now and then.
std::unique_ptr<Model> random_model(Random& random, Isa isa, size_t number);
